"""keras: a trained model seen as BatchNorm statistics and heads. The one place that touches a model's insides.

A forward pass is traced with every BN layer's `call` wrapped (undone in `finally`), which finds nested, shared and
subclassed layers alike; heads are found in the traced graph, by walking back from each output.
"""
from __future__ import annotations

import collections
import contextlib
import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

PASSED_THROUGH = {"Identity", "Reshape", "Cast", "Transpose", "Squeeze", "StopGradient"}
ACTIVATIONS = {"Softmax", "Sigmoid", "LogSoftmax"}


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """One BN layer and what it knows of its training set: running statistics float32 [channels]."""

    layer: Any
    name: str
    axis: int
    epsilon: float
    mean: np.ndarray
    variance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Head:
    """One traced pre-activation output and the BN call nearest upstream (index into Tapped.calls, None without one)."""

    name: str
    logits: tf.Tensor
    last_call: int | None


@dataclasses.dataclass(frozen=True)
class Tapped:
    """What one traced forward pass gave: (index of BatchNorm, its input) in call order, and the heads."""

    calls: list[tuple[int, tf.Tensor]]
    heads: list[Head]


class Network:
    """A model, its BN layers and its inputs.

    Attributes:
      model: the Keras model, never changed.
      input_names, input_shapes: of every input, shapes without batch.
      layers: the BatchNorm layers reached by a forward pass, in call order.
      unmatched: names of other normalization layers, which carry no running statistics.
    """

    def __init__(self, model, *, image_size: tuple[int, int] | None = None):
        """Raises ValueError where the method cannot work: no BN, untrained or broken statistics, unknown input size."""
        self.model = model
        self.input_names, self.input_shapes = _inputs(model, image_size)
        self.layers = self._reached(batchnorm_layers(model))
        self.unmatched = [layer.name for layer in model._flatten_layers() if type(layer).__name__ in OTHER_NORMS]
        _refuse_unusable(model, self.layers, self.unmatched)

    def forward(self, inputs: list[tf.Tensor]) -> Tapped:
        """One forward pass in inference mode; call it inside tf.function. Inputs are in model units, in order."""
        position = {id(bn.layer): i for i, bn in enumerate(self.layers)}
        with record_inputs([bn.layer for bn in self.layers]) as recorded:
            outputs = call_model(self.model, inputs)
        calls = [(position[id(layer)], x) for layer, x in recorded]
        return Tapped(calls, find_heads(outputs, calls))

    def _reached(self, layers: list) -> list[BatchNorm]:
        order: list = []

        def trace(*inputs):
            with record_inputs(layers) as recorded:
                call_model(self.model, list(inputs))
            order.extend((layer, x.shape.rank) for layer, x in recorded)

        tf.function(trace).get_concrete_function(*[tf.TensorSpec((None, *s), tf.float32) for s in self.input_shapes])
        ranks = {id(layer): (layer, rank) for layer, rank in reversed(order)}
        return [_batchnorm(*entry) for entry in reversed(ranks.values())]


OTHER_NORMS = {"GroupNormalization", "LayerNormalization", "UnitNormalization", "RMSNormalization"}


def call_model(model, inputs: list[tf.Tensor]):
    """The model's outputs in inference mode for inputs in order."""
    return model(inputs if len(inputs) > 1 else inputs[0], training=False)


def batchnorm_layers(model) -> list:
    """Every BN layer of the model however deep it is nested, each once (Keras 3 and tf_keras, SyncBatchNormalization too)."""
    kinds = {"BatchNormalization", "SyncBatchNormalization"}
    found = [layer for layer in model._flatten_layers() if kinds & {base.__name__ for base in type(layer).__mro__}]
    return list({id(layer): layer for layer in found}.values())


@contextlib.contextmanager
def record_inputs(layers: list):
    """Yields a list that fills with (layer, input tensor) at each call of one of `layers`; their calls are put back after."""
    recorded: list = []

    def wrap(layer):
        call = layer.call

        def recording(x, *args, **kwargs):
            recorded.append((layer, x))
            return call(x, *args, **kwargs)

        return recording

    try:
        for layer in layers:
            object.__setattr__(layer, "call", wrap(layer))
        yield recorded
    finally:
        for layer in layers:
            layer.__dict__.pop("call", None)


def find_heads(outputs, calls: list[tuple[int, tf.Tensor]]) -> list[Head]:
    """Pre-activation heads of traced outputs (any structure), with the nearest BN call upstream of each."""
    named = _named_outputs(outputs)
    heads = []
    for name, tensor in named:
        parts = _before_activation(tensor)
        for i, logits in enumerate(parts):
            heads.append(Head(f"{name}_{i}" if len(parts) > 1 else name, logits, _nearest_call(logits, calls)))
    return heads


def _named_outputs(outputs) -> list[tuple[str, tf.Tensor]]:
    if isinstance(outputs, dict):
        return [(f"{key}.{name}" if name != "output" else str(key), t) for key in sorted(outputs)
                for name, t in _named_outputs(outputs[key])]
    if isinstance(outputs, list | tuple):
        flat = [_named_outputs(item) for item in outputs]
        return [(name if len(flat) == 1 else f"output_{i}", t) for i, group in enumerate(flat) for name, t in group]
    return [("output", outputs)]


def _before_activation(tensor: tf.Tensor) -> list[tf.Tensor]:
    """[tensor], or what goes into the softmax or sigmoid it ends in; one tensor per part of a concatenation of such."""
    kind, sources = tensor.op.type, tensor.op.inputs
    if kind in ACTIVATIONS:
        return [sources[0]]
    if kind == "IdentityN":
        parts = [_before_activation(sources[tensor.value_index])]
    elif kind in PASSED_THROUGH:
        parts = [_before_activation(sources[0])]
    elif kind == "ConcatV2":
        parts = [_before_activation(source) for source in list(sources)[:-1]]
    else:
        return [tensor]
    sources_kept = all(len(part) == 1 and part[0].op.type not in ACTIVATIONS and not _stripped(part[0], tensor) for part in parts)
    return [tensor] if sources_kept else [t for part in parts for t in part]


def _stripped(inner: tf.Tensor, outer: tf.Tensor) -> bool:
    """Whether an activation lies between inner and outer, walking only through what _before_activation passes."""
    todo = [outer]
    while todo:
        op = todo.pop().op
        if op.type in ACTIVATIONS and op.inputs[0] is inner:
            return True
        if op.type in PASSED_THROUGH | {"IdentityN", "ConcatV2"}:
            todo += list(op.inputs)
    return False


def _nearest_call(tensor: tf.Tensor, calls: list[tuple[int, tf.Tensor]]) -> int | None:
    """Index of the BN call whose input is fewest operations upstream of tensor."""
    wanted = {x.ref(): i for i, (_, x) in enumerate(calls)}
    queue, seen = collections.deque([tensor]), set()
    while queue:
        current = queue.popleft()
        if current.ref() in wanted:
            return wanted[current.ref()]
        if current.op not in seen:
            seen.add(current.op)
            queue.extend(current.op.inputs)
    return None


def _batchnorm(layer, rank: int) -> BatchNorm:
    axis = layer.axis[0] if isinstance(layer.axis, list | tuple) else layer.axis
    mean, variance = (np.asarray(w, np.float32) for w in (layer.moving_mean, layer.moving_variance))
    path = getattr(layer, "path", None) or layer.name
    return BatchNorm(layer, path, axis % rank, float(layer.epsilon), mean, variance)


def _inputs(model, image_size) -> tuple[list[str], list[tuple[int, ...]]]:
    tensors = getattr(model, "inputs", None)
    if tensors:
        names = [t.name.split(":")[0] for t in tensors]
        shapes = [tuple(t.shape)[1:] for t in tensors]
    else:
        built = getattr(model, "_build_shapes_dict", None) or {}
        shapes = [tuple(s)[1:] for s in built.values() if isinstance(s, list | tuple)]
        names = list(built)[:len(shapes)]
    if not shapes:
        raise ValueError(f"Model {model.name!r} has no known input shape. Call it once on data, or build it, before saving it.")
    if image_size:
        shapes = [(*image_size, *s[2:]) if len(s) == 3 else s for s in shapes]
    for name, shape in zip(names, shapes, strict=True):
        if None in shape:
            raise ValueError(f"Input {name!r} of model {model.name!r} has the dynamic shape {shape}. "
                             "Give its spatial size with --image_size=HEIGHT,WIDTH.")
    return names, shapes


def _refuse_unusable(model, layers: list[BatchNorm], others: list[str]) -> None:
    if not layers:
        reason = (f" It has {', '.join(others[:3])}, which keep no running statistics." if others else
                  " If BatchNorm was folded into the convolutions, pass the model as it was before folding.")
        raise ValueError(f"Model {model.name!r} has no BatchNormalization layer, so there are no statistics to match.{reason}")
    for bn in layers:
        if not (np.isfinite(bn.mean).all() and np.isfinite(bn.variance).all()):
            raise ValueError(f"BN layer {bn.name!r} has running statistics that are not finite. Training diverged; train again.")
        if (bn.variance < 0).any() or not bn.variance.any():
            raise ValueError(f"BN layer {bn.name!r} has running variances of zero or below, so it saw no varying data. "
                             "Check how the model was trained or converted.")
    if all(not bn.mean.any() and (bn.variance == 1).all() for bn in layers):
        raise ValueError(f"Every BN layer of model {model.name!r} still has its initial statistics (mean 0, variance 1), so it was "
                         "never trained. Load the trained weights first.")
