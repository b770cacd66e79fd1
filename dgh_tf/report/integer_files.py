"""What the page says of the integer files beside it, read from their .json files.

Three kinds of .json are known: the proof that convert leaves, an estimate by itself (benchmarks.
verdict), and a layer comparison (benchmarks.layers). All others are passed over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from dgh_tf.common.files import read_json, require_checksum
from dgh_tf.report import text
from dgh_tf.report.charts import Chart, sizes

_TONES = {"fine": "good", "doubtful": "warn", "do not ship": "bad"}
_WORDS = {"fine": "fine", "doubtful": "doubtful", "do not ship": "not fit to ship"}
_LOW_DB, _FAIR_DB = 10.0, 20.0  # SQNR below which a layer is marked bad, and doubtful
_CLIPPED = 0.01  # share of values cut off above which a layer is marked
_SHOWN = 0.0005  # of the same: less would read 0.0 %
_TARGETS = {"edgetpu": "Edge TPU", "tflm": "TensorFlow Lite Micro", "cpu": "this CPU"}
_WORST = 8  # layers on the page at once; the others unfold


@dataclasses.dataclass(frozen=True)
class Bar:
    """width: percent of the longest bar of its group."""

    label: str
    value: str
    width: float
    tone: str


@dataclasses.dataclass(frozen=True)
class Bars:
    title: str
    bars: tuple[Bar, ...]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Fact:
    label: str
    value: str
    is_code: bool = False


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """An operator that a target does not take."""

    operator: str
    layer: str
    why: str
    do: str


@dataclasses.dataclass(frozen=True)
class Target:
    name: str
    tone: str
    taken: str
    headline: str
    how: str
    notes: tuple[str, ...]
    figures: tuple[Fact, ...]
    left_out: tuple[LeftOut, ...]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One activation. Positions are percent of the widest of both ranges: the bar is what the
    integer tensor can hold, the dumbbell what the float tensor reached.
    """

    name: str
    operator: str
    sqnr: str
    clipped: str
    tone: str
    holds: str
    reached: str
    bar_left: float
    bar_width: float
    seen_left: float
    seen_width: float


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a file should keep of the float model: of a card, and as part of a sentence."""

    label: str
    value: str
    note: str
    words: str


@dataclasses.dataclass(frozen=True)
class Estimate:
    """kept: None where it could not be judged."""

    tone: str
    word: str
    sentence: str
    kept: Kept | None
    reasons: tuple[str, ...]
    worst: tuple[Layer, ...]
    others: tuple[Layer, ...]


@dataclasses.dataclass(frozen=True)
class Compared:
    """Layers under several calibrations side by side, worst first."""

    names: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]


@dataclasses.dataclass(frozen=True)
class IntegerFile:
    """One .json of the folder. is_proof: it stands beside a .tflite file of the same name.
    calibrated: images that calibrated the file; 0 where it does not say. above: whether it lies
    beside the folder, not in it.
    """

    name: str
    is_proof: bool
    size: str = ""
    headline: str = ""
    facts: tuple[Fact, ...] = ()
    bars: tuple[Bars, ...] = ()
    targets: tuple[Target, ...] = ()
    estimate: Estimate | None = None
    compared: Compared | None = None
    curve: Chart | None = None
    command: str = ""
    calibrated: int = 0
    above: bool = False

    @property
    def tone(self) -> str:
        return self.estimate.tone if self.estimate else "good"

    @property
    def word(self) -> str:
        """Its level as people say it."""
        return self.estimate.word if self.estimate else "fully integer"


@dataclasses.dataclass(frozen=True)
class Found:
    """files: what could be read; damaged: one sentence for every .json that could not."""

    files: tuple[IntegerFile, ...]
    damaged: tuple[str, ...]


def found(folder: pathlib.Path, *, model: str) -> Found:
    """The integer files of a folder, and those beside it that its images were made for, by name.

    model: as the generate command names it.
    """
    files, damaged = _made_beside(folder, model=model), []
    for path in sorted(folder.glob("*.json")):
        if path.name in ("manifest.json", "attempt.json"):
            continue
        try:
            data = read_json(path)
            if isinstance(data, dict) and _is_known(data):
                require_checksum(data, path.name)
                files.append(_read(path, data, model=model))
            elif path.with_suffix(".tflite").is_file():
                raise ValueError(f"it is no proof of {path.with_suffix('.tflite').name}")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            why = str(error).splitlines()[0] if str(error) else ""
            damaged.append(
                f"{path.name} is damaged, or no file of this project "
                f"({type(error).__name__}: {why[:200]})"
            )
    return Found(tuple(files), tuple(damaged))


def _made_beside(folder: pathlib.Path, *, model: str) -> list[IntegerFile]:
    """What convert wrote next to the folder, which it made for its images. Others may keep anything
    there, so what cannot be read is passed over.
    """
    files = []
    for path in sorted(folder.resolve().parent.glob("*.json")):
        if path.with_suffix(".tflite").is_file():
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
                data = read_json(path)
                if data.get("images_folder") == folder.resolve().name:
                    require_checksum(data, path.name)
                    made = _read(path, data, model=model)
                    files.append(dataclasses.replace(made, above=True))
    return files


def _is_known(data: dict[str, Any]) -> bool:
    return bool(data.get("fully_integer") or "layers_compared" in data) or (
        {"level", "sentence"} <= set(data)
    )


def _read(path: pathlib.Path, data: dict[str, Any], *, model: str) -> IntegerFile:
    told = data if "sentence" in data else data.get("verdict")
    estimate = _estimate(told) if told else None
    compared = _compared(data["layers_compared"]) if "layers_compared" in data else None
    if not data.get("fully_integer"):
        return IntegerFile(path.name, False, estimate=estimate, compared=compared)
    tflite = path.with_suffix(".tflite")
    targets = tuple(_target(name, each) for name, each in (data.get("targets") or {}).items())
    return IntegerFile(
        name=tflite.name,
        is_proof=True,
        size=text.size(data["bytes"]),
        headline=_headline(tflite.name, data, estimate, targets),
        facts=_facts(data),
        bars=tuple(_bars(data)),
        targets=targets,
        estimate=estimate,
        compared=compared,
        curve=sizes(data["mixed"]["curve"], data["mixed"]["point"]) if "mixed" in data else None,
        command=_command(path, data, model=model),
        calibrated=int((data.get("algorithm_notes") or {}).get("images", 0)),
    )


def _headline(
    name: str, data: dict[str, Any], estimate: Estimate | None, targets: tuple[Target, ...]
) -> str:
    """The file in one sentence: level, size, agreement, targets."""
    parts = [f"{name} is {estimate.word if estimate else 'fully integer'}"]
    parts.append(f"{text.size(data['bytes'])} instead of {text.size(_float_bytes(data))} in float")
    if estimate and estimate.kept:
        parts.append(estimate.kept.words)
    sentence = f"{parts[0]}: {', '.join(parts[1:])}."
    if targets:
        whole = [target.name for target in targets if target.tone == "good"]
        partly = [target.name for target in targets if target.tone != "good"]
        told = []
        if whole:
            told.append(f"{_list(whole)} {'take' if len(whole) > 1 else 'takes'} every operator")
        if partly:
            told.append(f"{_list(partly)} {'leave' if len(partly) > 1 else 'leaves'} some out")
        sentence += f" {'; '.join(told)[0].upper()}{'; '.join(told)[1:]}."
    return sentence


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _float_bytes(data: dict[str, Any]) -> float:
    figures = (data.get("targets") or {}).get("cpu", {}).get("figures", {})
    return figures.get("float_model_bytes") or data["float_weight_bytes"]


def _facts(data: dict[str, Any]) -> tuple[Fact, ...]:
    operators = ", ".join(
        f"{count} × {text.operator(kind)}" for kind, count in data["operators"].items()
    )
    ends = sorted({str(end["dtype"]).lower() for end in data["inputs"] + data["outputs"]})
    notes = data.get("algorithm_notes") or {}
    facts = [
        Fact("scheme", str(data["scheme"])),
        Fact("algorithm", str(data.get("algorithm", "not stored"))),
        *([Fact("fallback", str(notes["fallback"]))] if notes.get("fallback") else []),
        Fact("inputs and outputs", ", ".join(ends)),
        Fact("operators, all integer", operators),
        *(
            Fact(f"sha256 of the {name}", str(digest), is_code=True)
            for name, digest in data["sha256"].items()
        ),
        Fact("made with", ", ".join(f"{k} {v}" for k, v in (data.get("versions") or {}).items())),
    ]
    return tuple(facts)


def _group(title: str, values: Mapping[str, float], shown: Any, *, note: str = "") -> Bars:
    longest = max(values.values()) or 1
    tones = ("b", "a")  # float first, then integer
    return Bars(
        title,
        tuple(
            Bar(label, shown(value), 100 * value / longest, tone)
            for (label, value), tone in zip(values.items(), tones, strict=True)
        ),
        note,
    )


def _bars(data: dict[str, Any]) -> list[Bars]:
    """Size and latency, float against integer."""
    figures = (data.get("targets") or {}).get("cpu", {}).get("figures", {})
    whole = "float_model_bytes" in figures
    groups = [
        _group(
            "Size",
            {"float": float(_float_bytes(data)), "integer": float(data["bytes"])},
            text.size,
            note="" if whole else "Float counts the weights alone.",
        )
    ]
    if "latency_ms" in figures and "float_latency_ms" in figures:
        slower = figures["latency_ms"] > figures["float_latency_ms"]
        groups.append(
            _group(
                "Latency on this CPU",
                {
                    "float": float(figures["float_latency_ms"]),
                    "integer": float(figures["latency_ms"]),
                },
                lambda value: f"{text.number(value)} ms",
                note=(
                    "XNNPACK's float kernels often win on small networks on a PC. "
                    "Measure on your device."
                    if slower
                    else "One thread. Other processors differ."
                ),
            )
        )
    return groups


def _target_name(name: str) -> str:
    """A target as people write it: ethos-u55-128 is "Ethos-U55 (128 MACs)"."""
    if name.startswith("ethos-u"):
        kind, _, macs = name.removeprefix("ethos-u").partition("-")
        return f"Ethos-U{kind} ({macs} MACs)"
    return _TARGETS.get(name, name)


def _target(name: str, data: dict[str, Any]) -> Target:
    count = data["operators_mapped"] + data["operators_cpu"]
    figures = [(key, value) for key, value in data["figures"].items() if value is not None]
    main = ("cycles", "inferences_per_second", "sram_kib", "arena_bytes", "arena_estimate_bytes")
    told = [
        " ".join(text.figure(key, value)) for key, value in figures if key in (*main, "latency_ms")
    ]
    return Target(
        name=_target_name(name),
        tone="good" if data["fully_mapped"] else "warn",
        taken=f"{data['operators_mapped']} of {count} operators",
        headline=", ".join(told),
        how=str(data["how"]),
        notes=tuple(map(str, data["notes"])),
        figures=tuple(
            Fact(*text.figure(key, value))
            for key, value in figures
            if not isinstance(value, dict | list)
        ),
        left_out=tuple(
            LeftOut(
                text.operator(row["operator"]),
                str(row.get("layer") or text.layer_name(row["tensor"])),
                str(row["why"]),
                str(row.get("do") or ""),  # files of earlier versions do not say
            )
            for row in data["fallback"]
        ),
    )


def _estimate(data: dict[str, Any]) -> Estimate:
    level = str(data["level"])
    layers = tuple(_layer(row) for row in data.get("layers") or [])
    return Estimate(
        tone=_TONES.get(level, "warn"),
        word=_WORDS.get(level, level),
        sentence=text.spaced_percent(_without_tensors(str(data["sentence"]))),
        kept=_kept(data),
        # earlier versions cut the names of tensors in reasons; the table of layers tells the same
        reasons=tuple(
            text.spaced_percent(str(each))
            for each in data.get("reasons") or []
            if "..." not in str(each)
        ),
        worst=layers[:_WORST],
        others=layers[_WORST:],
    )


def _kept(data: dict[str, Any]) -> Kept | None:
    if data["level"] == "unknown":  # files of earlier versions hold figures all the same
        return None
    agreement, mask = data.get("predicted_agreement"), data.get("mask")
    worst = data.get("worst_head_sqnr_db")
    if agreement is not None:
        share, band = text.percent(agreement), _band(*(data.get("band") or (None, None)))
        words = f"about {share} of inputs should get the float model's class ({band})"
        return Kept("agreement with float", share, band, words)
    if mask:
        share, iou = text.percent(mask["agreement"], digits=1), f"IoU\u00a0{mask['iou']:.2f}"
        words = f"what it marks overlaps with the float model by {iou}"
        return Kept("overlap with float", iou, f"{share} of places stay on their side", words)
    if worst is not None:
        ratio = f"{worst:.0f}\u00a0dB"
        words = f"its outputs keep {ratio} over quantization noise in the worst head"
        return Kept("signal over noise", ratio, "of the worst output", words)
    return None


def _band(low: Any, high: Any) -> str:
    ends = text.percent(low), text.percent(high)
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _without_tensors(sentence: str) -> str:
    """Files of earlier versions name shortened tensors in the sentence; the table names layers."""
    before, found_, after = sentence.partition(" Look first at ")
    rest = after.partition(". ")[2]
    return " ".join(filter(None, (before, rest))) if found_ and "..." in after else sentence


def _layer(row: dict[str, Any]) -> Layer:
    (low, high), (seen_low, seen_high) = map(_ordered, (row["range"], row["seen"]))
    left, right = min(low, seen_low), max(high, seen_high)
    width = (right - left) or 1.0
    sqnr, clipped = float(row["sqnr_db"]), float(row["clipped"])
    bad = sqnr < _LOW_DB
    return Layer(
        name=str(row.get("layer") or text.layer_name(row["tensor"])),
        operator=text.operator(row["operator"]),
        sqnr=f"{text.number(sqnr)} dB",
        clipped=f"{text.percent(clipped, digits=1)} cut off" if clipped >= _SHOWN else "",
        tone="bad" if bad else "warn" if sqnr < _FAIR_DB or clipped > _CLIPPED else "good",
        holds=text.ends(low, high),
        reached=text.ends(seen_low, seen_high),
        bar_left=100 * (low - left) / width,
        bar_width=100 * (high - low) / width,
        seen_left=100 * (seen_low - left) / width,
        seen_width=100 * (seen_high - seen_low) / width,
    )


def _ordered(pair: Any) -> tuple[float, float]:
    low, high = map(float, pair)
    return (low, high) if low <= high else (high, low)


def _compared(rows: list[dict[str, Any]]) -> Compared:
    names = tuple(map(str, rows[0]["files"])) if rows else ()
    return Compared(
        names,
        tuple(
            (
                text.layer_name(row["tensor"]),
                text.operator(row["operator"]),
                tuple(
                    f"{text.number(float(row['files'][name]['sqnr_db']))} dB, "
                    f"{text.percent(row['files'][name]['clipped'], digits=1)} cut off"
                    for name in names
                ),
            )
            for row in rows
        ),
    )


def _command(path: pathlib.Path, data: dict[str, Any], *, model: str) -> str:
    """The convert command that makes the file again. F.json stores all that decides its bytes."""
    if data.get("images_folder"):  # the images were made by the same command
        return str(data["command"])
    notes = data.get("algorithm_notes") or {}
    options = {
        "model": model,
        "calibration": "DIR",
        "output": f"DIR/{path.with_suffix('.tflite').name}",
        "scheme": data["scheme"],
        "algorithm": data.get("algorithm", "minmax"),
        **({"head": notes["head"]} if notes.get("head", "model") != "model" else {}),
        **({"seed": notes["seed"]} if notes.get("seed") else {}),
        **({"target": ",".join(data["targets"])} if data.get("targets") else {}),
        **{
            name: data["mixed"][name]
            for name in ("max_kib", "min_agreement")
            if data.get("mixed", {}).get(name) is not None
        },
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    return shlex.join(["python", "-m", "tflite_export.convert", *words])
