"""Where the seconds of whole commands go, from Enter to the file: python -m benchmarks.startup.

Each command runs in processes of its own. Its processor seconds are those of all its processes; the
phases are told by its first process (see `measure.phases`). What another process spends, such as
the converter, and the interpreter's own start and end stand in a row of their own. With --base the
same commands of another commit run in turn with this tree's, and the ratio of processor seconds is
told: other work on the machine stretches wall seconds more than those.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from benchmarks.measure.trees import ROOT, checked_out
from benchmarks.output.table import grid
from dgh_tf.common import console
from dgh_tf.common.files import atomic_write, require_writable

# module and arguments; {out} is a folder of the tree's own
_IMAGES = ("dgh_tf.generate", "--output_dir={out}/images")
_FILE = ("tflite_export.convert", "--calibration={out}/images", "--output={out}/file.tflite")
COMMANDS = {
    "generate": _IMAGES,
    "convert": _FILE,
    "one command": ("tflite_export.convert", "--output={out}/whole.tflite"),
    "verdict": ("benchmarks.verdict", "--tflite={out}/file.tflite"),
}
_NEEDS = {"convert": ["generate"], "verdict": ["generate", "convert"]}
OTHERS, ALL = "start, end, other processes", "all"


@dataclasses.dataclass(frozen=True)
class Run:
    """wall, processor: seconds by phase; those of the whole under `ALL`."""

    wall: dict[str, float]
    processor: dict[str, float]


def _define_flags() -> None:
    flags.DEFINE_string("model", "demo", "demo, or the path of a model.")
    flags.DEFINE_list("commands", list(COMMANDS), f"Of {', '.join(COMMANDS)}.")
    flags.DEFINE_string("base", None, "Commit to compare with, such as HEAD~1 or a tag.")
    flags.DEFINE_integer("repeats", 5, "Runs of each command; medians are told.", lower_bound=1)
    flags.DEFINE_list("generate_flags", [], "More flags of generate, such as --steps=60.")
    flags.DEFINE_string("output", None, "A .json file for all figures.")


def run_once(tree: pathlib.Path, out: pathlib.Path, name: str, more: list[str]) -> Run:
    """Runs one of `COMMANDS` with the code in `tree`. Raises ValueError where it fails."""
    module, *arguments = (part.format(out=out) for part in COMMANDS[name])
    figures = out / "figures.json"
    for argument in arguments:  # what an earlier run left would be gone on with, or reused
        if argument.startswith("--output"):
            _remove(pathlib.Path(argument.split("=", 1)[1]))
    command = [sys.executable, str(ROOT / "benchmarks/measure/phases.py"), str(figures), module]
    with tempfile.TemporaryFile() as errors:
        began = time.perf_counter()
        child = subprocess.Popen(
            [*command, *arguments, *more],
            cwd=tree,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        took = time.perf_counter() - began
        if child.returncode:
            errors.seek(0)
            text = errors.read().decode(errors="replace")[-2000:]
            raise ValueError(f"{' '.join(command)} ended with {child.returncode}: {text}")
    phases = json.loads(figures.read_text())
    wall = {phase: seconds for phase, (seconds, _) in phases.items()}
    processor = {phase: seconds for phase, (_, seconds) in phases.items()}
    whole = used.ru_utime + used.ru_stime
    others = max(0.0, whole - sum(processor.values()))
    return Run({**wall, ALL: took}, {**processor, OTHERS: others, ALL: whole})


def _remove(path: pathlib.Path) -> None:
    shutil.rmtree(path.with_name(f"{path.stem}_images"), ignore_errors=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def median(runs: list[Run]) -> Run:
    """The median of each phase."""
    phases = dict.fromkeys(phase for run in runs for phase in run.processor)
    wall, processor = (
        {phase: statistics.median(side.get(phase, 0.0) for side in sides) for phase in phases}
        for sides in ([run.wall for run in runs], [run.processor for run in runs])
    )
    return Run(wall, processor)


def table_of(name: str, run: Run, base: Run | None) -> str:
    """Seconds by phase, and beside them the other commit's."""
    headings = [name, "wall, s", "processor, s"]
    phases = [phase for phase in run.processor if phase != ALL]
    if base:
        headings.append("base, processor, s")
        phases += [phase for phase in base.processor if phase not in (*phases, ALL)]
    lines = []
    for phase in [*phases, ALL]:
        seconds = [run.wall.get(phase, 0.0), run.processor.get(phase, 0.0)]
        seconds += [base.processor.get(phase, 0.0)] if base else []
        lines.append([phase, *(f"{value:.2f}" for value in seconds)])
    return grid(lines, headings)


def _measured(trees: list[pathlib.Path], folder: pathlib.Path) -> dict[str, list[list[Run]]]:
    """By command, for every tree, its runs; the trees take turns."""
    values = flags.FLAGS
    model = [f"--model={values.model}"]
    found: dict[str, list[list[Run]]] = {name: [[] for _ in trees] for name in values.commands}
    outs = [folder / f"out{i}" for i in range(len(trees))]
    wanted = {need for name in values.commands for need in _NEEDS.get(name, [])}
    once = [name for name in COMMANDS if name in wanted and name not in values.commands]
    for out in outs:
        out.mkdir()
    for repeat in range(values.repeats):
        for name in [n for n in COMMANDS if n in values.commands or (n in once and not repeat)]:
            for i, (tree, out) in enumerate(zip(trees, outs, strict=True)):
                more = values.generate_flags if name == "generate" else []
                run = run_once(tree, out, name, [*model, *more])
                if name in found:
                    found[name][i].append(run)
    return found


def main(argv: list[str]) -> int:
    """Prints a table for each command and, with --base, the ratio of processor seconds."""
    del argv
    values = flags.FLAGS
    unknown = set(values.commands) - set(COMMANDS)
    if unknown:
        raise ValueError(
            f"--commands={','.join(values.commands)}: expected of {', '.join(COMMANDS)}."
        )
    if values.output:
        require_writable(values.output, flag="output")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder, trees = pathlib.Path(name), [ROOT]
        if os.path.exists(values.model):
            values.model = os.path.abspath(values.model)  # commands run in their tree
        if values.base:
            trees.append(stack.enter_context(checked_out(values.base, folder / "tree")))
        found = _measured(trees, folder)
    report: dict[str, dict] = {}
    for name, (ours, *others) in found.items():
        run, base = median(ours), median(others[0]) if others else None
        console.say(table_of(name, run, base))
        report[name] = {"wall": run.wall, "processor": run.processor}
        if base:
            ratio = run.processor[ALL] / base.processor[ALL]
            report[name] |= {"base": {"wall": base.wall, "processor": base.processor}}
            report[name] |= {"ratio": ratio}
            console.say(f"{name}: {ratio:.2f} of the processor seconds of {values.base}")
        console.say("")
    if values.output:
        atomic_write(values.output, json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    _define_flags()
    console.run(main)
