"""The rows of the estimate's validation: integer files, what held-out generated images show of
each, and its true agreement on real images.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from benchmarks.measure.evidence import load_evidence, save_evidence
from benchmarks.suite.plan import Entry
from dgh_tf.common.console import say
from dgh_tf.common.files import atomic_write
from tflite_export.quality.accuracy_estimate import logits_of_classes
from tflite_export.quality.agreement import PLAIN, REAL, STRETCHED, Features, features_of

KINDS = (STRETCHED, PLAIN, REAL)
_HELD_OUT = 32  # images of each kind that judge, as in tflite_export.convert
_CALIBRATE = 32


@dataclasses.dataclass(frozen=True)
class File:
    """One integer file to be made: calibration images by source, scheme and algorithm."""

    source: str
    scheme: str
    algorithm: str

    @property
    def name(self) -> str:
        """For names of files."""
        return f"{self.source}-{self.scheme}-{self.algorithm}"


# good files, and bad ones of every kind of fault
FILES = (
    File("synthetic", "int8", "minmax"),
    File("synthetic", "int8", "bias_correction"),
    File("synthetic", "w4a8", "minmax"),
    File("synthetic", "w4a8", "equalization"),
    File("synthetic", "w4a8", "reconstruction"),
    File("synthetic", "mixed", "bias_correction"),
    File("real", "int8", "minmax"),
    File("real", "w4a8", "bias_correction"),
    File("noise", "int8", "minmax"),
    File("noise", "w4a8", "minmax"),
)
_OPTIONS: dict[str, dict[str, Any]] = {"reconstruction": {"steps": 60}}


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured file.

    Attributes:
      model: its name in the list. statistics: whether the model has running statistics.
      agreement: true share of real images that keep the float model's class, 0..1. images: their
        number. features: by kind, what held-out images show of the file. seed: of the images.
    """

    model: str
    statistics: bool
    file: File
    agreement: float
    images: int
    features: Mapping[str, Features]
    seed: int = 0

    @property
    def name(self) -> str:
        """The row in words."""
        file = f"{self.file.source}, {self.file.scheme}, {self.file.algorithm}"
        return f"{self.model}, {file}, seed {self.seed}"


def _images(
    entry: Entry, task: Any, folder: pathlib.Path, *, seed: int
) -> tuple[Any, dict[str, Any]]:
    """(images that calibrate, those that judge by kind), made once as tflite_export.convert makes
    them. The real ones calibrated the files of real images, as where scheme mixed reads them.
    """
    from benchmarks.data.sources import kept
    from benchmarks.measure.evidence import HELD_OUT_SEED, held_out_images
    from dgh_tf import GenerationConfig, generate_images
    from tflite_export.calibration.hold_out import hold_out

    calibrate, judge = (entry.num_images or (_CALIBRATE,))[0], entry.held_out or _HELD_OUT

    def config(count: int) -> GenerationConfig:
        return GenerationConfig(
            num_images=count,
            steps=entry.steps,
            input_range=entry.input_range,
            batch_size=32,
            seed=seed,
        )

    def stretched() -> tuple[Any, None]:
        return generate_images(task.model, config(calibrate + judge), verbose=0), None

    def unstretched() -> tuple[Any, None]:
        settings = config(judge)
        return held_out_images(task.model, settings, kind=PLAIN, seed=HELD_OUT_SEED + seed), None

    name = f"{entry.name}{_seed_of(seed)}"
    whole, _ = kept(folder / "images" / f"{name}-{STRETCHED}.npz", stretched)
    plain, _ = kept(folder / "images" / f"{name}-{PLAIN}.npz", unstretched)
    rest, held = hold_out(whole, judge)
    return rest, {STRETCHED: held, PLAIN: plain, REAL: task.real[:judge]}


def _seed_of(seed: int) -> str:
    """For names of files, which tell the first seed from others alone."""
    return f"-seed{seed}" if seed else ""


def _row_path(folder: pathlib.Path, entry: Entry, file: File, *, seed: int) -> pathlib.Path:
    return folder / "rows" / f"{entry.name}-{file.name}{_seed_of(seed)}.json"


def collect(entry: Entry, folder: pathlib.Path, *, seed: int = 0) -> None:
    """Measures the rows of one model that the folder lacks. A file that the model cannot have is
    said and left out.

    Args:
      entry: the model.
      folder: of the rows.
      seed: of the images that calibrate and of those that judge.
    """
    from benchmarks.data.sources import calibration_images
    from benchmarks.measure.comparison import load_task
    from dgh_tf import GenerationConfig
    from dgh_tf.models.batchnorm import has_statistics
    from tflite_export import to_float_tflite
    from tflite_export.quality.layer_comparison import gather
    from tflite_export.quantization import quantize

    missing = [
        file
        for file in FILES
        if (not entry.schemes or file.scheme in entry.schemes)
        and not _row_path(folder, entry, file, seed=seed).exists()
    ]
    if not missing:
        return
    say(f"loading {entry.name}")
    task = load_task(
        entry.model,
        real=entry.real,
        evaluation=entry.evaluation,
        preprocess=entry.preprocess,
        input_range=entry.input_range,
        real_limit=4 * _CALIBRATE,
        evaluation_limit=entry.num_evaluation or None,
    )
    float_tflite = to_float_tflite(task.model, images=task.x[:1])
    synthetic, probes = _images(entry, task, folder, seed=seed)
    config = GenerationConfig(num_images=len(synthetic), seed=seed)
    for file in missing:
        began, path = time.monotonic(), _row_path(folder, entry, file, seed=seed)
        images = synthetic
        if file.source != "synthetic":
            images, _ = calibration_images(
                file.source, model=task.model, real=task.real, config=config, bounds=task.bounds
            )
        try:
            made = quantize(
                task.model,
                images,
                scheme=file.scheme,
                algorithm=file.algorithm,
                float_tflite=float_tflite,
                generated=file.source != "real",
                **_OPTIONS.get(file.algorithm, {}),
            )
        except ValueError as error:
            say(f"{path.stem}: left out: {str(error).splitlines()[0]}")
            continue
        for kind, probe in probes.items():
            save_evidence(
                path.with_name(f"{path.stem}-{kind}.npz"), gather(float_tflite, made.tflite, probe)
            )
        row = {
            "model": entry.name,
            "statistics": has_statistics(task.model),
            "file": dataclasses.asdict(file),
            "agreement": _agreement(task, made.tflite),
            "images": len(task.x),
            "seed": seed,
        }
        atomic_write(path, json.dumps(row, indent=1) + "\n")
        say(f"{path.stem}: {row['agreement']:.3f}, {time.monotonic() - began:.0f} s")


def _agreement(task: Any, tflite: bytes) -> float:
    """Share of the evaluation images that get the float model's class."""
    from benchmarks.measure.evaluation import integer_outputs

    outputs = integer_outputs(tflite, task.x, names=task.reference)
    chosen = [
        np.reshape(next(iter(side.values())), (len(task.x), -1)).argmax(axis=1)
        for side in (task.reference, outputs)
    ]
    return float(np.mean(chosen[0] == chosen[1]))


def read_rows(folder: pathlib.Path) -> Iterator[Row]:
    """All rows of a folder."""
    for path in sorted((folder / "rows").glob("*.json")):
        row = json.loads(path.read_text())
        row["file"] = File(**row["file"])
        row["features"] = {
            kind: _features(path.with_name(f"{path.stem}-{kind}.npz")) for kind in KINDS
        }
        yield Row(**row)


def _features(path: pathlib.Path) -> Features:
    sides = logits_of_classes(load_evidence(path))
    if sides is None:
        raise ValueError(f"{path} is of a model without classes. Leave it out of the list.")
    return features_of(*sides)
