"""A run's figures as TensorBoard summaries; needs the extra `tensorboard`."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Mapping

import numpy as np


def require() -> None:
    """Raises ValueError where TensorBoard is not installed: before long work, not after it."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "--tensorboard needs the package tensorboard, which is not installed. "
            "Install it with pip install tensorboard, "
            "or leave the flag out: metrics.jsonl and report.html hold the same figures."
        )


class Summaries:
    """Event files in `folder`/tensorboard."""

    def __init__(self, folder: pathlib.Path) -> None:
        import tensorflow as tf

        require()
        self._summary = tf.summary
        self._writer = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """One point of every figure, on disk at once."""
        with self._writer.as_default():
            for name, value in figures.items():
                self._summary.scalar(name, value, step=step)
        self._writer.flush()

    def finish(self, step: int, *, preview: np.ndarray, gaps: Mapping[str, float]) -> None:
        """The preview (uint8 [height, width, 3]) and the final gap of every layer."""
        self.add(step, {f"gap/{name}": value for name, value in gaps.items()})
        with self._writer.as_default():
            self._summary.image("preview", preview[None], step=step)
        self._writer.close()
