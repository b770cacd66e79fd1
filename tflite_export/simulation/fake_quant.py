"""Fake quantization of a float .tflite graph as TFLite quantizes it, at any number of bits.

Every activation, the input and the output are quantized; weights per output channel; biases stay in
float, since their 32 bits hide nothing. `run(..., observe=fake_quantizer(...),
constants=quantized_constants(...))` is the simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dgh_tf.models.tflite.batch import proven
from dgh_tf.models.tflite.run import Graph, feeds_of, run
from dgh_tf.models.tflite.spec import CHANNEL_AXIS, FOUR_BIT_VERSION, spec_of
from tflite_export.simulation.ranges import Ranges

_SHRINK = np.linspace(
    0.3, 1.0, 71
)  # candidates of the clipping search, as parts of the largest weight


WeightBits = int | Mapping[int, int]  # of all weights, or by tensor index; others have 8


def channel_axes(graph: Graph) -> dict[int, int]:
    """Axis of output channels by tensor index, of all constant weights that TFLite quantizes per
    channel.
    """
    return {
        o.inputs[1]: CHANNEL_AXIS[o.kind]
        for o in graph.operators
        if o.kind in CHANNEL_AXIS and graph.tensors[o.inputs[1]].value is not None
    }


def along(values: np.ndarray, *, axis: int, rank: int) -> np.ndarray:
    """[channels] as an array of `rank` axes that broadcasts along `axis`: what a scale per channel
    multiplies weights with.
    """
    return np.reshape(values, [-1 if i == axis else 1 for i in range(rank)])


def bits_of_weights(graph: Graph, weight_bits: WeightBits) -> dict[int, int]:
    """Bits by tensor index of the weights: those of operators without a kernel for fewer than 8
    (TRANSPOSE_CONV) keep 8.
    """
    kinds = {o.inputs[1]: o.kind for o in graph.operators if o.kind in CHANNEL_AXIS}
    return {
        i: bits_at(weight_bits, i) if kinds[i] in FOUR_BIT_VERSION else 8
        for i in channel_axes(graph)
    }


def bits_at(weight_bits: WeightBits, index: int) -> int:
    """Bits of one weight tensor."""
    return weight_bits if isinstance(weight_bits, int) else weight_bits.get(index, 8)


def integer_limits(weight_bits: int, *, narrow: bool = True) -> tuple[int, int]:
    """Smallest and largest integer of weights: +-(2^(b-1)-1), TFLite's narrow range. Not narrow,
    fewer than 8 bits hold one more, such as -8 to 7.

    That level serves learned roundings. Rounding to nearest lets channels clip at 7 what they keep
    at -8, and their means move: ResNet-8 loses 2 dB.
    """
    largest = 2 ** (weight_bits - 1) - 1
    return (-largest if narrow or weight_bits == 8 else -largest - 1), largest


def quantize_weights(
    weights: np.ndarray,
    *,
    axis: int,
    weight_bits: int = 8,
    rule: str = "minmax",
    narrow: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric quantization per channel to nearest, within `integer_limits`.

    Args:
      weights: float, any shape.
      axis: the channels' axis.
      weight_bits: 2 to 8.
      rule: "minmax": the largest weight is the largest integer; "mse": the clipping of least
        squared error.
      narrow: see `integer_limits`.
    Returns:
      int8 integers of the weights' shape and float32 scales [channels]; a channel of zeros has
      scale 1.
    """
    low, limit = integer_limits(weight_bits, narrow=narrow)
    rows = np.moveaxis(np.asarray(weights, np.float32), axis, 0).reshape(weights.shape[axis], -1)
    largest = np.abs(rows).max(1)
    largest[largest == 0] = limit
    best, best_error = largest / limit, np.full(len(rows), np.inf)
    for part in _SHRINK if rule == "mse" else (1.0,):
        scale = (part * largest / limit).astype(np.float32)
        rounded = np.clip(np.rint(rows / scale[:, None]), low, limit) * scale[:, None]
        error = np.sum((rounded - rows) ** 2, 1)
        best, best_error = np.where(error < best_error, scale, best), np.minimum(error, best_error)
    integers = np.clip(
        np.rint(weights / along(best, axis=axis, rank=weights.ndim)), low, limit
    ).astype(np.int8)
    return integers, best.astype(np.float32)


def integer_constants(
    graph: Graph,
    *,
    weight_bits: WeightBits = 8,
    rule: str = "minmax",
    narrow: bool = True,
    constants: Mapping[int, Any] | None = None,
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """(integers, scales) by tensor index of every weight tensor; see `quantize_weights`.
    `constants` replace the file's.
    """
    values = {**{i: graph.tensors[i].value for i in channel_axes(graph)}, **(constants or {})}
    bits = bits_of_weights(graph, weight_bits)
    return {
        i: quantize_weights(
            np.asarray(values[i]), axis=axis, weight_bits=bits[i], rule=rule, narrow=narrow
        )
        for i, axis in channel_axes(graph).items()
    }


def _per_tensor(value: np.ndarray) -> np.ndarray:
    """8 bits, asymmetric: what TFLite makes of the constant of an ADD or MUL."""
    low, high = min(float(value.min()), 0.0), max(float(value.max()), 0.0)
    scale = (high - low) / 255 or 1.0
    zero = np.rint(-low / scale)
    return ((np.clip(np.rint(value / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


def quantized_constants(
    graph: Graph,
    *,
    weight_bits: WeightBits = 8,
    rule: str = "minmax",
    constants: Mapping[int, Any] | None = None,
    weights: Mapping[int, tuple[np.ndarray, np.ndarray]] | None = None,
) -> dict[int, np.ndarray]:
    """Constants for `run`, quantized and back in float32, by tensor index.

    Weights of convolutions and dense layers per output channel with `weight_bits`; constants of
    other operators per tensor with 8 bits; biases as they are.

    Args:
      graph: from `read_graph`.
      weight_bits: of all weights, or by tensor index; 2 to 8.
      rule: see `quantize_weights`.
      constants: floats to start from instead of the file's (equalized weights, corrected biases).
      weights: (integers, scales) chosen already, by tensor index; the rest is rounded to nearest by
        `rule`.
    """
    changed = {i: np.asarray(v, np.float32) for i, v in (constants or {}).items()}
    integers = {
        **integer_constants(graph, weight_bits=weight_bits, rule=rule, constants=changed),
        **(weights or {}),
    }
    result = dict(changed)
    for operator in graph.operators:
        if operator.kind in CHANNEL_AXIS or spec_of(operator.kind).keeps_constants:
            continue
        for tensor in operator.input_tensors:
            if tensor is not None and tensor.value is not None and tensor.dtype == "FLOAT32":
                i = tensor.index
                result[i] = _per_tensor(changed.get(i, tensor.value))
    for i, axis in channel_axes(graph).items():
        result[i] = integers[i][0].astype(np.float32) * along(
            integers[i][1], axis=axis, rank=integers[i][0].ndim
        )
    return result


def nudged(low: float, high: float, *, bits: int) -> tuple[float, float]:
    """The range with zero on the grid, as TFLite's converter moves it: a zero point halfway between
    two integers (every range that is symmetric around 0) goes to the lower one, where fake
    quantization would take the higher.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    high = high if high > low else low + 1e-6
    scale = (high - low) / (2**bits - 1)
    zero = min(
        max(np.ceil(-low / scale - 0.5 - 1e-6), 0.0), 2.0**bits - 1
    )  # 1e-6: a range in float32 is not exactly symmetric
    return -zero * scale, (2**bits - 1 - zero) * scale


def fake_quantizer(
    graph: Graph, *, ranges: Ranges, activation_bits: int = 8
) -> Callable[[int, Any], Any]:
    """The `observe` of a quantized run: every activation is fake-quantized to its range; the
    graph's inputs with 8 bits.

    Gradients pass inside the range and stop outside (tf.quantization.fake_quant_with_min_max_vars).
    """
    import tensorflow as tf

    def quantize(index: int, value: Any) -> Any:
        bits = 8 if index in graph.inputs else activation_bits
        return tf.quantization.fake_quant_with_min_max_vars(
            value, *nudged(*ranges[index], bits=bits), num_bits=bits
        )

    return quantize


def predict(
    graph: Graph,
    images: np.ndarray | Mapping[str, np.ndarray],
    *,
    ranges: Ranges | None = None,
    constants: Mapping[int, Any] | None = None,
    activation_bits: int = 8,
    batch_size: int = 32,
) -> np.ndarray | dict[str, np.ndarray]:
    """Runs the graph over images, in float (ranges None) or with every activation fake-quantized.

    Args:
      graph: from `read_graph`.
      images: float32 [images, ...] in the model's input units, or a dict by input name.
      ranges: of `collect_ranges`.
      constants: of `quantized_constants`; None for the file's floats.
      activation_bits: 8 or 16.
      batch_size: images at once.
    Returns:
      float32 [images, ...], or a dict by output name where there are several: what `Runner.predict`
      gives.
    """
    graph = proven(graph, images)
    feeds = feeds_of(graph, images)
    watch = (
        None
        if ranges is None
        else fake_quantizer(graph, ranges=ranges, activation_bits=activation_bits)
    )
    parts: dict[int, list[np.ndarray]] = {i: [] for i in graph.outputs}
    for start in range(0, len(next(iter(feeds.values()))), batch_size):
        batch = {i: v[start : start + batch_size] for i, v in feeds.items()}
        made = run(graph, batch, constants=constants, observe=watch)
        for i in parts:
            value = made[i].numpy()
            alone = graph.batched is False and graph.tensors[i].shape[:1] == (1,)
            parts[i].append(value[:, 0] if alone else value)
    results = {
        n: np.concatenate(parts[i]) for n, i in zip(graph.output_names, graph.outputs, strict=True)
    }
    return next(iter(results.values())) if len(results) == 1 else results
