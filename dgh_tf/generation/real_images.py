"""A few real images without labels, which help generation and join its images: from files to
model units.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dgh_tf.common.image_files import image_shape, list_image_files, read_image
from dgh_tf.common.text import rounded
from dgh_tf.common.value_range import LARGEST_GAP, OVERSHOOT, check_units, place, span
from dgh_tf.input_range.conventions import widened
from dgh_tf.models.first_statistics import first_gap

if TYPE_CHECKING:
    from dgh_tf.input_range.conventions import InputRange
    from dgh_tf.models.network import Network

MOST = 32


def real_images(
    source: str | pathlib.Path | np.ndarray | None,
    *,
    network: Network,
    ranges: Sequence[InputRange],
) -> tuple[np.ndarray, list[InputRange]]:
    """`load_hint` for a network and the ranges found for it: (images, none where source is None;
    the ranges).

    A range that was fitted to statistics, with no convention behind it, is widened to hold images
    whose own statistics say that their units are right.
    """
    shape, valid = network.input_shapes[0], ranges[0]
    if source is None:
        return np.zeros((0, *shape), np.float32), list(ranges)
    if len(network.input_shapes) > 1:
        raise ValueError(
            f"real_hint takes models with one input; this one has {len(network.input_shapes)}."
        )
    images = load_hint(
        source, shape=shape, low=valid.low, high=valid.high, bounded=not valid.fitted
    )
    if valid.fitted:
        gap = first_gap(network.model, network.own_layout([images])) or 0.0
        if gap > LARGEST_GAP:
            raise ValueError(
                "real_hint: the model's first BatchNorm layers do not know such values "
                f"({_span(images, images)}, gap {rounded(gap)}, expected at most {LARGEST_GAP}). "
                "Give them in model input units; if they are, say so with input_range=LOW,HIGH."
            )
        return images, [widened(valid, images, source="the real images")]
    text = check_units(
        images,
        valid.known(),
        what=f"real_hint={'array' if isinstance(source, np.ndarray) else source}",
        gap=lambda values: first_gap(network.model, network.own_layout([values])),
        preprocess=None,
        input_range="input_range",
    )
    # Dark pictures look odd, too; other units are those that a plain mapping would bring in place.
    # A few images in wrong units would spoil the statistics of the whole set.
    if text and place(*span(images), valid_low=valid.low, valid_high=valid.high).mapping:
        raise ValueError(text)
    return images, list(ranges)


def load_hint(
    source: str | pathlib.Path | np.ndarray,
    *,
    shape: Sequence[int],
    low: Sequence[float],
    high: Sequence[float],
    bounded: bool = True,
) -> np.ndarray:
    """1 to 32 real images.

    Args:
      source: a folder of image files, an .npy file, an .npz with x, or an array. Image files and
        uint8 arrays hold pixels, 0..255, which stand for `low` to `high`; other arrays are in model
        input units already.
      shape: (height, width, channels) of the input, or any other shape for arrays.
      low: lower end of the valid input range in model units, one value or one per channel.
      high: upper end, in the same form.
      bounded: refuse values outside it.
    Returns: float32 [images, *shape] in model input units, channels last.
    Raises: FileNotFoundError; ValueError for another number, another shape, values outside the
      range or not finite.
    """
    path = "array" if isinstance(source, np.ndarray) else pathlib.Path(source)
    images = source if isinstance(source, np.ndarray) else _read(pathlib.Path(source), shape)
    _require_few(len(images), path)
    if images.shape[1:] != tuple(shape):
        raise ValueError(
            f"real_hint={path} holds images of shape {images.shape[1:]}, the model "
            f"takes {tuple(shape)}. Resize them first."
        )
    least, most = np.asarray(low, np.float32), np.asarray(high, np.float32)
    if images.dtype == np.uint8:
        return least + (most - least) * images.astype(np.float32) / 255
    images = images.astype(np.float32)
    slack = OVERSHOOT * (most - least) if bounded else np.inf
    if (
        not np.isfinite(images).all()
        or (images < least - slack).any()
        or (images > most + slack).any()
    ):
        raise ValueError(
            f"real_hint={path} holds values from {_span(images, images)}, outside the model's "
            f"valid range {_span(least, most)}. Give them in model input units or as uint8 pixels; "
            "if they are right and that range was found, not given, give the range of real inputs "
            "with input_range=LOW,HIGH."
        )
    return images


def _span(low: np.ndarray, high: np.ndarray) -> str:
    return f"{rounded(low.min(), digits=4)} to {rounded(high.max(), digits=4)}"


def _read(path: pathlib.Path, shape: Sequence[int]) -> np.ndarray:
    if not path.exists():
        raise FileNotFoundError(
            f"real_hint={path}: no such file or folder. Give a folder of "
            "images, an .npy or an .npz."
        )
    return _pictures(path, shape) if path.is_dir() else _array(path)


def _require_few(count: int, path: pathlib.Path | str) -> None:
    if not 1 <= count <= MOST:
        raise ValueError(
            f"real_hint={path} holds {count} images; expected 1 to {MOST}. With "
            "more, calibrate on them instead."
        )


def _pictures(folder: pathlib.Path, shape: Sequence[int]) -> np.ndarray:
    image_shape(shape, instead="Give real_hint=FILE.npy.")
    files = list_image_files(folder)
    _require_few(len(files), folder)  # before reading what may be a whole data set
    return np.stack([read_image(file, shape=shape) for file in files])


def _array(path: pathlib.Path) -> np.ndarray:
    try:
        data = np.load(path, allow_pickle=False)
        array = data if isinstance(data, np.ndarray) else data["x"]
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise ValueError(
            f"real_hint={path} cannot be read ({error}). Expected an .npy of "
            "numbers, or an .npz with x."
        ) from error
    if array.dtype.kind not in "uif" or not array.ndim:
        raise ValueError(f"real_hint={path} holds {array.dtype}; expected numbers [images, ...].")
    return array
