"""Calibration images checked against what their model takes, as the commands do it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgh_tf.common.value_range import KnownRange, check_units, remedy
from tflite_export.calibration.check import Images, Range, UnitsError, check_calibration
from tflite_export.conversion.freeze import input_shapes


def checked_images(
    model: Any,
    images: Images,
    *,
    value_range: Range | Mapping[str, Range] | None,
    what: str,
    preprocess: str | None,
    input_range: str | None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """`check_calibration`, and the images' units against what the model itself says of its inputs.

    Where `value_range` does not tell the range, the model's Rescaling and Normalization layers do;
    without those, its first BatchNorm statistics show values that it was not trained on.

    Args:
      model: Keras 3 or tf_keras model. images: [number, ...] in model units, or a dict by input.
      what: the images' name for messages, such as "--calibration=x.npy".
      preprocess, input_range: the command's flags for both, None where it has none.
    Returns: float32 arrays by input name, and warnings for the user.
    Raises: ValueError as `check_calibration`, and for images beyond a range that a layer declares.
    """
    try:
        arrays = check_calibration(
            images, input_shapes=input_shapes(model, images), value_range=value_range
        )
    except UnitsError as error:
        do = remedy(error.placement, preprocess=preprocess, input_range=input_range)
        raise ValueError(f"{error.text} {do}") from error
    if value_range is not None:
        return arrays, []
    inputs = list(arrays.values())
    warnings = [
        check_units(
            array,
            known,
            what=what if len(inputs) == 1 else f"{what}, input '{name}',",
            gap=functools.partial(_gap, model, inputs, index),
            preprocess=preprocess,
            input_range=input_range,
        )
        for index, ((name, array), known) in enumerate(
            zip(arrays.items(), _declared(model, inputs), strict=True)
        )
    ]
    return arrays, list(dict.fromkeys(text for text in warnings if text))


def _declared(model: Any, inputs: list[np.ndarray]) -> list[KnownRange | None]:
    from dgh_tf.models.declared_range import declared_ranges
    from dgh_tf.models.network import call_model

    shapes = [array.shape[1:] for array in inputs]
    try:
        found = declared_ranges(model, shapes=shapes, call=functools.partial(call_model, model))
    except Exception:  # a model that cannot be traced like this is told so by its conversion
        return [None] * len(inputs)
    return [
        KnownRange(each.low, each.high, each.source, firm=each.firm) if each else None
        for each in found
    ]


def _gap(model: Any, inputs: list[np.ndarray], index: int, images: np.ndarray) -> float | None:
    """`first_gap` with `images` as the input of that index."""
    from dgh_tf.models.first_statistics import first_gap

    try:
        return first_gap(model, [*inputs[:index], images, *inputs[index + 1 :]])
    except Exception:  # as above: a check must not stop what conversion can do
        return None
