"""The graph of a Keras 3 model rebuilt layer by layer in tf_keras, with the same weights and
the same outputs.

tensorflow-model-optimization takes only tf_keras models. The two generations do not read each
other's files, so the graph is walked: models inside the model become part of one flat graph, every
layer is made anew from its config, and the result must give the same outputs on noise before
anybody gets it.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np

from tflite_export.conversion.freeze import symbolic_input

# of outputs, relative to the largest: float32 in another order of operations stays far below
TOLERANCE = 1e-4
_DYNAMIC_SIDE = 64  # pixels that stand for a dynamic size in the comparison
_TRAINING_ONLY = (
    "_initializer",
    "_regularizer",
    "_constraint",
)  # no say in the outputs of a trained layer
_WITHOUT_EFFECT = {
    "dtype",
    "autocast",
    "seed",
    "synchronized",
    "lora_rank",
    "lora_alpha",
    "quantization_config",
    "batch_shape",
}
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
_FOLDABLE = {"Conv1D", "Conv2D", "DepthwiseConv2D", "Dense"}
_HEADS = {"softmax", "sigmoid"}


class LegacyError(ValueError):
    """A layer of the model has no exact counterpart in tf_keras."""


@dataclasses.dataclass(frozen=True)
class _Ref:
    """A tensor of the flat graph, by number."""

    number: int


@dataclasses.dataclass
class _Step:
    """One call of one layer: arguments and results hold _Ref where the model has tensors."""

    layer: Any
    name: str
    args: Any
    kwargs: dict[str, Any]
    results: list[_Ref]


class _Graph:
    """The model's calls in order of execution, nested models taken apart."""

    def __init__(self, model: Any) -> None:
        import tensorflow as tf

        self.steps: list[_Step] = []
        self._count, self._nest = 0, tf.nest
        functional = _functional(model)
        self.inputs = [self._new() for _ in functional.inputs]
        self.outputs = self._flatten(functional, "", self.inputs)

    def _new(self) -> _Ref:
        self._count += 1
        return _Ref(self._count)

    def _flatten(self, model: Any, prefix: str, given: list[_Ref]) -> Any:
        table = {id(tensor): ref for tensor, ref in zip(model.inputs, given, strict=True)}
        for layer, args, kwargs, outputs in _calls(model):
            args, kwargs = self._swapped((args, kwargs), table)
            kwargs = {
                key: value
                for key, value in kwargs.items()
                if value is not None and key != "training"
            }
            if hasattr(layer, "layers") and hasattr(layer, "inputs"):
                results = self._flatten(
                    _functional(layer), f"{prefix}{layer.name}_", self._refs((args, kwargs))
                )
                results = self._nest.flatten(results)
            else:
                results = [self._new() for _ in outputs]
                self.steps.append(_Step(layer, _plain(prefix + layer.name), args, kwargs, results))
            table |= {id(tensor): ref for tensor, ref in zip(outputs, results, strict=True)}
        symbolic = model.output if hasattr(model, "output") else model.outputs[0]
        return self._swapped(symbolic, table)

    def _swapped(self, structure: Any, table: dict[int, _Ref]) -> Any:
        return self._nest.map_structure(lambda x: table.get(id(x), x), structure)

    def _refs(self, structure: Any) -> list[_Ref]:
        return [x for x in self._nest.flatten(structure) if isinstance(x, _Ref)]

    def uses(self) -> collections.Counter:
        """How often every tensor is read; being an output of the model counts."""
        return collections.Counter(
            self._refs([(step.args, step.kwargs) for step in self.steps])
            + self._nest.flatten(self.outputs)
        )


def _plain(name: str) -> str:
    return name.replace("/", "_")


def _functional(model: Any) -> Any:
    """The model as a graph; Sequential of Keras 3 keeps it inside. Raises LegacyError for a
    subclassed model.
    """
    graph = getattr(model, "_functional", None) or model
    if not getattr(graph, "inputs", None) or not hasattr(graph, "_nodes_by_depth"):
        raise LegacyError(
            f"Model '{model.name}' is subclassed ({type(model).__name__}) and has no "
            "graph of layers that could be "
            "rebuilt. Build it with keras.Model(inputs, outputs)."
        )
    return graph


def _calls(model: Any) -> Iterator[tuple[Any, Any, dict[str, Any], list[Any]]]:
    """(layer, args, kwargs, output tensors) of every call in order of execution, on both Keras
    generations.
    """
    import tensorflow as tf

    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            if hasattr(node, "arguments"):  # Keras 3
                yield (
                    node.operation,
                    node.arguments.args,
                    dict(node.arguments.kwargs),
                    list(node.outputs),
                )
            else:
                yield (
                    node.layer,
                    node.call_args,
                    dict(node.call_kwargs),
                    tf.nest.flatten(node.outputs),
                )


def _counterpart(layer: Any) -> Any:
    """The class of tf_keras for a layer. Raises LegacyError."""
    import tf_keras

    kind, home = type(layer).__name__, type(layer).__module__
    if not hasattr(layer, "get_weights"):
        raise LegacyError(
            f"'{layer.name}' is an operator used as a layer ({kind}; written as x * "
            "2, x[..., :4] or keras.ops.mean(x), for "
            "instance); tf_keras has only layers. Write it with one (Rescaling, "
            "Multiply ...) or use another algorithm."
        )
    if home.split(".")[0] not in ("keras", "tf_keras") or kind in (
        "Lambda",
        "TFOpLambda",
        "SlicingOpLambda",
    ):
        raise LegacyError(
            f"Layer '{layer.name}' ({kind} of {home}) is code of its own, which "
            "cannot be rebuilt in tf_keras. Replace it "
            "by layers of Keras or use another algorithm."
        )
    if not hasattr(tf_keras.layers, kind):
        raise LegacyError(
            f"Layer '{layer.name}' is a {kind}, which tf_keras does not have. Replace "
            "it or use another algorithm."
        )
    return getattr(tf_keras.layers, kind)


def _config(layer: Any, cls: Any) -> dict[str, Any]:
    """Arguments for the constructor in tf_keras. Raises LegacyError where one that matters has no
    counterpart.
    """
    known = set(inspect.signature(cls.__init__).parameters) | {"name", "trainable"}
    defaults = inspect.signature(type(layer).__init__).parameters
    renamed, kept = _RENAMED.get(type(layer).__name__, {}), {}
    for key, value in layer.get_config().items():
        if key in _WITHOUT_EFFECT or key.endswith(_TRAINING_ONLY):
            continue
        key_there = renamed.get(key, key)
        if key_there in known and not (isinstance(value, dict) and "class_name" in value):
            kept[key_there] = value
        elif key not in defaults or value != defaults[key].default:
            raise LegacyError(
                f"Layer '{layer.name}' ({type(layer).__name__}) has {key}={value!r}, "
                "which tf_keras does not take. "
                "Change it or use another algorithm."
            )
    return kept


def to_tf_keras(model: Any, *, fold_batchnorm: bool = False, split_heads: bool = False) -> Any:
    """The tf_keras form of a model.

    Args:
      model: functional or sequential, of Keras 3 or tf_keras. It is not changed.
      fold_batchnorm: multiply BatchNorm layers into the convolution or dense layer before them,
        where nothing else reads its output: the running statistics are then part of the weights and
        cannot move.
      split_heads: give a softmax or sigmoid inside an output layer a layer of its own, so that its
        logits are a tensor.
    Returns:
      A functional tf_keras model with the same inputs and structure of outputs. Layer names keep
      their place in nested models ('backbone_conv1'); '/' becomes '_'.
    Raises:
      LegacyError: a function used as a layer, a layer of one's own, or outputs that differ by more
        than TOLERANCE.
    """
    import tensorflow as tf
    import tf_keras

    graph = _Graph(model)
    for step in graph.steps:
        _counterpart(step.layer)
    builder = _Builder(graph, fold_batchnorm=fold_batchnorm, split_heads=split_heads)
    inputs = [
        tf_keras.Input(tuple(t.shape[1:]), name=_plain(t.name.split(":")[0]))
        for t in _functional(model).inputs
    ]
    table = dict(zip(graph.inputs, inputs, strict=True))
    for step in graph.steps:
        table |= builder.call(step, table)
    outputs = tf.nest.map_structure(lambda ref: table[ref], graph.outputs)
    structure = symbolic_input(_functional(model))
    rebuilt = tf_keras.Model(
        tf.nest.pack_sequence_as(structure, inputs), outputs, name=_plain(model.name)
    )
    builder.copy_weights()
    _require_equal(model, rebuilt)
    return rebuilt


class _Builder:
    """Makes every layer once and calls it where the graph does."""

    def __init__(self, graph: _Graph, *, fold_batchnorm: bool, split_heads: bool) -> None:
        import tensorflow as tf

        self._made: dict[
            int, tuple[Any, Any]
        ] = {}  # id of the layer -> (the layer, its counterpart)
        self._names: set[str] = set()
        self._folds = _folds(graph) if fold_batchnorm else {}
        self._norms = {id(norm) for norm in self._folds.values()}
        self._ends = set(tf.nest.flatten(graph.outputs)) if split_heads else set()
        self._nest = tf.nest

    def call(self, step: _Step, table: dict[_Ref, Any]) -> dict[_Ref, Any]:
        """The symbolic results of one step."""
        import tf_keras

        args, kwargs = self._nest.map_structure(
            lambda x: table[x] if isinstance(x, _Ref) else x, (step.args, step.kwargs)
        )
        if id(step.layer) in self._norms:  # it lives in the layer before it now
            return {step.results[0]: args[0]}
        head = (
            _activation(step.layer)
            if self._ends & set(step.results) and hasattr(step.layer, "kernel")
            else None
        )
        layer = self._layer(step, linear=head in _HEADS)
        outputs = layer(*args, **kwargs)
        if head in _HEADS:
            name = self._unique(f"{step.name}_{head}")
            outputs = (
                tf_keras.layers.Softmax(name=name)
                if head == "softmax"
                else tf_keras.layers.Activation(head, name=name)
            )(outputs)
        return dict(zip(step.results, self._nest.flatten(outputs), strict=True))

    def _unique(self, name: str) -> str:
        chosen, number = name, 1
        while chosen in self._names:
            number += 1
            chosen = f"{name}_{number}"
        self._names.add(chosen)
        return chosen

    def _layer(self, step: _Step, *, linear: bool) -> Any:
        if id(step.layer) not in self._made:
            cls = _counterpart(step.layer)
            own = isinstance(step.layer, cls)  # a tf_keras model came in
            config = step.layer.get_config() if own else _config(step.layer, cls)
            changes: dict[str, Any] = {"use_bias": True} if id(step.layer) in self._folds else {}
            changes |= {"activation": "linear"} if linear else {}
            config |= {"name": self._unique(step.name), **changes}
            try:
                self._made[id(step.layer)] = (
                    step.layer,
                    cls.from_config(config) if own else cls(**config),
                )
            except (TypeError, ValueError) as error:
                raise LegacyError(
                    f"Layer '{step.layer.name}' ({type(step.layer).__name__}) cannot "
                    f"be made in tf_keras: {error}"
                ) from error
        return self._made[id(step.layer)][1]

    def copy_weights(self) -> None:
        """Gives every layer its weights, the folded ones with their BatchNorm in them. Raises
        LegacyError where they do not fit.
        """
        for layer, made in self._made.values():
            norm = self._folds.get(id(layer))
            values = layer.get_weights() if norm is None else _folded(layer, norm)
            if [v.shape for v in values] != [tuple(v.shape) for v in made.weights]:
                raise LegacyError(
                    f"Layer '{layer.name}' ({type(layer).__name__}) keeps other "
                    "weights in tf_keras. Use another algorithm."
                )
            made.set_weights(values)


def _activation(layer: Any) -> str | None:
    return getattr(getattr(layer, "activation", None), "__name__", None)


def _folds(graph: _Graph) -> dict[int, Any]:
    """id of a convolution or dense layer -> the BatchNorm layer that alone reads it; both are
    called once.
    """
    calls = collections.Counter(id(step.layer) for step in graph.steps)
    uses, made_by, found = graph.uses(), {step.results[0]: step for step in graph.steps}, {}
    for step in graph.steps:
        source = (
            made_by.get(step.args[0])
            if type(step.layer).__name__ == "BatchNormalization" and step.args
            else None
        )
        if (
            source is None
            or type(source.layer).__name__ not in _FOLDABLE
            or _activation(source.layer) != "linear"
        ):
            continue
        axis, rank = (
            step.layer.axis,
            len(source.layer.output.shape) if calls[id(source.layer)] == 1 else 0,
        )
        axis = axis[0] if isinstance(axis, list | tuple) else axis
        last = (
            axis in (-1, rank - 1)
            and getattr(source.layer, "data_format", "channels_last") == "channels_last"
        )
        if last and rank and uses[source.results[0]] == 1 and calls[id(step.layer)] == 1:
            found[id(source.layer)] = step.layer
    return found


def _folded(layer: Any, norm: Any) -> list[np.ndarray]:
    """[kernel, bias] of layer followed by norm, computed in float64: BN(Wx + b) = sWx + s(b - mean)
    + beta, s = gamma / deviation.
    """
    kernel, *bias = (np.asarray(w, np.float64) for w in layer.get_weights())
    mean, variance = (
        np.asarray(norm.moving_mean, np.float64),
        np.asarray(norm.moving_variance, np.float64),
    )
    scale = (np.asarray(norm.gamma, np.float64) if norm.scale else 1.0) / np.sqrt(
        variance + norm.epsilon
    )
    shift = np.asarray(norm.beta, np.float64) if norm.center else 0.0
    scaled = kernel * (
        scale.reshape(kernel.shape[-2:]) if type(layer).__name__ == "DepthwiseConv2D" else scale
    )
    return [
        scaled.astype(np.float32),
        (shift + scale * ((bias[0] if bias else 0.0) - mean)).astype(np.float32),
    ]


def _require_equal(model: Any, rebuilt: Any) -> None:
    """Raises LegacyError where outputs on noise differ by more than rounding."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    noise = [
        rng.normal(size=(2, *(side or _DYNAMIC_SIDE for side in t.shape[1:]))).astype(np.float32)
        for t in rebuilt.inputs
    ]
    expected, actual = (
        tf.nest.flatten(m(tf.nest.pack_sequence_as(symbolic_input(m), noise), training=False))
        for m in (model, rebuilt)
    )
    for a, b in zip(expected, actual, strict=True):
        gap = float(
            np.max(np.abs(np.asarray(a) - np.asarray(b))) / max(float(np.max(np.abs(a))), 1e-6)
        )
        if not gap <= TOLERANCE:
            raise LegacyError(
                f"Model '{model.name}' rebuilt in tf_keras gives outputs that differ "
                f"by {gap:.3g} of their size; expected at "
                f"most {TOLERANCE:g}. One of its layers behaves otherwise there. Use "
                "another algorithm."
            )
