"""The range of values that a model's own Rescaling and Normalization layers declare for its
inputs, or what a .tflite file says in their place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dgh_tf.models import tflite_model
from dgh_tf.models.batchnorm import batchnorm_layers
from dgh_tf.models.heads import upstream
from dgh_tf.models.hooks import record_calls
from dgh_tf.models.network import kernel_layers
from dgh_tf.models.tflite.metadata import InputScaling
from dgh_tf.ops.canvas import is_image

TOPS = (
    1.0,
    255.0,
    4095.0,
    10000.0,
    65535.0,
)  # of stored values: floats, bytes, 12 bits, satellite reflectance, 16 bits
# octaves between a Rescaling layer's output and a span of 1 or 2 that still tell what it takes
CLEAR = 2.2
_EXACT = 0.1  # octaves: the layer's numbers are those of a common form, such as 1/255 or 1/128


@dataclasses.dataclass(frozen=True)
class DeclaredRange:
    """Range of one input, one value or one per channel, and the layer that declares it.

    prior_std: of natural inputs, as a share of half the range. firm: nothing lies outside of it, as
    for Rescaling by 1/255; what is told from means and deviations is not.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    source: str
    prior_std: float = 0.5
    firm: bool = True


def declared_ranges(
    model: Any, *, shapes: Sequence[tuple[int, ...]], call: Callable[[list], Any]
) -> list[DeclaredRange | None]:
    """For every input the range that its Rescaling or Normalization layer maps to the network's
    units; None without one. A .tflite file declares it by a first scaling, or in its metadata.

    Such a layer declares the range of the one input that it is fed from, and only where no layer
    with weights comes before.

    Args:
      model: Keras 3 or tf_keras model.
      shapes: of its inputs, without the batch.
      call: from a list of input tensors, in order, to the model's outputs.
    """
    told = tflite_model.scalings(model)
    if told is not None:
        pairs = zip(told, shapes, strict=True)
        return [_from_scaling(scaling, shape) if scaling else None for scaling, shape in pairs]
    scalings = [
        layer
        for layer in model._flatten_layers()
        if type(layer).__name__ in ("Rescaling", "Normalization")
    ]
    found: list[DeclaredRange | None] = [None] * len(shapes)
    if not scalings:
        return found
    weighted = [*batchnorm_layers(model), *kernel_layers(model)]

    def trace(*inputs: tf.Tensor) -> None:
        with record_calls([*scalings, *weighted]) as recorded:
            call(list(inputs))
        learned = {tf.nest.flatten(y)[0].ref() for layer, _, y in recorded if layer not in scalings}
        for layer, x, _ in recorded:
            before = upstream([x])
            fed = [i for i, tensor in enumerate(inputs) if tensor.ref() in before]
            if (
                layer in scalings
                and len(fed) == 1
                and found[fed[0]] is None
                and not before & learned
            ):
                found[fed[0]] = _declared(layer, shapes[fed[0]])

    specs = [tf.TensorSpec((None, *shape), tf.float32) for shape in shapes]
    tf.function(trace, autograph=False).get_concrete_function(*specs)
    return found


def _declared(layer: Any, shape: tuple[int, ...]) -> DeclaredRange | None:
    if type(layer).__name__ == "Rescaling":
        scale, offset = (np.asarray(value, np.float32) for value in (layer.scale, layer.offset))
        return _rescaled(scale, offset, source=f"layer {layer.name!r} (Rescaling by {{scale:.4g}})")
    if layer.invert:
        return None
    mean, std = np.asarray(layer.mean, np.float32), np.sqrt(np.asarray(layer.variance, np.float32))
    return _normalized(mean, std, shape=shape, source=f"layer {layer.name!r}")


def _from_scaling(scaling: InputScaling, shape: tuple[int, ...]) -> DeclaredRange | None:
    """The range that a .tflite file's scaling of an input declares."""
    scale, offset = scaling.scale.astype(np.float32), scaling.offset.astype(np.float32)
    if not scaling.inside:
        low, high = np.broadcast_arrays(np.atleast_1d(offset), np.atleast_1d(255 * scale + offset))
        return DeclaredRange(tuple(map(float, low)), tuple(map(float, high)), scaling.source)
    if (scale == 1).all():  # a mean alone: of values up to 1 or of bytes
        mean = float(np.abs(offset).mean())
        tops = [top for top in (1.0, 255.0) if 0.3 * top < mean < 0.6 * top]
        return DeclaredRange((0.0,), (tops[0],), scaling.source, firm=False) if tops else None
    if scale.ndim == 0 and offset.ndim == 0:
        return _rescaled(scale, offset, source=f"{scaling.source} ({{scale:.4g}})")
    # a folded BatchNorm looks the same, so only what fits the statistics of photographs counts
    return _of_photographs(-offset / scale, 1 / scale, shape=shape, source=scaling.source)


def _of_photographs(
    mean: np.ndarray, std: np.ndarray, *, shape: tuple[int, ...], source: str
) -> DeclaredRange | None:
    """The range of stored values that have such means and deviations; None for other inputs."""
    fits = [
        (abs(std.mean() - 0.25 * top) / top, top)
        for top in (1.0, 255.0)
        if mean.min() > 0 and mean.max() < top
    ]
    if is_image(shape) and fits and min(fits)[0] < 0.2:
        return DeclaredRange((0.0,), (min(fits)[1],), f"{source} (Normalization)", firm=False)
    return None


def _normalized(
    mean: np.ndarray, std: np.ndarray, *, shape: tuple[int, ...], source: str
) -> DeclaredRange | None:
    """What is taken by (x - mean) / std."""
    found = _of_photographs(mean, std, shape=shape, source=source)
    if found:
        return found
    bounds = [
        np.asarray(bound).reshape(-1, np.shape(bound)[-1] if np.ndim(bound) else 1)
        for bound in (mean - 3 * std, mean + 3 * std)
    ]
    low, high = bounds[0].min(0), bounds[1].max(0)  # along other axes than the channels' the widest
    if len(low) not in (1, shape[-1]):
        return None
    return DeclaredRange(
        tuple(map(float, low)),
        tuple(map(float, high)),
        f"{source} (mean +- 3 std)",
        1 / 3,
        firm=False,
    )


def _rescaled(scales: np.ndarray, offsets: np.ndarray, *, source: str) -> DeclaredRange | None:
    """What x * scale + offset takes: the stored values that it brings to a span of 1 (0 to 1) or 2
    (-1 to 1), or near it. source: with a place for the scale.
    """
    scale, offset = np.abs(scales).max(), np.abs(offsets).max()
    source = source.format(scale=scale)
    if scale >= 0.5:
        # what else such a layer may take (-1 to 1, say) cannot be told
        return DeclaredRange((0.0,), (1.0,), source, firm=False)
    distance, top, span = min(
        (abs(float(np.log2(scale * top / span))), top, span) for top in TOPS for span in (1.0, 2.0)
    )
    if distance > CLEAR:
        return None
    low = (
        -(top + 1) / 2 if span == 2.0 and not offset else 0.0
    )  # twice 1 without an offset: signed integers
    return DeclaredRange((low,), (low + top,), source, firm=low == 0.0 and distance < _EXACT)
