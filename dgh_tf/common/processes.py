"""Child processes that end with this one, and temporary folders that the next run clears.

A program that is killed cannot tidy up. So each child ends by itself when this process is gone, and
every temporary folder lies in one folder of the user, from which the next process that needs one
removes those whose owner is dead.

A child runs dgh_tf.common.tied, which ties it to its parent and then runs its module as a command.
The tie is the child's standard input, a pipe whose other end only the parent holds: it closes when
the parent ends, in whatever way, on every system. (Linux's PR_SET_PDEATHSIG would kill the child
alone, not what that started, and also when only the thread ends that started it.)
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import IO

from dgh_tf.common.files import naming

ROOT = pathlib.Path(__file__).resolve().parents[2]
_children: weakref.WeakSet[Child] = weakref.WeakSet()


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a child left: its exit code (a signal as its negative number) and what it printed."""

    code: int
    stdout: str
    stderr: str


class Forked:
    """A child of `fork`: what `end` and its owner need of a `subprocess.Popen`."""

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.pid, self.stdin, self.stdout, self.stderr = pid, stdin, stdout, None
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, a signal as its negative number; None while it runs."""
        return self._ended(os.WNOHANG)

    def wait(self) -> int:
        """As `poll`, once it has ended."""
        code = self._ended(0)
        assert code is not None  # waited for
        return code

    def kill(self) -> None:
        """Ends it at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def _ended(self, how: int) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, how)
            except ChildProcessError:  # another waited for all children
                pid, status = self.pid, 1 << 8
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


Child = subprocess.Popen[bytes] | Forked


def fork(
    serve: Callable[[], None], *, stderr: IO[bytes], environment: Mapping[str, str] | None = None
) -> Forked:
    """Runs `serve` in a fork of this process, which keeps what is imported here. `serve` reads its
    standard input, ends when that does, and answers on standard output.

    Only where nothing has started threads: those are not in a fork. Hand it to `end` when it is
    done.

    Args:
      serve: what to run.
      stderr: a file for its standard error.
      environment: variables beside this process's own.
    """
    import fcntl

    to_read, to_write = os.pipe()
    answers, to_answer = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # as in a process that started without
            stream.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()  # as in `start`
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            # the files of a process without standard input or output may have their numbers
            files = [to_read, to_answer, stderr.fileno()]
            above = [fcntl.fcntl(each, fcntl.F_DUPFD, 3) for each in files]
            for new, old in enumerate(above):
                os.dup2(old, new)
            for each in (*above, to_read, to_write, answers, to_answer):
                if each > 2:
                    os.close(each)
            os.environ.update(environment or {})
            sys.stderr = open(2, "w", buffering=1, errors="replace", closefd=False)  # noqa: SIM115
            serve()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)  # the parent's `atexit` and open files are not this process's
    os.close(to_read)
    os.close(to_answer)
    child = Forked(pid, os.fdopen(to_write, "wb", 0), os.fdopen(answers, "rb", 0))
    _children.add(child)
    return child


def start(
    module: str,
    *arguments: str,
    reads_input: bool = False,
    environment: Mapping[str, str] | None = None,
    folder: pathlib.Path | None = None,
    python: str | os.PathLike[str] | None = None,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Starts `python -m module arguments` tied to this process. Hand it to `end` when it is done.

    Args:
      module: name of the module to run, such as "ethosu.vela".
      reads_input: the module reads its standard input itself and ends when that does; else the
        input serves the tie alone.
      environment: variables beside this process's own.
      folder: to run in; None for this one's.
      python: an interpreter of another environment; None for this process's own.
      stdout: a file, or a constant of subprocess.
      stderr: as stdout.
      *arguments: of its command line.
    """
    variables = {**os.environ, **(environment or {})}
    search = [str(ROOT), *filter(None, [variables.get("PYTHONPATH")])]
    tie = "reads_input" if reads_input else "watched"
    child = subprocess.Popen(
        # -P: a file of the current folder must not stand in for a module
        [python or sys.executable, "-P", "-m", "dgh_tf.common.tied", tie, module, *arguments],
        env={**variables, "PYTHONPATH": os.pathsep.join(search)},
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        bufsize=0,
        # a group of its own: Ctrl-C is for the parent alone, and `end` reaches grandchildren too
        start_new_session=True,
    )
    _children.add(child)
    return child


def end(child: Child) -> int:
    """Kills a child with all that it started, unless it has ended, and returns its exit code."""
    if child.poll() is None:
        _kill_group(child)
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe:
            pipe.close()
    _children.discard(child)
    return child.wait()


def _kill_group(child: Child) -> None:
    if not hasattr(os, "killpg"):
        child.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def run(
    module: str,
    *arguments: str,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
    folder: pathlib.Path | None = None,
    python: str | os.PathLike[str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Ended:
    """Runs `python -m module arguments` to its end, tied to this process.

    Args:
      module: name of the module to run.
      timeout: seconds after which it is killed; None waits for ever.
      environment: as for `start`.
      folder: as for `start`.
      python: as for `start`.
      on_line: gets each line of its standard output as it comes.
      *arguments: of its command line.
    Raises: TimeoutError, after which the child and all that it started are gone.

    Example: `run("ethosu.vela", "--version").stdout`
    """
    late = threading.Event()
    with tempfile.TemporaryFile() as stderr:
        child = start(
            module,
            *arguments,
            environment=environment,
            folder=folder,
            python=python,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )

        def stop() -> None:
            late.set()
            _kill_group(child)

        timer = threading.Timer(timeout or 0.0, stop)
        timer.daemon = True
        if timeout is not None:
            timer.start()
        lines = []
        try:
            assert child.stdout is not None  # a pipe was asked for
            with open(child.stdout.fileno(), "rb", closefd=False) as printed:
                for line in printed:
                    lines.append(line.decode(errors="replace"))
                    if on_line:
                        on_line(lines[-1].rstrip())
            child.wait()
        finally:  # Ctrl-C too must not leave the child behind
            timer.cancel()
            code = end(child)
        if late.is_set():
            raise TimeoutError(f"{module} took more than {timeout:g} s and was stopped.")
        stderr.seek(0)
        return Ended(code, "".join(lines), stderr.read().decode(errors="replace"))


def _forget() -> None:
    """In a fork of this process: children are the parent's, and must not wait for the fork."""
    for child in list(_children):
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe:
                pipe.close()
    _children.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# ---- temporary folders


def _home() -> pathlib.Path | None:
    """The folder of this user's temporary folders; None where another user made it."""
    user = os.getuid() if hasattr(os, "getuid") else None
    home = pathlib.Path(tempfile.gettempdir()) / ("dgh_tf" if user is None else f"dgh_tf-{user}")
    home.mkdir(mode=0o700, exist_ok=True)
    mine = not home.is_symlink() and (user is None or home.stat().st_uid == user)
    return home if mine else None


def _remove_dead(home: pathlib.Path) -> None:
    """Removes temporary folders whose owner is gone: a lock ends with its process."""
    import filelock

    for path in home.glob("*.lock"):
        with (
            contextlib.suppress(filelock.Timeout, OSError, NotImplementedError),
            filelock.FileLock(path, timeout=0),
        ):
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder() -> Iterator[pathlib.Path]:
    """An empty folder of this process, removed at the end; by the next process, if this one is
    killed.

    Example: `with temporary_folder() as folder: (folder / "model.tflite").write_bytes(data)`
    """
    import filelock

    home = _home()
    if home is None:
        with tempfile.TemporaryDirectory(prefix="dgh_tf_") as name, naming(name):
            yield pathlib.Path(name)
        return
    _remove_dead(home)
    folder = home / secrets.token_hex(8)
    lock = folder.with_suffix(".lock")
    with contextlib.ExitStack() as stack:
        stack.callback(_unlink, lock)
        with contextlib.suppress(OSError, NotImplementedError):  # no locks here: never cleared
            stack.enter_context(filelock.FileLock(lock))  # before the folder: it is never free
        folder.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with naming(folder):
            yield folder


def _unlink(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps a file that another process looks at
        path.unlink()
