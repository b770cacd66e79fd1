"""A trained model seen as BatchNorm statistics and heads. With heads.py the one place that
touches a model's insides.

A forward pass is traced with every BN layer's `call` wrapped (put back after), which finds nested,
shared and subclassed layers alike.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from dgh_tf.common.text import in_one_line
from dgh_tf.models.batches import with_any_batch
from dgh_tf.models.batchnorm import (
    BatchNorm,
    batchnorm_layers,
    inference_affine,
    is_initial,
    read_batchnorm,
)
from dgh_tf.models.choices import without_choices
from dgh_tf.models.evidence import tell_evidence
from dgh_tf.models.folding import Folded, Rectified, find_folded, find_rectified, relu_cap
from dgh_tf.models.heads import Head, find_heads, upstream
from dgh_tf.models.hooks import computing_in, record_calls
from dgh_tf.models.tflite_model import float_file
from dgh_tf.models.validation import (
    OTHER_NORMS,
    require_alive,
    require_connected,
    require_finite,
    require_trained_on_data,
)
from dgh_tf.ops.moments import Move, normalize

_CHANNELS, _LEAST_SIDE = (1, 3, 4), 16  # of an image with channels first


@dataclasses.dataclass(frozen=True)
class Tapped:
    """What one traced forward pass gave.

    Attributes:
      calls: (index of BatchNorm, its input) in call order.
      sums: for each call the `channel_sums` of the input less its shift, where they came along,
        else None.
      moves: by index of BatchNorm, how that follows from what `sums` are of, where it is not the
        same.
      heads: of the model.
    """

    calls: list[tuple[int, tf.Tensor]]
    sums: list[tuple[tf.Tensor, ...] | None]
    moves: dict[int, Move]
    heads: list[Head]


class Network:
    """A model, its BN layers and its inputs.

    Attributes:
      model: the Keras model, never changed; without a choice (argmax) at its end.
      input_names, input_shapes: of every input, shapes without batch, channels last.
      channels_first: for every input whether the model takes it as [channels, height, width]; only
        `own_layout` gives it so.
      layers: the BatchNorm layers whose statistics are matched, in call order: those that a forward
        pass reaches and training has moved. None of them where there are none.
      evidence: what images of this model rest on.
      unmatched: names of layers that no BN statistics constrain: other normalizations, and layers
        with kernels that no BN layer follows.
      kernel_shape: without batch, of what the first layer with a kernel takes; None where there is
        no such layer.
    """

    def __init__(
        self, model: Any, *, image_size: tuple[int, int] | None = None, use_statistics: bool = True
    ) -> None:
        """Raises ValueError where the method cannot work: broken statistics or weights, outputs
        that no input changes, unknown input size.

        use_statistics: False treats a model with BN statistics as if it had none.
        """
        model = with_any_batch(model)
        try:
            self.model = model = without_choices(model)
        except ValueError:  # `find_heads` looks into nested models too
            self.model = model
        self.input_names, shapes = _inputs(model, image_size)
        self.channels_first = [_channels_first(model, shape) for shape in shapes]
        self.input_shapes = [
            (*s[1:], s[0]) if first else s
            for s, first in zip(shapes, self.channels_first, strict=True)
        ]
        norms = batchnorm_layers(model)
        self._heads: list[str] = []
        # the BN layer of every call; None where a function within the graph computes the input of
        # one, which cannot be given from outside of it
        self._norm_calls: list[Any] | None = None
        self.kernel_shape: tuple[int | None, ...] | None = None
        reached, self.unmatched, self._surveyed, order = self._survey(norms)
        require_finite(model, reached)
        if use_statistics:
            require_trained_on_data(model, reached)
        self.evidence = tell_evidence(norms, reached, asked=use_statistics)
        self.layers = [
            bn for bn in reached if use_statistics and not is_initial(bn.mean, bn.variance)
        ]
        self._affines = [inference_affine(bn) for bn in self.layers]
        self._folded = find_folded(order, self.layers)
        self._rectified = find_rectified(order, self._folded)
        require_alive(model, self._logits(), self.input_shapes)

    def normalized(self, inputs: list[tf.Tensor]) -> list[tuple[int, tf.Tensor]]:
        """(index of BatchNorm, its input) in call order, as the model itself computes them in
        float32; call it inside tf.function. Inputs are as for `forward`.

        What `forward` gives in `Tapped.calls`, without another trace of the model.
        """
        if self._norm_calls is None:
            return self.forward(inputs).calls
        position = {id(bn.layer): i for i, bn in enumerate(self.layers)}
        _, taken = self._surveyed(*inputs)
        named = zip(self._norm_calls, taken, strict=True)
        return [(position[id(layer)], x) for layer, x in named if id(layer) in position]

    def _logits(self) -> Callable[..., dict[str, tf.Tensor]]:
        """From inputs to each head's logits by name, compiled."""
        specs = [tf.TensorSpec((None, *shape), tf.float32) for shape in self.input_shapes]
        logits = tf.function(lambda *inputs: self._surveyed(*inputs)[0], autograph=False)
        return logits.get_concrete_function(*specs)

    def forward(
        self, inputs: list[tf.Tensor], *, precision: str = "float32", folded: bool = False
    ) -> Tapped:
        """One forward pass in inference mode; call it inside tf.function. Inputs are in model
        units, in order, channels last.

        precision: what layers compute in, see `computing_in`. folded: compute BN layers within the
          layers before them where that is possible (in float32), which is faster and rounds
          differently.
        """
        position = {id(bn.layer): i for i, bn in enumerate(self.layers)}
        known: dict[int, tuple[tf.Tensor, ...]] = {}  # by id of what a layer gave

        def normalized(
            bn: BatchNorm, scale: np.ndarray, offset: np.ndarray, x: tf.Tensor
        ) -> tf.Tensor:
            y, sums = normalize(tf.cast(x, tf.float32), scale=scale, offset=offset, shift=bn.shift)
            y = tf.cast(y, bn.layer.compute_dtype)
            known[id(y)] = sums
            return y

        # by id of the BN layer's input: that input, and the output from which it was told
        convolved: dict[int, tuple[tf.Tensor, tf.Tensor]] = {}

        def convolve(fold: Folded, x: tf.Tensor) -> tf.Tensor:
            y = fold.output(x)
            before = fold.input(y)  # nobody computes it but who else asks for it
            convolved[id(before)] = before, y
            return before

        before_relu = {id(each.fold) for each in self._rectified}
        moves: dict[int, Move] = {}
        awaited: dict[int, tf.Tensor] = {}  # by id: outputs whose sums come with their ReLU

        def passed_on(index: int, fold: Folded, plainly: Callable, x: tf.Tensor) -> tf.Tensor:
            if id(x) not in convolved:
                return plainly(x)
            y, moves[index] = convolved[id(x)][1], fold.move
            if id(fold) in before_relu:
                awaited[id(y)] = y
                return y
            y, sums = fold.with_sums(y)
            known[id(y)] = sums
            return y

        def rectified(each: Rectified, plainly: Callable, x: tf.Tensor) -> tf.Tensor:
            if id(x) not in awaited:
                return plainly(x)
            y, known[id(x)] = each.fold.relu_with_sums(x, cap=each.cap)
            return y

        instead: dict[int, Callable] = {
            id(bn.layer): functools.partial(normalized, bn, *affine)
            for bn, affine in zip(self.layers, self._affines, strict=True)
            if affine
        }
        folds = self._folded if folded and precision == "float32" else {}
        for key, fold in folds.items():
            instead[key] = functools.partial(passed_on, position[key], fold, instead[key])
            instead[id(fold.layer)] = functools.partial(convolve, fold)
        relus = self._rectified if folds else []
        for each in relus:
            plainly = functools.partial(type(each.layer).call, each.layer)
            instead[id(each.layer)] = functools.partial(rectified, each, plainly)
        layers = [*(bn.layer for bn in self.layers), *(fold.layer for fold in folds.values())]
        layers += [each.layer for each in relus]
        with (
            computing_in(self.model, precision),
            record_calls(layers, instead=instead) as everything,
        ):
            outputs = self.outputs(inputs)
        recorded = [call for call in everything if id(call[0]) in position]
        calls = [(position[id(layer)], x) for layer, x, _ in recorded]
        return Tapped(
            calls,
            [known.get(id(y)) for *_, y in recorded],
            moves,
            find_heads(outputs, [y for *_, y in recorded]),
        )

    def head_names(self, *, precision: str) -> list[str]:
        """Names of the heads in the order in which `forward` gives them, and a first test of a
        precision other than float32.
        """
        if precision != "float32" and float_file(self.model) is not None:
            raise ValueError(
                f"precision={precision} needs a Keras model: what a .tflite file holds is computed "
                "in float32. Leave it out."
            )
        if precision == "float32":
            return list(self._heads)
        specs = [tf.TensorSpec((None, *shape), tf.float32) for shape in self.input_shapes]
        tf.function(
            lambda *x: [h.logits for h in self.forward(list(x), precision=precision).heads],
            autograph=False,
        ).get_concrete_function(*specs)
        return list(self._heads)

    def _survey(self, norms: list) -> tuple[list[BatchNorm], list[str], Callable, list]:
        """The BN layers that a forward pass reaches, the names for `unmatched`, the traced function
        from inputs to heads' logits by name and to what each call in `_norm_calls` takes, and
        (layer, input, output) of calls of layers with kernels, BN layers and ReLU layers.
        """
        kernels = kernel_layers(self.model)
        relus = [layer for layer in self.model._flatten_layers() if relu_cap(layer) is not None]
        relus = list({id(layer): layer for layer in relus}.values())
        ranks: dict[int, tuple[Any, int]] = {}
        followed: set[int] = set()
        order: list = []

        def trace(*inputs: tf.Tensor) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
            with record_calls([*norms, *kernels, *relus]) as recorded:
                outputs = self.outputs(list(inputs))
            order.extend(recorded)
            with_kernels = {id(layer) for layer in kernels}
            first = next((x for layer, x, _ in recorded if id(layer) in with_kernels), None)
            if first is not None and (shape := tf.nest.flatten(first)[0].shape).rank is not None:
                self.kernel_shape = tuple(shape[1:])
            own = {id(layer) for layer in norms}
            calls = [(layer, x) for layer, x, _ in recorded if id(layer) in own]
            ranks.update({id(layer): (layer, x.shape.rank) for layer, x in reversed(calls)})
            before = upstream(x for _, x in calls)
            given = [
                (layer, tf.nest.flatten(y)[0]) for layer, _, y in recorded
            ]  # a recurrent cell gives its state, too
            followed.update(
                id(layer) for layer, y in given if id(layer) not in own and y.ref() in before
            )
            heads = find_heads(outputs, [])
            self._heads = [head.name for head in heads]
            require_connected(self.model, heads, inputs)
            logits = {head.name: head.logits for head in heads}
            if any(x.graph is not inputs[0].graph for _, x in calls):
                return logits, []
            self._norm_calls = [layer for layer, _ in calls]
            return logits, [x for _, x in calls]

        specs = [tf.TensorSpec((None, *shape), tf.float32) for shape in self.input_shapes]
        surveyed = tf.function(trace, autograph=False).get_concrete_function(*specs)
        layers = [read_batchnorm(*entry) for entry in reversed(ranks.values())]
        others = [
            layer.name
            for layer in self.model._flatten_layers()
            if type(layer).__name__ in OTHER_NORMS
        ]
        return (
            layers,
            [*others, *(layer.name for layer in kernels if id(layer) not in followed)],
            surveyed,
            order,
        )

    def own_layout(self, inputs: list) -> list:
        """The arrays or tensors [batch, *input shape], channels last, as the model takes them."""

        def moved(x: np.ndarray | tf.Tensor) -> np.ndarray | tf.Tensor:
            return (
                np.ascontiguousarray(np.moveaxis(x, -1, 1))
                if isinstance(x, np.ndarray)
                else tf.transpose(x, [0, 3, 1, 2])
            )

        return [
            moved(x) if first else x for x, first in zip(inputs, self.channels_first, strict=True)
        ]

    def outputs(self, inputs: list[tf.Tensor]) -> Any:
        """The model's outputs in inference mode for inputs in order, channels last. Raises
        ValueError where it cannot be called.
        """
        try:
            return call_model(self.model, self.own_layout(inputs))
        except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
            advice = (
                "Wrap it in a functional model with one keras.Input for each input."
                if isinstance(error, TypeError)
                else "Check the shapes that its layers name."
            )
            known = ", ".join(
                f"{name} {shape}"
                for name, shape in zip(self.input_names, self.input_shapes, strict=True)
            )
            raise ValueError(
                f"Model {self.model.name!r} could not be called on its known inputs "
                f"({known}): {in_one_line(error)}. {advice}"
            ) from error


def call_model(model: Any, inputs: list[tf.Tensor]) -> Any:
    """The model's outputs in inference mode for inputs in order."""
    structure = getattr(
        model, "_inputs_struct", None
    )  # of a functional model: a tensor, a list or a dict
    if structure is None and len(_tensors(model)) > 1:
        structure = model.input  # of tf_keras
    if structure is not None:
        return model(tf.nest.pack_sequence_as(structure, inputs), training=False)
    return model(*_as_arguments(model, inputs), training=False)


def kernel_layers(model: Any) -> list:
    """Convolutions, dense layers and the like, each once: layers without layers inside that hold a
    kernel.
    """
    found = [
        layer
        for layer in model._flatten_layers()
        if any(hasattr(layer, name) for name in ("kernel", "depthwise_kernel", "pointwise_kernel"))
    ]
    return list({id(layer): layer for layer in found}.values())


def _as_arguments(model: Any, inputs: list) -> list:
    """A subclassed model's inputs as its own `call` was given them when it was built."""
    structure = list(_built_shapes(model).values())
    if len(structure) == 1 and not _is_shape(
        structure[0]
    ):  # one argument that holds a list or dict of tensors
        keys = structure[0].keys() if isinstance(structure[0], dict) else None
        return [dict(zip(keys, inputs, strict=True)) if keys else list(inputs)]
    return list(inputs)


def _built_shapes(model: Any) -> dict:
    """The arguments that a subclassed model was called with: name -> shape with batch, or a list or
    dict of shapes.
    """
    if getattr(model, "_build_shapes_dict", None):
        return model._build_shapes_dict
    called = model.save_spec() if hasattr(model, "save_spec") else None  # of tf_keras
    return (
        {"input": tf.nest.map_structure(lambda spec: tuple(spec.shape), called[0][0])}
        if called
        else {}
    )


def _is_shape(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        side is None or isinstance(side, int) for side in value
    )


def _tensors(model: Any) -> list:
    """The symbolic inputs of a model; none for a subclassed one, and for a Sequential one that was
    never called.
    """
    try:
        return list(getattr(model, "inputs", None) or [])
    except ValueError:
        return []


def _declared(model: Any) -> list[tuple[str, tuple, str]]:
    """(name, shape with batch, dtype) of every input; empty where the model does not know."""
    if _tensors(model):
        return [
            (t.name.split(":")[0], tuple(t.shape), tf.as_dtype(t.dtype).name) for t in model.inputs
        ]
    named = list(_built_shapes(model).items())
    if len(named) == 1 and not _is_shape(named[0][1]):
        value = named[0][1]
        named = (
            list(value.items())
            if isinstance(value, dict)
            else [(f"input_{i}", shape) for i, shape in enumerate(value)]
        )
    return [
        (name.removesuffix("_shape"), tuple(shape), "float32")
        for name, shape in named
        if _is_shape(shape)
    ]


def _inputs(
    model: Any, image_size: tuple[int, int] | None
) -> tuple[list[str], list[tuple[int, ...]]]:
    declared = _declared(model)
    if not declared:
        raise ValueError(
            f"Model {model.name!r} has no known input shape, because it was never called or built. "
            "Call it once on data, or give it an Input layer, before saving it."
        )
    names, shapes = [], []
    for name, shape, dtype in declared:
        shape = shape[1:]
        if not tf.as_dtype(dtype).is_floating:
            raise ValueError(
                f"Input {name!r} of model {model.name!r} takes {dtype}; images are float. "
                "Pass the part of the model behind that input."
            )
        if image_size and len(shape) == 3:
            wanted = (
                (shape[0], *image_size)
                if _channels_first(model, shape)
                else (*image_size, shape[2])
            )
            if any(side not in (None, given) for side, given in zip(shape, wanted, strict=True)):
                raise ValueError(
                    f"Input {name!r} of model {model.name!r} has the fixed shape "
                    f"{shape}; image_size={image_size[0]},"
                    f"{image_size[1]} cannot change it. Leave it out."
                )
            shape = wanted
        if None in shape:
            hint = (
                "Give its spatial size with image_size=HEIGHT,WIDTH."
                if len(shape) == 3 and (shape[2] or shape[0])
                else (
                    "Only height and width of an image can be given; rebuild the model "
                    "with the other sizes fixed."
                )
            )
            raise ValueError(
                f"Input {name!r} of model {model.name!r} has the dynamic shape {shape}. {hint}"
            )
        names.append(name)
        shapes.append(shape)
    return names, shapes


def _channels_first(model: Any, shape: tuple[int | None, ...]) -> bool:
    """Whether an input is an image with its channels before height and width, as models from other
    frameworks have it.

    Its shape must say so, and a layer of the model: one that works that way, or one that moves the
    channels to the end.
    """
    if not (
        len(shape) == 3
        and shape[0] in _CHANNELS
        and all(side is None or side >= _LEAST_SIDE for side in shape[1:])
    ):
        return False
    moves = (
        (getattr(layer, "dims", None), getattr(layer, "axes", None))
        for layer in model._flatten_layers()
    )
    return any(
        getattr(layer, "data_format", None) == "channels_first" for layer in model._flatten_layers()
    ) or any(
        dims in ((2, 3, 1), [2, 3, 1]) or axes in ((0, 2, 3, 1), [0, 2, 3, 1])
        for dims, axes in moves
    )
