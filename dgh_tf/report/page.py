"""cli: what a person looks at after a run: the preview grid, loss curves and one self-contained
page.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
import pathlib
import shlex

import numpy as np

from dgh_tf.common.files import atomic_path, atomic_write
from dgh_tf.config import GenerationConfig
from dgh_tf.report import integer_files
from dgh_tf.report.template import page, table

GRID = 8  # images a side at most
CELL = 96  # pixels a side at least, so that small inputs can be seen
COLOURS = {
    "#010204": "var(--a)",
    "#010205": "var(--b)",
    "#010206": "var(--c)",
}  # of lines, by the colour that stands for each


def preview_grid(images: np.ndarray, *, low, high) -> np.ndarray:
    """uint8 [rows, columns, 3] picture of up to 64 images. images: [N, H, W, C], [N, T, C] or [N,
    D] in [low, high].
    """
    count = min(len(images), GRID * GRID)
    shown = (np.asarray(images[:count]) - np.asarray(low)) / (np.asarray(high) - np.asarray(low))
    while shown.ndim < 4:
        shown = shown[..., None] if shown.ndim == 3 else shown[:, None]
    if shown.shape[-1] not in (
        1,
        3,
    ):  # no colours to show: channels side by side are best seen as their mean
        shown = shown.mean(axis=-1, keepdims=True)
    shown = np.repeat(shown, 3, axis=-1) if shown.shape[-1] == 1 else shown
    zoom = max(1, CELL // max(shown.shape[1:3]))
    shown = (
        np.clip(np.rint(shown * 255), 0, 255)
        .astype(np.uint8)
        .repeat(zoom, axis=1)
        .repeat(zoom, axis=2)
    )
    columns = int(np.ceil(np.sqrt(count)))
    rows = int(np.ceil(count / columns))
    height, width = shown.shape[1] + 4, shown.shape[2] + 4  # a border of 4 pixels between images
    grid = np.full((rows * height + 4, columns * width + 4, 3), 255, np.uint8)
    for i, image in enumerate(shown):
        y, x = 4 + i // columns * height, 4 + i % columns * width
        grid[y : y + image.shape[0], x : x + image.shape[1]] = image
    return grid


def write_preview(folder: pathlib.Path, images: np.ndarray, *, low, high) -> None:
    """Writes preview.png."""
    from PIL import Image

    with atomic_path(folder / "preview.png") as temporary:
        Image.fromarray(preview_grid(images, low=low, high=high)).save(temporary)


def tiles(folder: pathlib.Path, *, count: int) -> list[tuple[str, bool]]:
    """The images of preview.png one by one, as data URIs, and whether each is a small one shown
    with its pixels enlarged.
    """
    from PIL import Image

    picture = Image.open(folder / "preview.png").convert("RGB")
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    width, height = (picture.width - 4) // columns, (picture.height - 4) // rows
    found = []
    for i in range(count):
        x, y = 4 + i % columns * width, 4 + i // columns * height
        tile, data = picture.crop((x, y, x + width - 4, y + height - 4)), io.BytesIO()
        small = max(tile.size) < 2 * CELL
        tile.save(
            data,
            **({"format": "PNG", "optimize": True} if small else {"format": "JPEG", "quality": 88}),
        )
        found.append(
            (
                f"data:image/{'png' if small else 'jpeg'};base64,"
                f"{base64.b64encode(data.getvalue()).decode()}",
                small,
            )
        )
    return found


def _svg(draw) -> str:
    """An inline SVG that takes the page's text colour, and its --a, --b and --c for lines. draw:
    called with the axes.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = "#010203"  # stands for the page's own colours until the end
    style = {
        "svg.hashsalt": "dgh",
        "svg.fonttype": "none",
        "text.color": ink,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.edgecolor": ink,
        "font.size": 10,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }  # hashsalt: the same run gives the same page
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    for colour, variable in {ink: "currentColor", **COLOURS}.items():
        svg = svg.replace(colour, variable)
    return svg


def curves_svg(metrics: list[dict], *, names: dict[str, str], ylabel: str, yscale: str) -> str:
    """Curves over the steps as inline SVG. metrics: rows of metrics.jsonl; names: figure of a row
    -> label, at most as many as COLOURS.
    """

    def draw(axes):
        for colour, (name, label) in zip(COLOURS, names.items(), strict=False):
            points = [(row["step"], row[name]) for row in metrics if row.get(name)]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, color=colour)
        axes.set(xlabel="step", ylabel=ylabel, yscale=yscale)
        axes.legend()

    return _svg(draw)


def gaps_svg(start: dict[str, float], end: dict[str, float]) -> str:
    """Gap of every BN layer before and after, in the model's order, as inline SVG."""

    def draw(axes):
        for colour, gaps, label in zip(COLOURS, (end, start), ("after", "before"), strict=False):
            axes.plot(
                range(1, len(end) + 1),
                [max(gaps.get(name, math.nan), 1e-9) for name in end],
                "o-",
                markersize=4,
                label=label,
                color=colour,
            )
        axes.set(
            xlabel="BatchNorm layer, in order; the image itself last", ylabel="gap", yscale="log"
        )
        axes.legend()

    return _svg(draw)


def run_command(manifest: dict) -> str:
    """The command of a finished run: its model, and every setting that is not the default."""
    config, known = manifest["identity"]["config"], dataclasses.fields(GenerationConfig)
    options = [
        f"--{f.name}={config[f.name]}"
        for f in known
        if f.name in config and config[f.name] != f.default
    ]
    return shlex.join(
        [
            "python",
            "-m",
            "dgh_tf.generate",
            f"--model={manifest['model']}",
            "--output_dir=DIR",
            *options,
        ]
    )


def _summary(manifest: dict) -> str:
    config, start, end = manifest["identity"]["config"], manifest["gap_start"], manifest["gap_end"]
    real = manifest.get("real_images", 0)
    data = (
        f"{real} real images, without labels, took part and are among them."
        if real
        else "No data was used."
    )
    cards = {
        "images": config["num_images"] + real,
        "optimizer steps": config["steps"],
        "seconds": f"{manifest['seconds']:.0f}",
        "mean gap of statistics": (
            f"{np.mean(list(start.values())):.2g} to {np.mean(list(end.values())):.2g}"
        ),
        "sets of statistics matched": len(end),
    }
    shown = "".join(
        f'<div class="card"><b>{html.escape(str(value))}</b>{name}</div>'
        for name, value in cards.items()
    )
    return (
        '<p class="lead">Calibration images for post-training quantization, made '
        "from what the trained model's BatchNorm layers "
        f'remember of their training set. {data}</p><div class="cards">{shown}</div>'
    )


def _images(folder: pathlib.Path, manifest: dict) -> str:
    total = int(next(iter(manifest["shapes"].values()))[0])
    found = tiles(folder, count=min(total, GRID * GRID))
    shown = "".join(
        f'<button type="button" aria-label="enlarge image {i + 1}"><img '
        f'alt="generated image {i + 1}" '
        f'{"class=pixel " if small else ""}src="{uri}"></button>'
        for i, (uri, small) in enumerate(found)
    )
    rest = "" if len(found) == total else f" The first {len(found)} of {total}."
    return (
        '<p class="dim">They match statistics and need not look like photographs. '
        f"Click one to enlarge it.{rest}</p>"
        f'<div class="grid">{shown}</div>'
    )


def _facts(manifest: dict) -> str:
    several = isinstance(manifest["images_sha256"], dict)
    images = (
        "; ".join(f"{k} {v}" for k, v in manifest["images_sha256"].items())
        if several
        else manifest["images_sha256"]
    )
    ranges = "; ".join(
        f"{_numbers(r['low'])} to {_numbers(r['high'])}, from {r['found']}"
        for r in manifest["input_range"]
    )
    grown = {"images and steps": manifest["auto"]["why"]} if "auto" in manifest else {}
    facts = {
        "model sha256": manifest["identity"]["model_sha256"],
        "images sha256": images,
        "input range": ranges,
        "augmentation": "; ".join(manifest["augmentation"]),
        "without statistics": ", ".join(manifest["unmatched_layers"]) or "none",
        "output stretching, lambda": _pairs(manifest["lambda"]),
        "seed": manifest["seed"],
        **grown,
        "versions": ", ".join(
            f"{name} {version}" for name, version in manifest["versions"].items()
        ),
    }
    return table(
        [
            [key, f"<code>{html.escape(str(v))}</code>" if "sha256" in key else html.escape(str(v))]
            for key, v in facts.items()
        ],
        kind="facts",
    )


def _numbers(values) -> str:
    return ", ".join(f"{value:g}" for value in np.ravel(values))


def _pairs(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items()) or "off"


def write_page(folder: pathlib.Path, *, manifest: dict, metrics: list[dict], command: str) -> None:
    """Writes report.html: one page that needs no network. Integer files of the folder are told of
    too (see report_files).
    """
    start, end = manifest["gap_start"], manifest["gap_end"]
    title = html.escape(f"Calibration images for {pathlib.PurePath(manifest['model']).name}")
    layers = table(
        [
            [html.escape(name), f"{start.get(name, math.nan):.3g}", f"{gap:.3g}"]
            for name, gap in end.items()
        ],
        head=["layer", "before", "after"],
        numbers=2,
    )
    charts = []
    if metrics:
        losses = curves_svg(
            metrics,
            names={"bn": "BN statistics", "prior": "image pseudo-statistics"},
            ylabel="gap",
            yscale="log",
        )
        charts.append(f"<figure>{losses}<figcaption>Losses over the steps.</figcaption></figure>")
    if heads := [name for name in (metrics or [{}])[-1] if name.startswith("spread/")]:
        labels = {name: name.removeprefix("spread/") for name in heads[: len(COLOURS)]}
        spreads = curves_svg(
            metrics, names=labels, ylabel="highest minus lowest logit", yscale="linear"
        )
        charts.append(
            f"<figure>{spreads}<figcaption>How far the outputs are stretched, mean "
            "over images.</figcaption></figure>"
        )
    charts.append(
        f"<figure>{gaps_svg(start, end)}<figcaption>Gap between the images' pooled "
        "statistics and each layer's running "
        "statistics, in squared standard deviations; 0 means equal.</figcaption></figure>"
    )
    body = (
        f"<h1>{title}</h1>{_summary(manifest)}<h2>Images</h2>{_images(folder, manifest)}"
        f'<h2>How they came about</h2><div class="charts">{"".join(charts)}</div>'
        f"<details><summary>Gap of {len(end)} layers, before and after</summary>{layers}</details>"
        f"<h2>Integer files and verdict</h2>{integer_files.section(integer_files.found(folder))}"
        f"<h2>To reproduce</h2><pre>{html.escape(command)}</pre>{_facts(manifest)}"
    )
    atomic_write(folder / "report.html", page(title=title, body=body))
