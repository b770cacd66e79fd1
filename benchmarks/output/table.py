"""Result rows as a markdown table, means and standard deviations over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

Row = Mapping[str, Any]


def mean_std(values: Sequence[float | None], *, digits: int) -> str:
    """'mean ± standard deviation' over seeds; the mean alone of one value; '-' of none.

    The deviation is the sample's (n - 1), since seeds are a sample of all seeds. A `None` was not
    measured and is left out; an infinite value makes the mean infinite and the deviation
    meaningless, so it is left out too.
    """
    known = [float(value) for value in values if value is not None]
    if not known:
        return "-"
    mean = statistics.fmean(known)
    if len(known) == 1 or not math.isfinite(mean):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(known):.{digits}f}"


def grid(lines: Sequence[Sequence[object]], headings: Sequence[str], *, left: int = 1) -> str:
    """A markdown table: the first `left` columns aligned left, the others right; text as it is."""
    align = ["left"] * left + ["right"] * (len(headings) - left)
    return tabulate(
        lines,
        headers=headings,
        tablefmt="pipe",
        colalign=align if lines else None,
        disable_numparse=True,
    )


def over_seeds(
    rows: Sequence[Row], *, by: str, columns: Mapping[str, tuple[str, int]]
) -> list[list[str]]:
    """One line per value of `by`, in order of appearance: that value, each column's mean ±
    deviation, the seeds.

    Args:
      rows: flat result rows; a column a row lacks counts as not measured.
      by: the field that tells the lines apart, for example 'source'.
      columns: field -> (heading, digits after the point).
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row[by]), []).append(row)
    return [
        [
            name,
            *(
                mean_std([row.get(field) for row in group], digits=digits)
                for field, (_, digits) in columns.items()
            ),
            str(len(group)),
        ]
        for name, group in groups.items()
    ]


def markdown(rows: Sequence[Row], *, by: str, columns: Mapping[str, tuple[str, int]]) -> str:
    """The lines of `over_seeds` as a markdown table, with the columns that no row measured left
    out.
    """
    shown = {
        field: column
        for field, column in columns.items()
        if any(row.get(field) is not None for row in rows)
    }
    headings = [by, *(heading for heading, _ in shown.values()), "seeds"]
    return grid(over_seeds(rows, by=by, columns=shown), headings)
