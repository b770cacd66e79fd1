"""Ranges of activations over calibration images: min/max, least squared error or percentile.

The ranges go to the converter (`to_tflite_with_ranges`) and to the simulator alike. What TFLite
decides itself is decided here in the same way, so both agree: fixed ranges of softmax and its like,
one scale on both sides of a reshape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dgh_tf.models.tflite.batch import proven
from dgh_tf.models.tflite.run import Graph, feeds_of, run
from dgh_tf.models.tflite.spec import fixed_range, spec_of
from tflite_export.simulation.variances import Losses, variances_of

Ranges = dict[int, tuple[float, float]]  # (low, high) by tensor index
RULES = ("minmax", "mse", "percentile")
_BINS = 2048
_FEW = 32  # images that tell the variances of normalizations
_PARTS = np.linspace(
    0.025, 1.0, 40
)  # candidates of the clipping search, as parts of the observed minimum and maximum


def _fixed_ranges(
    graph: Graph, ranges: Mapping[int, tuple[float, float]], *, bits: int
) -> dict[int, tuple[float, float]]:
    """Ranges that the specification fixes, also behind a reshape: a reshaped softmax is
    still one.
    """
    fixed: dict[int, tuple[float, float]] = {}
    for operator in graph.operators:
        limits = fixed_range(operator.kind, bits=bits)
        if limits is not None:
            fixed |= {i: limits for i in operator.outputs if i in ranges}
    for operator in graph.operators:
        ends = [i for i in (*operator.inputs, *operator.outputs) if i in ranges]
        if spec_of(operator.kind).hands_on_fixed and len(ends) > 1 and ends[0] in fixed:
            fixed |= dict.fromkeys(ends[1:], fixed[ends[0]])
    return fixed


def share_scales(
    graph: Graph, ranges: Mapping[int, tuple[float, float]], *, activation_bits: int = 8
) -> Ranges:
    """The ranges as TFLite can hold them: zero inside, fixed where the specification fixes them,
    equal where it shares.

    Tensors that share a scale get the hull of their ranges.
    """
    root = {i: i for i in ranges}

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    fixed = _fixed_ranges(graph, ranges, bits=activation_bits)
    for operator in graph.operators:
        ends = [i for i in (*operator.inputs, *operator.outputs) if i in ranges and i not in fixed]
        if spec_of(operator.kind).same_scale and operator.outputs[0] in ranges:
            for i in ends:
                root[find(i)] = find(operator.outputs[0])
    hull = dict(fixed)
    for i in ranges:
        if i not in fixed:
            group = [j for j in ranges if j not in fixed and find(j) == find(i)]
            lows, highs = zip(*(ranges[j] for j in group), strict=True)
            hull[i] = (min(0.0, *map(float, lows)), max(0.0, *map(float, highs)))
    return {i: hull[i] for i in ranges}


def least_squares_range(
    counts: np.ndarray, low: float, high: float, *, bits: int = 8
) -> tuple[float, float]:
    """The clipping of least squared error, found over a grid of clipped minima and maxima.

    Args:
      counts: [bins] histogram with equal bins from `low` to `high`, which hold zero between them.
      low: lower end of the first bin, 0 or below.
      high: upper end of the last bin, 0 or above.
      bits: of the integers, 8 or 16.
    """
    values = low + (np.arange(len(counts)) + 0.5) * (high - low) / len(counts)
    kept = counts > 0
    values, counts, best = values[kept], counts[kept].astype(np.float64), (np.inf, low, high)
    for part_low in _PARTS if low < 0 else (1.0,):
        for part_high in _PARTS if high > 0 else (1.0,):
            a, b = low * part_low, high * part_high
            scale = (b - a) / (2**bits - 1)
            zero = np.rint(-a / scale)
            rounded = (np.clip(np.rint(values / scale) + zero, 0, 2**bits - 1) - zero) * scale
            error = float(counts @ (rounded - values) ** 2)
            if error < best[0]:
                best = (error, a, b)
    return best[1], best[2]


def percentile_range(
    counts: np.ndarray, low: float, high: float, *, percentile: float = 99.99
) -> tuple[float, float]:
    """The range that leaves 100 - `percentile` per cent of the values outside on either side, and
    holds zero.
    """
    share, edges = np.cumsum(counts) / max(counts.sum(), 1), np.linspace(low, high, len(counts) + 1)
    first = int(np.searchsorted(share, 1 - percentile / 100, side="right"))
    last = int(np.searchsorted(share, percentile / 100))
    return min(0.0, float(edges[min(first, len(counts) - 1)])), max(
        0.0, float(edges[min(last, len(counts) - 1) + 1])
    )


def _observe_all(
    graph: Graph,
    feeds: Mapping[int, np.ndarray],
    note: Callable[[int, Any], None],
    constants: Mapping[int, Any] | None,
    batch_size: int,
) -> None:
    def observe(index: int, value: Any) -> Any:
        note(index, value)
        return value

    for start in range(0, len(next(iter(feeds.values()))), batch_size):
        batch = {i: v[start : start + batch_size] for i, v in feeds.items()}
        run(graph, batch, constants=constants, observe=observe)


def collect_ranges(
    graph: Graph,
    images: np.ndarray | Mapping[str, np.ndarray],
    *,
    rule: str = "minmax",
    activation_bits: int = 8,
    percentile: float = 99.99,
    constants: Mapping[int, Any] | None = None,
    batch_size: int = 32,
) -> Ranges:
    """Range of every graph input and activation over calibration images, ready for
    `to_tflite_with_ranges`.

    Args:
      graph: from `read_graph`.
      images: float32 [images, ...] in the model's input units, or a dict by input name.
      rule: "minmax"; "mse": least squared error at `activation_bits` over a histogram;
        "percentile". Inputs always keep their minimum and maximum, at 8 bits.
      activation_bits: 8 or 16.
      percentile: of the rule "percentile": per cent of the values that each end leaves inside.
      constants: floats instead of the file's, by tensor index.
      batch_size: images at once.
    Raises:
      ValueError: unknown rule, or a value that is not finite.
    """
    import tensorflow as tf

    if rule not in RULES:
        raise ValueError(f"Unknown range rule '{rule}'; expected one of {', '.join(RULES)}.")
    graph = proven(graph, images)
    feeds = feeds_of(graph, images)
    seen: Ranges = {}

    def extend(index: int, value: Any) -> None:
        low, high = float(tf.reduce_min(value)), float(tf.reduce_max(value))
        if not np.isfinite(low + high):
            raise ValueError(
                f"Tensor {graph.tensors[index].name} is not finite on the calibration "
                "images; check them."
            )
        old = seen.get(index, (0.0, 0.0))
        seen[index] = (min(low, old[0]), max(high, old[1]))

    _observe_all(graph, feeds, extend, constants, batch_size)
    if rule != "minmax":
        counts = {i: np.zeros(_BINS, np.int64) for i in seen}

        def count(index: int, value: Any) -> None:
            if index not in graph.inputs and seen[index][1] > seen[index][0]:
                low, high = seen[index]
                bins = ((value.numpy().ravel() - low) * (_BINS / (high - low))).astype(np.int64)
                counts[index] += np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS)

        _observe_all(graph, feeds, count, constants, batch_size)
        for i, (low, high) in seen.items():
            if counts[i].any():
                seen[i] = (
                    least_squares_range(counts[i], low, high, bits=activation_bits)
                    if rule == "mse"
                    else percentile_range(counts[i], low, high, percentile=percentile)
                )
    if activation_bits == 8:
        seen |= _of_variances(graph, feeds, seen, constants)
    return share_scales(graph, seen, activation_bits=activation_bits)


def _of_variances(
    graph: Graph,
    feeds: Mapping[int, np.ndarray],
    seen: Ranges,
    constants: Mapping[int, Any] | None,
) -> Ranges:
    """Shorter ranges where a normalization needs its small variances, see `variances`."""
    squares = {variance.squares: variance for variance in variances_of(graph)}
    found = {index: each for index, each in squares.items() if seen[index][0] >= 0.0}
    if not found:
        return {}
    losses = {index: Losses(variance, seen) for index, variance in found.items()}

    def note(index: int, value: Any) -> None:
        if index in losses:
            losses[index].add(value.numpy())

    count = len(next(iter(feeds.values())))
    # at random: every other generated image may be of another kind
    chosen = np.sort(np.random.default_rng(0).permutation(count)[:_FEW])
    few = {i: values[chosen] for i, values in feeds.items()}
    _observe_all(graph, few, note, constants, _FEW // 4)
    return {i: limits for each in losses.values() for i, limits in each.best().items()}
