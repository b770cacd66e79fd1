"""math: writes chosen numbers into .tflite bytes: float constants, calibrated ranges, integer
weights of 8 or 4 bits; cuts softmax off.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

# axis of output channels of the weights (always input 1) in operators that TFLite quantizes per
# output channel
CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
FOUR_BIT_VERSION = {
    "CONV_2D": 7,
    "DEPTHWISE_CONV_2D": 7,
    "FULLY_CONNECTED": 10,
}  # of the operator with INT4 weights
SHAPE_ONLY = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
_BIAS_INPUT = {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 2, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 3}


def _open(tflite: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite, 0))


def _pack(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _fill(model: Any, tensor: Any, data: bytes) -> None:
    """Gives the tensor a buffer of its own: the converter may share one among equal constants."""
    from ai_edge_litert import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8)
    tensor.buffer = len(model.buffers)
    model.buffers.append(buffer)


def in_order(tflite: bytes, *, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> bytes:
    """The file with its inputs and outputs in the order of these names of its signature, and under
    the names that stand behind them; the converter's own order has no meaning.
    """
    model = _open(tflite)
    signature, changed = model.signatureDefs[0], False
    graph = model.subgraphs[signature.subgraphIndex]
    for side, names in (("inputs", inputs), ("outputs", outputs)):
        by_name = {entry.name.decode(): entry for entry in getattr(signature, side)}
        setattr(signature, side, [by_name[name] for name in names])
        wanted = [by_name[name].tensorIndex for name in names]
        for entry, name in zip(getattr(signature, side), names.values(), strict=True):
            changed |= entry.name != name.encode()
            entry.name = name.encode()
        changed |= wanted != list(getattr(graph, side))
        setattr(graph, side, np.int32(wanted))
    return _pack(model) if changed else tflite


def with_constants(tflite: bytes, *, constants: Mapping[int, np.ndarray]) -> bytes:
    """The float file with other float32 constants, by tensor index. Raises ValueError for another
    shape.
    """
    model = _open(tflite)
    for index, value in constants.items():
        tensor = model.subgraphs[0].tensors[index]
        if tuple(tensor.shape) != np.shape(value):
            raise ValueError(
                f"Constant {tensor.name.decode()} has shape {list(tensor.shape)}; got "
                f"{list(np.shape(value))}."
            )
        _fill(model, tensor, np.ascontiguousarray(value, np.float32).tobytes())
    return _pack(model)


def with_ranges(tflite: bytes, *, ranges: Mapping[int, tuple[float, float]]) -> bytes:
    """The float file as if calibrated: (low, high) by tensor index, where the quantizer reads what
    calibration saw.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = _open(tflite)
    for index, (low, high) in ranges.items():
        quantization = schema.QuantizationParametersT()
        quantization.min, quantization.max = [float(low)], [float(high)]
        model.subgraphs[0].tensors[index].quantization = quantization
    return _pack(model)


def without_softmax(tflite: bytes) -> bytes:
    """The float file without the softmax and sigmoid at its outputs, which become the logits; their
    names stay.

    Only reshapes may stand between such an operator and the outputs. Raises ValueError where there
    is none.
    """
    from tflite_export.tflite.integer_check import operator_table

    model = _open(tflite)
    graph = model.subgraphs[0]
    kinds = [row["operator"] for row in operator_table(tflite) if row["subgraph"] == 0]
    readers = {
        i: [place for place, o in enumerate(graph.operators) if i in o.inputs]
        for o in graph.operators
        for i in o.outputs
    }

    def at_the_end(tensor: int) -> bool:
        if tensor in graph.outputs:
            return not readers[tensor]
        return bool(readers[tensor]) and all(
            kinds[place] in SHAPE_ONLY and at_the_end(int(graph.operators[place].outputs[0]))
            for place in readers[tensor]
        )

    dropped = {
        int(o.outputs[0]): int(o.inputs[0])
        for o, kind in zip(graph.operators, kinds, strict=True)
        if kind in ("SOFTMAX", "LOGISTIC") and at_the_end(int(o.outputs[0]))
    }
    if not dropped:
        raise ValueError(
            "The model does not end in a softmax or sigmoid, so its outputs are the "
            "logits already. Use --head=model."
        )
    graph.operators = [o for o in graph.operators if int(o.outputs[0]) not in dropped]
    kept = [
        i for i in range(len(graph.tensors)) if i not in dropped
    ]  # a tensor that nothing makes is an error to some readers
    place = {-1: -1, **{old: new for new, old in enumerate(kept)}}

    def moved(indices: Any) -> np.ndarray | None:
        return (
            None
            if indices is None
            else np.int32([place[dropped.get(int(i), int(i))] for i in indices])
        )

    graph.tensors = [graph.tensors[i] for i in kept]
    for operator in graph.operators:
        operator.inputs, operator.outputs, operator.intermediates = map(
            moved, (operator.inputs, operator.outputs, operator.intermediates)
        )
    graph.inputs, graph.outputs = moved(graph.inputs), moved(graph.outputs)
    for signature in model.signatureDefs or []:
        for entry in [*signature.inputs, *signature.outputs]:
            entry.tensorIndex = place[dropped.get(entry.tensorIndex, entry.tensorIndex)]
    return _pack(model)


def with_own_biases(tflite: bytes) -> bytes:
    """The file with a bias tensor of its own for every operator with constant weights.

    The converter stores equal constants once: the zero biases of a whole network can be one tensor,
    and what is written there for one layer would count for all. A dense layer without a bias gets
    one of zeros, so that it can be corrected too. Outputs stay the same; a file that has nothing
    shared is returned as it is.
    """
    model = _open(tflite)
    return _pack(model) if _give_own_biases(model, tflite) else tflite


def _give_own_biases(model: Any, tflite: bytes) -> bool:
    """`with_own_biases` in place; returns whether anything changed."""
    from ai_edge_litert import schema_py_generated as schema

    graph, changed = model.subgraphs[0], False
    readers = collections.Counter(int(i) for o in graph.operators for i in o.inputs)
    for output, (kind, operator, weights) in _weighted(model, tflite).items():
        place, inputs = _BIAS_INPUT[kind], list(map(int, operator.inputs))
        inputs += [-1] * (place + 1 - len(inputs))
        old = graph.tensors[inputs[place]] if inputs[place] >= 0 else None
        if old is None and (kind != "FULLY_CONNECTED" or weights.type != schema.TensorType.FLOAT32):
            continue
        if old is not None and (readers[inputs[place]] == 1 or not _holds_data(model, old)):
            continue
        if old is None:
            tensor, data = schema.TensorT(), bytes(4 * int(weights.shape[0]))
            tensor.type, tensor.shape = (
                schema.TensorType.FLOAT32,
                np.array([weights.shape[0]], np.int32),
            )
        else:
            tensor, data = copy.copy(old), bytes(model.buffers[old.buffer].data)
            tensor.quantization = copy.copy(old.quantization)
            readers[inputs[place]] -= 1  # the last reader keeps it
        tensor.name = f"{output}/bias".encode()
        _fill(model, tensor, data)
        inputs[place], changed = len(graph.tensors), True
        graph.tensors.append(tensor)
        operator.inputs = np.array(inputs, np.int32)
    return changed


def _holds_data(model: Any, tensor: Any) -> bool:
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def pack_int4(values: np.ndarray) -> bytes:
    """Integers -8..7, flattened, two per byte, the first in the low nibble (TensorType.INT4)."""
    nibbles = np.asarray(values, np.int8).ravel().astype(np.uint8) & 15
    nibbles = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return (nibbles[::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()


def unpack_int4(data: bytes, count: int) -> np.ndarray:
    """The inverse of `pack_int4`: int8 [count]."""
    packed = np.frombuffer(data, np.uint8)
    nibbles = np.stack([packed & 15, packed >> 4], 1).ravel()[:count].astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8)


def _weighted(model: Any, tflite: bytes) -> dict[str, tuple[str, Any, Any]]:
    """(kind, operator, its weights' tensor) by name of the operator's output, of every operator
    with constant weights.

    Outputs have the same names in float and integer files of all converters; weights do not.
    """
    from tflite_export.tflite.integer_check import operator_table

    found, graph = {}, model.subgraphs[0]
    for row, operator in zip(operator_table(tflite), graph.operators, strict=False):
        if row["operator"] in CHANNEL_AXIS and row["subgraph"] == 0:
            tensor = graph.tensors[operator.inputs[1]]
            data = model.buffers[tensor.buffer].data
            if data is not None and len(data):
                found[graph.tensors[operator.outputs[0]].name.decode()] = (
                    row["operator"],
                    operator,
                    tensor,
                )
    return found


def float_weights(tflite: bytes) -> dict[str, tuple[str, np.ndarray]]:
    """(kind, float32 weights) of every operator quantized per output channel, by name of its
    output.
    """
    model = _open(tflite)
    return {
        name: (
            kind,
            np.frombuffer(bytes(model.buffers[tensor.buffer].data), np.float32).reshape(
                tuple(tensor.shape)
            ),
        )
        for name, (kind, _, tensor) in _weighted(model, tflite).items()
    }


def integer_weights(tflite: bytes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(int8 [shape of the weights], float32 scales [1 or channels]) of operators with INT8 or INT4
    weights, by name of the output.
    """
    from ai_edge_litert import schema_py_generated as schema

    model, found = _open(tflite), {}
    for name, (_, _, tensor) in _weighted(model, tflite).items():
        data, shape = bytes(model.buffers[tensor.buffer].data), tuple(tensor.shape)
        if tensor.type in (schema.TensorType.INT4, schema.TensorType.INT8):
            four = tensor.type == schema.TensorType.INT4
            values = (
                unpack_int4(data, int(np.prod(shape))) if four else np.frombuffer(data, np.int8)
            )
            found[name] = (values.reshape(shape), np.asarray(tensor.quantization.scale, np.float32))
    return found


def _rescale_bias(model: Any, kind: str, operator: Any, scales: np.ndarray) -> None:
    """int32 bias = round(bias / (input scale * weight scale)), from the integers and scales
    it had.
    """
    place = _BIAS_INPUT[kind]
    if len(operator.inputs) <= place or operator.inputs[place] < 0:
        return
    graph = model.subgraphs[0]
    bias, source = (
        graph.tensors[operator.inputs[place]],
        graph.tensors[operator.inputs[2 if kind == "TRANSPOSE_CONV" else 0]],
    )
    old = np.frombuffer(bytes(model.buffers[bias.buffer].data), np.int32) * np.asarray(
        bias.quantization.scale, np.float64
    )
    new = np.float64(source.quantization.scale[0]) * scales.astype(np.float64)
    limits = np.iinfo(np.int32)
    _fill(
        model, bias, np.clip(np.rint(old / new), limits.min, limits.max).astype(np.int32).tobytes()
    )
    bias.quantization.scale = np.broadcast_to(new, old.shape).astype(np.float32)
    bias.quantization.zeroPoint = np.zeros(len(old), np.int64)


def with_integers(
    tflite: bytes, *, weights: Mapping[str, tuple[np.ndarray, np.ndarray]], weight_bits: int = 8
) -> bytes:
    """The int8 file with chosen weights; the int32 biases follow the new scales.

    Args:
      tflite: a full-integer file with int8 activations.
      weights: by name of the operator's output (the float file has the same names): integers of the
        weights' shape within
        -2^(b-1)..2^(b-1)-1, and float scales [output channels].
      weight_bits: 8 leaves INT8 tensors; 4 makes packed INT4 tensors (convolutions, depthwise and
        dense only).
    Raises:
      ValueError: no such operator, another shape, integers out of range, scales that are not
        positive, different weights for
        operators that share theirs, or an operator that has no 4-bit kernel.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = _open(tflite)
    _give_own_biases(model, tflite)  # each is rescaled for its own operator
    weighted = _weighted(model, tflite)
    for name, (integers, scales) in weights.items():
        if name not in weighted:
            raise ValueError(
                f"The file has no weights behind {name}; it has them behind "
                f"{', '.join(sorted(weighted))}."
            )
        (kind, operator, tensor), scales = weighted[name], np.asarray(scales, np.float32)
        _require_fit(name, kind, tuple(tensor.shape), integers, scales, weight_bits)
        for other, (_, _, used) in weighted.items():
            if used is tensor and not (
                other in weights and all(map(np.array_equal, weights[name], weights[other]))
            ):
                raise ValueError(
                    f"{name} and {other} have the same weights in the file. Give the "
                    "same integers for both."
                )
        _fill(
            model,
            tensor,
            pack_int4(integers) if weight_bits == 4 else np.asarray(integers, np.int8).tobytes(),
        )
        tensor.type = schema.TensorType.INT4 if weight_bits == 4 else schema.TensorType.INT8
        tensor.quantization.scale, tensor.quantization.quantizedDimension = (
            scales,
            CHANNEL_AXIS[kind],
        )
        tensor.quantization.zeroPoint = np.zeros(len(scales), np.int64)
        _rescale_bias(model, kind, operator, scales)
        if weight_bits == 4:
            code = model.operatorCodes[operator.opcodeIndex]
            code.version = max(code.version, FOUR_BIT_VERSION[kind])
    return _drop_unused_buffers(model)


def _require_fit(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    integers: np.ndarray,
    scales: np.ndarray,
    weight_bits: int,
) -> None:
    channels, low = shape[CHANNEL_AXIS[kind]], -(2 ** (weight_bits - 1))
    if np.shape(integers) != shape or scales.shape != (channels,) or not np.all(scales > 0):
        raise ValueError(
            f"The weights behind {name} need integers of shape {list(shape)} and "
            f"{channels} positive scales; got "
            f"{list(np.shape(integers))} and {list(scales.shape)}, smallest "
            f"{scales.min() if scales.size else None}."
        )
    if np.min(integers) < low or np.max(integers) >= -low:
        raise ValueError(
            f"The weights behind {name} run from {np.min(integers)} to "
            f"{np.max(integers)}; {weight_bits} bits hold {low} "
            f"to {-low - 1}."
        )
    if weight_bits == 4 and kind not in FOUR_BIT_VERSION:
        raise ValueError(
            f"{kind} {name} has no 4-bit kernel; only {', '.join(FOUR_BIT_VERSION)} "
            "have. Keep it at 8 bits."
        )


def _drop_unused_buffers(model: Any) -> bytes:
    """Replaced weights are emptied, or the file would hold both."""
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in model.metadata or []}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
    return _pack(model)
