"""cli: what every command shares: one-line errors, exit codes, --verbose."""

from __future__ import annotations

import errno
import logging as python_logging
import re
import signal
import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging

from dgh_tf.common.quiet import quiet_tensorflow

_VERBOSE = flags.DEFINE_bool("verbose", False, "Show the traceback behind an error.")
INTERRUPTED = 130  # the shell's convention for a process ended by SIGINT


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """A signal stopped the run; everything up to `message` is saved."""

    def __init__(self, message: str, *, exit_code: int = INTERRUPTED):
        super().__init__(message)
        self.exit_code = exit_code


def say(text: str) -> None:
    """One line for the user on standard output, at once."""
    print(text, flush=True)


def _report(kind: str, text: str, code: int) -> int:
    print(f"{kind}: {text}", file=sys.stderr, flush=True)
    return code


def _guarded(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    if len(argv) > 1:
        return _report(
            "error",
            f"unexpected argument {argv[1]!r}. Options are given as --name=value; see --help.",
            2,
        )
    try:
        return main(argv) or 0
    except Interrupted as stop:
        return _report("stopped", str(stop), stop.exit_code)
    except KeyboardInterrupt:
        return _report("stopped", "interrupted; nothing half-written was left behind.", INTERRUPTED)
    except (MemoryError, ValueError, FloatingPointError, OSError, ImportError) as error:
        # what users can cause (a rate too large makes a run diverge); anything else is our fault
        # and shows itself
        if _VERBOSE.value:
            traceback.print_exc()
        text = str(error) or type(error).__name__
        if isinstance(error, MemoryError):
            text = f"not enough memory ({error}). Use a smaller --batch_size or fewer --num_images."
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = (
                f"{text}. Free some space and give the same command again; what was whole "
                "on disk before is untouched."
            )
        return _report("error", text, 1)


def _parsed(argv: list[str]) -> list[str]:
    """The arguments that are no flags. A flag that cannot be read ends the process with one line,
    not with the whole usage.
    """
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        text = re.sub(
            r"flag --(\w+)=None: Flag --\w+ must have a value other than None\.",
            r"--\1 is missing.",
            str(error),
        )
        sys.exit(_report("error", f"{' '.join(text.split()).rstrip('.')}. See --help.", 1))


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs an absl command. What users can cause becomes one line on stderr and exit code 1."""
    quiet_tensorflow(lambda: flags.FLAGS.is_parsed() and _VERBOSE.value)
    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every file of a SavedModel
    python_logging.getLogger("tensorflow").setLevel(
        python_logging.ERROR
    )  # ... and warns of every trace of a second model

    def ended(argv: list[str]) -> None:
        code = _guarded(main, argv)
        if code == INTERRUPTED:  # another one could now only spoil the exit code
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            # CPython keeps in mind that one passed through an exec of text (making a namedtuple,
            # say), and then ends by the signal,
            # whatever caught it and whatever the exit code; the next exec of text makes it forget
            exec("")
        sys.exit(code)

    app.run(ended, flags_parser=_parsed)
