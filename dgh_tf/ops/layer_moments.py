"""Moments of every layer's input over all calls of the layer, as BatchNorm counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf

from dgh_tf.ops.moments import Moments, channel_sums


class Normalized(Protocol):
    """A layer as it sees its input: channel axis, and running mean, float32 [channels]."""

    @property
    def axis(self) -> int: ...

    @property
    def mean(self) -> np.ndarray: ...


def layer_sums(
    calls: Sequence[tuple[int, tf.Tensor]],
    layers: Sequence[Normalized],
    shifts: Sequence[np.ndarray],
    known: Sequence[tuple[tf.Tensor, ...] | None],
) -> list[tuple[tf.Tensor, ...]]:
    """`channel_sums` of every layer's input over all its calls (a shared layer has several).

    Args:
      calls: (index of the layer, its input), in any order.
      layers: in the order of the indices; their axis is that of the channels.
      shifts: of each layer, float32 [channels], see `channel_sums`.
      known: for each call the sums where they are known already, else None.
    """
    found: list[list] = [[] for _ in layers]
    for (index, x), sums in zip(calls, known, strict=True):
        found[index].append(sums or channel_sums(x, shift=shifts[index], axis=layers[index].axis))
    return [
        parts[0] if len(parts) == 1 else tuple(map(tf.add_n, zip(*parts, strict=True)))
        for parts in found
    ]


def layer_moments(
    calls: Sequence[tuple[int, tf.Tensor]], layers: Sequence[Normalized]
) -> list[Moments]:
    """Moments of every layer's input over all its calls, layer by layer, in the layer's own units.

    Args:
      calls: (index of the layer, its input), in any order.
      layers: in the order of the indices.
    """
    shifts = [layer.mean for layer in layers]
    unknown = [None] * len(calls)
    return [
        Moments(count, shift + sums / count, tf.maximum(squares - sums * sums / count, 0.0))
        for shift, (sums, squares, count) in zip(
            shifts, layer_sums(calls, layers, shifts, unknown), strict=True
        )
    ]
