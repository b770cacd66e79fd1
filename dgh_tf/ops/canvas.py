"""From canvases to model inputs. Canvases are float32 [batch, ...] in units where the valid
range is [-1, 1].

`Layout` says what makes sense for one input: photographs get a larger canvas, smoothing, flips and
crops; anything else (vectors, sequences, spectrograms, maps too small to crop) is optimized as it
is. Model units appear in `to_model` only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dgh_tf.ops.fusion import fused
from dgh_tf.ops.kinds import LEAST_IMAGE_SIDE

SMOOTHING_SIGMA = 1.25  # pixels, 3 by 3 taps, as both reference implementations (at 224 pixels)
SHARP_SIDE = 96  # pixels: smaller images are smoothed less, as photographs made smaller are sharper
# The same where no statistics hold the early layers, which stretching drives too far with fine
# texture: chosen by SQNR on even-numbered evaluation images of ResNet-8.
SHARP_SIDE_ALONE = 64
IMAGE_CHANNELS = (1, 3, 4)
SPECTRUM_EXPONENT = 1.5  # of amplitude against frequency; about 1 to 1.5 in photographs
COLOUR_SHARE = 0.1  # variance of the channels around grey, as a share of grey's
BLOCK = 2048  # discs drawn at a time
SIDE_RATIO = 1.5  # windows of discs whose sides differ by less than this are looked at together
# How images differ from each other, in units of the std of all pixels. Read off four sets of
# photographs (two of ImageNet's, two of CIFAR-10's): the std of an image's mean grey is 0.42 to
# 0.50, of its mean colours around that 0.15 to 0.25; the logarithm of its contrast spreads by 0.29
# to 0.35.
BRIGHTNESS_STD = 0.46
CAST_STD = 0.2
CONTRAST_SPREAD = 0.3
LEAVES_STD = 0.577  # of values uniform on [-1, 1]


class Layout(NamedTuple):
    """How one model input is drawn from its canvas."""

    shape: tuple[int, ...]  # the model input's, without batch; channels last
    padding: int  # pixels by which a crop can move, 0 for no crop
    smoothing: float  # sigma in pixels, 0 for none
    flip: bool

    @property
    def margin(self) -> int:
        """Pixels around every crop that smoothing reads and the image does not hold."""
        return 1 if self.smoothing else 0

    @property
    def canvas_shape(self) -> tuple[int, ...]:
        extra = self.padding + 2 * self.margin
        return (
            tuple(side + extra for side in self.shape[:2]) + self.shape[2:] if extra else self.shape
        )

    def describe(self) -> str:
        parts = [
            f"canvas +{self.padding} px with crops" * bool(self.padding),
            f"smoothing {self.smoothing:.2g} px" * bool(self.smoothing),
            "flips" * self.flip,
        ]
        return ", ".join(filter(None, parts)) or "no augmentation (not an image)"


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an input of `shape` (channels last, no batch axis) is treated as a picture of natural
    scenes.
    """
    return len(shape) == 3 and shape[-1] in IMAGE_CHANNELS and min(shape[:2]) >= LEAST_IMAGE_SIDE


def choose_layout(
    shape: tuple[int, ...], *, augment: bool = True, flip: str = "auto", statistics: bool = True
) -> Layout:
    """The layout for a model input of `shape` (channels last, no batch axis).

    Args:
      shape: of the input.
      augment: the setting of this name.
      flip: the same.
      statistics: whether the model has some.
    """
    if not (is_image(shape) and augment):
        return Layout(shape, 0, 0.0, False)
    padding = max(2, 2 * round(min(shape[:2]) / 28))  # 16 at 224 pixels
    sharp = SHARP_SIDE if statistics else SHARP_SIDE_ALONE
    smoothing = SMOOTHING_SIGMA * min(1.0, min(shape[:2]) / sharp)
    return Layout(shape, padding, smoothing, flip == "on" or (flip == "auto" and shape[-1] >= 3))


def smooth(images: tf.Tensor, *, sigma: float) -> tf.Tensor:
    """Gaussian smoothing with 3x3 taps, of the inner pixels alone: float32 [batch, H, W, C] to
    [batch, H - 2, W - 2, C].

    Without edges to mirror, its gradient is the same filter over an image padded with zeros.
    """
    height, width, channels = images.shape[1:]
    side = float(np.exp(-0.5 / sigma**2))
    centre, side = 1.0 / (1.0 + 2.0 * side), side / (1.0 + 2.0 * side)
    rows = tf.reshape(
        images, [-1, height, width * channels]
    )  # long rows vectorize, three channels do not
    return tf.reshape(
        fused(_taps(channels))(rows, tf.constant(centre), tf.constant(side)),
        [-1, height - 2, width - 2, channels],
    )


@functools.cache
def _taps(channels: int) -> Callable:
    def taps(x: tf.Tensor, centre: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
        x = centre * x[:, 1:-1] + side * (x[:, :-2] + x[:, 2:])
        return centre * x[..., channels:-channels] + side * (
            x[..., : -2 * channels] + x[..., 2 * channels :]
        )

    return taps


def augment(canvas: tf.Tensor, layout: Layout, *, seed: tf.Tensor) -> tf.Tensor:
    """clip(smooth(flip(crop(canvas)))), one flip and one crop for the batch (DGH, augmentation
    stage).

    Its gradient is written out: that of clipping passes straight through, so that saturated pixels
    can come back.

    Args:
      canvas: float32 [batch, *layout.canvas_shape].
      layout: how the input is drawn: its shape, padding, smoothing and flips.
      seed: int32 [2], the only source of randomness.
    Returns: float32 [batch, *layout.shape] within [-1, 1].
    """
    # twice the offsets, so that each is even or odd equally often: the coin of the mirroring is
    # fair at any padding
    top, left, coin = tf.unstack(
        tf.random.stateless_uniform([3], seed, 0, 2 * (layout.padding + 1), tf.int32)
    )
    return _draw(canvas, layout, top=top // 2, left=left // 2, mirrored=coin % 2 == 1)


def finish(canvas: tf.Tensor, layout: Layout) -> tf.Tensor:
    """The image that a canvas stands for: clip(smooth(centre crop(canvas))), float32 within [-1,
    1].
    """
    middle = tf.constant(layout.padding // 2)
    return _draw(canvas, layout, top=middle, left=middle, mirrored=None)


def _draw(
    canvas: tf.Tensor,
    layout: Layout,
    *,
    top: tf.Tensor,
    left: tf.Tensor,
    mirrored: tf.Tensor | None,
) -> tf.Tensor:
    margin, (height, width) = layout.margin, layout.shape[:2] if len(layout.shape) > 1 else (0, 0)

    def turned(images: tf.Tensor) -> tf.Tensor:
        return (
            tf.cond(mirrored, lambda: tf.reverse(images, [2]), lambda: images)
            if layout.flip and mirrored is not None
            else images
        )

    @tf.custom_gradient
    def drawn(canvas: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        images = canvas
        if layout.padding:
            images = tf.slice(
                canvas,
                [0, top, left, 0],
                [-1, height + 2 * margin, width + 2 * margin, layout.shape[2]],
            )
        images = tf.ensure_shape(
            images, [None, *(s + 2 * margin for s in layout.shape[:2]), *layout.shape[2:]]
        )
        images = turned(images)
        images = smooth(images, sigma=layout.smoothing) if layout.smoothing else images

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            back = upstream
            if layout.smoothing:
                back = smooth(
                    tf.pad(back, [[0, 0], [2, 2], [2, 2], [0, 0]]), sigma=layout.smoothing
                )
            back = turned(back)
            rest = layout.padding
            return (
                tf.pad(back, [[0, 0], [top, rest - top], [left, rest - left], [0, 0]])
                if rest
                else back
            )

        return tf.raw_ops.ClipByValue(t=images, clip_value_min=-1.0, clip_value_max=1.0), gradient

    return tf.ensure_shape(drawn(canvas), [None, *layout.shape])


def start_canvas(
    shape: tuple[int, ...], *, index: int, seed: int, std: float, start: str
) -> np.ndarray:
    """Canvas number `index` of a run, float32 [*shape], of mean near 0 and near the given std.

    start: 'leaves', discs as in dead_leaves; 'noise', amplitude falling with spatial frequency as
    in photographs (Field 1987), channels sharing most of it, as grey dominates colour there;
    'white', independent N(0, std) values, which is what anything but an image gets.
    """
    generator = np.random.default_rng([seed, index])
    if start == "white" or not is_image(shape):
        return (std * generator.standard_normal(shape)).astype(np.float32)
    if start == "noise":
        return std * natural_noise(shape, generator=generator)
    leaves = dead_leaves(shape, generator=generator) / LEAVES_STD
    return std * exposed(leaves, generator=generator)


def exposed(image: np.ndarray, *, generator: np.random.Generator) -> np.ndarray:
    """An image of mean near 0 and std near 1 with a contrast, a brightness and a colour cast of its
    own, float32 [height, width, channels].

    Dead leaves are all alike in these, photographs are not: a quarter of the variance of their
    pixels lies between the means of images. Without it, neither does the variance of what the first
    layers compute, and no optimization of pooled statistics brings it in. See BRIGHTNESS_STD.
    """
    contrast = np.exp(CONTRAST_SPREAD * generator.standard_normal() - CONTRAST_SPREAD**2)
    cast = CAST_STD * np.asarray(generator.standard_normal(image.shape[-1]))
    brightness = BRIGHTNESS_STD * generator.standard_normal()
    within = np.sqrt(1.0 - BRIGHTNESS_STD**2 - CAST_STD**2)
    centred = image - image.mean(axis=(0, 1))
    return (within * contrast * centred + brightness + cast - cast.mean()).astype(np.float32)


def natural_noise(shape: tuple[int, ...], *, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise of mean 0 and std 1 with the spectrum and colour of photographs, float32
    [height, width, channels].
    """
    noise, (rows, columns) = generator.standard_normal(shape), shape[:2]
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)[None])
    falloff = np.maximum(frequency, 1.0 / max(rows, columns)) ** -SPECTRUM_EXPONENT
    noise = np.fft.irfft2(
        np.fft.rfft2(noise, axes=(0, 1)) * falloff[..., None], s=(rows, columns), axes=(0, 1)
    )
    grey = noise.mean(axis=-1, keepdims=True)
    noise = grey / grey.std() + COLOUR_SHARE**0.5 * noise / noise.std()
    noise = noise / noise.std()
    return noise.astype(np.float32)


def to_canvas(images: tf.Tensor, *, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Canvas units of images in model input units: `to_model` the other way round."""
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    return (images - low) * (2.0 / (high - low)) - 1.0


def to_model(images: tf.Tensor, *, low: tf.Tensor, high: tf.Tensor) -> tf.Tensor:
    """Canvas units [-1, 1] to model units [low, high] (scalars or per channel): the only
    door out.
    """
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    if (low == -1.0).all() and (high == 1.0).all():
        return images
    return (high + low) / 2.0 + images * ((high - low) / 2.0)


def dead_leaves(shape: tuple[int, ...], *, generator: np.random.Generator) -> np.ndarray:
    """Overlapping discs of random size and colour, float32 [height, width, channels] within [-1,
    1].

    The dead leaves model (Matheron 1968; Lee, Mumford, Huang 2001) shares with photographs what
    Gaussian noise of any spectrum lacks: flat parts and sharp edges, so the heavy tails that set
    the ranges of early layers.
    """
    height, width, channels = shape
    largest, smallest = max(height, width) / 3.0, 1.0
    image, free = np.zeros(shape, np.float32), np.ones((height, width), bool)
    while np.count_nonzero(free) > 0.01 * free.size:
        # a block of discs, topmost first; radii with density r^-3 between smallest and largest: the
        # scale-invariant case
        radii = (smallest**-2 - generator.random(BLOCK) * (smallest**-2 - largest**-2)) ** -0.5
        ys, xs = generator.random(BLOCK) * height, generator.random(BLOCK) * width
        greys = generator.uniform(-1.0, 1.0, (BLOCK, 1))
        colours = np.clip(
            greys + COLOUR_SHARE**0.5 * 0.5 * generator.standard_normal((BLOCK, channels)),
            -1.0,
            1.0,
        )
        first = first_discs(free.shape, ys=ys, xs=xs, radii=radii)
        covered = free & (first < BLOCK)
        image[covered] = colours[first[covered]]
        free &= ~covered
    return image


def first_discs(
    shape: tuple[int, int], *, ys: np.ndarray, xs: np.ndarray, radii: np.ndarray
) -> np.ndarray:
    """For every pixel the number of the first disc that covers it, int32 [height, width]; as many
    as there are discs where none does.

    Discs of about one size are looked at together, each in a window of its own: a square, or what
    of it fits into the image.

    Args:
      shape: height and width.
      ys: of the centres, in pixels, float64 [discs].
      xs: the same.
      radii: the same.
    """
    height, width = shape
    first = np.full(height * width, len(radii), np.int32)
    tops, lefts = (np.maximum(centre - radii, 0).astype(np.int32) for centre in (ys, xs))
    rows = (ys + radii + 2).astype(np.int32) - tops
    columns = (xs + radii + 2).astype(np.int32) - lefts
    sides = np.maximum(rows, columns)
    classes = np.ceil(np.log(sides) / np.log(SIDE_RATIO))
    ys, xs, squares = (value.astype(np.float32) for value in (ys, xs, np.square(radii)))
    for each in np.unique(classes):
        discs = np.flatnonzero(classes == each)
        window = np.arange(sides[discs].max(), dtype=np.int32)
        y, x = tops[discs, None] + window[:height], lefts[discs, None] + window[:width]
        vertical = np.square(y.astype(np.float32) - ys[discs, None])
        horizontal = np.square(x.astype(np.float32) - xs[discs, None])
        vertical[y >= height], horizontal[x >= width] = np.inf, np.inf
        inside = vertical[:, :, None] + horizontal[:, None, :] <= squares[discs, None, None]
        disc, row, column = np.nonzero(inside)
        pixels = y[disc, row] * width + x[disc, column]
        np.minimum.at(first, pixels, discs[disc].astype(np.int32))
    return first.reshape(shape)
