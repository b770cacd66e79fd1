"""How many images and steps are enough: both grow until the ranges of activations and
outputs hold still.

Ranges are what calibration takes from images, so they say when more images or more steps would
change nothing.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dgh_tf.common import run_folder
from dgh_tf.common.files import atomic_write, read_json
from dgh_tf.common.stable_ranges import STABLE, halves_change, range_change
from dgh_tf.config import SizeSetting, parse_image_size
from dgh_tf.models.network import Network
from dgh_tf.report import page as report

FIRST_IMAGES, MOST_IMAGES = 16, 1024
FIRST_STEPS, MOST_STEPS = 25, 1600


class Attempt(NamedTuple):
    """One finished run. low, high: of every tensor over the set; halves: median change of ranges
    between halves of the set.
    """

    num_images: int
    steps: int
    seconds: float
    low: list[float]
    high: list[float]
    halves: float


class Choice(NamedTuple):
    """Images and steps of the last attempt, why it is the last, and whether the ranges held
    still.
    """

    num_images: int
    steps: int
    why: str
    stable: bool


def activation_ranges(
    network: Network, images: Sequence[np.ndarray], *, batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of each image in every BN layer's input and every head's logits.

    Args:
      network: the model.
      images: of every input float32 [images, ...] in model units and the model's layout.
      batch_size: images at once.
    Returns: low, high: float32 [images, tensors].
    """
    arrays = [
        np.moveaxis(a, 1, -1) if first else a
        for a, first in zip(images, network.channels_first, strict=True)
    ]

    @tf.function(autograph=False, reduce_retracing=True)
    def ends(*batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        tapped = network.forward(list(batch))
        flat = [
            tf.reshape(tf.cast(x, tf.float32), [tf.shape(batch[0])[0], -1])
            for x in (*(x for _, x in tapped.calls), *(head.logits for head in tapped.heads))
        ]
        return tf.stack([tf.reduce_min(x, 1) for x in flat], 1), tf.stack(
            [tf.reduce_max(x, 1) for x in flat], 1
        )

    low, high = [], []
    for i in range(0, len(arrays[0]), batch_size):
        lowest, highest = ends(*(tf.constant(a[i : i + batch_size]) for a in arrays))
        low.append(lowest.numpy())
        high.append(highest.numpy())
    return np.concatenate(low), np.concatenate(high)


def attempt(
    network: Network, images: Sequence[np.ndarray], *, steps: int, seconds: float
) -> Attempt:
    """What a finished run shows: the ranges of its images, and how they differ between two halves
    of them.
    """
    low, high = activation_ranges(network, images)
    apart = halves_change(low, high) if len(low) > 1 else np.ones(1)
    return Attempt(
        len(low),
        steps,
        round(seconds, 2),
        low.min(axis=0).tolist(),
        high.max(axis=0).tolist(),
        float(np.median(apart)),
    )


def choose(
    measure: Callable[[int, int], Attempt],
    *,
    num_images: int | None,
    steps: int | None,
    budget_seconds: float,
) -> Choice:
    """Grows steps, then images, until the ranges hold still.

    Steps double while the ranges differ from those of half the steps; then images double while the
    ranges of one half of the set differ from those of the other. "Differ" means by more than STABLE
    in the median tensor.

    Args:
      measure: runs (images, steps) and says what it gave; called with the same arguments again it
        may answer from memory.
      num_images: size of the set; None to choose it.
      steps: of generation; None to choose them.
      budget_seconds: no attempt begins that is expected to end later than this, except the first;
        0: no limit.
    """
    spent: list[Attempt] = []

    def over(now: Attempt, *, growth: float) -> str:
        expected = sum(a.seconds for a in spent) + now.seconds * growth
        return (
            f"the next attempt would end after {expected / 60:.1f} minutes"
            if 0 < budget_seconds < expected
            else ""
        )

    now = measure(num_images or FIRST_IMAGES, steps or FIRST_STEPS)
    spent.append(now)
    notes, stable = [], True
    change = 1.0
    while steps is None and change > STABLE:
        if (why := over(now, growth=2.0)) or now.steps * 2 > MOST_STEPS:
            why = why or f"more than {MOST_STEPS} are not tried"
            return Choice(now.num_images, now.steps, f"stopped at {now.steps} steps: {why}", False)
        before, now = now, measure(now.num_images, now.steps * 2)
        spent.append(now)
        change = float(
            np.median(
                range_change(np.array([before.low, now.low]), np.array([before.high, now.high]))
            )
        )
        notes = [
            f"from {before.steps} to {now.steps} steps the ranges of {len(now.low)} "
            f"tensors moved by {change:.0%} (median)"
        ]
    while num_images is None and now.halves > STABLE:
        if (why := over(now, growth=2.0)) or now.num_images * 2 > MOST_IMAGES:
            notes.append(
                f"stopped at {now.num_images} images, whose halves differ by {now.halves:.0%}: "
                + (why or f"more than {MOST_IMAGES} are not tried")
            )
            stable = False
            break
        now = measure(now.num_images * 2, now.steps)
        spent.append(now)
    if num_images is None and stable:
        notes.append(
            f"the ranges of two halves of {now.num_images} images differ by "
            f"{now.halves:.0%} (median)"
        )
    return Choice(
        now.num_images, now.steps, "; ".join(notes) + f" (stable: at most {STABLE:.0%})", stable
    )


def trial_folder(folder: pathlib.Path, images: int, steps: int) -> pathlib.Path:
    """Where an attempt runs, made if it is not there."""
    trial = folder / "attempts" / f"{images}-{steps}"
    trial.mkdir(parents=True, exist_ok=True)
    return trial


def kept(trial: pathlib.Path) -> Attempt | None:
    """The attempt that `keep` wrote, None where there is none or it is damaged: `keep` measures
    again what a finished run has.
    """
    try:
        found = Attempt(**read_json(trial / "attempt.json"))
        range_change(np.array([found.low] * 2, float), np.array([found.high] * 2, float))
    except (OSError, ValueError, TypeError):
        return None
    figures = (found.num_images, found.steps, found.seconds, found.halves)
    return found if all(isinstance(f, int | float) for f in figures) else None


def keep(trial: pathlib.Path, model: Any, *, steps: int, image_size: SizeSetting) -> Attempt:
    """Measures a finished run's images and writes what was found beside them."""
    images, manifest = run_folder.load_images(trial), run_folder.finished_manifest(trial)
    network = Network(model, image_size=parse_image_size(image_size) if image_size else None)
    arrays = (
        [images[name] for name in network.input_names] if isinstance(images, Mapping) else [images]
    )
    found = attempt(
        network,
        [array[: len(array) - manifest.get("real_images", 0)] for array in arrays],
        steps=steps,
        seconds=manifest.get("seconds", 0.0),
    )
    atomic_write(trial / "attempt.json", json.dumps(found._asdict()))
    return found


def adopt(folder: pathlib.Path, choice: Choice, *, command: str) -> None:
    """Makes the chosen attempt the run of `folder`: its files move there, the manifest with the
    reason last; others are removed.
    """
    trial = trial_folder(folder, choice.num_images, choice.steps)
    manifest = run_folder.finished_manifest(trial)
    manifest["auto"] = {
        "why": choice.why,
        "stable": choice.stable,
        "attempts": sorted(path.name for path in (folder / "attempts").iterdir()),
    }
    for path in trial.iterdir():
        kept_here = path.name in ("manifest.json", "attempt.json", "report.html")
        if not kept_here and not path.name.startswith("."):  # a dot: half a file of a killed run
            os.replace(path, folder / path.name)
    report.write_page(
        folder, manifest=manifest, metrics=run_folder.read_metrics(folder), command=command
    )
    run_folder.write_manifest(folder, manifest)
    shutil.rmtree(folder / "attempts")
