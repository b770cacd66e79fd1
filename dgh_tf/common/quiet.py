"""TensorFlow's own lines kept off the terminal. No flags here: what a program imports must not
define any.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator


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


class _QuietStart(importlib.abc.MetaPathFinder):
    """Holds stderr while TensorFlow is imported, whoever imports it (Keras does too). Serves one
    import, then is gone.
    """

    def __init__(self, verbose: Callable[[], bool]):
        self._verbose = verbose

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader and not self._verbose():
            execute = spec.loader.exec_module
            # a context manager made for each call
            spec.loader.exec_module = held_stderr()(execute)  # type: ignore[method-assign]
        return spec


def quiet_tensorflow(verbose: Callable[[], bool] = lambda: False) -> None:
    """Keeps TensorFlow's start-up lines off the terminal, unless `verbose` says otherwise when
    TensorFlow is imported.

    Works only before that. TF_CPP_MIN_LOG_LEVEL does not reach the lines that its C++ code writes
    before absl's InitializeLog. A hook, since a command imports TensorFlow as late as it can, in
    any of some thirty places and often by way of Keras: flags are refused without waiting for it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if not any(isinstance(finder, _QuietStart) for finder in sys.meta_path):
        sys.meta_path.insert(0, _QuietStart(verbose))
