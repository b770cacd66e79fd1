"""Runs a command in this process, through the same flag parser and error guard as `python -m`."""

import contextlib
import importlib
import io
import signal
import sys

from absl import flags

from dgh_tf.common import console

_PACKAGES = (
    "benchmarks.estimate",
    "benchmarks.suite",
    "benchmarks.tools",
    "benchmarks.zoo",
    "dgh_tf.report",
)
BASE = set(flags.FLAGS)  # what absl and the console define, before any command


def forget():
    """Takes back the flags of the last command."""
    for name in set(flags.FLAGS) - BASE:
        delattr(flags.FLAGS, name)


def ready(command):
    """The command's module, its flags defined afresh, as a new process would have them."""
    forget()
    if command in _PACKAGES:
        command += ".__main__"
    module = sys.modules.get(command)
    module = importlib.reload(module) if module else importlib.import_module(command)
    module.define_flags()
    return module


@contextlib.contextmanager
def process_of_its_own(arguments):
    """Gives back afterwards what a command takes for itself: the arguments of the process and its
    signals.
    """
    before, numbers = sys.argv, (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    sys.argv = arguments
    try:
        yield
    finally:
        sys.argv = before
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def call(command, *arguments):
    """(exit code, stdout, stderr) of the command in this process."""
    out, err, arguments = io.StringIO(), io.StringIO(), [command, *map(str, arguments)]
    module = ready(command)
    with (
        process_of_its_own(arguments),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = console._guarded(module.main, console._parsed(arguments))
        except SystemExit as stop:
            code = stop.code
        finally:
            forget()
    return code, out.getvalue(), err.getvalue()
