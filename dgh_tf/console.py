"""cli: what every command shares: a quiet TensorFlow, one-line errors, exit codes."""
from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from absl import app, flags

_VERBOSE = flags.DEFINE_bool("verbose", False, "Show the traceback behind an error.")
INTERRUPTED = 130  # the shell's convention for a process ended by SIGINT


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it
    """A signal stopped the run; everything up to `message` is saved."""

    def __init__(self, message: str, *, exit_code: int = INTERRUPTED):
        super().__init__(message)
        self.exit_code = exit_code


def quiet_tensorflow() -> None:
    """Keeps TensorFlow's start-up lines off the terminal. Works only before TensorFlow is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def say(text: str) -> None:
    """One line for the user on standard output, at once."""
    print(text, flush=True)


def _report(kind: str, text: str, code: int) -> int:
    print(f"{kind}: {text}", file=sys.stderr, flush=True)
    return code


def _guarded(main: Callable[[list[str]], int | None], argv: list[str]) -> int:
    if len(argv) > 1:
        return _report("error", f"unexpected argument {argv[1]!r}. Options are given as --name=value; see --help.", 2)
    try:
        return main(argv) or 0
    except Interrupted as stop:
        return _report("stopped", str(stop), stop.exit_code)
    except KeyboardInterrupt:
        return _report("stopped", "interrupted; nothing half-written was left behind.", INTERRUPTED)
    except MemoryError as error:
        text = f"not enough memory ({error}). Use a smaller --batch_size or fewer --num_images."
    except (ValueError, OSError, ImportError) as error:  # what users can cause; anything else is our fault and shows itself
        text = str(error) or type(error).__name__
    if _VERBOSE.value:
        traceback.print_exc()
    return _report("error", text, 1)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs an absl command. ValueError, OSError and ImportError become one line on stderr and exit code 1."""
    quiet_tensorflow()
    app.run(lambda argv: sys.exit(_guarded(main, argv)))
