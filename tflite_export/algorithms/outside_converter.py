"""Failures of a float file's graph that is run by this package, outside TensorFlow's converter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dgh_tf.common.text import in_one_line


class OutsideError(ValueError):
    """A float file's graph does not run outside the converter, so that no algorithm that runs it
    takes the model.
    """


@contextlib.contextmanager
def outside_converter() -> Iterator[None]:
    """Around what every algorithm does with a graph. Raises OutsideError for whatever goes wrong,
    but for too little memory.
    """
    import tensorflow as tf

    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        raise OutsideError(what_failed(error)) from error


def what_failed(error: Exception) -> str:
    """An error in one short line; TensorFlow's own texts speak of its internals."""
    import tensorflow as tf

    if isinstance(error, tf.errors.OpError):
        return "TensorFlow cannot run a part of it outside the converter"
    if not isinstance(error, ValueError):
        return f"it ends in {type(error).__name__}"
    return in_one_line(error, most=300)
