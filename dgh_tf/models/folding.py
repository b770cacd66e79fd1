"""Batch normalization folded into the convolution before it, for passes that need its output and
the statistics of its input: one pass over memory less, forward and backward.

The convolution gives y = gamma * u + beta, u the normalized input; so u's statistics, and the input
itself where it is asked for, follow from y.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from dgh_tf.models.batchnorm import BatchNorm, inference_affine
from dgh_tf.ops.moments import Move, relu_with_sums, safe_shift, with_sums

# |beta / gamma| up to which u follows from y: beyond, rounding of y hides u
MOST_OFFSET = 300.0
_RELUS = ("ReLU", "Activation")


Sums: TypeAlias = tuple[tf.Tensor, tf.Tensor, tf.Tensor]  # see `channel_sums`


@dataclasses.dataclass(frozen=True)
class Folded:
    """A layer with a kernel and the one BN layer that takes what it gives.

    Attributes:
      layer: the convolution, depthwise convolution or dense layer.
      output: from its input to the BN layer's output.
      factor, offset: float32 [channels]; its input is factor * (output - shift) + offset.
      shift: float32 [channels], what to take off the output before squaring it.
      own_shift: the same of the BN layer's input.
    """

    layer: Any
    output: Callable[[tf.Tensor], tf.Tensor]
    factor: np.ndarray
    offset: np.ndarray
    shift: np.ndarray
    own_shift: np.ndarray

    def input(self, y: tf.Tensor) -> tf.Tensor:
        """The BN layer's input from its output."""
        return self.factor * (y - self.shift) + self.offset

    def with_sums(self, y: tf.Tensor) -> tuple[tf.Tensor, Sums]:
        """The output, and its `channel_sums`, which `move` makes those of the BN layer's input."""
        return with_sums(y, shift=self.shift)

    def relu_with_sums(self, y: tf.Tensor, *, cap: float) -> tuple[tf.Tensor, Sums]:
        """ReLU of the output, up to `cap`, and `channel_sums` of the output."""
        return relu_with_sums(y, shift=self.shift, cap=cap)

    @property
    def move(self) -> Move:
        return Move(self.factor, self.offset - self.own_shift)


@dataclasses.dataclass(frozen=True)
class Rectified:
    """A ReLU layer behind a folded BN layer. cap: see `relu_cap`."""

    layer: Any
    cap: float
    fold: Folded


def find_folded(
    calls: Sequence[tuple[Any, Any, Any]], norms: Sequence[BatchNorm]
) -> dict[int, Folded]:
    """What can be folded, by id of the BN layer.

    Args:
      calls: (layer, input, output) of layers with kernels and BN layers, as one pass called them.
      norms: the BN layers whose statistics are matched.
    """
    by_layer = {id(bn.layer): bn for bn in norms}
    given = {id(y): layer for layer, _, y in calls if id(layer) not in by_layer}
    before: dict[int, list[Any]] = {}  # by id of the BN layer: the layers whose outputs it takes
    for layer, x, _ in calls:
        if id(layer) in by_layer:
            before.setdefault(id(layer), []).append(given.get(id(x)))
    pairs = {key: sources[0] for key, sources in before.items() if len(sources) == 1}
    taken = [id(layer) for layer in pairs.values()]
    found = {}
    for key, layer in pairs.items():
        alone = layer is not None and taken.count(id(layer)) == 1
        once = alone and sum(each is layer for each, *_ in calls) == 1
        folded = _fold(layer, by_layer[key]) if once else None
        if folded:
            found[key] = folded
    return found


def find_rectified(
    calls: Sequence[tuple[Any, Any, Any]], folded: Mapping[int, Folded]
) -> list[Rectified]:
    """For each folded BN layer the first ReLU layer that takes what it gives, and nothing else.

    Args:
      calls: as for `find_folded`, with those of ReLU layers.
      folded: what `find_folded` gave.
    """
    given = {id(y): id(layer) for layer, _, y in calls if id(layer) in folded}
    times = collections.Counter(id(layer) for layer, *_ in calls)
    found: dict[int, Rectified] = {}  # by id of the BN layer: its first ReLU
    for layer, x, _ in calls:
        cap = relu_cap(layer)
        if cap is not None and id(x) in given and times[id(layer)] == 1:
            found.setdefault(given[id(x)], Rectified(layer, cap, folded[given[id(x)]]))
    return list(found.values())


def relu_cap(layer: Any) -> float | None:
    """The value up to which a plain ReLU layer goes: 6 or infinity; None for any other layer."""
    kind, config = _kind(layer), layer.get_config() if _kind(layer) in _RELUS else {}
    if not config or "call" in layer.__dict__:
        return None
    if kind == "Activation":
        name = getattr(layer.activation, "__name__", "")
        own = getattr(layer.activation, "__module__", "").split(".")[0] in ("keras", "tf_keras")
        return {"relu": math.inf, "relu6": 6.0}.get(name) if own else None
    if config.get("negative_slope") or config.get("threshold"):
        return None
    most = config.get("max_value")
    return math.inf if most is None else 6.0 if most == 6.0 else None


def _fold(layer: Any, bn: BatchNorm) -> Folded | None:
    affine, linear = inference_affine(bn), _linear(layer, rank=bn.rank)
    if affine is None or linear is None:
        return None
    channels = len(bn.mean)
    gamma, beta = (
        np.asarray(value, np.float64) if present else np.full(channels, default)
        for value, present, default in (
            (bn.layer.gamma, bn.layer.scale, 1.0),
            (bn.layer.beta, bn.layer.center, 0.0),
        )
    )
    # a zero gamma gives an infinite factor, or none where beta is 0 too
    if not np.all(np.abs(beta) <= MOST_OFFSET * np.abs(gamma)) or not np.all(gamma):
        return None
    kernel, bias, apply = linear
    scale, offset = (value.astype(np.float64) for value in affine)
    # of a depthwise kernel the last two axes are channels and multiplier
    by_output = scale.reshape(kernel.shape[2:] if _kind(layer) == "DepthwiseConv2D" else -1)
    with tf.init_scope():  # not copied into every graph
        weights = tf.constant((kernel * by_output).astype(np.float32))
        biases = tf.constant((bias * scale + offset).astype(np.float32))
    shift = safe_shift(beta, variance=gamma**2, epsilon=0.0)
    factor = 1.0 / scale
    start = (shift - offset) * factor
    return Folded(
        layer,
        lambda x: tf.nn.bias_add(apply(x, weights), biases),
        factor.astype(np.float32),
        start.astype(np.float32),
        shift.astype(np.float32),
        bn.shift.astype(np.float32),
    )


def _kind(layer: Any) -> str:
    """The class of a layer that is plainly Keras' own, else nothing."""
    own = type(layer).__module__.split(".")[0] in ("keras", "tf_keras")
    return type(layer).__name__ if own else ""


def _linear(
    layer: Any, *, rank: int
) -> tuple[np.ndarray, np.ndarray, Callable[[tf.Tensor, tf.Tensor], tf.Tensor]] | None:
    """Kernel and bias, float64, and what is done with input and kernel; None where it is anything
    but the plain linear layer.
    """
    kind = _kind(layer)
    activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
    quantized = getattr(layer, "quantization_mode", None) is not None
    if activation != "linear" or quantized or "call" in layer.__dict__:
        return None
    if kind == "Dense" and rank == 2:
        apply = tf.matmul
        kernel = layer.kernel
    elif kind in ("Conv2D", "DepthwiseConv2D") and _plain_convolution(layer):
        depthwise = kind == "DepthwiseConv2D"
        kernel = getattr(layer, "depthwise_kernel", None) if depthwise else None
        kernel = layer.kernel if kernel is None else kernel
        convolve = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d
        strides, padding = [1, *layer.strides, 1], layer.padding.upper()

        def apply(x: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
            return convolve(x, weights, strides=strides, padding=padding)
    else:
        return None
    bias = np.asarray(layer.bias, np.float64) if layer.use_bias else np.zeros(())
    return np.asarray(kernel, np.float64), bias, apply


def _plain_convolution(layer: Any) -> bool:
    across = layer.strides[0] == layer.strides[1] or _kind(layer) == "Conv2D"
    return (
        across
        and layer.data_format == "channels_last"
        and layer.padding in ("same", "valid")
        and set(layer.dilation_rate) == {1}
        and (getattr(layer, "groups", 1) or 1) == 1
    )
