"""Calibration images from the two photographs that scikit-learn ships: data that is public, and not
the user's.
"""

from __future__ import annotations

import functools

import numpy as np

from dgh_tf.common.range_text import CONVENTIONS

# One of the two gives a set its variety. The smallest crop has a quarter of the sides of the
# largest one, about 100 pixels; colours change about as photographs differ from each other, but
# less.
_LEAST_SIDE = 0.25
_CONTRAST_SPREAD = 0.2  # of its logarithm
_BRIGHTNESS_STD, _CAST_STD = 0.08, 0.03  # where pixels lie in 0..1


def require_picture(shape: tuple[int, ...], *, kind: str = "image") -> bool:
    """Whether an input of `shape` (without batch) has its channels first.

    kind: what the input is, see `dgh_tf.ops.kinds`.

    Raises: ValueError for an input that is no picture of three channels.
    """
    if kind == "image" and len(shape) == 3 and 3 in (shape[0], shape[-1]):
        return shape[-1] != 3
    what = f"a {kind}" if kind != "image" else "no picture of three channels"
    raise ValueError(
        f"--sources: proxy gives crops of photographs, and the model's input {list(shape)} is "
        f"{what}. Leave proxy out."
    )


@functools.cache
def _photographs() -> tuple[np.ndarray, ...]:
    """uint8 [height, width, 3] each, red first."""
    from sklearn.datasets import load_sample_images

    return tuple(load_sample_images().images)


def proxy_images(
    shape: tuple[int, ...],
    *,
    bounds: tuple[np.ndarray, np.ndarray],
    num_images: int,
    seed: int,
) -> np.ndarray:
    """Crops of the photographs, of random size and place, mirrored or not, each with a contrast, a
    brightness and a colour cast of its own.

    Args:
      shape: of the model's input without batch, with three channels, first or last.
      bounds: low and high of the valid input range, of a shape that broadcasts with `shape`. Where
        it is that of the convention caffe, blue comes first.
      num_images: how many; the photographs take turns.
      seed: the only source of randomness: image i depends on it and i alone.
    Returns: float32 [num_images, *shape] in model input units.
    Raises: ValueError as `require_picture`.
    """
    first = require_picture(shape)
    size = shape[1:] if first else shape[:2]
    photographs = _photographs()
    pictures = np.stack(
        [
            _crop(photographs[i % len(photographs)], size, np.random.default_rng([seed, i]))
            for i in range(num_images)
        ]
    )
    low, high = bounds
    if low.size == 3 and np.allclose(low.ravel(), CONVENTIONS["caffe"][0], atol=1e-3):
        pictures = pictures[..., ::-1]
    pictures = np.moveaxis(pictures, -1, 1) if first else pictures
    return (low + pictures * (high - low)).astype(np.float32)


def _crop(
    photograph: np.ndarray, size: tuple[int, ...], generator: np.random.Generator
) -> np.ndarray:
    """A random view of a photograph, float64 [*size, 3] within [0, 1]."""
    from PIL import Image

    height, width = size
    largest = min(photograph.shape[0] / height, photograph.shape[1] / width)
    zoom = largest * np.exp(generator.uniform(np.log(_LEAST_SIDE), 0.0))
    top = generator.uniform(0.0, photograph.shape[0] - zoom * height)
    left = generator.uniform(0.0, photograph.shape[1] - zoom * width)
    view = Image.fromarray(photograph).resize(
        (width, height),
        Image.Resampling.BILINEAR,
        box=(left, top, left + zoom * width, top + zoom * height),
    )
    pixels = np.asarray(view, np.float64) / 255.0
    if generator.random() < 0.5:
        pixels = pixels[:, ::-1]
    mean = pixels.mean(axis=(0, 1))
    contrast = np.exp(_CONTRAST_SPREAD * generator.standard_normal())
    brightness = _BRIGHTNESS_STD * generator.standard_normal()
    cast = _CAST_STD * generator.standard_normal(3)
    return np.clip(mean + contrast * (pixels - mean) + brightness + cast, 0.0, 1.0)
