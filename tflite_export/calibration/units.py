"""Calibration images checked against what their model takes, as the commands do it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgh_tf.common.value_range import KnownRange, check_units, remedy
from tflite_export.calibration.check import Images, Range, UnitsError, check_calibration
from tflite_export.conversion.freeze import input_shapes

_FEW_VALUES = 16  # of 256: a channel that keeps fewer is quantized to 4 bits


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
      model: Keras 3 or tf_keras model.
      images: [number, ...] in model units, or a dict by input.
      value_range: lowest and highest valid value, or such by input name; None where it is not
        known.
      what: the images' name for messages, such as "--calibration=x.npy".
      preprocess: the command's flag for the mapping, None where it has none.
      input_range: the command's flag for the range, None where it has none.
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
        ranges = (
            value_range if isinstance(value_range, Mapping) else dict.fromkeys(arrays, value_range)
        )
        told = [_narrow_channel(name, ranges.get(name)) for name in arrays]
        return arrays, [text for text in told if text]
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


def _narrow_channel(name: str, valid: Range | None) -> str:
    """A warning where one scale for all channels of an integer input leaves one of them few values;
    else empty.
    """
    if valid is None or np.size(valid[0]) < 2:
        return ""
    low, high = (np.asarray(bound, np.float64) for bound in valid)
    whole = max(float(high.max()), 0.0) - min(float(low.min()), 0.0)
    channel = int(np.argmin(high - low))
    values = 256 * float(high[channel] - low[channel]) / whole
    if values >= _FEW_VALUES:
        return ""
    return (
        f"input '{name}': an int8 input has one scale for all channels, so that channel {channel} "
        f"({low[channel]:g} .. {high[channel]:g}) keeps about {max(1, round(values))} of 256 "
        f"values beside {low.min():g} .. {high.max():g}. Bring the channels to like ranges before "
        "the network, such as each over its full scale, or use --scheme=int16x8."
    )


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
