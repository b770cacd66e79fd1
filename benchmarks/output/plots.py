"""Plots of results as PNG files: bars with every seed as a dot, and ranges against the real
ones.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgh_tf.common.files import atomic_path

Row = Mapping[str, Any]
PANELS = 4


def _save(figure, path: pathlib.Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")


def bars(
    rows: Sequence[Row],
    path: str | pathlib.Path,
    *,
    columns: Mapping[str, str],
    reference: Mapping[str, float],
) -> None:
    """One panel per column, at most PANELS side by side: a bar per source at the mean over seeds,
    and a dot per seed.

    Args:
      rows: result rows. columns: field -> axis label. reference: field -> value of a dashed line
        (the float model's).
    """
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(row["source"] for row in rows))
    across = min(PANELS, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(0.9 + 3.2 * across, 3.2 * down))
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(columns) :]:
        axis.axis("off")
    for axis, (field, label) in zip(axes, columns.items(), strict=False):
        for place, source in enumerate(sources):
            values = [
                row[field] for row in rows if row["source"] == source and row.get(field) is not None
            ]
            if values:
                axis.bar(place, np.mean(values), color=f"C{place}", alpha=0.55)
                axis.plot([place] * len(values), values, "o", color="black", markersize=3)
        if field in reference:
            axis.axhline(reference[field], color="gray", linestyle="--", linewidth=1)
        axis.set_xticks(range(len(sources)), sources, rotation=40, ha="right", fontsize=8)
        axis.set_title(label, fontsize=10)
    figure.tight_layout()
    _save(figure, pathlib.Path(path))


def ranges_scatter(
    real: Mapping[str, Sequence[float]],
    others: Mapping[str, Mapping[str, Sequence[float]]],
    path: str | pathlib.Path,
) -> None:
    """Width of every activation tensor's range: with real calibration across, with each other
    source up.

    Args:
      real: tensor -> (low, high). others: source -> the same. Tensors missing on one side are left
        out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4))
    axis = figure.subplots()
    for place, (source, ranges) in enumerate(others.items()):
        pairs = [
            (real[name][1] - real[name][0], ranges[name][1] - ranges[name][0])
            for name in real
            if name in ranges
        ]
        if pairs:
            axis.plot(
                *zip(*pairs, strict=True),
                ".",
                markersize=6,
                alpha=0.7,
                label=source,
                color=f"C{place}",
            )
    widths = [high - low for low, high in real.values()]
    if widths:
        axis.plot(
            [min(widths), max(widths)],
            [min(widths), max(widths)],
            color="gray",
            linewidth=1,
            label="as real images",
        )
        axis.legend(fontsize=8)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="range width, real images",
        ylabel="range width, other images",
    )
    _save(figure, pathlib.Path(path))


def size_curves(
    rows: Sequence[Row],
    path: str | pathlib.Path,
    *,
    columns: Mapping[str, str],
    lines: Mapping[str, Mapping[str, float]],
) -> None:
    """One panel per column: the mean over seeds against the number of calibration images, and a
    band from the worst to the best seed.

    Args:
      rows: result rows with source, num_images, seed. columns: field -> axis label.
      lines: field -> {label: value} of reference lines.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 4.2 * len(columns), 3.6))
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    sources = list(dict.fromkeys(row["source"] for row in rows))
    for axis, (field, label) in zip(axes, columns.items(), strict=True):
        for place, source in enumerate(sources):
            mine = [row for row in rows if row["source"] == source and row.get(field) is not None]
            sizes = sorted({row["num_images"] for row in mine})
            values = [[row[field] for row in mine if row["num_images"] == size] for size in sizes]
            if sizes:
                axis.plot(
                    sizes,
                    [np.mean(v) for v in values],
                    "o-",
                    markersize=3,
                    color=f"C{place}",
                    label=source,
                )
                axis.fill_between(
                    sizes,
                    [min(v) for v in values],
                    [max(v) for v in values],
                    color=f"C{place}",
                    alpha=0.2,
                    linewidth=0,
                )
        for style, (name, value) in zip(("--", ":"), lines.get(field, {}).items(), strict=False):
            axis.axhline(value, color="gray", linestyle=style, linewidth=1, label=name)
        every = sorted({row["num_images"] for row in rows})
        axis.set(xscale="log", xlabel="calibration images", title=label)
        axis.set_xticks(every, every)
        axis.minorticks_off()
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    _save(figure, pathlib.Path(path))


def layer_gaps(gaps: Mapping[str, Mapping[str, float]], path: str | pathlib.Path) -> None:
    """The gap of every BatchNorm layer, in order, by source. gaps: source -> layer -> squared
    standard deviations.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.4))
    axis = figure.subplots()
    for place, (source, layers) in enumerate(gaps.items()):
        axis.plot(
            range(1, len(layers) + 1),
            np.maximum(list(layers.values()), 1e-6),
            "o-",
            markersize=3,
            color=f"C{place}",
            label=source,
        )
    axis.set(
        yscale="log", xlabel="BatchNorm layer, in order", ylabel="gap, squared standard deviations"
    )
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, pathlib.Path(path))


def predicted_against_true(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | pathlib.Path,
    *,
    label: str,
) -> None:
    """Scatter of predicted (up) against measured (across). points: model -> (measured, predicted);
    label: of both axes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.8, 4.4))
    axis = figure.subplots()
    for place, (model, (measured, predicted)) in enumerate(points.items()):
        axis.plot(measured, predicted, ".", markersize=6, alpha=0.7, color=f"C{place}", label=model)
    ends = [value for pair in points.values() for side in pair for value in side]
    if ends:
        axis.plot([min(ends), max(ends)], [min(ends), max(ends)], color="gray", linewidth=1)
    axis.set(
        xlabel=f"{label}, measured on real data", ylabel=f"{label}, told from generated images"
    )
    axis.legend(fontsize=8)
    _save(figure, pathlib.Path(path))


def grouped(
    rows: Sequence[Row], path: str | pathlib.Path, *, field: str, label: str, line: float | None
) -> None:
    """Bars by row["group"], in each one bar per source at the mean over seeds and a dot per seed;
    `line`: the float model's value.
    """
    from matplotlib.figure import Figure

    groups, sources = (
        list(dict.fromkeys(row[name] for row in rows)) for name in ("group", "source")
    )
    figure = Figure(figsize=(2.0 + 1.1 * len(groups), 3.6))
    axis, width = figure.subplots(), 0.85 / len(sources)
    for place, source in enumerate(sources):
        for at, group in enumerate(groups):
            values = [
                row[field]
                for row in rows
                if row["source"] == source and row["group"] == group and row.get(field) is not None
            ]
            if values:
                x = at + (place - (len(sources) - 1) / 2) * width
                known = source in axis.get_legend_handles_labels()[1]
                axis.bar(
                    x,
                    np.mean(values),
                    width,
                    color=f"C{place}",
                    alpha=0.6,
                    label=None if known else source,
                )
                axis.plot([x] * len(values), values, ".", color="black", markersize=3)
    if line is not None:
        axis.axhline(line, color="gray", linestyle="--", linewidth=1)
    axis.set_xticks(range(len(groups)), groups, rotation=40, ha="right", fontsize=8)
    axis.set_ylabel(label)
    axis.legend(fontsize=7)
    _save(figure, pathlib.Path(path))
