"""What each target says of an integer .tflite file: Ethos-U (Vela), Edge TPU (rules), TFLM,
and this machine's CPU.

To add a target: a function of the file that returns an Answer with what `judge` describes, and a
line in TARGETS (docs/guide/targets.md).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dgh_tf.models.tflite.model import TFLiteModel, read_model
from tflite_export.targets import advice, cpu, edgetpu, tflm, vela
from tflite_export.targets.answer import Answer


@dataclasses.dataclass(frozen=True)
class Judged:
    """What targets say of a file: verdicts by target (see `judge`), and the files that their
    compilers made, by what follows F in their names.
    """

    verdicts: dict[str, dict[str, Any]]
    files: dict[str, bytes]


def _edgetpu(model: TFLiteModel, **_: Any) -> Answer:
    return Answer(edgetpu.report(model))


def _tflm(model: TFLiteModel, **_: Any) -> Answer:
    return Answer(tflm.report(model))


def _cpu(model: TFLiteModel, *, float_model: TFLiteModel, **_: Any) -> Answer:
    return Answer(cpu.report(model, float_model=float_model))


def _vela(
    model: TFLiteModel, *, target: str, systems: Mapping[str, vela.System], **_: Any
) -> Answer:
    return vela.compile_for(model, target=target, system=systems.get(target))


TARGETS: dict[str, Callable[..., Answer]] = {
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
        if scheme in ("w4a8", "mixed"):
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
    tflite: bytes | TFLiteModel,
    *,
    targets: Sequence[str],
    float_tflite: bytes | TFLiteModel,
    layers: Sequence[str] = (),
    systems: Mapping[str, vela.System] | None = None,
) -> Judged:
    """Every target's verdict on an integer file.

    Args:
      tflite: the integer file.
      targets: names of TARGETS.
      float_tflite: the same model in float32, which cpu compares with.
      layers: names of the Keras model's layers (advice.layer_names).
      systems: the chips around Ethos-Us by target (vela.find_systems); others are typical ones.
    Returns:
      By target {"how" (what was done, by which tool or source), "fully_mapped" (no operator is left
      to a slower processor, or lacks a kernel), "operators_mapped", "operators_cpu" (numbers),
      "fallback" (rows {"operator", "tensor", "why", "layer", "do"} of the latter), "notes"
      (sentences), "figures" (the target's own, units in their names), "summary" (one line)}; and
      the files that the targets' compilers made.
    Raises:
      ValueError: a target's tool is missing, failed or crashed.
    """
    model, float_model = read_model(tflite), read_model(float_tflite)
    verdicts: dict[str, dict[str, Any]] = {}
    files: dict[str, bytes] = {}
    for name in targets:
        answer = TARGETS[name](model, float_model=float_model, systems=systems or {})
        rows = advice.advised(answer.verdict, layers=layers, target=name)
        verdict = {**answer.verdict, "fallback": rows}
        verdicts[name] = {**verdict, "summary": summary(name, verdict)}
        files |= answer.files
    return Judged(verdicts, files)


def _speed(figures: Mapping[str, Any]) -> str:
    if figures.get("inferences_per_second") is not None:
        return f"{figures['cycles']:,} cycles, {figures['inferences_per_second']:g}/s"
    if figures.get("latency_ms") is not None:
        return f"{figures['latency_ms']:g} ms (float {figures['float_latency_ms']:g})"
    return "-"


def _memory(figures: Mapping[str, Any]) -> str:
    if figures.get("sram_kib") is not None:
        return f"{figures['sram_kib']:g} KiB SRAM"
    if figures.get("arena_bytes") is not None:
        return f"{figures['arena_bytes'] / 1024:.0f} KiB arena"
    if figures.get("arena_estimate_bytes") is not None:
        return f"about {figures['arena_estimate_bytes'] / 1024:.0f} KiB arena"
    return "-"


def table(verdicts: Mapping[str, Mapping[str, Any]], *, files: Mapping[str, str]) -> list[str]:
    """Lines of a table: target, operators mapped, speed, memory, file to flash.

    Args:
      verdicts: of `judge`, by target.
      files: name of the file to flash, by target.
    """
    rows = [("target", "mapped", "speed", "memory", "file")]
    for name, verdict in verdicts.items():
        count = verdict["operators_mapped"] + verdict["operators_cpu"]
        figures = verdict["figures"]
        mapped = f"{verdict['operators_mapped']} of {count}"
        rows.append((name, mapped, _speed(figures), _memory(figures), files[name]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def remarks(name: str, verdict: Mapping[str, Any]) -> list[str]:
    """Lines below the table: the first operator that a target does not take and what to do, and the
    target's notes.
    """
    found = [
        f"{name}: {len(verdict['fallback'])} not mapped, first {row['operator']} ({row['why']}). "
        f"{row['do']}"
        for row in verdict["fallback"][:1]
    ]
    return found + [f"{name}: {note}" for note in verdict["notes"]]


def summary(name: str, verdict: Mapping[str, Any]) -> str:
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
