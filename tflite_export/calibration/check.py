"""Checks of calibration images, and their form for tf.lite.TFLiteConverter.

Images are arrays [number, ...input shape] in the model's input units; models with several inputs
take a dict of such arrays by input name. The converter of TensorFlow 2.21 must not see bad data:
all-NaN or empty data silently gives a float model, an Inf kills the process, constants and a wrong
value range pass and give a useless scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from dgh_tf.common.subsets import spread
from dgh_tf.common.value_range import Placement, place

Images = np.ndarray | Mapping[str, np.ndarray]
Range = tuple[float | Sequence[float], float | Sequence[float]]

# share of the range's width by which values may leave it: float32 rounding of clipped images
_ROUNDING = 1e-3
# The activations of all images are in memory at once where biases or roundings are learned; a layer
# holds up to some sixteen times what the input does, in float and quantized: about 4 GB at this
# many input values.
_MOST_IMAGES, _LEAST_IMAGES, _MOST_VALUES = 128, 8, 2**25
_CHUNK = 2**22  # values looked at together, so that a memory-mapped array is never copied whole


def _rows(array: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, some rows) over the whole array."""
    step = max(1, _CHUNK // max(1, array[0].size))
    for start in range(0, len(array), step):
        yield start, array[start : start + step]


def _fits(shape: tuple[int, ...], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(
        e is None or s == e for s, e in zip(shape, expected, strict=True)
    )


def _check_form(array: np.ndarray, expected: Sequence[int | None], name: str) -> np.ndarray:
    """Dtype, count and shape; returns the array as float32 (the same memory if it is float32
    already).
    """
    if array.dtype.kind not in "fiu":
        raise ValueError(
            f"Calibration data for input '{name}' has dtype {array.dtype}; expected "
            "numbers such as float32 or uint8. "
            "Convert it to a float32 array in the model's input units."
        )
    if array.ndim == 0 or array.size == 0:
        raise ValueError(
            f"Calibration data for input '{name}' is empty (shape "
            f"{list(array.shape)}); expected at least one image "
            f"of shape {list(expected)}. Check the source it was loaded from."
        )
    if not _fits(array.shape[1:], expected):
        hint = "Resize or crop the images to the model's input."
        if _fits(array.shape, expected):
            hint = "Add the batch axis: images[None]."
        elif array.ndim == 4 and _fits((*array.shape[2:], array.shape[1]), expected):
            hint = "Move the channels to the last axis: images.transpose(0, 2, 3, 1)."
        raise ValueError(
            f"Calibration data for input '{name}' has shape {list(array.shape)}; expected "
            "[number of images, "
            f"{', '.join('any' if e is None else str(e) for e in expected)}]. {hint}"
        )
    with np.errstate(
        over="ignore"
    ):  # a float64 beyond float32 becomes Inf, which the next check names
        return np.asarray(array, dtype=np.float32)


def _check_values(array: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """NaN, Inf, constants; returns the smallest and the largest value per channel (last axis),
    float32 [channels].
    """
    low, high = [], []
    for start, rows in _rows(array):
        finite = np.isfinite(rows)
        if not finite.all():
            where = np.argwhere(~finite)[0]
            value = rows[tuple(where)]
            raise ValueError(
                f"Calibration data for input '{name}' holds {value} at image "
                f"{start + where[0]}, position "
                f"{where[1:].tolist()}; expected finite float32 numbers. Remove or "
                "regenerate that image; "
                "a division by zero in preprocessing is the usual cause."
            )
        axes = tuple(range(rows.ndim - 1))
        low.append(rows.min(axis=axes))
        high.append(rows.max(axis=axes))
    low, high = np.min(low, axis=0), np.max(high, axis=0)
    smallest, largest = float(np.min(low)), float(np.max(high))
    if smallest == largest:
        raise ValueError(
            f"Calibration data for input '{name}' is constant: all {array.size} "
            f"values are {smallest:g}; expected "
            "images. A constant gives the input a useless scale. Check the source it "
            "was loaded from."
        )
    if largest - smallest > float(np.finfo(np.float32).max):
        raise ValueError(
            f"Calibration data for input '{name}' spans {smallest:g} .. {largest:g}, "
            "more than float32 can hold; "
            "expected the model's input units. Check the preprocessing."
        )
    return low, high


class UnitsError(ValueError):
    """Values that are not in the model's input range. `placement` says how they lie in it."""

    def __init__(self, text: str, placement: Placement) -> None:
        super().__init__(
            f"{text} Use the preprocessing the model was trained with, or correct the "
            "input range if that is wrong."
        )
        self.text, self.placement = text, placement


def _check_channels(array: np.ndarray, value_range: Range, name: str) -> None:
    """Refuses a range of other than one value, or one per channel, last or first."""
    count = np.size(value_range[0])
    if count not in (1, array.shape[-1], array.shape[1]):
        raise ValueError(
            f"The input range has {count} pairs, but input '{name}' of shape "
            f"{list(array.shape[1:])} has no {count} channels. Give one LOW,HIGH for all, or one "
            "for each channel."
        )


def _check_range(low: np.ndarray, high: np.ndarray, value_range: Range, name: str) -> None:
    """Compares the values' span per channel with the model's input range."""
    placement = place(low, high, valid_low=value_range[0], valid_high=value_range[1])
    expected = f"expected values in {placement.expected}, the model's input range"
    seen = f"Calibration data for input '{name}' spans {placement.seen}"
    if placement.excess > _ROUNDING:
        raise UnitsError(f"{seen}; {expected}.", placement)
    if placement.odd:
        raise UnitsError(f"{seen}: {placement.odd}; {expected}, and most of it used.", placement)


def check_calibration(
    images: Images,
    *,
    input_shapes: Mapping[str, Sequence[int | None]],
    value_range: Range | Mapping[str, Range] | None = None,
) -> dict[str, np.ndarray]:
    """Checks calibration images before a converter sees them.

    Args:
      images: array [number, ...input shape] of any real dtype, or a dict of such arrays by input
        name.
      input_shapes: shape without the batch axis by input name, in the model's order; None fits any
        size.
      value_range: (low, high) of the model's input units, numbers or one value per channel, or a
        dict of such pairs by input name; None when it is not known.
    Returns:
      float32 arrays by input name, in the order of `input_shapes`. float32 input is not copied.
    Raises:
      ValueError: wrong names, dtype, shape or number, NaN, Inf, constant data.
      UnitsError (a ValueError): values outside `value_range` or filling less than a quarter of it
      or only one half of it.
    """
    if not isinstance(images, Mapping):
        if len(input_shapes) != 1:
            raise ValueError(
                "Calibration data is one array, but the model has "
                f"{len(input_shapes)} inputs. Pass a dict of arrays "
                f"by input name: {', '.join(input_shapes)}."
            )
        images = {next(iter(input_shapes)): images}
    if set(images) != set(input_shapes):
        raise ValueError(
            "Calibration data names the inputs "
            f"{', '.join(map(str, images)) or '(none)'}; expected "
            f"{', '.join(input_shapes)}. Rename the arrays."
        )
    checked = {
        name: _check_form(np.asanyarray(images[name]), shape, name)
        for name, shape in input_shapes.items()
    }
    counts = {name: len(array) for name, array in checked.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"Calibration data has different numbers of images per input: {counts}. "
            "Pass equally many."
        )
    for name, array in checked.items():
        low, high = _check_values(array, name)
        limits = value_range.get(name) if isinstance(value_range, Mapping) else value_range
        if limits is not None:
            _check_channels(array, limits, name)
            _check_range(low, high, limits, name)
    return checked


def few_images(images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Some of the images, evenly spread: at most _MOST_IMAGES, fewer where they are large."""
    count = len(next(iter(images.values())))
    values = sum(array[0].size for array in images.values())
    most = min(_MOST_IMAGES, max(_LEAST_IMAGES, _MOST_VALUES // values))
    chosen = spread(most, total=count)
    return {name: np.asarray(array[chosen]) for name, array in images.items()}


def representative_dataset(
    images: Images,
) -> Callable[[], Iterator[list[np.ndarray] | dict[str, np.ndarray]]]:
    """The callable that tf.lite.TFLiteConverter.representative_dataset takes.

    Args:
      images: float32 array [number, ...input shape], or a dict of such arrays by input name, as
        `check_calibration` returns it. The checks are not repeated here.
    Returns:
      A function that yields one image at a time with batch axis 1: a list of one array, or a dict
      by input name (the converter then needs a model with a signature: from_keras_model or
      from_saved_model).
    """

    def samples() -> Iterator[list[np.ndarray] | dict[str, np.ndarray]]:
        if not isinstance(images, Mapping):
            for i in range(len(images)):
                yield [np.asarray(images[i : i + 1], np.float32)]
            return
        for i in range(len(next(iter(images.values())))):
            yield {name: np.asarray(array[i : i + 1], np.float32) for name, array in images.items()}

    return samples
