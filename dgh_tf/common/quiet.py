"""TensorFlow's own lines kept off the terminal. No flags here: what a program imports must not
define any.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from dgh_tf.common.quick_import import quick_import


@contextlib.contextmanager
def held_stderr() -> Iterator[None]:
    """Holds back what this process, C++ code included, writes to file descriptor 2; shown only when
    the block fails.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:  # Ctrl-C is no failure: nobody needs the lines then
            sys.stderr.flush()
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def without_retracing_warnings() -> Iterator[None]:
    """Keeps back that a function was traced anew: every model has its own, which TensorFlow takes
    for one that is given other shapes each time.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "triggered tf.function retracing" not in record.getMessage()

    logger = logging.getLogger("tensorflow")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


class _QuietStart(importlib.abc.MetaPathFinder):
    """Holds stderr and saves time while TensorFlow is imported, or Keras, which imports it. Serves
    one import, then is gone.
    """

    def __init__(self, verbose: Callable[[], bool]) -> None:
        self._verbose = verbose

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in ("tensorflow", "keras"):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            execute = quick_import()(spec.loader.exec_module)  # one made for each call
            if not self._verbose():
                execute = held_stderr()(execute)
            spec.loader.exec_module = execute  # type: ignore[method-assign]
        return spec


def quiet_tensorflow(verbose: Callable[[], bool] = lambda: False) -> None:
    """Keeps TensorFlow's start-up lines off the terminal, unless `verbose` says otherwise when
    TensorFlow is imported, and imports it by `quick_import`.

    Works only before that. TF_CPP_MIN_LOG_LEVEL does not reach the lines that its C++ code writes
    before absl's InitializeLog. A hook, since a command imports TensorFlow as late as it can, in
    any of some thirty places and often by way of Keras: flags are refused without waiting for it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if not any(isinstance(finder, _QuietStart) for finder in sys.meta_path):
        sys.meta_path.insert(0, _QuietStart(verbose))
