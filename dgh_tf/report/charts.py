"""Charts of the page as inline SVG that follows its text colour, light or dark.

Only numbers and fixed words are drawn by matplotlib. Names from files stand in the legend, which
the template writes and escapes.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dgh_tf.common.subsets import spread

_INK = "#010203"  # stands for the page's text colour until the SVG is done
_LINES = {"a": "#010204", "b": "#010205", "c": "#010206"}  # the same for its --a, --b and --c


@dataclasses.dataclass(frozen=True)
class Chart:
    """svg: finished markup without any text from files. legend: (colour a, b or c; name)."""

    svg: str
    title: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()


def _svg(draw: Callable[[Any], None]) -> str:
    """The SVG of what `draw` puts on the axes it is called with."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style = {
        "svg.hashsalt": "dgh",  # the same run gives the same page
        "svg.fonttype": "none",
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.edgecolor": _INK,
        "font.size": 11,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.2, 2.8), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    for name, colour in _LINES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace(_INK, "currentColor")


def curves(
    rows: Sequence[dict[str, Any]],
    names: dict[str, str],
    *,
    title: str,
    caption: str,
    ylabel: str,
    logarithmic: bool,
) -> Chart:
    """Figures of metrics.jsonl over the steps. names: key in a row -> name in the legend, up to
    three of which are drawn.
    """
    drawn = []
    for line, (key, name) in zip(_LINES, names.items(), strict=False):
        points = [(row["step"], row[key]) for row in rows if key in row]
        points = [(x, y) for x, y in points if y > 0 or not logarithmic]
        if points:  # none of a loss that is off, such as the prior of signals
            drawn.append((line, name, points))

    def draw(axes: Any) -> None:
        for line, _, points in drawn:
            axes.plot(*zip(*points, strict=True), color=_LINES[line], marker=".", markersize=5)
        axes.set(xlabel="step", ylabel=ylabel, yscale="log" if logarithmic else "linear")

    return Chart(_svg(draw), title, caption, tuple((line, name) for line, name, _ in drawn))


def gaps(start: dict[str, float], end: dict[str, float], *, caption: str) -> Chart:
    """Gap of every set of statistics before and after, in the model's order."""

    def draw(axes: Any) -> None:
        for line, values in (("b", start), ("a", end)):
            axes.plot(
                range(1, len(end) + 1),
                [max(values.get(name, math.nan), 1e-9) for name in end],
                "o-",
                markersize=4,
                color=_LINES[line],
            )
        axes.set(xlabel="BatchNorm layer, in the model's order", ylabel="gap", yscale="log")

    legend = (("b", "start images"), ("a", "generated images"))
    return Chart(_svg(draw), "Gap of every layer", caption, legend)


def sizes(curve: Sequence[dict[str, Any]], chosen: dict[str, Any]) -> Chart:
    """Size of a mixed file against what it keeps, with the choice; see "mixed" in F.json."""
    figure = "sqnr_db" if chosen["agreement"] is None else "agreement"
    label = "SQNR of the logits, dB" if figure == "sqnr_db" else "predicted agreement"

    def draw(axes: Any) -> None:
        for line, points, marker in (("a", curve, ".-"), ("b", [chosen], "o")):
            x, y = [each["bytes"] / 1024 for each in points], [each[figure] for each in points]
            axes.plot(x, y, marker, color=_LINES[line])
        axes.set(xlabel="KiB", ylabel=label)

    caption = (
        "From all weights at 4 bits, left, to all at 8, right. Predicted on images that calibrate "
        "nothing, with weights rounded to nearest; a file with learned roundings keeps more."
    )
    legend = (("a", "choices for other sizes"), ("b", "this file"))
    return Chart(_svg(draw), "Size and what it keeps", caption, legend)


def histogram(images: np.ndarray, *, low: np.ndarray, high: np.ndarray, title: str) -> Chart:
    """Where the values of up to 256 inputs lie between the ends of the valid range.

    Args:
      images: [N, ..., C].
      low: lower end of the valid range: one number, or one per channel; then the axis shows the
        position in the range, from 0 to 1.
      high: upper end, in the same form.
      title: of the chart.
    """
    chosen = spread(256, total=len(images))
    single = low.size == 1 and high.size == 1
    bottom, top = (float(low.ravel()[0]), float(high.ravel()[0])) if single else (0.0, 1.0)
    edges, counts, shares = np.linspace(0.0, 1.0, 41), np.zeros(40, int), []
    for i in chosen:  # one by one: float64 takes memory
        unit = (np.asarray(images[i], np.float64) - low) / np.maximum(high - low, 1e-30)
        counts += np.histogram(np.clip(unit, 0.0, 1.0), bins=edges)[0]
        shares.append(np.mean((unit <= 1e-6) | (unit >= 1 - 1e-6)))
    ends = float(np.mean(shares))

    def draw(axes: Any) -> None:
        places = bottom + edges * (top - bottom)
        axes.stairs(100 * counts / max(1, counts.sum()), places, fill=True, color=_LINES["a"])
        axes.set(
            xlabel="input value" if single else "position in the channel's range (0 low, 1 high)",
            ylabel="% of values",
            xlim=(bottom, top),
        )

    caption = (
        f"{ends:.0%} of the values lie at an end of the valid range. Values should fill the range; "
        "a single narrow peak means that the range is too wide, and most values at the ends mean "
        "that it is too narrow."
    ).replace("%", " %", 1)
    return Chart(_svg(draw), title, caption)
