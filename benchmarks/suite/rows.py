"""Measures the suite's rows: images (kept for all schemes), an integer file, the truth about
it, and evidence without data.
"""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure.comparison import Task, fingerprint, load_task
from benchmarks.measure.evidence import HELD_OUT_SEED
from benchmarks.measure.scoring import Outputs
from benchmarks.suite.plan import TASKS, Entry, Key, Store

PROBES = {
    f"{kind}, seed {seed}": (kind, seed)
    for kind in ("stretched", "unstretched")
    for seed in (HELD_OUT_SEED, HELD_OUT_SEED + 1)
}


class Bench:
    """One model of the list, loaded, with its held-out images and float file."""

    def __init__(
        self, entry: Entry, store: Store, *, real_limit: int, data_dir: str | None, held_out: int
    ) -> None:
        """Raises ValueError where the evaluation set does not fit the task of the list."""
        from tflite_export import to_float_tflite

        self.entry, self.store = entry, store
        self.task: Task = load_task(
            entry.model,
            real=entry.real,
            evaluation=entry.evaluation,
            preprocess=entry.preprocess,
            input_range=entry.input_range,
            real_limit=real_limit,
            data_dir=data_dir,
            evaluation_limit=entry.num_evaluation or None,
        )
        if f"float_{TASKS[entry.task]}" not in self.task.float_scores:
            raise ValueError(
                f"The list calls {entry.name} a {entry.task} model, but its "
                "evaluation set gives no "
                f"{TASKS[entry.task]}. Correct the task or the set."
            )
        self.run = fingerprint(
            self.task,
            {
                "steps": entry.steps,
                "batch_size": entry.batch_size,
                "input_range": entry.input_range,
                "held_out": held_out,
            },
        )
        self.float_tflite = to_float_tflite(self.task.model, images=self.task.x[:1])
        self.held_out = held_out

    def config(self, num_images: int, seed: int, **changes: Any) -> Any:
        """The entry's GenerationConfig."""
        from dgh_tf import GenerationConfig

        return GenerationConfig(
            num_images=num_images,
            seed=seed,
            steps=self.entry.steps,
            batch_size=self.entry.batch_size,
            **{"input_range": self.entry.input_range, **changes},
        )

    def images(self, source: str, num_images: int, seed: int) -> tuple[np.ndarray, float | None]:
        """Calibration images of one row and the seconds they took; those of an earlier row or run
        where they are kept.
        """
        from benchmarks.data.sources import GENERATED, HINTED, calibration_images

        stated = source == "no_statistics" and self.entry.stated_range
        known = {"input_range": self.entry.stated_range} if stated else {}

        def make() -> tuple[np.ndarray, float | None]:
            return calibration_images(
                source,
                model=self.task.model,
                real=self.task.real,
                bounds=self.task.bounds,
                config=self.config(num_images, seed, **known),
            )

        return (
            self._kept(f"{source}-{num_images}-{seed}", make)
            if source in (*GENERATED, *HINTED)
            else make()
        )

    @functools.cached_property
    def probes(self) -> dict[str, np.ndarray]:
        """Held-out generated images, which no file is calibrated on."""
        from benchmarks.measure.evidence import held_out_images

        def make(kind: str, seed: int) -> tuple[np.ndarray, None]:
            return held_out_images(
                self.task.model, self.config(self.held_out, seed), kind=kind, seed=seed
            ), None

        return {
            name: self._kept(f"held_out-{kind}-{seed}", functools.partial(make, kind, seed))[0]
            for name, (kind, seed) in PROBES.items()
        }

    def _kept(
        self, name: str, make: Callable[[], tuple[np.ndarray, float | None]]
    ) -> tuple[np.ndarray, float | None]:
        from benchmarks.data.sources import kept

        return kept(self.store.folder / "images" / f"{self.entry.name}-{self.run}-{name}.npz", make)


def evidence_path(store: Store, key: Key, probe: str) -> pathlib.Path:
    """Where what one of PROBES shows of a row's file is kept."""
    return store.folder / "evidence" / f"{key.name}-{'-'.join(map(str, PROBES[probe]))}.npz"


def _halves(reference: Outputs, outputs: Outputs) -> list[float]:
    """Agreement on the even and on the odd evaluation images: how well real data itself orders
    files.
    """
    from benchmarks.measure.metrics import agreement

    classes, found = (
        (value := next(iter(side.values()))).reshape(len(value), -1)
        for side in (reference, outputs)
    )
    return [agreement(classes[half::2], found[half::2]) for half in (0, 1)]


def measure(bench: Bench, key: Key) -> dict[str, Any]:
    """One row: calibrates, converts, evaluates on real data, and keeps what held-out images show of
    the file.

    A row that cannot be measured (too few real images, a scheme that the model cannot have) says so
    in `error`.
    """
    from benchmarks.measure.evaluation import (
        distances,
        integer_outputs,
        logits_spread,
        tensor_ranges,
    )
    from benchmarks.measure.evidence import save_evidence
    from benchmarks.measure.gaps import statistics_gaps
    from tflite_export.quality.layer_comparison import gather
    from tflite_export.quantization import quantize

    began, task = time.perf_counter(), bench.task
    row = {
        "model": key.model,
        "source": key.source,
        "num_images": key.num_images,
        "seed": key.seed,
        "scheme": key.scheme,
        "run": bench.run,
        **task.float_scores,
    }
    try:
        images, seconds = bench.images(key.source, key.num_images, key.seed)
        made = quantize(task.model, images, scheme=key.scheme, algorithm="minmax")
        tflite = made.tflite
    except ValueError as error:
        return {**row, "error": str(error).splitlines()[0]}
    for name, probe in bench.probes.items():
        save_evidence(
            evidence_path(bench.store, key, name), gather(bench.float_tflite, tflite, probe)
        )
    gaps = statistics_gaps(task.network, images)
    outputs = integer_outputs(tflite, task.x, names=task.reference)
    scores: dict[str, Any] = dict(task.score(outputs))
    if "agreement" in scores:
        scores["agreement_halves"] = _halves(task.reference, outputs)
    return {
        **row,
        **scores,
        **distances(task.reference, outputs),
        **logits_spread(task.network, images),
        "gap": float(np.mean(list(gaps.values()))) if gaps else None,
        "gaps": gaps,
        "ranges": tensor_ranges(tflite),
        "generation_seconds": None if seconds is None else round(seconds, 2),
        "seconds": round(time.perf_counter() - began, 1),
    }
