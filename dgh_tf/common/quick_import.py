"""TensorFlow imported in half the processor time, for processes of our own.

The other half goes to two things. Python's garbage collector walks some 400,000 objects that stay,
again and again, and once more when the process ends. And Keras imports packages that are installed
but that no command needs.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.abc
import sys
from collections.abc import Iterator, Sequence
from typing import Any

# packages that Keras goes without: it wraps models for the one and draws with the other
UNUSED = ("sklearn", "matplotlib.pyplot")


class _Absent(importlib.abc.MetaPathFinder):
    """Refuses modules as if they were not installed; imported ones stay."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in self._names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@contextlib.contextmanager
def quick_import(*, unused: Sequence[str] = UNUSED) -> Iterator[None]:
    """Inside, imports of large packages that stay take less time.

    The garbage collector rests until the end; from then on it leaves alone what there is. So use it
    in a process of our own: in another's it would keep that one's garbage, too.

    Args:
      unused: modules that seem absent inside.

    Example:
      >>> with quick_import():
      ...     import tensorflow
    """
    finder, collecting = _Absent(unused), gc.isenabled()
    sys.meta_path.insert(0, finder)
    gc.disable()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        gc.freeze()
        if collecting:
            gc.enable()
