"""What TensorFlow Lite's quantizer does with each operator, in one table.

Source: the TFLite 8-bit quantization specification (ai.google.dev/edge/litert, "LiteRT 8-bit
quantization specification") and the traits of TensorFlow Lite's quantizer (tfl_ops.td:
SameOperandsAndResultsScale, FixedOutputRangeInterface, AffineQuantizedOpInterface). An operator
that is not in the table gives every constant and result a scale of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OperatorSpec:
    """What the quantizer does with one kind of operator.

    Attributes:
      channel_axis: axis of the output channels of the weights (input 1), which have a scale per
        channel; None for operators without such weights.
      bias_input, data_input: position of the bias and of the activations beside those weights.
      four_bit_version: version of the operator that takes INT4 weights; None where none does.
      same_scale: all its inputs and outputs share one scale.
      hands_on_fixed: one that shares the scale of its only input, so that a fixed range of the
        input (a reshaped softmax) is the output's too.
      fixed_range: "unit", the output is quantized from 0 to just under 1; "symmetric", from -1 to
        just under 1, whatever the images give.
      keeps_constants: its constants get no scale of their own.
      shape_only: it changes the shape alone, not the order of the values.
    """

    channel_axis: int | None = None
    bias_input: int = 2
    data_input: int = 0
    four_bit_version: int | None = None
    same_scale: bool = False
    hands_on_fixed: bool = False
    fixed_range: str | None = None
    keeps_constants: bool = False
    shape_only: bool = False


_PASSES = OperatorSpec(same_scale=True, hands_on_fixed=True)
_JOINS = OperatorSpec(same_scale=True)
_RESHAPES = OperatorSpec(same_scale=True, hands_on_fixed=True, shape_only=True)

OPERATORS: dict[str, OperatorSpec] = {
    "CONV_2D": OperatorSpec(channel_axis=0, four_bit_version=7),
    "DEPTHWISE_CONV_2D": OperatorSpec(channel_axis=3, four_bit_version=7),
    "FULLY_CONNECTED": OperatorSpec(channel_axis=0, four_bit_version=10),
    "TRANSPOSE_CONV": OperatorSpec(channel_axis=0, bias_input=3, data_input=2),
    "SOFTMAX": OperatorSpec(fixed_range="unit"),
    "LOGISTIC": OperatorSpec(fixed_range="unit"),
    "TANH": OperatorSpec(fixed_range="symmetric"),
    "L2_NORMALIZATION": OperatorSpec(fixed_range="symmetric"),
    "RESHAPE": _RESHAPES,
    "SQUEEZE": _RESHAPES,
    "EXPAND_DIMS": _RESHAPES,
    "MAX_POOL_2D": _PASSES,
    "AVERAGE_POOL_2D": _PASSES,
    "PAD": _PASSES,
    # its constant, the value to pad with, takes the scale of the padded tensor
    "PADV2": OperatorSpec(same_scale=True, hands_on_fixed=True, keeps_constants=True),
    "MIRROR_PAD": _PASSES,
    "SPLIT": _PASSES,
    "SPLIT_V": _PASSES,
    "RESIZE_BILINEAR": _PASSES,
    "RESIZE_NEAREST_NEIGHBOR": _PASSES,
    "TRANSPOSE": _PASSES,
    "STRIDED_SLICE": _PASSES,
    "SLICE": _PASSES,
    "GATHER": _PASSES,
    "UNPACK": _PASSES,
    "TILE": _PASSES,
    "BROADCAST_TO": _PASSES,
    "CONCATENATION": _JOINS,
    "PACK": _JOINS,
    "MAXIMUM": _JOINS,
    "MINIMUM": _JOINS,
}
_ANY = OperatorSpec()

# columns of the table that are read by kind
CHANNEL_AXIS = {k: s.channel_axis for k, s in OPERATORS.items() if s.channel_axis is not None}
FOUR_BIT_VERSION = {
    k: s.four_bit_version for k, s in OPERATORS.items() if s.four_bit_version is not None
}
SHAPE_ONLY = tuple(k for k, s in OPERATORS.items() if s.shape_only)
HEAD_ACTIVATIONS = ("SOFTMAX", "LOGISTIC")  # what turns logits into probabilities


def spec_of(kind: str) -> OperatorSpec:
    """The row of an operator kind (CONV_2D), or that of any other operator."""
    return OPERATORS.get(kind, _ANY)


def fixed_range(kind: str, *, bits: int) -> tuple[float, float] | None:
    """(low, high) that the specification fixes for the operator's output: scale 2^-bits from 0, or
    2^(1-bits) around 0. None for operators whose range comes from the images.

    Example: fixed_range("SOFTMAX", bits=8) == (0.0, 255 / 256)
    """
    rule = spec_of(kind).fixed_range
    if rule is None:
        return None
    return (0.0, 1.0 - 2.0**-bits) if rule == "unit" else (-1.0, 1.0 - 2.0 ** (1 - bits))
