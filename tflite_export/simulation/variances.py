"""Ranges of the variances that normalization layers divide by.

A layer normalization divides each position by the root of its variance, so a small variance must be
as exact, in proportion, as a large one. A range from the smallest to the largest value does not
serve that: one position of high contrast makes the steps so wide that the variances of all plain
ones become zero or one step. Here the ranges of the squares and of their means are shortened where
the normalized values lose less by it. (This rule is our own; it is measured in
docs/experiments/calibration_sources.md.)
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np

from dgh_tf.models.tflite.model import Operator
from dgh_tf.models.tflite.run import Graph

_PARTS = np.array([0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])  # of the range's end
_ENOUGH = 1e-4  # mean squared error, relative: below 1 % the ranges stay as they were seen
_STEPS = 255  # of 8 bits


@dataclasses.dataclass(frozen=True)
class Variance:
    """mean(squares) + epsilon, whose reciprocal root a normalization multiplies by.

    Attributes:
      squares, mean, shifted: tensor indices; `shifted` is the mean with epsilon.
      axes: that the mean runs over, below 0: images may stand in an axis of their own.
      epsilon: above 0.
    """

    squares: int
    mean: int
    shifted: int
    axes: tuple[int, ...]
    epsilon: float

    @property
    def tensors(self) -> tuple[int, int, int]:
        """Whose ranges depend on each other."""
        return self.squares, self.mean, self.shifted


def variances_of(graph: Graph) -> list[Variance]:
    """Every RSQRT of a mean plus a constant. Others, such as those of constants, are left out, and
    those whose squares, mean or sum serve anything else, which would lose by shorter ranges.
    """
    makers = {i: operator for operator in graph.operators for i in operator.outputs}
    uses = collections.Counter(i for o in graph.operators for i in o.inputs)
    uses.update(graph.outputs)
    found = []
    for root in graph.operators:
        addition = makers.get(root.inputs[0]) if root.kind == "RSQRT" else None
        if addition is None or addition.kind != "ADD":
            continue
        epsilons = [t.value for t in addition.input_tensors if t is not None and t.constant]
        means = [makers[i] for i in addition.inputs if i in makers]
        if len(epsilons) != 1 or len(means) != 1 or means[0].kind != "MEAN":
            continue
        variance = _variance(means[0], addition, epsilons[0])
        if variance is not None and all(uses[i] == 1 for i in variance.tensors):
            found.append(variance)
    return found


def _variance(mean: Operator, addition: Operator, epsilon: np.ndarray | None) -> Variance | None:
    squares, axes = mean.input_tensors[:2]
    if squares is None or squares.constant or axes is None or axes.value is None:
        return None
    if epsilon is None or epsilon.size != 1 or epsilon.item() <= 0:
        return None
    rank = len(squares.shape)
    return Variance(
        squares.index,
        mean.outputs[0],
        addition.outputs[0],
        tuple(int(axis) % rank - rank for axis in np.ravel(axes.value)),
        float(epsilon.item()),
    )


class Losses:
    """What shorter ranges of one variance's three tensors cost its normalization."""

    def __init__(self, variance: Variance, ranges: Mapping[int, tuple[float, float]]) -> None:
        self._variance = variance
        self._ends = [ranges[i][1] for i in variance.tensors]
        self._losses, self._count = np.zeros((len(_PARTS), len(_PARTS))), 0

    def add(self, squares: np.ndarray) -> None:
        """Counts a batch of squares, float32 [images, ...]."""
        axes, (wide, middle, last) = self._variance.axes, self._ends
        true = squares.mean(axes, dtype=np.float64) + self._variance.epsilon
        self._count += true.size
        for row, part in enumerate(_PARTS):
            means = _rounded(squares, part * wide).mean(axes, dtype=np.float64)
            for column, other in enumerate(_PARTS):
                made = _rounded(means, other * middle) + self._variance.epsilon
                made = _rounded(made, other * last)
                made = np.maximum(made, other * last / _STEPS / 2)  # a zero stands for less
                self._losses[row, column] += np.sum((np.sqrt(true / made) - 1.0) ** 2)

    def best(self) -> dict[int, tuple[float, float]]:
        """(low, high) of the three tensors with which the reciprocal roots lose least; none where
        the ranges that were seen are good enough.
        """
        if not self._count or self._losses[-1, -1] <= _ENOUGH * self._count:
            return {}
        row, column = np.unravel_index(np.argmin(self._losses), self._losses.shape)
        kept = (_PARTS[row], _PARTS[column], _PARTS[column])
        return {
            i: (0.0, float(part * end))
            for i, part, end in zip(self._variance.tensors, kept, self._ends, strict=True)
        }


def _rounded(values: np.ndarray, end: float) -> np.ndarray:
    """What 8 bits from 0 to `end` make of values of 0 and above."""
    step = end / _STEPS
    return np.clip(np.rint(values / step), 0, _STEPS) * step if step else np.zeros_like(values)
