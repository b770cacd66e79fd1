"""New .tflite files from old ones: other constants, calibrated ranges, integer weights of 8
or 4 bits, no softmax at the end. A `TFLiteModel` never changes; each function gives another one.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgh_tf.models.tflite.model import (
    Operator,
    Tensor,
    TFLiteModel,
    damaged,
    pack_int4,
    read_model,
)
from dgh_tf.models.tflite.parts import fill, pack, pack_small, unpack
from dgh_tf.models.tflite.spec import (
    CHANNEL_AXIS,
    FOUR_BIT_VERSION,
    HEAD_ACTIVATIONS,
    SHAPE_ONLY,
    spec_of,
)

IntegerWeights = tuple[np.ndarray, np.ndarray]  # integers, and float32 scales per output channel


def in_order(
    tflite: bytes | TFLiteModel, *, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> TFLiteModel:
    """The file with its inputs and outputs in the order of these names of its signature, and under
    the names that stand behind them; the converter's own order has no meaning.

    Raises ValueError where the signature has other names.
    """
    model = read_model(tflite)
    if not model.signatures or (
        set(model.signatures[0].inputs) != set(inputs)
        or set(model.signatures[0].outputs) != set(outputs)
    ):
        raise ValueError(
            f"The file's signatures are {list(model.signatures)}; expected one with inputs "
            f"{', '.join(inputs)} and outputs {', '.join(outputs)}."
        )
    parts, changed = unpack(model), False
    signature = parts.signatureDefs[0]
    graph = parts.subgraphs[signature.subgraphIndex]
    for side, names in (("inputs", inputs), ("outputs", outputs)):
        by_name = {entry.name.decode(): entry for entry in getattr(signature, side)}
        setattr(signature, side, [by_name[name] for name in names])
        wanted = [by_name[name].tensorIndex for name in names]
        for entry, name in zip(getattr(signature, side), names.values(), strict=True):
            changed |= entry.name != name.encode()
            entry.name = name.encode()
        changed |= wanted != list(getattr(graph, side))
        setattr(graph, side, np.asarray(wanted, np.int32))
    return pack(parts) if changed else model


def with_constants(
    tflite: bytes | TFLiteModel, *, constants: Mapping[int, np.ndarray]
) -> TFLiteModel:
    """The float file with other float32 constants, by tensor index. Raises ValueError for another
    shape.
    """
    model = read_model(tflite)
    parts = unpack(model)
    for index, value in constants.items():
        tensor = model.tensors[index]
        if tensor.shape != np.shape(value):
            raise ValueError(
                f"Constant {tensor.name} has shape {list(tensor.shape)}; got "
                f"{list(np.shape(value))}."
            )
        data = np.ascontiguousarray(value, np.float32).tobytes()
        fill(parts, parts.subgraphs[0].tensors[index], data)
    return pack(parts)


def with_ranges(
    tflite: bytes | TFLiteModel, *, ranges: Mapping[int, tuple[float, float]]
) -> TFLiteModel:
    """The float file as if calibrated: (low, high) by tensor index, where the quantizer reads what
    calibration saw.
    """
    from ai_edge_litert import schema_py_generated as schema

    parts = unpack(read_model(tflite))
    for index, (low, high) in ranges.items():
        quantization = schema.QuantizationParametersT()
        quantization.min, quantization.max = [float(low)], [float(high)]
        parts.subgraphs[0].tensors[index].quantization = quantization
    return pack(parts)


def logits_of(model: TFLiteModel) -> list[int]:
    """For each output the tensor that goes into its softmax or sigmoid, through reshapes; the
    output itself where it has none.
    """
    makers = {i: operator for operator in model.operators for i in operator.outputs}
    found = []
    for output in model.outputs:
        at = output
        while (maker := makers.get(at)) and maker.kind in SHAPE_ONLY:
            at = _source(maker)
        found.append(_source(maker) if maker and maker.kind in HEAD_ACTIVATIONS else output)
    return found


def _source(operator: Operator) -> int:
    if not operator.inputs or operator.inputs[0] < 0:
        raise damaged(f"a {operator.kind} without input")
    return operator.inputs[0]


def _behind_heads(model: TFLiteModel) -> dict[int, int]:
    """Tensor that goes in by the tensor that comes out, of every softmax and sigmoid that only
    reshapes separate from the outputs.
    """
    read = {i for operator in model.operators for i in operator.inputs}
    at_the_end = {i for i in model.outputs if i not in read}
    found = {}
    readers: dict[int, list[Operator]] = {}
    for operator in model.operators:
        for i in operator.inputs:
            readers.setdefault(i, []).append(operator)
    for operator in reversed(model.operators):  # readers come before makers
        for i in operator.outputs:
            if i in readers and i not in model.outputs:
                only_reshapes = all(
                    o.kind in SHAPE_ONLY and o.outputs[0] in at_the_end for o in readers[i]
                )
                at_the_end |= {i} if only_reshapes else set()
        if operator.kind in HEAD_ACTIVATIONS and operator.outputs[0] in at_the_end:
            found[operator.outputs[0]] = operator.inputs[0]
    return found


def ends_in_softmax(tflite: bytes | TFLiteModel) -> bool:
    """Whether `without_softmax` has something to leave out."""
    return bool(_behind_heads(read_model(tflite)))


def left_to_cut(head: str, tflite: bytes | TFLiteModel, *, chose: bool) -> str:
    """The head to ask for of a float file: "model" where "logits" has been done, because a choice
    (`chose`) was taken off the model and no softmax stood before it.
    """
    return "model" if chose and not ends_in_softmax(tflite) else head


def without_softmax(tflite: bytes | TFLiteModel) -> TFLiteModel:
    """The file without the softmax and sigmoid at its outputs, which become the logits; their names
    stay. In an integer file the reshapes behind them take the logits' scale.

    Only reshapes may stand between such an operator and the outputs. Raises ValueError where there
    is none.
    """
    model = read_model(tflite)
    dropped = _behind_heads(model)
    if not dropped:
        raise ValueError(
            "The model does not end in a softmax or sigmoid, so its outputs are the "
            "logits already. Use --head=model."
        )
    parts = unpack(model)
    graph, logits = parts.subgraphs[0], set()
    for operator in model.operators:  # what only reshapes the logits has their scale
        source = dropped.get(operator.inputs[0], operator.inputs[0]) if operator.inputs else -1
        if operator.kind in SHAPE_ONLY and (operator.inputs[0] in dropped or source in logits):
            logits.add(operator.outputs[0])
            graph.tensors[operator.outputs[0]].quantization = graph.tensors[source].quantization
    graph.operators = [o for o in graph.operators if int(o.outputs[0]) not in dropped]
    # a tensor that nothing makes is an error to some readers
    kept = [i for i in range(len(graph.tensors)) if i not in dropped]
    place = {-1: -1, **{old: new for new, old in enumerate(kept)}}

    def moved(indices: Any) -> np.ndarray | None:
        if indices is None:
            return None
        return np.asarray([place[dropped.get(int(i), int(i))] for i in indices], np.int32)

    graph.tensors = [graph.tensors[i] for i in kept]
    for operator in graph.operators:
        operator.inputs, operator.outputs = moved(operator.inputs), moved(operator.outputs)
        operator.intermediates = moved(operator.intermediates)
    graph.inputs, graph.outputs = moved(graph.inputs), moved(graph.outputs)
    for signature in parts.signatureDefs or []:
        for entry in [*signature.inputs, *signature.outputs]:
            entry.tensorIndex = place[dropped.get(entry.tensorIndex, entry.tensorIndex)]
    return pack(parts)


def with_own_biases(tflite: bytes | TFLiteModel) -> TFLiteModel:
    """The file with a bias tensor of its own for every operator with constant weights.

    The converter stores equal constants once: the zero biases of a whole network can be one tensor,
    and what is written there for one layer would count for all. A dense layer without a bias gets
    one of zeros, so that it can be corrected too. Outputs stay the same; a file that has nothing
    shared is returned as it is.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = read_model(tflite)
    parts, changed = unpack(model), False
    graph = parts.subgraphs[0]
    places = {operator: place for place, operator in enumerate(model.operators)}
    readers = collections.Counter(i for o in model.operators for i in o.inputs)
    for output, operator in weighted_operators(model).items():
        place, inputs = spec_of(operator.kind).bias_input, list(operator.inputs)
        inputs += [-1] * (place + 1 - len(inputs))
        weights = weights_of(operator)
        bias = model.tensors[inputs[place]] if inputs[place] >= 0 else None
        if bias is None and operator.kind == "FULLY_CONNECTED" and weights.dtype == "FLOAT32":
            part, data = schema.TensorT(), bytes(4 * weights.shape[0])
            part.type = schema.TensorType.FLOAT32
            part.shape = np.asarray(weights.shape[:1], np.int32)
        elif bias is not None and bias.data is not None and readers[bias.index] > 1:
            part, data = copy.copy(graph.tensors[bias.index]), bias.data.tobytes()
            part.quantization = copy.copy(part.quantization)
            readers[bias.index] -= 1  # the last reader keeps it
        else:
            continue
        part.name = f"{output}/bias".encode()
        fill(parts, part, data)
        inputs[place], changed = len(graph.tensors), True
        graph.tensors.append(part)
        graph.operators[places[operator]].inputs = np.asarray(inputs, np.int32)
    return pack(parts) if changed else model


def weighted_operators(model: TFLiteModel) -> dict[str, Operator]:
    """Every operator with constant weights that TFLite quantizes per output channel, by name of its
    output.

    Outputs have the same names in float and integer files of all converters; weights do not.
    """
    return {
        operator.output_tensors[0].name: operator
        for operator in model.operators
        if operator.kind in CHANNEL_AXIS and weights_of(operator).constant
    }


def same_operators(source: TFLiteModel, made: TFLiteModel) -> dict[str, str]:
    """Operators with weights of a float file and of the integer one made from it, as names of their
    outputs: other ones where the quantizer numbers them anew, such as x1 and x11. It keeps the
    order. Empty where the two do not fit each other.
    """
    ours, theirs = weighted_operators(source), weighted_operators(made)
    if ours.keys() == theirs.keys():
        return {name: name for name in ours}
    if len(ours) != len(theirs):
        return {}
    for (name, one), (other, two) in zip(ours.items(), theirs.items(), strict=True):
        fits = one.kind == two.kind and weights_of(one).shape == weights_of(two).shape
        if not fits or name.rstrip("0123456789") != other.rstrip("0123456789"):
            return {}
    return dict(zip(ours, theirs, strict=True))


def weights_of(operator: Operator) -> Tensor:
    """The weights of an operator in CHANNEL_AXIS. Raises ValueError where it has none."""
    tensor = operator.input_tensors[1] if len(operator.input_tensors) > 1 else None
    if tensor is None:
        raise damaged(f"a {operator.kind} without weights")
    return tensor


def float_weights(tflite: bytes | TFLiteModel) -> dict[str, tuple[str, np.ndarray]]:
    """(kind, float32 weights) of every operator quantized per output channel, by name of its
    output.
    """
    return {
        name: (operator.kind, np.asarray(weights_of(operator).value, np.float32))
        for name, operator in weighted_operators(read_model(tflite)).items()
    }


def integer_weights(tflite: bytes | TFLiteModel) -> dict[str, IntegerWeights]:
    """(int8 [shape of the weights], float32 scales [1 or channels]) of operators with INT8 or INT4
    weights, by name of the output.
    """
    return {
        name: (np.asarray(tensor.value, np.int8), np.asarray(tensor.scales, np.float32))
        for name, operator in weighted_operators(read_model(tflite)).items()
        if (tensor := weights_of(operator)).dtype in ("INT4", "INT8")
    }


def _rescale_bias(parts: Any, operator: Operator, scales: np.ndarray) -> None:
    """int32 bias = round(bias / (input scale * weight scale)), from the integers and scales
    it had.
    """
    spec = spec_of(operator.kind)
    tensors = operator.input_tensors
    bias = tensors[spec.bias_input] if len(tensors) > spec.bias_input else None
    if bias is None:
        return
    data = tensors[spec.data_input]
    if data is None or not data.scales or not bias.scales or bias.value is None:
        raise ValueError(f"The {operator.kind} with bias {bias.name} is not quantized to integers.")
    old = bias.value * np.asarray(bias.scales, np.float64)
    new = np.float64(data.scales[0]) * scales.astype(np.float64)
    limits = np.iinfo(np.int32)
    integers = np.clip(np.rint(old / new), limits.min, limits.max).astype(np.int32)
    part = parts.subgraphs[0].tensors[bias.index]
    fill(parts, part, integers.tobytes())
    part.quantization.scale = np.broadcast_to(new, old.shape).astype(np.float32)
    part.quantization.zeroPoint = np.zeros(len(old), np.int64)


def with_integers(
    tflite: bytes | TFLiteModel, *, weights: Mapping[str, IntegerWeights], weight_bits: int = 8
) -> TFLiteModel:
    """The int8 file with chosen weights; the int32 biases follow the new scales. Equal lists of
    numbers, such as zero points, are stored once: it can be smaller than the converter's.

    Args:
      tflite: a full-integer file with int8 activations.
      weights: by name of the operator's output (the float file has the same names): integers of the
        weights' shape within
        -2^(b-1)..2^(b-1)-1, and float scales [output channels].
      weight_bits: 8 leaves INT8 tensors; 4 makes packed INT4 tensors (convolutions, depthwise and
        dense only).
    Raises:
      ValueError: no such operator, another shape, integers out of range, scales that are not
        positive, different weights for operators that share theirs, or an operator that has no
        4-bit kernel.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = with_own_biases(tflite)  # each is rescaled for its own operator
    parts, weighted = unpack(model), weighted_operators(model)
    codes = [each.opcodeIndex for each in parts.subgraphs[0].operators]
    places = {operator: place for place, operator in enumerate(model.operators)}
    for name, (integers, given) in weights.items():
        if name not in weighted:
            raise ValueError(
                f"The file has no weights behind {name}; it has them behind "
                f"{', '.join(sorted(weighted))}."
            )
        operator, scales = weighted[name], np.asarray(given, np.float32)
        tensor = weights_of(operator)
        _require_fit(name, operator.kind, tensor.shape, integers, scales, weight_bits)
        for other, user in weighted.items():
            if weights_of(user) is tensor and not (
                other in weights and all(map(np.array_equal, weights[name], weights[other]))
            ):
                raise ValueError(
                    f"{name} and {other} have the same weights in the file. Give the "
                    "same integers for both."
                )
        four = weight_bits == 4
        part = parts.subgraphs[0].tensors[tensor.index]
        fill(parts, part, pack_int4(integers) if four else np.asarray(integers, np.int8).tobytes())
        part.type = schema.TensorType.INT4 if four else schema.TensorType.INT8
        part.quantization.scale = scales
        part.quantization.quantizedDimension = CHANNEL_AXIS[operator.kind]
        part.quantization.zeroPoint = np.zeros(len(scales), np.int64)
        _rescale_bias(parts, operator, scales)
        if four:
            code = parts.operatorCodes[codes[places[operator]]]
            code.version = max(code.version, FOUR_BIT_VERSION[operator.kind])
    return pack_small(parts)


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
