"""Arm Ethos-U through Arm's own compiler, Vela, in a process of its own: it crashes on some
files.
"""

from __future__ import annotations

import configparser
import csv
import dataclasses
import importlib.metadata
import importlib.util
import math
import pathlib
import re
import signal
from collections.abc import Mapping, Sequence
from typing import Any

from dgh_tf.common import processes
from dgh_tf.models.tflite.model import TFLiteModel
from tflite_export.targets.answer import Answer

ARM = "Arm/vela.ini"  # comes with Vela


@dataclasses.dataclass(frozen=True)
class System:
    """The chip around an Ethos-U: clock and memories, as Vela's .ini files describe them.

    Attributes:
      system, memory: names of sections, without System_Config. and Memory_Mode.
      config: the file that holds them: ARM, or a path.
    """

    system: str
    memory: str
    config: str = ARM


_U55 = System("Ethos_U55_High_End_Embedded", "Shared_Sram")
_U65 = System("Ethos_U65_High_End", "Dedicated_Sram")
_U85 = System("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_512KB")
# every accelerator that Vela knows, in a typical chip of its family
CONFIGURATIONS = {
    **{f"ethos-u55-{macs}": _U55 for macs in (32, 64, 128, 256)},
    **{f"ethos-u65-{macs}": _U65 for macs in (256, 512)},
    **{f"ethos-u85-{macs}": _U85 for macs in (128, 256, 512, 1024, 2048)},
}
_MEMORIES = ("sram", "dram", "on_chip_flash", "off_chip_flash")
_WARNING = re.compile(
    r"Warning \([^)]*\) operator: (\S+), ofm: '([^']*)'\n(?:Reason: )?([^\n]*)(?:\n([^\n]+))?"
)
_PLACED = re.compile(r"^(CPU|NPU) operators = (\d+)", re.MULTILINE)
_ON_CPU = re.compile(r"^ +CPU: (\S+) = (.*?)(?: \(outputs .*)?$", re.MULTILINE)
_SECONDS = 600  # no model here took more than 3


def check_installed() -> None:
    """Raises ValueError when Vela is not installed."""
    if (
        importlib.util.find_spec("ethosu") is None
        or importlib.util.find_spec("ethosu.vela") is None
    ):
        raise ValueError(
            "The Ethos-U targets need Arm's compiler Vela, which is not installed. "
            'Run pip install "dgh-tf[vela]".'
        )


def _sections(path: pathlib.Path, kind: str) -> list[str]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise ValueError(
            f"--vela_config={path} cannot be read as a Vela configuration "
            f"({' '.join(str(error).split())}). Start from the vela.ini that comes with Vela."
        ) from error
    return [each.removeprefix(kind) for each in parser.sections() if each.startswith(kind)]


def find_system(
    *, config: str | None = None, system: str | None = None, memory: str | None = None
) -> System | None:
    """The user's own chip; None where nothing is given. Cheap: call it before long work.

    Args:
      config: path of an .ini file; None takes the one that comes with Vela.
      system: name of its section System_Config.NAME.
      memory: name of its section Memory_Mode.NAME.
    Raises: ValueError for one without the other, and for a file or a section that is not there.

    Example: `find_system(system="Ethos_U55_Deep_Embedded", memory="Shared_Sram")`
    """
    if config is None and system is None and memory is None:
        return None
    check_installed()
    if system is None or memory is None:
        raise ValueError(
            "--vela_system and --vela_memory name a chip together, and --vela_config needs both. "
            "Give both."
        )
    if config is None:
        spec = importlib.util.find_spec("ethosu.vela")
        assert spec is not None and spec.origin is not None  # it is installed
        path = pathlib.Path(spec.origin).parents[1] / "config_files" / ARM
    else:
        path = pathlib.Path(config).resolve()
    wanted = (
        ("System_Config.", system, "vela_system"),
        ("Memory_Mode.", memory, "vela_memory"),
    )
    for kind, name, flag in wanted:
        names = _sections(path, kind)
        if name not in names:
            raise ValueError(
                f"--{flag}={name} is no section [{kind}{name}] of {path.name}; expected one of "
                f"{', '.join(names) or 'none, it has no such section'}."
            )
    return System(system, memory, ARM if config is None else str(path))


def find_systems(
    targets: Sequence[str],
    *,
    config: str | None = None,
    system: str | None = None,
    memory: str | None = None,
) -> dict[str, System]:
    """The user's own chips by target; empty where nothing is given. Cheap: call it before long
    work.

    Args:
      targets: what was asked for, others than Ethos-U among them.
      config: as for `find_system`.
      system: as for `find_system`, for all Ethos-U targets; or "TARGET:NAME,TARGET:NAME", where a
        target that is not named gets a typical chip.
      memory: in the same form as system.
    Raises: ValueError as `find_system` does, for names without an Ethos-U target, and for one name
      for targets of several families, which are never one chip.

    Example: `find_systems(["ethos-u55-64"], system="ethos-u55-64:Mine", memory="Shared_Sram")`
    """
    if config is None and system is None and memory is None:
        return {}
    ours = [target for target in targets if target in CONFIGURATIONS]
    if system is None or memory is None:
        find_system(config=config, system=system, memory=memory)  # raises
    if not ours:
        raise ValueError(
            "--vela_system and --vela_memory describe the chip around an Ethos-U, but --target "
            "names none. Name one, or drop the flags."
        )
    systems = _by_target(system or "", ours, flag="vela_system")
    memories = _by_target(memory or "", list(systems), flag="vela_memory")
    return {
        target: found
        for target in systems
        if (found := find_system(config=config, system=systems[target], memory=memories[target]))
    }


def _by_target(text: str, targets: Sequence[str], *, flag: str) -> dict[str, str]:
    """Names of sections by target, from one name for all or from TARGET:NAME,TARGET:NAME."""
    if ":" not in text:
        families = {target.rsplit("-", 1)[0] for target in targets}
        if flag == "vela_system" and len(families) > 1:
            raise ValueError(
                f"--{flag}={text} names one chip for {', '.join(targets)}, which are of several "
                f"families. Give each its own: --{flag}="
                + ",".join(f"{target}:NAME" for target in targets)
            )
        return dict.fromkeys(targets, text)
    named: dict[str, str] = {}
    for part in text.split(","):
        target, colon, name = (piece.strip() for piece in part.partition(":"))
        if not colon or not name or target not in targets or target in named:
            raise ValueError(
                f"--{flag}={text}: {part.strip() or 'an empty part'} is not TARGET:NAME with a "
                f"target that was asked for, each once: {', '.join(targets)}."
            )
        named[target] = name
    if flag == "vela_memory" and set(named) != set(targets):
        raise ValueError(
            f"--{flag}={text} leaves out {', '.join(t for t in targets if t not in named)}, which "
            "--vela_system names. Give both for the same targets."
        )
    return named


def _why(text: str) -> dict[str, str]:
    """Vela's reason by tensor name, on one line."""
    return {
        tensor: re.sub(r" \([^()]*;[^()]*\)", "", " ".join(filter(None, (reason, rest))))
        for _, tensor, reason, rest in _WARNING.findall(text)
    }


def read_log(text: str, *, kinds: Mapping[str, str]) -> tuple[int, int, list[dict[str, str]]]:
    """(operators on the NPU, on the CPU, rows of the latter {"operator", "tensor", "why"}) from
    Vela's lines.

    Args:
      text: what Vela printed.
      kinds: operator by the name of its output; Vela prints only a placeholder for some.
    Raises:
      ValueError: the lines do not say where the operators went.
    """
    counts = {where: int(number) for where, number in _PLACED.findall(text)}
    if set(counts) != {"CPU", "NPU"}:
        raise ValueError(
            f"Vela {importlib.metadata.version('ethos-u-vela')} did not tell where "
            "the operators run; expected the lines "
            "'CPU operators = ' and 'NPU operators = '. Use another version of ethos-u-vela."
        )
    why = _why(text)
    rows = [
        {
            "operator": kinds.get(tensor, kind),
            "tensor": tensor,
            "why": why.get(tensor, "no reason given"),
        }
        for kind, tensor in _ON_CPU.findall(text)
    ]
    return counts["NPU"], counts["CPU"], rows


def _figures(path: pathlib.Path) -> dict[str, Any]:
    """Cycles, clock, memories and inferences per second of Vela's summary; None for what does not
    apply (nothing on the NPU).
    """
    with path.open(newline="") as file:
        row = next(csv.DictReader(file))
    number = {
        key: float(value)
        for key, value in row.items()
        if re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", value)
    }
    seconds = number.get("inference_time", 0.0)
    return {
        "cycles": int(number["cycles_total"]),
        "clock_mhz": number["core_clock"] / 1e6,
        "macs": int(number["nn_macs"]),
        "inferences_per_second": round(1.0 / seconds, 2)
        if seconds and math.isfinite(seconds)
        else None,
        **{
            f"{memory}_kib": round(number[f"{memory}_memory_used"], 2)
            for memory in _MEMORIES
            if number.get(f"{memory}_memory_used")
        },
    }


def _crash(done: processes.Ended, four_bit: bool) -> ValueError:
    if done.code < 0:
        what = f"crashed with {signal.Signals(-done.code).name}"
    else:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        what = f"failed: {lines[-1][:300] if lines else 'it printed nothing'}"
    advice = (
        "It does not take packed INT4 weights: use --scheme=int8."
        if four_bit
        else "Try another target, or another version of Vela."
    )
    return ValueError(
        f"Vela {importlib.metadata.version('ethos-u-vela')} {what} on this file. {advice}"
    )


def compile_for(model: TFLiteModel, *, target: str, system: System | None = None) -> Answer:
    """Compiles an integer file for one Ethos-U and reports Vela's figures.

    Args:
      model: the file.
      target: a key of CONFIGURATIONS.
      system: the chip; None takes a typical one.
    Returns:
      The verdict (see report.judge), whose figures are Vela's estimates for the system and memory
      mode named in "how": cycles, MHz, KiB per memory, inferences per second. Files: the compiled
      .tflite file, if the NPU takes any operator, and Vela's summary .csv.
    Raises:
      ValueError: Vela is missing, crashed or failed.
    """
    check_installed()
    chip = system or CONFIGURATIONS[target]
    operators = [o for graph in model.subgraphs for o in graph.operators]
    kinds = {tensor.name: o.kind for o in operators for tensor in o.output_tensors}
    with processes.temporary_folder() as folder:
        (folder / "model.tflite").write_bytes(model.data)
        options = {
            "--accelerator-config": target,
            "--config": chip.config,
            "--system-config": chip.system,
            "--memory-mode": chip.memory,
            "--output-dir": str(folder),
        }
        try:
            done = processes.run(
                "ethosu.vela",
                str(folder / "model.tflite"),
                *(word for option in options.items() for word in option),
                "--show-cpu-operations",
                timeout=_SECONDS,
                folder=folder,
            )
        except TimeoutError:
            raise ValueError(
                f"Vela took more than {_SECONDS} s for {target} and was stopped. "
                "Leave the target out."
            ) from None
        summaries = list(folder.glob("model_summary_*.csv"))
        if done.code or not summaries:
            tensors = [tensor for o in operators for tensor in o.input_tensors]
            raise _crash(done, any(t is not None and t.dtype == "INT4" for t in tensors))
        on_npu, on_cpu, rows = read_log(done.stdout + done.stderr, kinds=kinds)
        figures = _figures(summaries[0])
        files = {f".{target}.csv": summaries[0].read_bytes()}
        if on_npu:
            files[f".{target}.tflite"] = (folder / "model_vela.tflite").read_bytes()
    verdict = {
        "how": (
            f"compiled by Vela {importlib.metadata.version('ethos-u-vela')}, {chip.system}, "
            f"{chip.memory} of {pathlib.Path(chip.config).name}; figures are its estimates"
        ),
        "fully_mapped": on_cpu == 0,
        "operators_mapped": max(len(operators) - on_cpu, 0),
        "operators_cpu": on_cpu,
        "fallback": rows,
        "notes": [],
        "figures": {
            **figures,
            "npu_operators": on_npu,
        },  # Vela's own, after it took the graph apart
    }
    return Answer(verdict, files)
