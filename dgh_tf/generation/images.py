"""state: calibration images from a model in one call."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dgh_tf.config import GenerationConfig
from dgh_tf.generation.generator import Generator
from dgh_tf.generation.update import Progress


def generate_images(
    model,
    config: GenerationConfig | None = None,
    *,
    strategy: tf.distribute.Strategy | None = None,
    report: Callable[[Progress], bool] | None = None,
    real_hint: str | pathlib.Path | np.ndarray | None = None,
) -> np.ndarray | dict[str, np.ndarray]:
    """Images whose statistics in `model` are those of its training set (DGH, WACV 2025).

    Args:
      model: a trained Keras model with BatchNormalization; it is left unchanged.
      config: settings; the defaults where None.
      report: called with the progress about every two seconds; returning True ends the run early.
      real_hint: 1 to 32 real images, a folder or an array (see `hint.load_hint`): their statistics
        are pooled with those of the
        generated ones, and they stand at the end of what is returned.
    Returns: float32 [num_images (+ real ones), *input shape] in the model's input units; a dict by
      input name for several inputs.
    Raises: ValueError when the model or a setting cannot work; FloatingPointError when the loss
      diverges.
    """
    generator = Generator(
        model, config or GenerationConfig(), strategy=strategy, real_hint=real_hint
    )
    generator.start()
    generator.run(report=report)
    images = generator.all_images()
    if len(images) == 1:
        return images[0]
    return dict(zip(generator.network.input_names, images, strict=True))
