"""Runs a module as a command and writes where its seconds went: python benchmarks/measure/phases.py
FIGURES.json MODULE ARGUMENTS.

It runs as a file, in the folder of any tree of this project, and knows that tree's code by the
names of functions alone: a name that an older tree lacks is no phase there. Seconds of a phase
called inside another count for the inner one.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.util
import json
import pathlib
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

# module -> function in it -> phase
PHASES = {
    "dgh_tf.models.loading": {"load_model": "load"},
    "dgh_tf.models.network": {"Network.__init__": "trace", "Network.head_names": "trace"},
    "dgh_tf.input_range.find": {"network_ranges": "range", "known_inputs": "range"},
    "dgh_tf.generation.inputs": {"Inputs.start": "start images"},
    "dgh_tf.generation.update": {
        "Step._fill": "trace",
        "Step._visit": "trace",
        "Step._gradient": "trace",
        "Step._spread": "trace",
    },
    "dgh_tf.generation.generator": {
        "Generator.start": "table",
        "Generator.layer_gaps": "table",
        "Generator._visit": "steps",
    },
    "dgh_tf.common.run_folder": {"write_images": "write"},
    "dgh_tf.report.page": {
        "write_preview": "report",
        "write_page": "report",
    },
    "dgh_tf.report.again": {"write_report": "report"},
    "tflite_export.conversion.freeze": {"save_frozen": "freeze"},
    "tflite_export.conversion.server": {"run": "converter", "stop": "converter"},
    "tflite_export.quality.layer_comparison": {
        "calibration_verdict": "check",
        "gather": "check",
    },
    "tflite_export.quality.held_out": {"estimate": "check"},
}
FIRST_STEP = "first step"  # TensorFlow optimizes and compiles the traced step in it
IMPORTS, REST = "imports", "rest"


class Clock:
    """Wall and processor seconds of this process by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._open = [REST]
        self._last = time.perf_counter(), time.process_time()

    def _charge(self) -> None:
        now = time.perf_counter(), time.process_time()
        spent = self.seconds.setdefault(self._open[-1], [0.0, 0.0])
        for i in range(2):
            spent[i] += now[i] - self._last[i]
        self._last = now

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, seconds count for `name`; only where the main thread is inside."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def figures(self) -> dict[str, list[float]]:
        """(wall, processor) seconds by phase until now."""
        self._charge()
        return self.seconds


class _Watched(importlib.abc.MetaPathFinder):
    """Times every import, and the functions of `PHASES` from their module's import on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._asked: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name in self._asked:
            return None
        self._asked.add(name)
        try:
            with self._clock.phase(IMPORTS):
                spec = importlib.util.find_spec(name) if path is None else _found(name, path)
        finally:
            self._asked.discard(name)
        loader: Any = spec and spec.loader
        if hasattr(loader, "exec_module"):
            execute = loader.exec_module
            loader.exec_module = functools.partial(self._execute, execute)
        return spec

    def _execute(self, execute: Callable, module: Any) -> None:
        with self._clock.phase(IMPORTS):
            execute(module)
        for name, phase in PHASES.get(module.__name__, {}).items():
            _wrap(module, name, phase, self._clock)


def _found(name: str, path: Any) -> Any:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(name, path) if find else None
        if spec is not None:
            return spec
    return None


def _wrap(module: Any, name: str, phase: str, clock: Clock) -> None:
    """Makes a function of a module count for a phase; leaves out what is not there."""
    *owners, last = name.split(".")
    owner = functools.reduce(lambda o, part: getattr(o, part, None), owners, module)
    function = getattr(owner, last, None)
    if function is None:
        return
    calls = 0

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        first = phase == "steps" and calls == 1
        with clock.phase(FIRST_STEP if first else phase):
            return function(*args, **kwargs)

    setattr(owner, last, timed)


def main(output: str, module: str, *arguments: str) -> None:
    """Runs the module; the figures are written however it ends."""
    clock = Clock()
    sys.path[0] = str(pathlib.Path.cwd())
    sys.argv = [module, *arguments]
    sys.meta_path.insert(0, _Watched(clock))
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        pathlib.Path(output).write_text(json.dumps(clock.figures()))


if __name__ == "__main__":
    main(*sys.argv[1:])
