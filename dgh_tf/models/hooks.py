"""What is done to layers while a model is traced, and undone after: their calls recorded,
their precision changed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorflow as tf


@contextlib.contextmanager
def record_calls(layers: list, *, instead: Mapping[int, Callable] | None = None) -> Iterator[list]:
    """Yields a list that fills with (layer, input, output) at each call of one of `layers`; their
    calls are put back after.

    instead: by id of the layer, a function from input to output that stands in for its call.
    """
    recorded: list = []
    own = [
        layer.__dict__.get("call") for layer in layers
    ]  # a `call` that the user set on the object itself

    def wrap(layer: Any) -> Callable:
        call, other = layer.call, (instead or {}).get(id(layer))

        def recording(x: Any, *args: Any, **kwargs: Any) -> Any:
            y = other(x) if other else call(x, *args, **kwargs)
            recorded.append((layer, x, y))
            return y

        return recording

    try:
        for layer in layers:
            object.__setattr__(layer, "call", wrap(layer))
        yield recorded
    finally:
        for layer, call in zip(layers, own, strict=True):
            layer.__dict__.pop("call", None)
            if call is not None:
                object.__setattr__(layer, "call", call)


@contextlib.contextmanager
def without_relu(model: Any) -> Iterator[None]:
    """Inside, the model's ReLU activations pass every value on, those of layers and ReLU layers."""
    layers = list({id(layer): layer for layer in model._flatten_layers()}.values())
    relu = [layer for layer in layers if type(layer).__name__ == "ReLU"]
    inside = [
        layer
        for layer in layers
        if getattr(getattr(layer, "activation", None), "__name__", "") == "relu"
    ]
    own = [layer.activation for layer in inside]

    def passing(x: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
        return x

    try:
        for layer in inside:
            layer.activation = passing
        with record_calls(relu, instead={id(layer): passing for layer in relu}):
            yield
    finally:
        for layer, activation in zip(inside, own, strict=True):
            layer.activation = activation


@contextlib.contextmanager
def computing_in(model: Any, precision: str) -> Iterator[None]:
    """Inside, the model's layers compute in bfloat16 or float16; its weights stay as they are, its
    policies are put back.

    Raises: ValueError for a tf_keras model: its layers settle on a precision when they are made.
    """
    if precision == "float32":
        yield
        return
    layers = list({id(layer): layer for layer in model._flatten_layers()}.values())
    if not all(
        type(layer).__module__.startswith("keras.") or hasattr(type(layer), "dtype_policy")
        for layer in layers
    ):
        raise ValueError(
            f"precision={precision} needs a Keras 3 model; {model.name!r} is one of "
            "tf_keras. Leave it out."
        )
    own = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = f"mixed_{precision}"
        yield
    finally:
        for layer, policy in zip(layers, own, strict=True):
            layer.dtype_policy = policy
