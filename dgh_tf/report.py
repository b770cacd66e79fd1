"""cli: what a person looks at after a run: the preview grid, loss curves and one self-contained page."""
from __future__ import annotations

import base64
import html
import io
import pathlib

import numpy as np

from dgh_tf.files import atomic_path, atomic_write

GRID = 8  # images a side at most
CELL = 96  # pixels a side at least, so that small inputs can be seen

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Calibration images for {model}</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }}
img, svg {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .4rem; text-align: left; border-bottom: 1px solid #8886; }}
code, pre {{ font-size: .9em; overflow-wrap: anywhere; white-space: pre-wrap; }}
</style></head><body>
<h1>Calibration images for {model}</h1>
<p>{summary}</p>
<h2>Images</h2><a href="data:image/png;base64,{preview}"><img alt="generated images" src="data:image/png;base64,{preview}"></a>
<h2>Loss</h2><div>{curves}</div>
<h2>Statistics per layer</h2>
<p>Gap between the images' pooled statistics and the layer's running statistics, in squared standard deviations.</p>
<div class="wide"><table><tr><th>layer</th><th>start</th><th>end</th></tr>{layers}</table></div>
<h2>Run</h2><div class="wide"><table>{facts}</table></div>
<h2>To reproduce</h2><pre>{command}</pre>
</body></html>
"""


def preview_grid(images: np.ndarray, *, low, high) -> np.ndarray:
    """uint8 [rows, columns, 3] picture of up to 64 images. images: [N, H, W, C], [N, T, C] or [N, D] in [low, high]."""
    count = min(len(images), GRID * GRID)
    shown = (np.asarray(images[:count]) - np.asarray(low)) / (np.asarray(high) - np.asarray(low))
    while shown.ndim < 4:
        shown = shown[..., None] if shown.ndim == 3 else shown[:, None]
    if shown.shape[-1] not in (1, 3):  # no colours to show: channels side by side are best seen as their mean
        shown = shown.mean(axis=-1, keepdims=True)
    shown = np.repeat(shown, 3, axis=-1) if shown.shape[-1] == 1 else shown
    zoom = max(1, CELL // max(shown.shape[1:3]))
    shown = np.clip(np.rint(shown * 255), 0, 255).astype(np.uint8).repeat(zoom, axis=1).repeat(zoom, axis=2)
    columns = int(np.ceil(np.sqrt(count)))
    rows = int(np.ceil(count / columns))
    height, width = shown.shape[1] + 4, shown.shape[2] + 4  # a border of 4 pixels between images
    grid = np.full((rows * height + 4, columns * width + 4, 3), 255, np.uint8)
    for i, image in enumerate(shown):
        y, x = 4 + i // columns * height, 4 + i % columns * width
        grid[y:y + image.shape[0], x:x + image.shape[1]] = image
    return grid


def write_preview(folder: pathlib.Path, images: np.ndarray, *, low, high) -> None:
    """Writes preview.png."""
    from PIL import Image

    with atomic_path(folder / "preview.png") as temporary:
        Image.fromarray(preview_grid(images, low=low, high=high)).save(temporary)


def curves_svg(metrics: list[dict]) -> str:
    """Loss curves as inline SVG. metrics: rows of metrics.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "dgh"  # the same run gives the same page
    figure, axes = pyplot.subplots(figsize=(8, 3), layout="constrained")
    steps = [row["step"] for row in metrics]
    for name, label in (("bn", "BN statistics"), ("prior", "image pseudo-statistics")):
        axes.plot(steps, [row[name] for row in metrics], label=label)
    axes.set(xlabel="step", ylabel="gap", yscale="log")
    axes.legend()
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return text.getvalue()[text.getvalue().index("<svg"):]


def write_page(folder: pathlib.Path, *, manifest: dict, metrics: list[dict], command: str) -> None:
    """Writes report.html: one page that needs no network."""
    start, end = manifest["gap_start"], manifest["gap_end"]
    layers = "".join(f"<tr><td>{html.escape(name)}</td><td>{start[name]:.3g}</td><td>{end[name]:.3g}</td></tr>" for name in end)
    facts = {"model sha256": manifest["identity"]["model_sha256"], "images sha256": manifest["images_sha256"],
             "input range": "; ".join(f"{r['low']} to {r['high']}, from {r['found']}" for r in manifest["input_range"]),
             "augmentation": "; ".join(manifest["augmentation"]), "versions": manifest["versions"],
             "without statistics": ", ".join(manifest["unmatched_layers"]) or "none",
             "output stretching, lambda": manifest["lambda"], "seconds": manifest["seconds"]}
    rows = "".join(f"<tr><th>{key}</th><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items())
    config = manifest["identity"]["config"]
    summary = (f"{config['num_images']} images made from the model's BatchNorm statistics in {config['steps']} steps; no data was used. "
               f"Mean gap {np.mean(list(start.values())):.3g} at the start, {np.mean(list(end.values())):.3g} at the end.")
    page = PAGE.format(model=html.escape(manifest["model"]), summary=html.escape(summary), layers=layers, facts=rows,
                       preview=base64.b64encode((folder / "preview.png").read_bytes()).decode(),
                       curves=curves_svg(metrics) if metrics else "", command=html.escape(command))
    atomic_write(folder / "report.html", page)
