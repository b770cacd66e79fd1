"""Runs a module as a command that ends with the process that started it: see `processes`.

`python -m dgh_tf.common.tied watched MODULE ...` ends when its standard input does; with
`reads_input` the module itself reads it, and ends then.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import threading


def _watch_input() -> None:
    """Ends this process and all of its group when standard input ends."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):  # nobody writes; this waits for the end
            pass
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main(tie: str, module: str, *arguments: str) -> None:
    """Runs the module with the arguments; tie: "watched" or "reads_input"."""
    if tie == "watched":
        threading.Thread(target=_watch_input, daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
