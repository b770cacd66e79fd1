"""Ctrl-C while a command is still importing is one line, and is never lost. Every package
imports this file before anything else.

Hooks, since a try around a command's main would come too late: `python -m` itself imports the
package and looks for the command, and the command's own imports run before its first line that
could catch anything. And Python reports, instead of raising, what is raised in a callback.
"""

from __future__ import annotations

import _thread
import sys
import threading
from types import TracebackType

_PACKAGES = ("dgh_tf", "tflite_export", "benchmarks")


def _said(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook of a command."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped: interrupted before anything was done.", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


def _again(dropped: sys.UnraisableHookArgs) -> None:
    """sys.unraisablehook of a command: an interrupt in a callback, whose exceptions Python drops,
    comes again right after it.
    """
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        later = threading.Timer(0.02, _thread.interrupt_main)
        later.daemon = True
        later.start()
    else:
        sys.__unraisablehook__(dropped)


if any(
    flag == "-m" and name.split(".")[0] in _PACKAGES
    for flag, name in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
):
    # not for those who only import these packages
    sys.excepthook, sys.unraisablehook = _said, _again
