"""How the verdicts of a suite's rows compare with the truth: correlations, errors, levels,
and the misjudged rows.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.output import plots
from benchmarks.output.names import name_of
from tflite_export.quality.accuracy_estimate import AGREEMENT, DOUBTFUL, FINE, NO, SQNR_DB

Row = dict[str, Any]
AGREE, WORST = "agreement", "SQNR of the worst head, dB"
EXPLAINED = (
    "Spearman's rank correlation of the figure told without data and the one "
    "measured on real data. Beside it, as a mark of how "
    "much order there is to find: that of the real figure on one half of the "
    "evaluation images and on the other."
)
BOUNDS = {AGREE: AGREEMENT, WORST: SQNR_DB}


class Pair(NamedTuple):
    """What was told of one row without data, and what real data says. level: the one told; band: of
    an agreement.
    """

    row: Row
    figure: str
    told: float
    true: float
    level: str
    band: Sequence[float] | None

    @property
    def right(self) -> bool:
        """Whether the level told is the one that the true figure deserves."""
        return self.level == level_of(self.true, bounds=BOUNDS[self.figure])

    @property
    def inside(self) -> bool | None:
        """Whether the band holds the true figure; None without a band."""
        return None if self.band is None else self.band[0] <= self.true <= self.band[1]


def row_name(row: Row) -> str:
    """The row in words."""
    return (
        f"{row['model']}, {name_of(row['source'])}, {row['num_images']} images, seed "
        f"{row['seed']}, {row['scheme']}"
    )


def level_of(figure: float, *, bounds: Sequence[float]) -> str:
    """The level that a figure deserves, by the verdict's own bounds (fine from the first, not to be
    shipped below the second).
    """
    return FINE if figure >= bounds[0] else DOUBTFUL if figure >= bounds[1] else NO


def pair(row: Row) -> Pair | None:
    """Agreement where the model has classes, else the SQNR of its worst head; None where one side
    was not measured.
    """
    if row.get("predicted_agreement") is not None:
        return (
            None
            if row.get("agreement") is None
            else Pair(
                row, AGREE, row["predicted_agreement"], row["agreement"], row["level"], row["band"]
            )
        )
    heads = [value for name, value in row.items() if name.startswith("sqnr_db/")] or [
        row.get("sqnr_db")
    ]
    if row.get("predicted_sqnr_db") is None or None in heads:
        return None
    return Pair(row, WORST, row["predicted_sqnr_db"], min(heads), row["level"], None)


def rank_correlation(measured: Sequence[float], predicted: Sequence[float]) -> float | None:
    """Spearman's, with equal values at their mean rank; None for fewer than three pairs or a side
    without differences.
    """
    from scipy.stats import spearmanr

    if len(measured) < 3 or len(set(measured)) < 2 or len(set(predicted)) < 2:
        return None
    return float(spearmanr(measured, predicted).statistic)


def _line(name: str, pairs: Sequence[Pair]) -> list[str]:
    true, told = [p.true for p in pairs], [p.told for p in pairs]
    bands = [p.inside for p in pairs if p.inside is not None]
    halves = [p.row["agreement_halves"] for p in pairs if p.row.get("agreement_halves")]
    ranks = [
        rank_correlation(true, told),
        rank_correlation(*zip(*halves, strict=True)) if len(halves) == len(pairs) else None,
    ]
    shown = ["-" if rank is None else f"{rank:.3f}" for rank in ranks]
    return [
        name,
        pairs[0].figure,
        str(len(pairs)),
        *shown,
        f"{max(true) - min(true):.3f}",
        f"{np.mean(np.abs(np.subtract(true, told))):.3f}",
        f"{np.mean(bands):.2f}" if bands else "-",
        f"{np.mean([p.right for p in pairs]):.2f}",
    ]


def groups(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """All pairs of a figure, then by model and by scheme. Figures of different kinds are never
    pooled.
    """
    found: dict[str, list[Pair]] = {}
    for figure in BOUNDS:
        mine = [p for p in pairs if p.figure == figure]
        names = [
            name
            for field in ("model", "scheme")
            for name in dict.fromkeys(p.row[field] for p in mine)
        ]
        parts = {
            name: [p for p in mine if name in (p.row["model"], p.row["scheme"])] for name in names
        }
        if len({p.row["model"] for p in mine}) > 1:
            found["all"] = mine
        found |= {
            name if name not in found else f"{name}, without classes": part
            for name, part in parts.items()
            if len(part) >= 3
        }
    return found


def write(folder: pathlib.Path, rows: Sequence[Row]) -> str:
    """The part of results.md on the verdict, and its plot verdict.png; empty for fewer than three
    rows.

    Args:
      folder: to write the plot to.
      rows: measured rows with the verdict's figures (see suite_report.complete).
    """
    pairs = [p for p in map(pair, rows) if p is not None]
    parts = groups(pairs)
    if not parts:
        return ""
    from tabulate import tabulate

    headings = [
        "rows of",
        "figure",
        "number",
        "rank correlation",
        "of two halves of the real data",
        "width of true values",
        "mean error",
        "true value in band",
        "level right",
    ]
    text = tabulate(
        [_line(name, part) for name, part in parts.items()],
        headers=headings,
        tablefmt="pipe",
        disable_numparse=True,
    )
    wrong = sorted(
        (p for p in pairs if not p.right), key=lambda p: (p.figure, -abs(p.true - p.told))
    )
    cases = "\n".join(
        f"- {row_name(p.row)}: told {p.told:.3f} ({p.level}), true {p.true:.3f} "
        f"({level_of(p.true, bounds=BOUNDS[p.figure])}){'; inside its band' * bool(p.inside)}"
        for p in wrong
    )
    points = {
        model: (
            [p.true for p in pairs if p.row["model"] == model and p.figure == AGREE],
            [p.told for p in pairs if p.row["model"] == model and p.figure == AGREE],
        )
        for model in dict.fromkeys(p.row["model"] for p in pairs if p.figure == AGREE)
    }
    plots.predicted_against_true(points, folder / "verdict.png", label="agreement")
    return (
        "## The verdict against the "
        f"truth\n\n{EXPLAINED}\n\n{text}\n\n![verdict.png](verdict.png)\n\n"
        f"{'Misjudged' if wrong else 'No row is misjudged'}"
        f"{f' ({len(wrong)} of {len(pairs)}):' if wrong else '.'}\n\n{cases}\n"
    )
