"""The estimate's constants fitted over measured rows, and its errors on models that had no part in
the fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.estimate.rows import Row
from benchmarks.output.names import name_of
from benchmarks.suite.verdict import rank_correlation
from tflite_export.quality.accuracy_estimate import AGREEMENT, FINE, level_of
from tflite_export.quality.agreement import (
    BOTH,
    PLAIN,
    REAL,
    STRETCHED,
    SURE,
    Features,
    Rule,
    angle,
    expected,
    log_odds,
    odds_of,
    predict,
    share,
)

_SPREAD = 0.5  # log odds: how far rows lie from any line, beside their own error of sampling
_FEWEST = 8  # rows of which a width is told
_BELOW = 0.02  # a file that is so much below the border must not be called fine


class Told(NamedTuple):
    """One row, and what was told of it by a fit without its model."""

    row: Row
    agreement: float
    low: float
    high: float

    @property
    def level(self) -> str:
        """By the estimate's own rule."""
        return level_of(self.agreement, self.low)

    @property
    def deserved(self) -> str:
        """The level of the true agreement."""
        return level_of(self.row.agreement, self.row.agreement)

    @property
    def surely_wrong(self) -> bool:
        """Whether the level is wrong, and not by two standard deviations of what was measured."""
        truth = self.row.agreement
        off = 2.0 * (truth * (1.0 - truth) / self.row.images) ** 0.5
        return self.level not in {
            level_of(each, each) for each in (truth - off, truth, truth + off)
        }

    @property
    def inside(self) -> bool:
        """Whether the band holds the truth, to the half image that it was measured with."""
        half = 0.5 / self.row.images
        return self.low - half <= self.row.agreement <= self.high + half


def true_odds(row: Row) -> float:
    """Log odds of the true agreement, smoothed by half an image."""
    kept = row.agreement * row.images
    return float(np.log((kept + 0.5) / (row.images - kept + 0.5)))


def shown(row: Row, kind: str) -> dict[str, Features]:
    """The features that a rule reads: of one kind of images, or of both generated ones."""
    return {each: row.features[each] for each in ((PLAIN, STRETCHED) if kind == BOTH else (kind,))}


def fitted(rows: Sequence[Row], kind: str) -> tuple[float, float]:
    """Offset and slope of a rule: weighted least squares of the log odds."""
    told, wanted, weights = [], [], []
    for row in rows:
        told.append(log_odds(expected(shown(row, kind))))
        wanted.append(true_odds(row))
        agreement = share(wanted[-1])
        sampling = 1.0 / (row.images * agreement * (1.0 - agreement))
        # a model with many rows counts no more than one with few
        alike = sum(other.model == row.model for other in rows)
        weights.append((alike * (_SPREAD**2 + sampling)) ** -0.5)
    slope, offset = np.polyfit(told, wanted, 1, w=weights)
    return float(offset), float(slope)


def left_out(rows: Sequence[Row], kind: str) -> list[float]:
    """Log odds told of every row by the fit without its model."""
    told = {}
    for model in {row.model for row in rows}:
        rule = Rule(*fitted([row for row in rows if row.model != model], kind), 0.0, 0.0, 0.0)
        for row in rows:
            if row.model == model:
                told[row.name] = odds_of(shown(row, kind), rule)
    return [told[row.name] for row in rows]


def widths(rows: Sequence[Row], odds: Sequence[float]) -> tuple[float, float, float]:
    """The largest angles by which the truth lies below and above what was told; and below of those
    rows of which SURE or more was told. Rows of one model miss alike, so that these are the largest
    of a few models only: of another one, some will lie outside.
    """
    pairs = zip(rows, odds, strict=True)
    misses = np.array([angle(share(told)) - angle(row.agreement) for row, told in pairs])
    sure = misses[[share(told) >= SURE for told in odds]]
    below, above = max(0.0, float(misses.max())), max(0.0, float(-misses.min()))
    return below, above, max(0.0, float(sure.max())) if len(sure) >= _FEWEST else below


def told_of(rows: Sequence[Row], kind: str) -> list[Told]:
    """Every row as told without its model: neither the line nor the band's widths know it."""
    odds = left_out(rows, kind)
    rules = {}
    for model in {row.model for row in rows}:
        others = [row for row in rows if row.model != model]
        rules[model] = Rule(0.0, 1.0, *widths(others, left_out(others, kind)))
    return [
        Told(row, share(here), *rules[row.model].band(share(here), statistics=row.statistics))
        for row, here in zip(rows, odds, strict=True)
    ]


def figures(told: Sequence[Told]) -> dict[str, Any]:
    """The bars of the estimate over rows that were told without their models."""
    int8 = [each for each in told if each.row.file.scheme == "int8"]
    low = [each for each in told if each.row.file.scheme in ("w4a8", "mixed")]

    def rank(rows: Sequence[Told]) -> float | None:
        return rank_correlation([r.row.agreement for r in rows], [r.agreement for r in rows])

    false_fine = [
        each for each in told if each.level == FINE and each.row.agreement < AGREEMENT[0] - _BELOW
    ]
    return {
        "rows": len(told),
        "rank correlation": rank(told),
        "rank correlation, w4a8 and mixed": rank(low),
        "mean error": float(np.mean([abs(r.agreement - r.row.agreement) for r in told])),
        "true value in band": float(np.mean([each.inside for each in told])),
        "median width of the band": float(np.median([each.high - each.low for each in told])),
        "int8 levels wrong": float(np.mean([each.level != each.deserved for each in int8])),
        "int8 levels wrong beyond sampling": float(np.mean([each.surely_wrong for each in int8])),
        "fine, but more than 2 points below the border": len(false_fine),
    }


def told_by_code(rows: Sequence[Row]) -> list[Told]:
    """Every row as the code tells it, for models that had no part in its constants."""
    found = [(row, predict(shown(row, BOTH), statistics=row.statistics)) for row in rows]
    return [Told(row, each.agreement, each.low, each.high) for row, each in found]


def _section(title: str, told: Sequence[Told], note: str = "") -> str:
    """The bars and one line for every row, in markdown."""
    from tabulate import tabulate

    table = [
        (
            each.row.model + (f", seed {each.row.seed}" if each.row.seed else ""),
            name_of(each.row.file.source),
            each.row.file.scheme,
            each.row.file.algorithm,
            f"{each.row.agreement:.3f}",
            f"{each.agreement:.3f}",
            f"{each.low:.3f} to {each.high:.3f}{'' if each.inside else ' (outside)'}",
            each.level + ("" if each.level == each.deserved else f" ({each.deserved})"),
        )
        for each in told
    ]
    headings = ("model", "images", "scheme", "algorithm", "true", "told", "band", "level")
    lines = [
        f"- {name}: {value:.3f}" if isinstance(value, float) else f"- {name}: {value}"
        for name, value in figures(told).items()
    ]
    shown = tabulate(table, headers=headings, tablefmt="pipe", disable_numparse=True)
    return "\n\n".join([f"## {title}", "\n".join(lines), *([note] if note else []), shown])


def kept_back(rows: Sequence[Row]) -> str:
    """The table of rows as the code tells them, and the bars."""
    if not rows:
        return "No rows to tell."
    return _section("as the code tells them", told_by_code(rows))


def report(rows: Sequence[Row]) -> str:
    """The table of left-out rows, the bars, and the constants fitted over all rows."""
    if len({row.model for row in rows}) < 3:
        return f"{len(rows)} rows: a model can be left out where there are three at least."
    parts = []
    for kind in (BOTH, PLAIN, STRETCHED, REAL):
        rule = Rule(*fitted(rows, kind), *widths(rows, left_out(rows, kind)))
        numbers = ", ".join(f"{value:.3g}" for value in dataclasses.astuple(rule))
        title = f"{kind} images, every model left out in turn"
        parts.append(
            _section(title, told_of(rows, kind), f"Fitted over all rows: `Rule({numbers})`")
        )
    return "\n\n".join(parts)
