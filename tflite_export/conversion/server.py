"""The process that runs TensorFlow's converter, kept warm: it imports TensorFlow once and
forks for every conversion.

The import takes seconds of a processor, most conversions less than one. A command forks the process
off right behind its own import, so that there is only one. The process ends when its standard input
does: nothing but this process holds the other end, so it ends with this process, however that ends.
Where forking a process that has imported TensorFlow is not safe (anywhere but on Linux), each
conversion starts a cold process.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import pathlib
import select
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from dgh_tf.common import processes
from tflite_export.conversion import worker

_lock = threading.Lock()
_server: processes.Child | None = None
_log: Any = None  # what the server itself, not its forks, writes to stderr


# The worker needs no accelerator, and must not take the memory of the parent's.
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
_MODULE = "tflite_export.conversion.worker"


def _ready() -> processes.Child:
    global _server, _log
    if _server is None or _server.poll() is not None:
        stop()
        _log = tempfile.TemporaryFile()  # noqa: SIM115 - held as long as the server
        if "tensorflow" in sys.modules:  # whose threads may run already: they are not in a fork
            _server = processes.start(
                _MODULE,
                reads_input=True,
                environment=_ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=_log,
            )
        else:
            import tensorflow  # noqa: F401 - the fork has it then

            _server = processes.fork(worker.serve, stderr=_log, environment=_ENVIRONMENT)
    return _server


def start_worker() -> None:
    """Starts the warm process, unless it runs.

    Early, before TensorFlow is imported, it is a fork of this process, and TensorFlow is imported
    once for both. Later its own import goes on beside this process's work.
    """
    if sys.platform == "linux":
        with _lock:
            _ready()


def stop() -> int | None:
    """Ends the warm process with all that it forked and returns its exit code; the next conversion
    starts another.
    """
    global _server, _log
    process, log, _server, _log = _server, _log, None, None
    if process is None:
        return None
    log.close()
    return processes.end(process)


def _forget() -> None:
    """In a fork of this process: the server is the parent's."""
    global _server, _log, _lock
    _server, _log, _lock = None, None, threading.Lock()


def _answer(process: processes.Child, timeout: float | None) -> int | None:
    """The exit code that the server tells, None when it ended instead. Raises TimeoutError."""
    assert process.stdout is not None  # a pipe was asked for
    line, limit, poll = b"", time.monotonic() + (timeout or 0), select.poll()
    poll.register(process.stdout, select.POLLIN)
    while not line.endswith(b"\n"):
        if not poll.poll(None if timeout is None else max(0, 1000 * (limit - time.monotonic()))):
            raise TimeoutError
        if not (part := process.stdout.read(64)):
            return None
        line += part
    return int(line)


def run(folder: pathlib.Path, *, timeout: float | None) -> tuple[int, str]:
    """Runs the worker on a prepared folder; returns its exit code, a signal as its negative number,
    and its stderr.

    Raises: TimeoutError, after which the worker is gone.
    """
    stderr = folder / "stderr.txt"
    stderr.touch()
    if sys.platform != "linux":
        return _run_cold(folder, timeout=timeout)
    with _lock:
        process = _ready()
        try:
            assert process.stdin is not None  # a pipe was asked for
            process.stdin.write(json.dumps(str(folder.resolve())).encode() + b"\n")
            code = _answer(process, timeout)
        except BrokenPipeError:
            code = None
        except BaseException:  # Ctrl-C too must not leave a conversion behind
            stop()
            raise
        # read without moving the place where the server goes on writing
        text = os.pread(_log.fileno(), 1 << 20, 0) + stderr.read_bytes()
        if code is None:
            code = stop() or 1  # it ended by itself, and not well
        return code, text.decode(errors="replace")


def _run_cold(folder: pathlib.Path, *, timeout: float | None) -> tuple[int, str]:
    """As `run`, in a process started for this folder alone."""
    done = processes.run(_MODULE, str(folder), timeout=timeout, environment=_ENVIRONMENT)
    return done.code, done.stderr


def require_room(code: int, folder: pathlib.Path) -> None:
    """Raises OSError where a worker ended with this code since the disk of its folder is full."""
    if code == errno.ENOSPC:
        raise OSError(code, f"{os.strerror(code)} for temporary files (see TMPDIR)", str(folder))


atexit.register(stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
