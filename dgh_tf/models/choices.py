"""Outputs that are choices, such as the position of the highest number, are taken off a model: they
are no numbers of the network, so that they have neither a scale nor a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CASTS = {"Cast", "Reshape", "ExpandDims", "Squeeze", "OneHot"}  # write a choice as floats


def is_choice(tensor: Any) -> bool:
    """Whether an output holds integers or truths, also where they are cast to float after that, or
    a nested model makes it.
    """
    inside = _inside(tensor)
    return _is_whole(tensor) or _is_cast_choice(tensor) or inside is not None and is_choice(inside)


def first_choice(tensor: Any) -> Any:
    """Of an output that is a choice, the tensor that the choosing layer itself gave."""
    while len(_sources(tensor)) == 1 and is_choice(_sources(tensor)[0]):
        tensor = _sources(tensor)[0]
    return tensor


def layer_name(tensor: Any) -> str:
    """The name of the layer that a tensor comes from."""
    return getattr(_maker(tensor), "name", "") or str(getattr(tensor, "name", ""))


def without_choices(model: Any) -> Any:
    """The model, ended at the numbers from which its outputs choose; itself where none chooses.

    A number that is an output already is no output twice. The layers are those of the model; a
    nested model that chooses is ended likewise. Raises ValueError where a choice follows from
    several tensors, or lies inside a subclassed model.
    """
    import keras

    found = getattr(model, "output", None) if getattr(model, "outputs", None) else None
    if found is None or not any(is_choice(t) for t in keras.tree.flatten(found)):
        return model
    whole = {id(t) for t in keras.tree.flatten(found) if not is_choice(t)}

    def kept(tensor: Any) -> list[Any]:
        number = _numbers(model, tensor)
        if number is not tensor and id(number) in whole:
            return []
        whole.add(id(number))
        return [number]

    if isinstance(found, Mapping):
        outputs: Any = {key: t for key, value in found.items() for t in kept(value)}
    elif isinstance(found, list | tuple):
        outputs = [t for value in found for t in kept(value)]
    else:
        outputs = kept(found)[0]
    return keras.Model(model.input, outputs, name=model.name)


def _numbers(model: Any, tensor: Any) -> Any:
    """What the output chooses from; the tensor itself where it chooses nothing."""
    start = tensor
    while is_choice(tensor):
        maker, sources = _maker(tensor), _sources(tensor)
        if _inside(tensor) is not None:
            tensor = _before_choice_inside(maker, tensor)
            continue
        if maker is None or hasattr(maker, "layers") or len(sources) != 1:
            raise ValueError(
                f"Output '{layer_name(start)}' of model '{model.name}' holds choices and not "
                f"numbers of the network, and '{layer_name(tensor)}' does not show what it "
                "chooses from. End the model before that layer with keras.Model(inputs, outputs)."
            )
        tensor = sources[0]
    return tensor


def _before_choice_inside(nested: Any, tensor: Any) -> Any:
    """What an output of a nested model chooses from in this call of it."""
    import keras

    history = tensor._keras_history
    numbers = _numbers(nested, _inside(tensor))
    node = nested._inbound_nodes[history.node_index]
    for known, made in zip(nested.outputs, node.output_tensors, strict=True):
        if known is numbers:
            return made
    ended = keras.Model(nested.input, numbers, name=nested.name)
    return ended(keras.tree.pack_sequence_as(nested.input, list(node.input_tensors)))


def _inside(tensor: Any) -> Any:
    """Of an output of a nested model, the tensor within that model; None for any other."""
    maker = _maker(tensor)
    if not hasattr(maker, "layers") or not getattr(maker, "outputs", None):
        return None
    return maker.outputs[tensor._keras_history.tensor_index]


def _is_cast_choice(tensor: Any) -> bool:
    sources = _sources(tensor)
    return type(_maker(tensor)).__name__ in _CASTS and len(sources) == 1 and is_choice(sources[0])


def _is_whole(tensor: Any) -> bool:
    import tensorflow as tf

    return not tf.as_dtype(tensor.dtype).is_floating


def _maker(tensor: Any) -> Any:
    return getattr(getattr(tensor, "_keras_history", None), "operation", None)


def _sources(tensor: Any) -> list[Any]:
    """The tensors that an operation took in this call."""
    history: Any = getattr(tensor, "_keras_history", None)
    maker = _maker(tensor)
    if maker is None:
        return []
    return list(maker._inbound_nodes[history.node_index].input_tensors)
