"""What the Edge TPU's documented rules say of a .tflite file. Nothing is compiled.

Source: Coral, "TensorFlow models on the Edge TPU" (coral.ai/docs/edgetpu/models-intro), whose
operator table Axis repeats for the same chip (developer.axis.com, ARTPEC-7, Supported ops).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dgh_tf.models.tflite.model import Operator, TFLiteModel

SOURCE = "https://coral.ai/docs/edgetpu/models-intro/#supported-operations"
_SOFTMAX_ELEMENTS = 16_000  # Coral's table


def _shape(operator: Operator, place: int) -> tuple[int, ...]:
    """Shape of an input; () for an absent one."""
    tensors = operator.input_tensors
    tensor = tensors[place] if place < len(tensors) else None
    return () if tensor is None else tensor.shape


def _integers(operator: Operator, place: int) -> np.ndarray | None:
    """A constant INT32 input, flattened; None for any other."""
    tensors = operator.input_tensors
    tensor = tensors[place] if place < len(tensors) else None
    if tensor is None or tensor.dtype != "INT32" or tensor.value is None:
        return None
    return tensor.value.ravel()


def _wide(shape: tuple[int, ...]) -> int:
    """Number of axes longer than 1."""
    return sum(size > 1 for size in shape)


def _axes(operator: Operator) -> set[int]:
    """Axes of a reduction, counted from the front."""
    axes = _integers(operator, 1)
    rank = len(_shape(operator, 0))
    return {int(axis) % rank for axis in (() if axes is None or not rank else axes)}


def _one_dilation(operator: Operator) -> str:
    same = operator.options.get("dilationHFactor", 1) == operator.options.get("dilationWFactor", 1)
    return "" if same else "dilation differs between height and width"


def _no_activation(operator: Operator) -> str:
    return "has a fused activation" if operator.options.get("fusedActivationFunction", 0) else ""


def _no_batch_reduction(operator: Operator) -> str:
    return "reduces over the batch" if 0 in _axes(operator) else ""


def _mean(operator: Operator) -> str:
    shape, axes = _shape(operator, 0), _axes(operator)
    if len(shape) == 4 and 3 in axes and shape[3] % 4:
        return f"averages over {shape[3]} channels, not a multiple of 4"
    return _no_batch_reduction(operator)


def _concatenation(operator: Operator) -> str:
    constants = sum(tensor is not None and tensor.constant for tensor in operator.input_tensors)
    if constants and len(operator.input_tensors) != 2:
        return "joins a constant with more than one other input"
    return _no_activation(operator)


def _flat_output(operator: Operator) -> str:
    shape = operator.output_tensors[0].shape
    return "" if _wide(shape) <= 1 else f"output {list(shape)} has more than one axis"


def _softmax(operator: Operator) -> str:
    shape = _shape(operator, 0)
    if _wide(shape) > 1 or math.prod(shape) > _SOFTMAX_ELEMENTS:
        return f"input {list(shape)} is not one axis of at most {_SOFTMAX_ELEMENTS} values"
    return ""


def _pad(operator: Operator) -> str:
    value = _integers(operator, 1)
    return "pads the batch" if value is not None and value[:2].any() else ""


def _not_axis_0(operator: Operator) -> str:
    return "works along the batch" if operator.options.get("axis", 1) == 0 else ""


def _split(operator: Operator) -> str:
    value = _integers(operator, 0)
    return "splits the batch" if value is not None and 0 in value else ""


def _squeeze(operator: Operator) -> str:
    shape = _shape(operator, 0)
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
    strides = _integers(operator, 3)
    masks = operator.options.get("ellipsisMask", 0) or operator.options.get("newAxisMask", 0)
    return (
        "strides other than 1, or an ellipsis or new axis"
        if masks or strides is None or (strides != 1).any()
        else ""
    )


def _prelu(operator: Operator) -> str:
    return (
        ""
        if _wide(_shape(operator, 1)) <= 1
        else "alpha has more than one axis; share it over height and width"
    )


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
    if weighted and not all(
        tensor is None or tensor.constant for tensor in operator.input_tensors[1:]
    ):
        return "its weights are not constant"
    for tensor in (t for t in (*operator.input_tensors, *operator.output_tensors) if t is not None):
        if tensor.open_size:
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


def edgetpu_fallback(model: TFLiteModel) -> list[tuple[Operator, str]]:
    """(operator, reason) of all that would run on the CPU: what breaks a rule, and all that depends
    on it.

    The compiler takes one part of the graph, up to the first operator it cannot take ("Compiling"
    on Coral's page).
    """
    if len(model.subgraphs) > 1:
        return [
            (operator, "the model has control flow (several subgraphs)")
            for operator in model.operators
        ]
    behind: dict[int, str] = {}  # first operator left out, by the tensors that depend on it
    found = []
    for operator in model.operators:
        reason = edgetpu_reason(operator)
        before = next((behind[i] for i in operator.inputs if i in behind), None)
        if reason or before:
            found.append((operator, reason or f"behind {before}"))
            behind |= dict.fromkeys(operator.outputs, before or operator.kind)
    return found


def report(model: TFLiteModel) -> dict[str, Any]:
    """The Edge TPU's verdict on an integer file: see report.judge."""
    fallback = [
        {
            "operator": operator.kind,
            "tensor": operator.output_tensors[0].name if operator.outputs else "",
            "why": why,
        }
        for operator, why in edgetpu_fallback(model)
    ]
    resized = any(operator.kind.startswith("RESIZE_") for operator in model.operators)
    notes = ["RESIZE may stay on the CPU for some sizes, to keep its precision"] if resized else []
    return {
        "how": f"static check against the documented rules, not compiled: {SOURCE}",
        "fully_mapped": not fallback,
        "operators_mapped": len(model.operators) - len(fallback),
        "operators_cpu": len(fallback),
        "fallback": fallback,
        "notes": notes,
        "figures": {"model_bytes": len(model.data)},
    }
