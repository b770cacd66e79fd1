"""The model's inputs as they are drawn from canvases, each by its layout and valid range."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from dgh_tf.config import GenerationConfig
from dgh_tf.input_range.conventions import InputRange
from dgh_tf.ops import canvas


@dataclasses.dataclass(frozen=True)
class Inputs:
    """How every input of a model is drawn, in the model's order of inputs."""

    layouts: Sequence[canvas.Layout]
    ranges: Sequence[InputRange]

    def start(self, number: int, *, first: int, size: int, config: GenerationConfig) -> np.ndarray:
        """Start canvases of input `number` for the images first .. first + size of the set.

        Returns: float32 [size, *canvas shape].
        """
        layout, std, inputs = self.layouts[number], self.ranges[number].prior_std, len(self.layouts)
        return np.stack(
            [
                canvas.start_canvas(
                    layout.canvas_shape,
                    index=image * inputs + number,
                    seed=config.seed,
                    std=std,
                    start=config.start,
                )
                for image in range(first, first + size)
            ]
        )

    def augment(self, canvases: Sequence[tf.Tensor], *, seed: tf.Tensor) -> list[tf.Tensor]:
        """Augmented images in canvas units. seed: int32 [2], see `canvas.augment`."""
        pairs = zip(canvases, self.layouts, strict=True)
        return [canvas.augment(c, layout, seed=seed) for c, layout in pairs]

    def finish(self, canvases: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The images that canvases stand for, in canvas units."""
        pairs = zip(canvases, self.layouts, strict=True)
        return [canvas.finish(c, layout) for c, layout in pairs]

    def to_model(self, units: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Images in model units from images in canvas units."""
        pairs = zip(units, self.ranges, strict=True)
        return [canvas.to_model(u, low=r.low, high=r.high) for u, r in pairs]

    def to_canvas(self, images: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Images in canvas units from images in model units."""
        pairs = zip(images, self.ranges, strict=True)
        return [canvas.to_canvas(x, low=r.low, high=r.high) for x, r in pairs]
