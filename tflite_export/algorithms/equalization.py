"""Cross-layer equalization and bias correction on the constants of a float .tflite graph.

Nagel, van Baalen, Blankevoort, Welling: Data-Free Quantization Through Weight Equalization and Bias
Correction (2019), sections 4.1 and 4.2. Both work on the graph after folding, so what they gain is
what the integer file gains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dgh_tf.models.tflite.batch import proven
from dgh_tf.models.tflite.run import Graph, feeds_of, run
from dgh_tf.models.tflite.spec import CHANNEL_AXIS
from tflite_export.simulation.fake_quant import along, fake_quantizer
from tflite_export.simulation.ranges import Ranges

_KINDS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_PASSED = (
    "RELU",
    "MAX_POOL_2D",
    "AVERAGE_POOL_2D",
)  # f(s * x) = s * f(x) channel by channel, for s > 0


class Pair(NamedTuple):
    """Positions of two operators joined by nothing but homogeneous ones; `clipped`: the first has a
    fused RELU6.
    """

    first: int
    second: int
    clipped: bool


def own_bias(graph: Graph, position: int) -> int:
    """Tensor index of the operator's constant bias; -1 without one, or with one that others read
    too: what is written there would change them.
    """
    inputs = graph.operators[position].inputs
    if len(inputs) <= 2 or inputs[2] < 0 or graph.tensors[inputs[2]].value is None:
        return -1
    readers = sum(o.inputs.count(inputs[2]) for o in graph.operators)
    return inputs[2] if readers == 1 else -1


def equalizable_pairs(graph: Graph) -> list[Pair]:
    """Pairs of convolution, depthwise or dense operators that can trade scale per channel.

    The first one's output goes only to the second, through fused or separate ReLU and pooling; its
    RELU6 counts too, see `equalize`. Weights and biases used twice and outputs of the graph are
    left alone.
    """
    readers: dict[int, list[int]] = {}
    for position, operator in enumerate(graph.operators):
        for i in operator.inputs:
            readers.setdefault(i, []).append(position)

    def alone(position: int) -> bool:
        owned = [i for i in graph.operators[position].inputs[1:] if i >= 0]  # weights and bias
        return graph.operators[position].kind in _KINDS and all(
            graph.tensors[i].value is not None and len(readers[i]) == 1 for i in owned
        )

    pairs = []
    for position, operator in enumerate(graph.operators):
        if not alone(position) or operator.options["activation"] not in ("NONE", "RELU", "RELU6"):
            continue
        at, clipped = operator.outputs[0], operator.options["activation"] == "RELU6"
        while at not in graph.outputs and len(readers.get(at, [])) == 1:
            after = graph.operators[readers[at][0]]
            if after.kind not in _PASSED or after.options["activation"] not in ("NONE", "RELU"):
                break
            at = after.outputs[0]
        following = readers.get(at, [])
        if at in graph.outputs or len(following) != 1 or not alone(following[0]):
            continue
        other, channels = (
            graph.operators[following[0]],
            graph.tensors[operator.outputs[0]].shape[-1],
        )
        weights = graph.tensors[other.inputs[1]].shape
        if other.inputs[0] == at and (other.kind == "DEPTHWISE_CONV_2D" or weights[-1] == channels):
            pairs.append(Pair(position, following[0], clipped))
    return pairs


def _incoming(weights: np.ndarray, kind: str, channels: int) -> np.ndarray:
    """Weights as [input channels, everything else]; a depthwise output channel belongs to one input
    channel.
    """
    if kind == "DEPTHWISE_CONV_2D":
        return np.moveaxis(weights.reshape(*weights.shape[:-1], channels, -1), 3, 0).reshape(
            channels, -1
        )
    return np.moveaxis(weights, -1, 0).reshape(channels, -1)


def _scaled(weights: np.ndarray, kind: str, scale: np.ndarray, *, outgoing: bool) -> np.ndarray:
    """Weights times `scale` along their output channels (outgoing) or input channels."""
    axis = CHANNEL_AXIS[kind] if outgoing or kind == "DEPTHWISE_CONV_2D" else weights.ndim - 1
    return weights * along(
        np.repeat(scale, weights.shape[axis] // len(scale)), axis=axis, rank=weights.ndim
    )


def _highest(graph: Graph, images: Any, pairs: list[Pair]) -> dict[int, np.ndarray]:
    """Largest value per channel over the images, of the outputs of the clipped firsts, by
    position.
    """
    outputs = {graph.operators[p.first].outputs[0]: p.first for p in pairs if p.clipped}
    highest: dict[int, np.ndarray] = {}

    def observe(index: int, value: Any) -> Any:
        if index in outputs:
            new = np.max(value.numpy().reshape(-1, value.shape[-1]), 0)
            highest[outputs[index]] = np.maximum(highest.get(outputs[index], 0.0), new)
        return value

    feeds = feeds_of(graph, images)
    for start in range(0, len(next(iter(feeds.values()))) if outputs else 0, 32):
        run(graph, {i: v[start : start + 32] for i, v in feeds.items()}, observe=observe)
    return highest


def equalize(
    graph: Graph,
    *,
    images: np.ndarray | Mapping[str, np.ndarray] | None = None,
    rounds: int = 20,
) -> dict[int, np.ndarray]:
    """Weights and biases whose channels use their layer's range evenly, with the function
    unchanged.

    For each pair and channel i, s_i = sqrt(r1_i / r2_i) with r the largest absolute weight going
    out of and into the channel (equation 11 there); the first layer's channel is divided by s_i,
    the second's multiplied.

    Args:
      graph: from `read_graph`.
      images: needed for pairs with a RELU6 between, which are left out without: a channel that
        stays under 6 on these images may be scaled as long as it stays under 6; one that reaches 6
        keeps its scale. So the function is the same on these images, and on others as far as they
        reach no higher.
      rounds: over all pairs, for chains of them.
    Returns:
      New float32 constants by tensor index, for `run`, `collect_ranges` and
      `to_tflite_with_ranges`; empty when there is nothing to equalize.
    """
    if images is not None:
        graph = proven(graph, images)
    pairs = [p for p in equalizable_pairs(graph) if images is not None or not p.clipped]
    highest, constants = _highest(graph, images, pairs), {}
    total = {
        p.first: np.ones(graph.tensors[graph.operators[p.first].outputs[0]].shape[-1])
        for p in pairs
    }
    for pair in pairs:
        for i in (
            graph.operators[pair.first].inputs[1],
            graph.operators[pair.second].inputs[1],
            own_bias(graph, pair.first),
        ):
            if i >= 0:
                constants[i] = np.asarray(graph.tensors[i].value, np.float64)
    for _ in range(rounds):
        for pair in pairs:
            first, second = graph.operators[pair.first], graph.operators[pair.second]
            w1, w2, channels = (
                constants[first.inputs[1]],
                constants[second.inputs[1]],
                len(total[pair.first]),
            )
            r1 = np.abs(np.moveaxis(w1, CHANNEL_AXIS[first.kind], 0).reshape(channels, -1)).max(1)
            r2 = np.abs(_incoming(w2, second.kind, channels)).max(1)
            alive = (r1 > 0) & (r2 > 0)
            scale = np.where(
                alive, np.sqrt(np.where(alive, r1, 1.0) / np.where(alive, r2, 1.0)), 1.0
            )
            if pair.clipped:
                top = highest[pair.first]
                scale = np.where(
                    top < 6.0,
                    np.maximum(scale * total[pair.first], top / 6.0) / total[pair.first],
                    1.0,
                )
            total[pair.first] *= scale
            constants[first.inputs[1]] = _scaled(w1, first.kind, 1 / scale, outgoing=True)
            constants[second.inputs[1]] = _scaled(w2, second.kind, scale, outgoing=False)
            if (bias := own_bias(graph, pair.first)) >= 0:
                constants[bias] = constants[bias] / scale
    return {i: value.astype(np.float32) for i, value in constants.items()}


def correct_biases(
    graph: Graph,
    images: np.ndarray | Mapping[str, np.ndarray],
    *,
    ranges: Ranges,
    constants: Mapping[int, Any],
    float_constants: Mapping[int, Any] | None = None,
    activation_bits: int = 8,
) -> dict[int, np.ndarray]:
    """Biases that take the mean error per output channel out of the quantized run, layer after
    layer.

    The error is the quantized minus the float output before the activation, averaged over images
    and positions; later layers see the corrected ones before them (section 4.2, the form measured
    on data).

    Args:
      graph: from `read_graph`.
      images: calibration images, all in memory at once.
      ranges: of `collect_ranges`.
      constants: quantized, of `quantized_constants`.
      float_constants: the floats that were quantized, such as `equalize` returns.
      activation_bits: 8 or 16.
    Returns:
      float32 biases by tensor index, to be merged into the float constants before
      `to_tflite_with_ranges`.
    """
    import tensorflow as tf

    graph = proven(graph, images)
    watch = fake_quantizer(graph, ranges=ranges, activation_bits=activation_bits)
    feeds = {i: tf.convert_to_tensor(v, tf.float32) for i, v in feeds_of(graph, images).items()}
    quantized = {i: watch(i, v) for i, v in feeds.items()}
    return correct_span(
        graph,
        range(len(graph.operators)),
        feeds,
        quantized,
        constants=constants,
        float_constants=float_constants,
        watch=watch,
    )


def correct_span(
    graph: Graph,
    span: range,
    plain: Mapping[int, Any],
    quantized: Mapping[int, Any],
    *,
    constants: Mapping[int, Any],
    float_constants: Mapping[int, Any] | None,
    watch: Callable[[int, Any], Any],
) -> dict[int, np.ndarray]:
    """`correct_biases` for some of the operators, from the values they read, in float and
    quantized, by tensor index.
    """
    import tensorflow as tf

    plain, quantized, changed, corrected = dict(plain), dict(quantized), dict(constants), {}
    last = {i: position for position, o in enumerate(graph.operators) for i in o.inputs}
    for position in span:
        operator, one, bias = (
            graph.operators[position],
            range(position, position + 1),
            own_bias(graph, position),
        )
        inputs = {i for i in operator.inputs if i in plain}  # x * x reads one twice
        if operator.kind in _KINDS and bias >= 0:
            want, got = (
                _outputs(graph, one, values, used, fused_activations=False)
                for values, used in ((plain, float_constants), (quantized, changed))
            )
            error = tf.reduce_mean(got[0] - want[0], list(range(len(want[0].shape) - 1))).numpy()
            changed[bias] = (
                np.asarray(changed.get(bias, graph.tensors[bias].value), np.float32) - error
            )
            corrected[bias] = changed[bias]
        for values, used in ((plain, float_constants), (quantized, changed)):
            made = _outputs(graph, one, values, used)
            values |= dict(zip(operator.outputs, made, strict=True))
        for i in operator.outputs:
            if quantized[i].dtype == tf.float32:
                quantized[i] = watch(i, quantized[i])
        for i in inputs:
            if last[i] == position:
                del plain[i], quantized[i]
    return corrected


def _outputs(
    graph: Graph,
    span: range,
    values: Mapping[int, Any],
    constants: Mapping[int, Any] | None,
    *,
    fused_activations: bool = True,
) -> list[Any]:
    """What the only operator of `span` makes of `values`, whoever reads it."""
    operator = graph.operators[span[0]]
    made = run(
        graph,
        {i: values[i] for i in operator.inputs if i in values},
        constants=constants,
        operators=span,
        outputs=operator.outputs,
        fused_activations=fused_activations,
    )
    return [made[i] for i in operator.outputs]
