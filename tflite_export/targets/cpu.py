"""How long a .tflite file takes on this machine's CPU, beside the same model in float32."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from dgh_tf.common.machine import processor
from dgh_tf.common.quiet import held_stderr
from dgh_tf.models.tflite.model import TFLiteModel
from tflite_export.tflite.interpreter import LiteRTInterpreter

_SECONDS, _RUNS = 2.0, 101  # at most, for both files together


def _invoke_seconds(*files: TFLiteModel) -> list[float]:
    """Median seconds of one inference of each file: XNNPACK, one thread, inputs of zeros, the files
    in turn.
    """
    with held_stderr():  # LiteRT tells of its XNNPACK delegate
        interpreters = [LiteRTInterpreter(model) for model in files]
    for interpreter in interpreters:
        interpreter.run(
            {n: np.zeros(d["shape"], d["dtype"]) for n, d in interpreter.inputs.items()}
        )
    times: list[list[float]] = [[] for _ in files]
    end = time.perf_counter() + _SECONDS
    while not times[0] or (len(times[0]) < _RUNS and time.perf_counter() < end):
        for interpreter, seen in zip(interpreters, times, strict=True):
            start = time.perf_counter()
            interpreter.run({})
            seen.append(time.perf_counter() - start)
    return [float(np.median(seen)) for seen in times]


def report(model: TFLiteModel, *, float_model: TFLiteModel) -> dict[str, Any]:
    """This machine's verdict on an integer file: see report.judge."""
    ours, reference = _invoke_seconds(model, float_model)
    count = len(model.operators)
    return {
        "how": f"measured in LiteRT with XNNPACK, 1 thread, median, on {processor()}",
        "fully_mapped": True,
        "operators_mapped": count,
        "operators_cpu": 0,
        "fallback": [],
        "notes": [],
        "figures": {
            "latency_ms": float(f"{1e3 * ours:.4g}"),
            "float_latency_ms": float(f"{1e3 * reference:.4g}"),
            "speedup": round(reference / ours, 3),
            "model_bytes": len(model.data),
            "float_model_bytes": len(float_model.data),
        },
    }
