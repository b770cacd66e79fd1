"""Calibration images in whatever form Python users hold them, as arrays.

The forms are an array, a dict of arrays by input name, a list of images, a tf.data.Dataset, a
generator, and the function that tf.lite.TFLiteConverter takes as its representative dataset.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_export.calibration.check import Images

Shapes = Mapping[str, Sequence[int | None]]

_MOST = 20_000  # images; a source that gives more has no end, or is no calibration set
_FORMS = (
    "a float32 array [images, ...], a dict of such arrays by input name, a list of images, a "
    "tf.data.Dataset, a generator or a representative_dataset function"
)


def as_images(
    source: Any, *, shapes: Shapes | None, name: Callable[[str], str] = lambda name: name
) -> Images:
    """An array, or a dict of arrays by input name, from any of the forms.

    What a source gives one by one may be single images or batches; of a pair (images, labels) the
    images are taken. An array or a dict of arrays is given back as it is.

    Args:
      source: see above.
      shapes: of one image by input name, in the model's order: they tell images from batches and
        labels from second inputs. None where the model declares none; then all are batches.
      name: gives an input's name in `shapes` for its name in `source`.
    Raises:
      TypeError: a form that holds no images. ValueError: none in it, no end to it, or images of
        different shapes.

    Example:
      >>> as_images([np.zeros((4, 4, 1)), np.ones((4, 4, 1))], shapes={"image": (4, 4, 1)}).shape
      (2, 4, 4, 1)
    """
    if isinstance(source, Mapping):
        return {name(str(key)): _array(value, str(key)) for key, value in source.items()}
    if isinstance(source, (str, bytes, os.PathLike)):
        raise TypeError(
            f"Calibration images are {source!r}, the name of a place; expected {_FORMS}. Read it "
            "with tflite_export.load_calibration(path).images."
        )
    if hasattr(source, "__array__") and not isinstance(source, (list, tuple)):
        return _array(source, "images")
    if callable(source):
        source = source()
    if not isinstance(source, Iterable):
        kind = type(source).__name__
        raise TypeError(f"Calibration images are of type {kind}; expected {_FORMS}.")
    return _joined(_parts(source, shapes, name))


def _array(value: Any, name: str) -> np.ndarray:
    """The value as an array; a memory-mapped one stays one. Raises ValueError for ragged lists."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(
            f"Calibration data '{name}' cannot be one array ({error}). Resize all images to one "
            "shape."
        ) from None


def _parts(
    source: Iterable[Any], shapes: Shapes | None, name: Callable[[str], str]
) -> dict[str, list[np.ndarray]]:
    """Batches by input name; "" stands for the only input of a model that declares none."""
    parts: dict[str, list[np.ndarray]] = {}
    count = 0
    for element in source:
        found = _by_input(element, shapes)
        for key, value in found.items():
            batch = _array(value, key)
            rank = len(shapes[name(key)]) if shapes and name(key) in shapes else None
            single = batch.ndim == rank or (rank is None and isinstance(source, (list, tuple)))
            parts.setdefault(name(key), []).append(batch[None] if single else batch)
        first = next(iter(found))
        count += len(parts[name(first)][-1]) if parts[name(first)][-1].ndim else 1
        if count > _MOST:
            raise ValueError(
                f"The calibration source gives more than {_MOST} images, and may never end. Give "
                "some hundred of them, such as dataset.take(n)."
            )
    if not parts:
        raise ValueError(
            "The calibration source gives no images. A generator can be read only once: make a new "
            "one, or give the function that makes it."
        )
    return parts


def _by_input(element: Any, shapes: Shapes | None) -> dict[str, Any]:
    """What a source gives at once, by input name."""
    names = list(shapes) if shapes else [""]
    if isinstance(element, (list, tuple)) and element and isinstance(element[0], Mapping):
        element = element[0]  # images by name, and labels
    if isinstance(element, Mapping):
        return {str(key): value for key, value in element.items()}
    if isinstance(element, tuple) and len(element) == 2 and isinstance(element[0], tuple):
        element = element[0]  # images of several inputs, and labels
    if not isinstance(element, (list, tuple)) or not hasattr(element[0], "__array__"):
        return {names[0]: element}
    if len(names) == 1 and len(element) <= 2:  # [images], or images and labels
        return {names[0]: element[0]}
    if len(element) != len(names):
        raise ValueError(
            f"The calibration source gives {len(element)} arrays at once; the model takes "
            f"{len(names)} ({', '.join(names)}). Give dicts by input name."
        )
    return dict(zip(names, element, strict=True))


def _joined(parts: Mapping[str, list[np.ndarray]]) -> Images:
    """All batches of each input as one array; the array alone for the only input without a name."""
    joined = {}
    for name, batches in parts.items():
        shapes = {batch.shape[1:] for batch in batches}
        if len(shapes) > 1:
            shown = ", ".join(str(list(shape)) for shape in sorted(shapes)[:3])
            raise ValueError(
                f"Calibration images have different shapes: {shown}. Resize or crop all of them to "
                "the model's input."
            )
        joined[name] = np.concatenate(batches) if batches[0].ndim else np.stack(batches)
    return joined[""] if set(joined) == {""} else joined
