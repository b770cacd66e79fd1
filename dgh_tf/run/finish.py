"""What a finished run leaves: images, preview, report, and the manifest that tells of all."""

from __future__ import annotations

import datetime
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dgh_tf.common import console, machine, run_folder
from dgh_tf.common.convergence import judge_convergence
from dgh_tf.config import GenerationConfig
from dgh_tf.generation.generator import Generator
from dgh_tf.ops.radam import adaptive_rate
from dgh_tf.report import page
from dgh_tf.report.pictures import kind_told
from dgh_tf.run.progress import Lines, Metrics, TimeLeft


def finish(
    generator: Generator,
    folder: pathlib.Path | None,
    *,
    model: str,
    identity: Mapping[str, Any],
    metrics: Metrics,
    seconds: float,
    command: str,
    with_page: bool = True,
) -> None:
    """Writes what the run leaves in `folder`, the manifest last.

    Args:
      generator: after its last step.
      folder: to write to; None for a worker that only takes part in what all must compute together.
      model: as the user gave it.
      identity: see `run_folder.run_identity`.
      metrics: figures of the steps.
      seconds: that the steps took.
      command: as the user gave it.
      with_page: whether report.html is among it.
    """
    total = sum(generator.sizes[k] for k in generator.batches)
    gaps = generator.layer_gaps(told=Lines(total))
    convergence = judge_convergence(gaps) if generator.network.layers else None
    if folder is None:
        for _ in generator.images():
            pass
        return
    count = generator.config.num_images + len(generator.real)
    written = run_folder.write_images(
        folder, _told(generator.images(), count), generator.network.input_names, count=count
    )
    manifest = {
        "model": console.printable(model),
        **written,
        **_found(generator, metrics),
        "gap_end": gaps,
        "convergence": convergence and convergence.as_dict(),
        "seconds": round(seconds, 2),
        "finished": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine.describe(),
        "channels_first": list(map(bool, generator.network.channels_first)),
        "identity": identity,
        "model_sha256": identity["model_sha256"],
        "versions": {
            "dgh_tf": identity["version"],
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "python": sys.version.split()[0],
        },
    }
    _draw(generator, folder, manifest, metrics)
    if with_page:
        page.write_page(
            folder, manifest=manifest, metrics=metrics.rows, command=console.printable(command)
        )
    run_folder.write_manifest(folder, manifest)
    told = f"{generator.config.num_images} images in {folder} after {seconds:.0f} s, "
    told += convergence.summary if convergence else generator.network.evidence.sentence
    told += "; see report.html. " if with_page else ". "
    told += convergence.advice if convergence else ""
    guesses = [valid.guess for valid in generator.ranges if valid.guess]
    console.say("; ".join([told.rstrip(". "), *guesses[:1], *unmoved(generator.config)]))


def unmoved(config: GenerationConfig) -> list[str]:
    """What to say of a run so short that no step moved an image."""
    last = tf.constant(float(config.steps))
    if float(adaptive_rate(last, beta1=config.beta1, beta2=config.beta2)) > 0.0:
        return []
    return [
        f"these are the start images: RAdam moves none in its first {config.steps} steps, give "
        "--steps=20 or more"
    ]


def _told(parts: Iterator[list[np.ndarray]], count: int) -> Iterator[list[np.ndarray]]:
    """The parts as they come, with a line now and then where there are many."""
    left, done = TimeLeft(count, what="images written"), 0
    for part in parts:
        yield part
        done += len(part[0])
        left.tell(done)


def _found(generator: Generator, metrics: Metrics) -> dict[str, Any]:
    """The manifest's entries that tell of the settings and of what the steps came to."""
    config = generator.config
    spreads = {
        name.removeprefix("spread/"): value
        for name, value in metrics.last.items()
        if name.startswith("spread/")
    }
    limits = map(float, generator.spreads() * config.stretch_limit)
    return {
        "seed": config.seed,
        "input_range": [r.as_dict() for r in generator.ranges],
        "input_kind": [known.kind for known in generator.known],
        "augmentation": [layout.describe() for layout in generator.layouts],
        "lambda": {name: config.output_weight / value for name, value in spreads.items() if value},
        "stretched_to": dict(zip(generator.head_names, limits, strict=True)),
        "final_losses": metrics.last,
        "gap_start": generator.state.gap_start,
        "evidence": generator.network.evidence.as_dict(),
        "unmatched_layers": generator.network.unmatched,
        "real_images": len(generator.real),
    }


def _draw(
    generator: Generator,
    folder: pathlib.Path,
    manifest: dict[str, Any],
    metrics: Metrics,
) -> None:
    """Writes the preview and the last of TensorBoard's summaries."""
    first = np.load(folder / next(iter(manifest["files"].values())), mmap_mode="r")[:64]
    shown = first.transpose(0, 2, 3, 1) if generator.network.channels_first[0] else first
    valid = generator.ranges[0]
    kind = kind_told(manifest["input_kind"][0], shown.shape[1:])
    page.write_preview(folder, shown, low=valid.low, high=valid.high, kind=kind)
    if metrics.summaries:
        grid = page.preview_grid(shown, low=valid.low, high=valid.high, kind=kind)
        metrics.summaries.finish(generator.config.steps, preview=grid, gaps=manifest["gap_end"])


def require_space(generator: Generator, folder: pathlib.Path, *, known: int) -> None:
    """Raises OSError where the disk has no room for the checkpoints and the images of a run.

    Args:
      generator: of the run.
      folder: of the run.
      known: bytes of the checkpoints that are there; they make way for later ones.
    """
    from dgh_tf.common.files import require_space as require
    from dgh_tf.run.checkpoint import KEPT

    count = generator.config.num_images + len(generator.real)
    values = sum(map(np.prod, generator.network.input_shapes))
    needs = {
        "checkpoints": max(0, (KEPT + 1) * generator.record_bytes - known),
        "images": 4 * count * int(values),
    }
    require(
        folder, needs, advice="Free some space, give another --output_dir or fewer --num_images."
    )
