"""state: the comparison of calibration sources on one model: load, measure row by row, report."""
from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import datasets, table
from benchmarks.results import Results
from benchmarks.scoring import FLOAT, Outputs, Truth, scorer
from benchmarks.sources import calibration_images
from dgh_tf.files import atomic_write, sha256_array

COLUMNS = {"top1": ("int8 top-1", 3), "map": ("int8 mAP", 3), "agreement": ("agreement", 3), "sqnr_db": ("SQNR, dB", 2), "mse": ("MSE", 7),
           "range_coverage": ("range coverage", 3), "range_ratio": ("range ratio", 2),
           "logits_spread": ("logits spread", 1), "generation_seconds": ("seconds", 1)}


class Task(NamedTuple):
    """One model with its data, loaded: all that a row needs."""

    model: Any
    network: Any
    bounds: tuple[np.ndarray, np.ndarray]
    real: np.ndarray
    x: np.ndarray
    truth: Truth
    reference: Outputs
    score: Callable[[Outputs], dict[str, float]]
    float_scores: dict[str, float]


def load_task(model: str, *, real: str, evaluation: str, preprocess: str = "none", input_range: str = "",
              real_limit: int | None = None, evaluation_limit: int | None = None, data_dir: str | None = None) -> Task:
    """Loads a model and its sets and runs the float model.

    Args: as the flags of benchmarks.calibration; the limits are numbers of images, None for all.
    Raises: ValueError, FileNotFoundError for models and sets that cannot be used.
    """
    from benchmarks.evaluation import float_outputs
    from dgh_tf import find_input_range, load_model
    from dgh_tf.network import Network

    loaded = load_model(model)
    if len(loaded.inputs) != 1:
        raise ValueError(f"Model '{loaded.name}' has {len(loaded.inputs)} inputs; this comparison takes models with "
                         "one.")
    shared = {"input_shape": tuple(loaded.inputs[0].shape[1:]), "preprocess": preprocess, "data_dir": data_dir,
              "detector": model == "demo_detector"}
    real_x, _ = datasets.load(real, role="real", limit=real_limit, **shared)
    x, truth = datasets.load(evaluation, role="evaluation", limit=evaluation_limit, **shared)
    network = Network(loaded)
    found = find_input_range(network, text=input_range)[0]
    print(f"input range: {found.low} .. {found.high} ({found.source})", flush=True)
    reference = float_outputs(loaded, x)
    score, how = scorer(loaded, x, truth, reference=reference)
    print(how, flush=True)
    float_scores = {f"float_{name}": value for name, value in score(reference).items() if name in FLOAT}
    bounds = tuple(np.reshape(np.float32(bound), (-1, 1, 1) if network.channels_first[0] else -1) for bound in (found.low, found.high))
    return Task(loaded, network, bounds, real_x, x, truth, reference, score, float_scores)


def measure(task: Task, source: str, *, config: Any) -> tuple[dict[str, Any], dict]:
    """Calibrates on images of `source`, converts to int8, evaluates. Returns the row and the file's tensor ranges."""
    from benchmarks.evaluation import evaluate, logits_spread, tensor_ranges
    from tflite_export import to_tflite

    images, seconds = calibration_images(source, model=task.model, real=task.real, config=config, bounds=task.bounds)
    tflite = to_tflite(task.model, images)
    row = {"source": source, "seed": config.seed, "num_images": len(images), "steps": config.steps if seconds else None,
           **evaluate(tflite, task.x, reference=task.reference, score=task.score), **task.float_scores,
           **logits_spread(task.network, images),
           "generation_seconds": None if seconds is None else round(seconds, 2)}
    return row, tensor_ranges(tflite)


def fingerprint(task: Task, settings: dict[str, Any]) -> str:
    """12 hex digits of the settings, the model's weights and the data: what rows must share to stand in one table."""
    truth = [*task.truth.values()] if isinstance(task.truth, dict) else [] if task.truth is None else [task.truth]
    arrays = [task.real, task.x, *truth, *task.model.get_weights()]
    text = json.dumps([settings, task.model.to_json(), [sha256_array(array) for array in arrays]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def measure_missing(task: Task, results: Results, *, configs: list[Any], sources: list[str]) -> None:
    """Adds every row that is not there yet, with a line each and an estimate of the time left."""
    wanted = [(config, source) for config in configs for source in sources]
    missing = [(config, source) for config, source in wanted if not results.done(source, config.seed)]
    if len(missing) < len(wanted):
        print(f"{len(wanted) - len(missing)} of {len(wanted)} rows are done already", flush=True)
    times: dict[str, list[float]] = {}
    for index, (config, source) in enumerate(missing):
        start = time.perf_counter()
        row, ranges = measure(task, source, config=config)
        results.add(row, ranges)
        times.setdefault(source, []).append(time.perf_counter() - start)
        overall = np.mean(sum(times.values(), []))
        left = sum(np.mean(times.get(other, overall)) for _, other in missing[index + 1:])
        shown = {"top1": "top-1 {:.3f}", "map": "mAP {:.3f}", "agreement": "agreement {:.3f}", "sqnr_db": "SQNR {:.2f} dB"}
        figures = ", ".join(text.format(np.inf if row[name] is None else row[name]) for name, text in shown.items() if name in row)
        print(f"[{index + 1}/{len(missing)}] {source} seed {config.seed}: {figures}; {times[source][-1]:.0f} s, about {left:.0f} s left",
              flush=True)


def environment() -> str:
    """One line: machine and versions."""
    info = pathlib.Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] \
        if info.exists() else []
    packages = ("tensorflow", "keras", "ai-edge-litert", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    machine = f"{names[0] if names else platform.machine()}, {os.cpu_count()} logical CPUs"
    return f"{machine}; Python {platform.python_version()}, {versions}"


def write_report(results: Results, *, command: str) -> str:
    """Writes results.md and the plots; returns the table."""
    from benchmarks import plots

    rows, folder = results.rows, results.folder
    first = rows[0]
    heads = {name: (f"SQNR {name.removeprefix('sqnr_db/')}, dB", 2) for name in first if name.startswith("sqnr_db/")}
    text = table.markdown(rows, by="source", columns=COLUMNS | heads)
    float_scores = {name: first[f"float_{name}"] for name in FLOAT if f"float_{name}" in first}
    known = "".join(f"; float {COLUMNS[name][0].removeprefix('int8 ')} {value:.3f}" for name, value in float_scores.items())
    agreement = "Agreement is with the float model's choices; " if "agreement" in first else ""
    atomic_write(folder / "results.md", f"# Calibration sources\n\n{text}\n\nMean ± standard deviation over seeds; "
                 f"{first['num_images']} calibration images{known}; full int8. {agreement}MSE and SQNR are of the model's outputs as "
                 f"they are{', over all heads unless one is named' if heads else ''}.\n\n```\n{command}\n```\n\n{environment()}\n")
    panels = {"top1": "top-1, int8", "map": "COCO mAP, int8", "agreement": "agreement with float", "sqnr_db": "SQNR of outputs, dB"}
    panels |= {name: heading for name, (heading, _) in heads.items()}
    plots.bars(rows, folder / "scores.png", reference=float_scores,
               columns={name: label for name, label in panels.items() if name in first})
    real = results.ranges("real", 0)
    if real:
        names = dict.fromkeys(row["source"] for row in rows if row["source"] != "real")
        others = {name: results.ranges(name, 0) for name in names}
        plots.ranges_scatter(real, others, folder / "ranges.png")
    return text
