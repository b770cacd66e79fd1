"""math: what a .tflite file asks of a target, read from the file alone: Edge TPU's documented
rules, TFLM's operators and arena.

Sources. Edge TPU: Coral, "TensorFlow models on the Edge TPU" (coral.ai/docs/edgetpu/models-intro),
whose operator table Axis repeats
for the same chip (developer.axis.com, ARTPEC-7, Supported ops). TFLM: micro_mutable_op_resolver.h
of tensorflow/tflite-micro.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

EDGETPU_SOURCE = "https://coral.ai/docs/edgetpu/models-intro/#supported-operations"
TFLM_SOURCE = "tensorflow/tflite-micro, tensorflow/lite/micro/micro_mutable_op_resolver.h"
_ALIGNMENT = 16  # bytes: MicroArenaBufferAlignment() of TFLM
_SOFTMAX_ELEMENTS = 16_000  # Coral's table
TFLM_OPERATORS = frozenset(
    " ".join(
        (
            "ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D "
            "BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS BROADCAST_TO",
            "CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D "
            "DEPTH_TO_SPACE DEQUANTIZE DIV ELU EMBEDDING_LOOKUP EQUAL",
            "EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER "
            "GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF",
            "L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND "
            "LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM",
            "MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 "
            "PRELU QUANTIZE READ_VARIABLE REDUCE_MAX REDUCE_MIN RELU",
            "RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND "
            "RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND",
            "SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE "
            "STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV",
            "UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE",
        )
    ).split(" ")
)


class Tensor(NamedTuple):
    """`dtype` is the schema's name; `size` in bytes; `scales` their number; `fixed`: no axis is
    open; `value` of INT32 constants only.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    size: int
    scales: int
    fixed: bool
    constant: bool
    value: np.ndarray | None


class Operator(NamedTuple):
    """`inputs` holds None for an absent one; `options` are the schema's, by field name."""

    kind: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    options: dict[str, Any]


class File(NamedTuple):
    """The main graph of any .tflite file, operators in order of execution; `subgraphs` counts all
    graphs.
    """

    operators: tuple[Operator, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    subgraphs: int


def read_file(tflite: bytes) -> File:
    """Reads a file of any types and operators. Raises ValueError for what is no TFLite model."""
    from ai_edge_litert import schema_py_generated as schema

    from tflite_export.tflite.integer_check import operator_table

    kinds = [row["operator"] for row in operator_table(tflite) if row["subgraph"] == 0]
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite, 0))
    graph = model.subgraphs[0]
    types = {
        value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")
    }
    tensors = [
        _tensor(each, types[each.type], model.buffers[each.buffer].data) for each in graph.tensors
    ]
    operators = tuple(
        Operator(
            kind,
            tuple(tensors[i] if i >= 0 else None for i in each.inputs),
            tuple(tensors[i] for i in each.outputs),
            dict(vars(each.builtinOptions)) if each.builtinOptions is not None else {},
        )
        for kind, each in zip(kinds, graph.operators, strict=True)
    )
    return File(
        operators,
        tuple(tensors[i] for i in graph.inputs),
        tuple(tensors[i] for i in graph.outputs),
        len(model.subgraphs),
    )


def _tensor(tensor: Any, dtype: str, data: Any) -> Tensor:
    shape = tuple(map(int, tensor.shape)) if tensor.shape is not None else ()
    signature = tensor.shapeSignature if tensor.shapeSignature is not None else shape
    bits = (
        4
        if dtype == "INT4"
        else 8
        if dtype == "BOOL"
        else int("".join(c for c in dtype if c.isdigit()) or 8)
    )
    scales = (
        0
        if tensor.quantization is None or tensor.quantization.scale is None
        else len(tensor.quantization.scale)
    )
    constant = data is not None and len(data) > 0
    value = np.frombuffer(bytes(data), np.int32) if constant and dtype == "INT32" else None
    return Tensor(
        (tensor.name or b"").decode(),
        shape,
        dtype,
        math.ceil(math.prod(shape) * bits / 8),
        scales,
        min(signature, default=1) >= 0,
        constant,
        value,
    )


def _wide(tensor: Tensor) -> int:
    """Number of axes longer than 1."""
    return sum(size > 1 for size in tensor.shape)


def _axes(operator: Operator) -> set[int]:
    """Axes of a reduction, counted from the front."""
    value = operator.inputs[1].value if operator.inputs[1] is not None else None
    return {
        int(axis) % len(operator.inputs[0].shape) for axis in (value if value is not None else ())
    }


def _one_dilation(operator: Operator) -> str:
    same = operator.options.get("dilationHFactor", 1) == operator.options.get("dilationWFactor", 1)
    return "" if same else "dilation differs between height and width"


def _no_activation(operator: Operator) -> str:
    return "has a fused activation" if operator.options.get("fusedActivationFunction", 0) else ""


def _no_batch_reduction(operator: Operator) -> str:
    return "reduces over the batch" if 0 in _axes(operator) else ""


def _mean(operator: Operator) -> str:
    shape, axes = operator.inputs[0].shape, _axes(operator)
    if len(shape) == 4 and 3 in axes and shape[3] % 4:
        return f"averages over {shape[3]} channels, not a multiple of 4"
    return _no_batch_reduction(operator)


def _concatenation(operator: Operator) -> str:
    constants = sum(tensor is not None and tensor.constant for tensor in operator.inputs)
    if constants and len(operator.inputs) != 2:
        return "joins a constant with more than one other input"
    return _no_activation(operator)


def _flat_output(operator: Operator) -> str:
    return (
        ""
        if _wide(operator.outputs[0]) <= 1
        else f"output {list(operator.outputs[0].shape)} has more than one axis"
    )


def _softmax(operator: Operator) -> str:
    tensor = operator.inputs[0]
    if _wide(tensor) > 1 or math.prod(tensor.shape) > _SOFTMAX_ELEMENTS:
        return f"input {list(tensor.shape)} is not one axis of at most {_SOFTMAX_ELEMENTS} values"
    return ""


def _pad(operator: Operator) -> str:
    value = operator.inputs[1].value if operator.inputs[1] is not None else None
    return "pads the batch" if value is not None and value[:2].any() else ""


def _not_axis_0(operator: Operator) -> str:
    return "works along the batch" if operator.options.get("axis", 1) == 0 else ""


def _split(operator: Operator) -> str:
    value = operator.inputs[0].value if operator.inputs[0] is not None else None
    return "splits the batch" if value is not None and 0 in value else ""


def _squeeze(operator: Operator) -> str:
    shape = operator.inputs[0].shape
    first = next((i for i, size in enumerate(shape) if size > 1), len(shape))
    axes = operator.options.get("squeezeDims")
    axes = (
        range(len(shape))
        if axes is None or not len(axes)
        else [int(axis) % len(shape) for axis in axes]
    )
    return (
        "drops an axis behind a longer one"
        if any(axis > first and shape[axis] == 1 for axis in axes)
        else ""
    )


def _strided_slice(operator: Operator) -> str:
    strides = operator.inputs[3].value if operator.inputs[3] is not None else None
    masks = operator.options.get("ellipsisMask", 0) or operator.options.get("newAxisMask", 0)
    return (
        "strides other than 1, or an ellipsis or new axis"
        if masks or strides is None or (strides != 1).any()
        else ""
    )


def _prelu(operator: Operator) -> str:
    shared = operator.inputs[1] is None or _wide(operator.inputs[1]) <= 1
    return "" if shared else "alpha has more than one axis; share it over height and width"


def _anything(operator: Operator) -> str:
    return ""


# Rows from RESIZE_NEAREST_NEIGHBOR on (not in Axis' copy as far as it could be read) are from older
# copies of Coral's table.
EDGETPU_RULES: dict[str, Callable[[Operator], str]] = {
    **dict.fromkeys(
        (
            "ADD",
            "EXPAND_DIMS",
            "L2_NORMALIZATION",
            "LOGISTIC",
            "MAXIMUM",
            "MINIMUM",
            "MUL",
            "QUANTIZE",
            "RELU",
            "RELU6",
            "RELU_N1_TO_1",
            "RESHAPE",
            "RESIZE_BILINEAR",
            "RESIZE_NEAREST_NEIGHBOR",
            "SLICE",
            "SPACE_TO_DEPTH",
            "SUB",
            "TANH",
            "UNIDIRECTIONAL_SEQUENCE_LSTM",
        ),
        _anything,
    ),
    "AVERAGE_POOL_2D": _no_activation,
    "MAX_POOL_2D": _no_activation,
    "CONCATENATION": _concatenation,
    "CONV_2D": _one_dilation,
    "DEPTHWISE_CONV_2D": _one_dilation,
    "FULLY_CONNECTED": _flat_output,
    "MEAN": _mean,
    "PACK": _not_axis_0,
    "PAD": _pad,
    "PRELU": _prelu,
    "REDUCE_MAX": _no_batch_reduction,
    "REDUCE_MIN": _no_batch_reduction,
    "SOFTMAX": _softmax,
    "SPLIT": _split,
    "SQUEEZE": _squeeze,
    "STRIDED_SLICE": _strided_slice,
}


def edgetpu_reason(operator: Operator) -> str:
    """Why the Edge TPU's documented rules leave an operator to the CPU; empty where they
    take it.
    """
    if operator.kind not in EDGETPU_RULES:
        return "not in the operator table"
    weighted = operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    if weighted and not all(tensor is None or tensor.constant for tensor in operator.inputs[1:]):
        return "its weights are not constant"
    for tensor in (t for t in (*operator.inputs, *operator.outputs) if t is not None):
        if not tensor.fixed:
            return f"{tensor.name} has an axis of open size"
        if not tensor.constant and tensor.dtype not in ("INT8", "UINT8"):
            return f"{tensor.name} is {tensor.dtype}, not 8 bits"
        if not tensor.constant and any(size != 1 for size in tensor.shape[:-3]):
            return (
                f"{tensor.name} has shape {list(tensor.shape)}: more than three axes "
                "longer than 1, or a batch above 1"
            )
        if tensor.dtype == "INT4":
            return f"{tensor.name} is INT4, not 8 bits"
    return EDGETPU_RULES[operator.kind](operator)


def edgetpu_fallback(file: File) -> list[tuple[Operator, str]]:
    """(operator, reason) of all that would run on the CPU: what breaks a rule, and all that depends
    on it.

    The compiler takes one part of the graph, up to the first operator it cannot take ("Compiling"
    on Coral's page).
    """
    if file.subgraphs > 1:
        return [
            (operator, "the model has control flow (several subgraphs)")
            for operator in file.operators
        ]
    behind, found = {}, []
    for operator in file.operators:
        reason = edgetpu_reason(operator)
        before = next(
            (behind[t.name] for t in operator.inputs if t is not None and t.name in behind), None
        )
        if reason or before:
            found.append((operator, reason or f"behind {before}"))
            behind |= {tensor.name: before or operator.kind for tensor in operator.outputs}
    return found


def lifetimes(file: File) -> list[tuple[Tensor, int, int]]:
    """(tensor, first, last operator that needs it) of every activation; inputs from the first
    operator, outputs to the last.
    """
    first = {tensor.name: (tensor, 0) for tensor in file.inputs}
    last = {tensor.name: 0 for tensor in file.inputs}
    for i, operator in enumerate(file.operators):
        for tensor in operator.inputs:
            if tensor is not None and not tensor.constant:
                last[tensor.name] = i
        for tensor in operator.outputs:
            first.setdefault(tensor.name, (tensor, i))
            last.setdefault(tensor.name, i)
    last |= {tensor.name: len(file.operators) - 1 for tensor in file.outputs}
    return [(tensor, start, last[name]) for name, (tensor, start) in first.items()]


def live_peak(file: File) -> tuple[int, int]:
    """(bytes, operator): most bytes of activations alive at once, and where. No memory plan needs
    less.
    """
    alive = lifetimes(file)
    sums = [
        sum(tensor.size for tensor, start, end in alive if start <= i <= end)
        for i in range(len(file.operators))
    ]
    return max(sums, default=0), int(np.argmax(sums)) if sums else 0


def planned_bytes(lives: Sequence[tuple[Tensor, int, int]]) -> int:
    """Bytes of a memory plan: the largest first, each at the lowest place free while it lives,
    16-byte aligned.

    Greedy by size (Pisarchyk and Lee 2020, Efficient Memory Management for Deep Neural Net
    Inference, 5.2), of equal ones the later
    first, as TFLM plans.
    """
    placed: list[tuple[int, int, int, int]] = []  # start and end in bytes, first and last operator
    for _, (tensor, start, end) in sorted(
        enumerate(lives), key=lambda pair: (-pair[1][0].size, -pair[0])
    ):
        size, offset = -(-tensor.size // _ALIGNMENT) * _ALIGNMENT, 0
        for low, high, *_ in sorted(p for p in placed if p[2] <= end and start <= p[3]):
            if offset + size <= low:
                break
            offset = max(offset, high)
        placed.append((offset, offset + size, start, end))
    return max((high for _, high, *_ in placed), default=0)


def bookkeeping_bytes(file: File) -> int:
    """TFLM's own data beside the activations, an estimate: two int32 per output channel (multiplier
    and shift), and per tensor and
    operator what TFLM's recording allocator showed on a 64-bit machine (docs/guide/targets.md).
    """
    tensors = {
        tensor.name
        for o in file.operators
        for tensor in (*o.inputs, *o.outputs)
        if tensor is not None
    }
    weights = [
        o.inputs[1]
        for o in file.operators
        if o.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
    ]
    return (
        8 * sum(t.scales for t in weights if t is not None)
        + 24 * len(tensors)
        + 164 * len(file.operators)
    )
