"""Plots of results as PNG files: means with every seed as a dot, and ranges against the real
ones.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.output.names import name_of
from dgh_tf.common.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
PANELS = 4


def _save(figure: Figure, path: pathlib.Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")


def scores(
    rows: Sequence[Row],
    path: str | pathlib.Path,
    *,
    columns: Mapping[str, str],
    reference: Mapping[str, float],
) -> None:
    """One panel per column, at most PANELS side by side: per source a line at the mean over seeds,
    with its value, and a dot per seed.

    An axis shows the differences between the best sources and the float model. A source far below
    (or above, where less is better) stands at the edge as an arrow with its value.

    Args:
      rows: result rows.
      path: of the .png file to write.
      columns: field -> axis label.
      reference: field -> value of a dashed line (the float model's).
    """
    from matplotlib.figure import Figure

    sources = list(dict.fromkeys(row["source"] for row in rows))
    across = min(PANELS, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(0.9 + 3.4 * across, 3.4 * down))
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(columns) :]:
        axis.axis("off")
    for axis, (field, label) in zip(axes, columns.items(), strict=False):
        found = {
            source: [
                float(row[field])
                for row in rows
                if row["source"] == source and row.get(field) is not None
            ]
            for source in sources
        }
        _panel(axis, found, line=reference.get(field))
        names = [name_of(source) for source in sources]
        axis.set_xticks(range(len(sources)), names, rotation=40, ha="right", fontsize=8)
        axis.set_title(label, fontsize=10)
    figure.tight_layout()
    _save(figure, pathlib.Path(path))


def sizes(rows: Sequence[Row], path: str | pathlib.Path) -> None:
    """Agreement with the float model by size: for each source a line through the means over seeds,
    and a dashed one of what the choice of bits predicted.

    Args:
      rows: of scheme mixed, with kib, agreement and predicted_agreement.
      path: of the .png file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8))
    axis = figure.subplots()
    for place, source in enumerate(dict.fromkeys(row["source"] for row in rows)):
        own = [row for row in rows if row["source"] == source]
        for field, style in (("agreement", "o-"), ("predicted_agreement", "x--")):
            means = [
                tuple(np.mean([(row["kib"], row[field]) for row in group], axis=0))
                for size in dict.fromkeys(row["max_kib"] for row in own)
                if (group := [r for r in own if r["max_kib"] == size and r.get(field) is not None])
            ]
            what = name_of(source) + (", predicted" if field.startswith("pre") else "")
            axis.plot(*zip(*sorted(means), strict=True), style, color=f"C{place}", label=what)
    axis.set(xlabel="file, KiB", ylabel="agreement with the float model")
    axis.grid(color="0.9")
    axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    _save(figure, pathlib.Path(path))


def _panel(axis: Any, found: Mapping[str, Sequence[float]], *, line: float | None) -> None:
    """Dots, means and the float model's line of one panel."""
    means = {source: float(np.mean(v)) for source, v in found.items() if v}
    centre = means.get("real") if line is None else line
    ends = [*means.values(), *([] if line is None else [line])]
    low, high = shown_range(ends, centre=centre)
    axis.set(xlim=(-0.6, len(found) - 0.4), ylim=(low, high))
    for place, values in enumerate(found.values()):
        if not values:
            continue
        mean = float(np.mean(values))
        inside = low <= mean <= high
        at = min(max(mean, low), high)
        if inside:
            axis.hlines(mean, place - 0.3, place + 0.3, color=f"C{place}", linewidth=3)
            seen = [value for value in values if low <= value <= high]
            axis.plot([place] * len(seen), seen, "o", color="black", markersize=3)
        else:
            mark = "v" if mean < low else "^"
            axis.plot(place, at, mark, color=f"C{place}", markersize=9, clip_on=False)
        offset = (0, -14 if inside and mean > (low + high) / 2 else 8)
        axis.annotate(
            f"{mean:.3g}",
            (place, at),
            (0, -14) if mean > high else offset,
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    if line is not None:
        axis.axhline(line, color="gray", linestyle="--", linewidth=1)
        axis.annotate(
            f"float {line:.3g}",
            (axis.get_xlim()[1], line),
            (-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="gray",
        )


def shown_range(values: Sequence[float], *, centre: float | None) -> tuple[float, float]:
    """The ends of an axis that shows the differences between the values nearest to `centre` (the
    float model's, or that of real images; None for their median). Those further off than ten times
    the nearer half's spread are left to its edge.

    Example: `shown_range([0.98, 0.985, 0.99, 0.1], centre=0.99)` is about (0.9775, 0.9925).
    """
    if not len(values):
        return 0.0, 1.0
    numbers = np.array(values, np.float64)
    middle = float(np.median(numbers)) if centre is None else centre
    order = numbers[np.argsort(np.abs(numbers - middle))]
    near = order[: max(2, (len(order) + 1) // 2)]
    spread = max(float(np.ptp(near)), 0.005 * abs(middle), 1e-12)
    kept = order[np.abs(order - middle) <= 10 * spread]
    margin = 0.25 * max(float(np.ptp(kept)), spread)
    return float(kept.min() - margin), float(kept.max() + margin)


def range_ratios(
    real: Mapping[str, Sequence[float]],
    others: Mapping[str, Mapping[str, Sequence[float]]],
    path: str | pathlib.Path,
) -> None:
    """A strip per source: the width of each layer's range over that of real calibration, in order
    of execution. Below 1 values of real images are cut off, above 1 integers are left unused.

    Args:
      real: tensor -> (low, high).
      others: source -> the same. Tensors missing on one side are left out.
      path: of the .png file to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(7.0, 0.7 + 1.3 * max(1, len(others))))
    axes = figure.subplots(max(1, len(others)), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for place, (axis, (source, ranges)) in enumerate(zip(axes, others.items(), strict=False)):
        widths = [
            (at, (ranges[name][1] - ranges[name][0]) / (ends[1] - ends[0]))
            for at, (name, ends) in enumerate(real.items(), start=1)
            if name in ranges and ends[1] > ends[0] and ranges[name][1] > ranges[name][0]
        ]
        if widths:
            layers, ratios = zip(*widths, strict=True)
            axis.vlines(layers, 1.0, ratios, color=f"C{place}", linewidth=1)
            axis.plot(layers, ratios, "o", color=f"C{place}", markersize=4)
        axis.axhline(1.0, color="gray", linewidth=1)
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axis.set_title(f"{name_of(source)}", fontsize=9, loc="left")
    axes[-1].set_xlabel("layer, in order of execution")
    figure.supylabel("range width / that of real images", fontsize=9)
    figure.tight_layout()
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
      rows: result rows with source, num_images, seed.
      path: of the .png file to write.
      columns: field -> axis label.
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
                    label=name_of(source),
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


def layer_gaps(
    gaps: Mapping[str, Mapping[str, float]],
    path: str | pathlib.Path,
    *,
    layer: str = "BatchNorm layer",
    gap: str = "gap, squared standard deviations",
) -> None:
    """The gap of every layer, in order, by source.

    Args:
      gaps: source -> layer -> gap.
      path: of the .png file to write.
      layer: what the layers are.
      gap: what their gap is, with its unit.
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
            label=name_of(source),
        )
    axis.set(yscale="log", xlabel=f"{layer}, in order", ylabel=gap)
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
                known = name_of(source) in axis.get_legend_handles_labels()[1]
                axis.bar(
                    x,
                    np.mean(values),
                    width,
                    color=f"C{place}",
                    alpha=0.6,
                    label=None if known else name_of(source),
                )
                axis.plot([x] * len(values), values, ".", color="black", markersize=3)
    if line is not None:
        axis.axhline(line, color="gray", linestyle="--", linewidth=1, label="float")
    axis.set_xticks(range(len(groups)), groups, rotation=40, ha="right", fontsize=8)
    axis.set_ylabel(label)
    axis.legend(fontsize=7)
    _save(figure, pathlib.Path(path))
