"""What every command shares: one-line errors, exit codes, signals, --verbose."""

from __future__ import annotations

import functools
import io
import logging as python_logging
import math
import os
import pathlib
import re
import shutil
import signal
import sys
import traceback
import unicodedata
from collections.abc import Callable
from typing import NoReturn, TextIO

from absl import app, flags, logging

from dgh_tf.common.files import is_full_disk
from dgh_tf.common.help import help_text
from dgh_tf.common.quiet import quiet_tensorflow
from dgh_tf.common.range_text import check_range_text
from dgh_tf.common.user_code import import_user_code

INTERRUPTED = 130  # the shell's convention for a process ended by SIGINT
_PIPE = 13  # SIGPIPE, which Python ignores and Windows lacks


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """A signal stopped the run; everything up to `message` is saved."""

    def __init__(self, message: str, *, exit_code: int = INTERRUPTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C asks the process to end: what guards against the one guards
    against the other.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Unheard(KeyboardInterrupt):
    """Standard output takes no more, as a full disk: no later line can reach the user. Like
    Terminated no Exception, which would be taken for the failure of what the line told of.
    """


def printable(text: str) -> str:
    """The text as a terminal may get it: control characters, text that turns the reading direction
    and bytes of a name that are no UTF-8 become \\x1b and the like. A newline stays.

    Example: `printable("a\\x1b[2J")` is `"a\\\\x1b[2J"`.
    """
    return "".join(
        c
        if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else _escaped(c)
        for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def say(text: str) -> None:
    """One line for the user on standard output, at once.

    Raises Terminated, as SIGPIPE would end the process, where nobody reads on (`| head -n 1`), and
    Unheard where the line cannot be written.
    """
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        _to_null(sys.stdout)
        raise Terminated(_PIPE) from None
    except OSError as error:
        _to_null(sys.stdout)
        raise Unheard(error.strerror) from None


def _to_null(stream: TextIO) -> None:
    """Leads a stream that cannot be written to the null device: what is left in its buffer goes
    there when the process ends, where another failure would change the exit code.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _with_flags(text: str) -> str:
    """The text of an error with settings written as flags: the functions below the commands write
    name=value, as one gives it in Python.
    """

    def flag(found: re.Match) -> str:
        return f"--{found[1]}" if found[1] in flags.FLAGS else found[1]

    return re.sub(r"(?<![\w./-])(\w+)(?==)", flag, text)


def _report(kind: str, text: str, code: int) -> int:
    """One line on stderr; returns the exit code, which tells of a failure where no line can."""
    try:
        print(f"{kind}: {printable(_with_flags(text))}", file=sys.stderr, flush=True)
    except OSError:
        _to_null(sys.stderr)
    return code


def fail(text: str, *, code: int) -> int:
    """One line on stderr for a result that is whole but not what was asked for; returns the exit
    code.
    """
    return _report("failed", text, code)


def leave(kind: str, text: str, code: int) -> NoReturn:
    """Ends the process at once, with one line: where a thread of a library would keep it."""
    _report(kind, text, code)
    os._exit(code)


def _is_memory(error: Exception) -> bool:
    """Whether Python or TensorFlow ran out of memory."""
    tensorflow = sys.modules.get("tensorflow")
    errors = getattr(tensorflow, "errors", None)
    exhausted = getattr(errors, "ResourceExhaustedError", MemoryError)
    return isinstance(error, MemoryError | exhausted)


def _room(error: Exception) -> str:
    """How much is free where the file of an error should have gone; "" where that is unknown."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str):
        return ""
    folder = next((path for path in pathlib.Path(name).parents if path.is_dir()), None)
    return f" ({shutil.disk_usage(folder).free} bytes are free there)" if folder else ""


def _explained(error: Exception) -> str | None:
    """One line for what users can cause (a rate too large makes a run diverge), None for what is
    our fault.
    """
    text = str(error) or type(error).__name__
    if is_full_disk(error):
        return (
            f"{text}{_room(error)}. Free some space and give the same command again; what was "
            "whole on disk before is untouched."
        )
    if _is_memory(error):
        first = text.splitlines()[0]
        return f"not enough memory ({first}). Use a smaller --batch_size or fewer --num_images."
    known = (ValueError, FloatingPointError, OSError, ImportError)
    return text if isinstance(error, known) else None


def _guarded(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    if len(argv) > 1:
        return _report(
            "error",
            f"unexpected argument {argv[1]!r}. Options are given as --name=value; see --help.",
            2,
        )
    try:
        if "import" in flags.FLAGS:
            import_user_code(flags.FLAGS["import"].value)
        _check_values()
        return main(argv) or 0
    except Interrupted as stop:
        return _report("stopped", str(stop), stop.exit_code)
    except Terminated as stop:
        return _terminated(stop)
    except Unheard as stop:
        return _unheard(stop)
    except KeyboardInterrupt:
        return _report("stopped", "interrupted; nothing half-written was left behind.", INTERRUPTED)
    except Exception as error:
        return _failed(error)


def _check_values() -> None:
    """Refuses what several commands take and no model is needed to refuse: numbers that are none,
    and ranges that are mistyped.
    """
    for name in flags.FLAGS:
        value = flags.FLAGS[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value}: expected a finite number.")
    if "input_range" in flags.FLAGS:
        check_range_text(flags.FLAGS["input_range"].value)


def _failed(error: Exception) -> int:
    """The exit code after an error that is told in one line; raises it where it is our fault."""
    if isinstance(error, SystemError) and _caught:
        return _terminated(_caught[-1])
    text = _explained(error)
    if text is None:
        raise error
    if flags.FLAGS.verbose:
        print(printable(traceback.format_exc()), file=sys.stderr)
    return _report("error", text, 1)


def _terminated(stop: Terminated) -> int:
    """The exit code. Nothing is told of a pipe that is closed: who closed it wants no more."""
    if stop.number == _PIPE:
        return 128 + _PIPE
    name = signal.Signals(stop.number).name
    return _report(
        "stopped", f"by {name}; nothing half-written was left behind.", 128 + stop.number
    )


def _unheard(stop: Unheard) -> int:
    """The exit code where standard output failed."""
    return _report(
        "error",
        f"standard output takes no more ({stop}). Give it another place, such as a file on a disk "
        "with room; the same command goes on with what is whole.",
        1,
    )


def _parsed(argv: list[str], *, doc: str = "") -> list[str]:
    """The arguments that are no flags. A flag that cannot be read ends the process with one line,
    not with the whole usage. doc: of the command, for --help.
    """
    if "verbose" not in flags.FLAGS:  # of commands alone: a program may have a flag of that name
        flags.DEFINE_bool("verbose", False, "Show the traceback behind an error.")
    if "model" in flags.FLAGS and "import" not in flags.FLAGS:
        flags.DEFINE_multi_string(
            "import",
            [],
            "A module or .py file of yours that registers custom layers; may be given again. It "
            "runs with your rights.",
        )
        flags.declare_key_flag("import")
    if "--version" in argv[1:]:
        say(f"dgh-tf {_version()}")
        sys.exit(0)
    if {"-h", "--help"} & set(argv[1:]):
        say(help_text(doc))
        sys.exit(0)
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        text = re.sub(
            r"flag --(\w+)=None: Flag --\w+ must have a value other than None\.",
            r"--\1 is missing.",
            str(error),
        )
        sys.exit(_report("error", f"{' '.join(text.split()).rstrip('.')}. See --help.", 1))


def _version() -> str:
    """Of the tree that runs; an installed package of another one may be older."""
    return str(sys.modules["dgh_tf"].__version__)


def _open_closed_streams() -> None:
    """Puts the null device where a standard stream was closed (`2>&-`): the next file opened would
    take its number, and what is printed would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        elif isinstance(stream, io.TextIOWrapper):  # a terminal may not have all letters
            stream.reconfigure(errors="backslashreplace")


# what signals raised: compiled code sometimes loses it, and ends in a SystemError in its place
_caught: list[Terminated] = []


def _terminate(number: int, _frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    _caught.append(Terminated(number))
    raise _caught[-1]


def catch_terminations() -> None:
    """From now on a signal that asks the process to end raises Terminated, as Ctrl-C raises
    KeyboardInterrupt: temporary files and child processes go before the process does.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        # a program started by nohup goes on without its terminal
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs an absl command. What users can cause becomes one line on stderr and exit code 1."""
    _open_closed_streams()
    catch_terminations()
    quiet_tensorflow(lambda: flags.FLAGS.is_parsed() and flags.FLAGS.verbose)
    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every file of a SavedModel
    python_logging.getLogger("tensorflow").setLevel(
        python_logging.ERROR
    )  # ... and warns of every trace of a second model

    def ended(argv: list[str]) -> None:
        code = _guarded(main, argv)
        if code == INTERRUPTED:  # another one could now only spoil the exit code
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # CPython keeps in mind that one passed through an exec of text (making a namedtuple,
            # say), and then ends by the signal, whatever caught it and whatever the exit code; the
            # next exec of text makes it forget
            exec("")
        sys.exit(code)

    doc = sys.modules[main.__module__].__doc__ or ""
    try:
        app.run(ended, flags_parser=functools.partial(_parsed, doc=doc))
    except Terminated as stop:  # while flags were read, or --help was printed
        sys.exit(_terminated(stop))
    except Unheard as stop:
        sys.exit(_unheard(stop))
