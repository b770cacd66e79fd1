"""state: plots of results as PNG files: bars with every seed as a dot, and ranges against the real ones."""
from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgh_tf.files import atomic_path

Row = Mapping[str, Any]
PANELS = 4


def _save(figure, path: pathlib.Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")


def bars(rows: Sequence[Row], path: str | pathlib.Path, *, columns: Mapping[str, str],
         reference: Mapping[str, float]) -> None:
    """One panel per column, at most PANELS side by side: a bar per source at the mean over seeds, and a dot per seed.

    Args:
      rows: result rows. columns: field -> axis label. reference: field -> value of a dashed line (the float model's).
    """
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(row["source"] for row in rows))
    across = min(PANELS, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(0.9 + 3.2 * across, 3.2 * down))
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(columns):]:
        axis.axis("off")
    for axis, (field, label) in zip(axes, columns.items(), strict=False):
        for place, source in enumerate(sources):
            values = [row[field] for row in rows if row["source"] == source and row.get(field) is not None]
            if values:
                axis.bar(place, np.mean(values), color=f"C{place}", alpha=0.55)
                axis.plot([place] * len(values), values, "o", color="black", markersize=3)
        if field in reference:
            axis.axhline(reference[field], color="gray", linestyle="--", linewidth=1)
        axis.set_xticks(range(len(sources)), sources, rotation=40, ha="right", fontsize=8)
        axis.set_title(label, fontsize=10)
    figure.tight_layout()
    _save(figure, pathlib.Path(path))


def ranges_scatter(real: Mapping[str, Sequence[float]], others: Mapping[str, Mapping[str, Sequence[float]]],
                   path: str | pathlib.Path) -> None:
    """Width of every activation tensor's range: with real calibration across, with each other source up.

    Args:
      real: tensor -> (low, high). others: source -> the same. Tensors missing on one side are left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4))
    axis = figure.subplots()
    for place, (source, ranges) in enumerate(others.items()):
        pairs = [(real[name][1] - real[name][0], ranges[name][1] - ranges[name][0]) for name in real if name in ranges]
        if pairs:
            axis.plot(*zip(*pairs, strict=True), ".", markersize=6, alpha=0.7, label=source, color=f"C{place}")
    widths = [high - low for low, high in real.values()]
    if widths:
        axis.plot([min(widths), max(widths)], [min(widths), max(widths)], color="gray", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="range width, real images", ylabel="range width, other images")
    axis.legend(fontsize=8)
    _save(figure, pathlib.Path(path))
