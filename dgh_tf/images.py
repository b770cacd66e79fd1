"""math: from canvases to model inputs. Canvases are float32 [batch, ...] in units where the valid range is [-1, 1].

`Layout` says what makes sense for one input: photographs get a larger canvas, smoothing, flips and crops; anything else
(vectors, sequences, spectrograms, maps too small to crop) is optimized as it is. Model units appear in `to_model` only.
"""
from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

SMOOTHING_SIGMA = 1.25  # pixels, 3 by 3 taps, as both reference implementations (at 224 pixels)
SHARP_SIDE = 96  # pixels: smaller images are smoothed less, as photographs made smaller are sharper
IMAGE_CHANNELS = (1, 3, 4)
SPECTRUM_EXPONENT = 1.5  # of amplitude against frequency; about 1 to 1.5 in photographs
COLOUR_SHARE = 0.1  # variance of the channels around grey, as a share of grey's
LEAVES_STD = 0.577  # of values uniform on [-1, 1]
LEAST_IMAGE_SIDE = 16  # pixels: below it a crop would throw away too much of the image


class Layout(NamedTuple):
    """How one model input is drawn from its canvas."""

    shape: tuple[int, ...]  # the model input's, without batch; channels last
    padding: int  # extra pixels of the canvas, 0 for no crop
    smoothing: float  # sigma in pixels, 0 for none
    flip: bool

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        return tuple(side + self.padding for side in self.shape[:2]) + self.shape[2:] if self.padding else self.shape

    def describe(self) -> str:
        parts = [f"canvas +{self.padding} px with crops" * bool(self.padding),
                 f"smoothing {self.smoothing:.2g} px" * bool(self.smoothing), "flips" * self.flip]
        return ", ".join(filter(None, parts)) or "no augmentation (not an image)"


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an input of `shape` (channels last, no batch axis) is treated as a picture of natural scenes."""
    return len(shape) == 3 and shape[-1] in IMAGE_CHANNELS and min(shape[:2]) >= LEAST_IMAGE_SIDE


def choose_layout(shape: tuple[int, ...], *, augment: bool = True, flip: str = "auto") -> Layout:
    """The layout for a model input of `shape` (channels last, no batch axis)."""
    if not (is_image(shape) and augment):
        return Layout(shape, 0, 0.0, False)
    padding = max(2, 2 * round(min(shape[:2]) / 28))  # 16 at 224 pixels
    smoothing = SMOOTHING_SIGMA * min(1.0, min(shape[:2]) / SHARP_SIDE)
    return Layout(shape, padding, smoothing, flip == "on" or (flip == "auto" and shape[-1] >= 3))


def smooth(images: tf.Tensor, *, sigma: float = SMOOTHING_SIGMA) -> tf.Tensor:
    """Gaussian 3x3 smoothing with reflected edges, as two passes of three shifted sums (separable)."""
    side = float(np.exp(-0.5 / sigma**2))
    centre, side = 1.0 / (1.0 + 2.0 * side), side / (1.0 + 2.0 * side)
    padded = tf.pad(images, [[0, 0], [1, 1], [0, 0], [0, 0]], "REFLECT")
    rows = centre * images + side * (padded[:, :-2] + padded[:, 2:])
    padded = tf.pad(rows, [[0, 0], [0, 0], [1, 1], [0, 0]], "REFLECT")
    return centre * rows + side * (padded[:, :, :-2] + padded[:, :, 2:])


@tf.custom_gradient
def clip_straight_through(images: tf.Tensor) -> tf.Tensor:
    """Clips to [-1, 1]; the gradient passes as if it did not, so that saturated pixels can come back."""
    return tf.clip_by_value(images, -1.0, 1.0), lambda upstream: upstream


def augment(canvas: tf.Tensor, layout: Layout, *, seed: tf.Tensor) -> tf.Tensor:
    """clip(smooth(flip(crop(canvas)))), one flip and one crop for the batch (DGH, augmentation stage).

    Cropping first makes the rest cheaper; smoothing then reflects at the crop's own edges.

    Args:
      canvas: float32 [batch, *layout.canvas_shape]. seed: int32 [2], the only source of randomness.
    Returns: float32 [batch, *layout.shape] within [-1, 1].
    """
    images = canvas
    if layout.padding:
        height, width = layout.shape[:2]
        # twice the offsets, so that each is even or odd equally often: the coin of the mirroring is fair at any padding
        top, left, coin = tf.unstack(tf.random.stateless_uniform([3], seed, 0, 2 * (layout.padding + 1), tf.int32))
        images = images[:, top // 2:top // 2 + height, left // 2:left // 2 + width]
        images = tf.ensure_shape(images, [None, *layout.shape])
        if layout.flip:
            images = tf.cond(coin % 2 == 1, lambda: tf.reverse(images, [2]), lambda: images)
    if layout.smoothing:
        images = smooth(images, sigma=layout.smoothing)
    return clip_straight_through(images)


def finish(canvas: tf.Tensor, layout: Layout) -> tf.Tensor:
    """The image that a canvas stands for: clip(centre crop(smooth(canvas))), float32 within [-1, 1]."""
    edge = layout.padding // 2
    images = smooth(canvas, sigma=layout.smoothing) if layout.smoothing else canvas
    if layout.padding:
        images = images[:, edge:edge + layout.shape[0], edge:edge + layout.shape[1]]
    return tf.clip_by_value(images, -1.0, 1.0)


def start_canvas(shape: tuple[int, ...], *, index: int, seed: int, std: float, start: str) -> np.ndarray:
    """Canvas number `index` of a run, float32 [*shape], of mean near 0 and near the given std.

    start: 'leaves', discs as in dead_leaves; 'noise', amplitude falling with spatial frequency as in photographs (Field
    1987), channels sharing most of it, as grey dominates colour there; 'white', independent N(0, std) values, which is
    what anything but an image gets.
    """
    generator = np.random.default_rng([seed, index])
    if start == "white" or not is_image(shape):
        return (std * generator.standard_normal(shape)).astype(np.float32)
    return std * (dead_leaves(shape, generator=generator) / LEAVES_STD if start == "leaves" else natural_noise(shape, generator=generator))


def natural_noise(shape: tuple[int, ...], *, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise of mean 0 and std 1 with the spectrum and colour of photographs, float32 [height, width, channels]."""
    noise, (rows, columns) = generator.standard_normal(shape), shape[:2]
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    falloff = np.maximum(frequency, 1.0 / max(rows, columns)) ** -SPECTRUM_EXPONENT
    noise = np.fft.irfft2(np.fft.rfft2(noise, axes=(0, 1)) * falloff[..., None], s=(rows, columns), axes=(0, 1))
    grey = noise.mean(axis=-1, keepdims=True)
    noise = grey / grey.std() + COLOUR_SHARE**0.5 * noise / noise.std()
    noise = noise / noise.std()
    return noise.astype(np.float32)


def to_model(images: tf.Tensor, *, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Canvas units [-1, 1] to model units [low, high] (scalars or per channel): the only door out."""
    low, high = tf.constant(low, tf.float32), tf.constant(high, tf.float32)
    return (high + low) / 2.0 + images * ((high - low) / 2.0)


def dead_leaves(shape: tuple[int, ...], *, generator: np.random.Generator) -> np.ndarray:
    """Overlapping discs of random size and colour, float32 [height, width, channels] within [-1, 1].

    The dead leaves model (Matheron 1968; Lee, Mumford, Huang 2001) shares with photographs what Gaussian noise of any
    spectrum lacks: flat parts and sharp edges, so the heavy tails that set the ranges of early layers.
    """
    height, width, channels = shape
    largest, smallest = max(height, width) / 3.0, 1.0
    image, free = np.zeros(shape, np.float32), np.ones((height, width), bool)
    while free.mean() > 0.01:
        # radii with density r^-3 between smallest and largest: the scale-invariant case
        radius = (smallest**-2 - generator.random() * (smallest**-2 - largest**-2)) ** -0.5
        y, x = generator.random(2) * (height, width)
        grey = generator.uniform(-1.0, 1.0)
        colour = np.clip(grey + COLOUR_SHARE**0.5 * 0.5 * generator.standard_normal(channels), -1.0, 1.0)
        rows = slice(max(0, int(y - radius)), int(y + radius) + 2)
        columns = slice(max(0, int(x - radius)), int(x + radius) + 2)
        inside = (np.arange(height)[rows, None] - y) ** 2 + (np.arange(width)[None, columns] - x) ** 2 <= radius**2
        visible = inside & free[rows, columns]
        image[rows, columns][visible] = colour
        free[rows, columns][visible] = False
    return image
