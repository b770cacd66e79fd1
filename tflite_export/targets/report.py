"""state: what each target says of an integer .tflite file: Ethos-U (Vela), Edge TPU (rules), TFLM,
and this machine's CPU.

To add a target: a function of the file's bytes that returns what `judge` describes, and a line in
TARGETS (docs/guide/targets.md).
"""

from __future__ import annotations

import functools
import pathlib
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dgh_tf.common.quiet import held_stderr
from tflite_export.targets import vela
from tflite_export.targets.static import EDGETPU_SOURCE, edgetpu_fallback, read_file
from tflite_export.targets.tflm import report as tflm_report

_LATENCY_SECONDS, _LATENCY_RUNS = 2.0, 101  # at most, for both files together


def _edgetpu(tflite: bytes, **_: Any) -> dict[str, Any]:
    file = read_file(tflite)
    fallback = [
        {"operator": o.kind, "tensor": o.outputs[0].name if o.outputs else "", "why": why}
        for o, why in edgetpu_fallback(file)
    ]
    resized = any(operator.kind.startswith("RESIZE_") for operator in file.operators)
    notes = ["RESIZE may stay on the CPU for some sizes, to keep its precision"] if resized else []
    return {
        "how": f"static check against the documented rules, not compiled: {EDGETPU_SOURCE}",
        "fully_mapped": not fallback,
        "operators_mapped": len(file.operators) - len(fallback),
        "operators_cpu": len(fallback),
        "fallback": fallback,
        "notes": notes,
        "figures": {"model_bytes": len(tflite)},
    }


def _tflm(tflite: bytes, **_: Any) -> dict[str, Any]:
    return tflm_report(tflite)


def _invoke_seconds(*files: bytes) -> list[float]:
    """Median seconds of one inference of each file: XNNPACK, one thread, inputs of zeros, the files
    in turn.
    """
    from ai_edge_litert.interpreter import Interpreter

    with held_stderr():  # LiteRT tells of its XNNPACK delegate
        interpreters = [Interpreter(model_content=data, num_threads=1) for data in files]
        for interpreter in interpreters:
            interpreter.allocate_tensors()
    for interpreter in interpreters:
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
        interpreter.invoke()
    times: list[list[float]] = [[] for _ in files]
    end = time.perf_counter() + _LATENCY_SECONDS
    while not times[0] or (len(times[0]) < _LATENCY_RUNS and time.perf_counter() < end):
        for interpreter, seen in zip(interpreters, times, strict=True):
            start = time.perf_counter()
            interpreter.invoke()
            seen.append(time.perf_counter() - start)
    return [float(np.median(seen)) for seen in times]


def _machine() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _cpu(tflite: bytes, *, float_tflite: bytes) -> dict[str, Any]:
    ours, reference = _invoke_seconds(tflite, float_tflite)
    count = len(read_file(tflite).operators)
    return {
        "how": f"measured in LiteRT with XNNPACK, 1 thread, median, on {_machine()}",
        "fully_mapped": True,
        "operators_mapped": count,
        "operators_cpu": 0,
        "fallback": [],
        "notes": [],
        "figures": {
            "latency_ms": float(f"{1e3 * ours:.4g}"),
            "float_latency_ms": float(f"{1e3 * reference:.4g}"),
            "speedup": round(reference / ours, 3),
            "model_bytes": len(tflite),
            "float_model_bytes": len(float_tflite),
        },
    }


def _vela(tflite: bytes, *, target: str, **_: Any) -> dict[str, Any]:
    return vela.compile_for(tflite, target=target)


TARGETS: dict[str, Callable[..., dict[str, Any]]] = {
    **{name: functools.partial(_vela, target=name) for name in vela.CONFIGURATIONS},
    "edgetpu": _edgetpu,
    "tflm": _tflm,
    "cpu": _cpu,
}


def check_targets(names: Sequence[str], *, scheme: str = "int8") -> list[str]:
    """The targets asked for, in order and each once; "none" stands for no target. Cheap: call it
    before long work.

    Raises:
      ValueError: an unknown target, none beside others, a target whose tool is not installed, or
        one that cannot take the scheme.
    """
    chosen = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if chosen == ["none"] or not chosen:
        return []
    unknown = [name for name in chosen if name not in TARGETS]
    if unknown:
        raise ValueError(
            f"--target={','.join(names)} names {', '.join(unknown)}; expected none, "
            f"or some of {', '.join(TARGETS)}."
        )
    if any(name in vela.CONFIGURATIONS for name in chosen):
        vela.check_installed()
        if scheme == "w4a8":
            raise ValueError(
                "The Ethos-U compiler Vela crashes on packed INT4 weights. Use "
                "--scheme=int8, or leave these targets out."
            )
    if "edgetpu" in chosen and scheme != "int8":
        raise ValueError(
            f"The Edge TPU takes 8 bits, not --scheme={scheme}. Use --scheme=int8, or "
            "leave edgetpu out."
        )
    return chosen


def judge(
    tflite: bytes, *, targets: Sequence[str], float_tflite: bytes
) -> dict[str, dict[str, Any]]:
    """Every target's verdict on an integer file.

    Args:
      tflite: bytes of the integer file. targets: names of TARGETS. float_tflite: the same model in
        float32, which cpu compares with.
    Returns:
      By target {"how" (what was done, by which tool or source), "fully_mapped" (no operator is left
      to a slower processor, or lacks
      a kernel), "operators_mapped", "operators_cpu" (numbers), "fallback" (rows {"operator",
      "tensor", "why"} of the latter), "notes"
      (sentences), "figures" (the target's own, units in their names), "summary" (one line)}.
    Raises:
      ValueError: a target's tool is missing, failed or crashed.
    """
    found = {name: TARGETS[name](tflite, float_tflite=float_tflite) for name in targets}
    return {name: {**verdict, "summary": summary(name, verdict)} for name, verdict in found.items()}


def summary(name: str, verdict: dict[str, Any]) -> str:
    """One line: how many operators the target takes, its main figures, and the first that it does
    not take.
    """
    figures, count = verdict["figures"], verdict["operators_mapped"] + verdict["operators_cpu"]
    shown = {
        "cycles": "{:,} cycles",
        "inferences_per_second": "{:g} inferences/s",
        "sram_kib": "{:g} KiB SRAM",
        "arena_bytes": "arena {:,} bytes",
        "arena_estimate_bytes": "arena estimate {:,} bytes",
        "latency_ms": "{:g} ms",
        "float_latency_ms": "float {:g} ms",
    }
    parts = [
        text.format(figures[key]) for key, text in shown.items() if figures.get(key) is not None
    ]
    parts += [
        f"{len(verdict['fallback'])} not mapped, first {row['operator']} ({row['why']})"
        for row in verdict["fallback"][:1]
    ]
    parts += [note.rstrip(".") for note in verdict["notes"]] + (
        ["static check"] if verdict["how"].startswith("static") else []
    )
    return (
        f"{name}: {verdict['operators_mapped']} of {count} operators "
        f"mapped{''.join(f'; {part}' for part in parts)}"
    )


def require_full_mapping(verdicts: dict[str, dict[str, Any]]) -> None:
    """Raises ValueError that names, on one line, every target with an operator it does not take,
    and the first such operators.
    """
    failed = {name: verdict for name, verdict in verdicts.items() if not verdict["fully_mapped"]}
    if failed:
        parts = []
        for name, verdict in failed.items():
            rows = [
                f"{row['operator']} {row['tensor'].split(';')[-1][-40:]} ({row['why']})"
                for row in verdict["fallback"][:3]
            ]
            rows += (
                [f"and {len(verdict['fallback']) - 3} more"] if len(verdict["fallback"]) > 3 else []
            )
            parts.append(
                f"{name} leaves out {verdict['operators_cpu']} operators: "
                f"{', '.join(rows) or '; '.join(verdict['notes'])}"
            )
        raise ValueError(
            f"--require_full_mapping: {'; '.join(parts)}. No file was written. "
            "Replace these layers, or drop the flag."
        )
