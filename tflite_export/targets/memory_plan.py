"""The memory that a .tflite file's activations need on a microcontroller, planned as TFLM
plans it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dgh_tf.models.tflite.model import Tensor, TFLiteModel
from dgh_tf.models.tflite.spec import CHANNEL_AXIS
from tflite_export.tflite.edit import weights_of

_ALIGNMENT = 16  # bytes: MicroArenaBufferAlignment() of TFLM


def lifetimes(model: TFLiteModel) -> list[tuple[Tensor, int, int]]:
    """(tensor, first, last operator that needs it) of every activation; inputs from the first
    operator, outputs to the last.
    """
    first = {model.tensors[i]: 0 for i in model.inputs}
    last = dict.fromkeys(first, 0)
    for place, operator in enumerate(model.operators):
        for tensor in operator.input_tensors:
            if tensor is not None and not tensor.constant:
                last[tensor] = place
        for tensor in operator.output_tensors:
            first.setdefault(tensor, place)
            last.setdefault(tensor, place)
    last |= {model.tensors[i]: len(model.operators) - 1 for i in model.outputs}
    return [(tensor, start, last[tensor]) for tensor, start in first.items()]


def live_peak(model: TFLiteModel) -> tuple[int, int]:
    """(bytes, operator): most bytes of activations alive at once, and where. No memory plan needs
    less.
    """
    alive = lifetimes(model)
    sums = [
        sum(tensor.nbytes for tensor, start, end in alive if start <= i <= end)
        for i in range(len(model.operators))
    ]
    return max(sums, default=0), int(np.argmax(sums)) if sums else 0


def planned_bytes(lives: Sequence[tuple[Tensor, int, int]]) -> int:
    """Bytes of a memory plan: the largest first, each at the lowest place free while it lives,
    16-byte aligned.

    Greedy by size (Pisarchyk and Lee 2020, Efficient Memory Management for Deep Neural Net
    Inference, 5.2), of equal ones the later first, as TFLM plans.
    """
    placed: list[tuple[int, int, int, int]] = []  # start and end in bytes, first and last operator
    for _, (tensor, start, end) in sorted(
        enumerate(lives), key=lambda pair: (-pair[1][0].nbytes, -pair[0])
    ):
        size, offset = -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT, 0
        for low, high, *_ in sorted(p for p in placed if p[2] <= end and start <= p[3]):
            if offset + size <= low:
                break
            offset = max(offset, high)
        placed.append((offset, offset + size, start, end))
    return max((high for _, high, *_ in placed), default=0)


def bookkeeping_bytes(model: TFLiteModel) -> int:
    """TFLM's own data beside the activations, an estimate: two int32 per output channel (multiplier
    and shift), and per tensor and operator what TFLM's recording allocator showed on a 64-bit
    machine (docs/guide/targets.md).
    """
    tensors = {
        tensor
        for operator in model.operators
        for tensor in (*operator.input_tensors, *operator.output_tensors)
        if tensor is not None
    }
    scales = sum(len(weights_of(o).scales) for o in model.operators if o.kind in CHANNEL_AXIS)
    return 8 * scales + 24 * len(tensors) + 164 * len(model.operators)
