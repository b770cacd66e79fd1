"""Commands as processes without the seconds that TensorFlow's import takes: each is a fork of a
process that has imported it and done nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import pathlib
import runpy
import sys
from multiprocessing.context import ForkServerContext


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a command left: its exit code (a signal as its negative number) and what it printed."""

    code: int
    stdout: str
    stderr: str


@functools.cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.measure.warm_imports"])
    return context


def _command(arguments: list[str], home: pathlib.Path) -> None:
    """In the fork: runs the module as `python -m` does."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        held = os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(held, number)
        os.close(held)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def run(*arguments: str, home: pathlib.Path, seconds: float) -> Ended:
    """Runs `python -m arguments` to its end.

    Args:
      home: a folder for what it prints.
      seconds: after which it counts as hanging.
      *arguments: the module, then those of its command line.
    Raises: TimeoutError, after which the process is gone.

    Example: `run("dgh_tf.report", "--output_dir=images", home=pathlib.Path("."), seconds=60)`
    """
    process = _context().Process(target=_command, args=(list(arguments), home))
    process.start()
    process.join(seconds)
    late = process.is_alive()
    process.kill()
    process.join()
    if late:
        raise TimeoutError(f"a run took more than {seconds:g} s")
    texts = [(home / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    return Ended(process.exitcode or 0, *texts)
