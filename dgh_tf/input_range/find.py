"""keras: the valid range of a model's inputs: from the user, from the model's own layers, or from
its first running statistics.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dgh_tf.input_range.conventions import InputRange, parse_input_range
from dgh_tf.input_range.from_statistics import range_from_statistics
from dgh_tf.models.batchnorm import batchnorm_layers
from dgh_tf.models.heads import upstream
from dgh_tf.models.hooks import record_calls
from dgh_tf.models.network import Network, kernel_layers
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


def find_input_range(network: Network, *, text: str = "") -> list[InputRange]:
    """The valid range of every input, in order.

    Args: text: one range for all inputs, or NAME:RANGE;NAME:RANGE; inputs that it does not name
      keep what their layers declare.
    Raises: ValueError when no way gives a clear answer; it asks for --input_range.
    """
    channels, names = [shape[-1] for shape in network.input_shapes], network.input_names
    given = _by_input(text, names)
    ranges = [
        parse_input_range(given[name], channels=c) if name in given else None
        for name, c in zip(names, channels, strict=True)
    ]
    if None in ranges:
        ranges = [
            valid or declared
            for valid, declared in zip(ranges, _declared_by_layers(network), strict=True)
        ]
    unknown = [name for name, valid in zip(names, ranges, strict=True) if valid is None]
    if unknown and len(names) > 1:
        example = ";".join(f"{name}:LOW,HIGH" for name in unknown)
        raise ValueError(
            f"Model {network.model.name!r} has {len(names)} inputs "
            f"({', '.join(names)}), and no Rescaling or Normalization "
            f"layer tells the range of {', '.join(unknown)}. Give "
            "--input_range=LOW,HIGH for all, or "
            f'--input_range="{example}".'
        )
    return [range_from_statistics(network)] if unknown else [valid for valid in ranges if valid]


def _by_input(text: str, names: list[str]) -> dict[str, str]:
    """The text of each input's range by name. Raises ValueError for a name that is no input or
    stands twice.
    """
    if ":" not in text:
        return dict.fromkeys(names, text) if text else {}
    pairs = [part.strip().rpartition(":") for part in text.split(";") if part.strip()]
    given = {name.strip(): valid.strip() for name, _, valid in pairs}
    wrong = sorted(set(given) - set(names))
    if wrong or len(given) < len(pairs):
        raise ValueError(
            f"--input_range={text} names {', '.join(wrong) or 'an input twice'}; the "
            f"model's inputs are {', '.join(names)}. "
            "Give NAME:LOW,HIGH for each, joined by semicolons."
        )
    return given


def _declared_by_layers(network: Network) -> list[InputRange | None]:
    """For every input the range that its Rescaling or Normalization layer maps to the network's
    units; None without one.

    Such a layer declares the range of the one input that it is fed from, and only where no layer
    with weights comes before.
    """
    scalings = [
        layer
        for layer in network.model._flatten_layers()
        if type(layer).__name__ in ("Rescaling", "Normalization")
    ]
    found: list[InputRange | None] = [None] * len(network.input_shapes)
    if not scalings:
        return found
    weighted = [*batchnorm_layers(network.model), *kernel_layers(network.model)]

    def trace(*inputs):
        with record_calls([*scalings, *weighted]) as recorded:
            network.outputs(list(inputs))
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
                found[fed[0]] = _declared(layer, network.input_shapes[fed[0]])

    specs = [tf.TensorSpec((None, *shape), tf.float32) for shape in network.input_shapes]
    tf.function(trace, autograph=False).get_concrete_function(*specs)
    return found


def _declared(layer, shape: tuple[int, ...]) -> InputRange | None:
    if type(layer).__name__ == "Rescaling":
        return _rescaled(layer)
    if layer.invert:
        return None
    mean, std = np.asarray(layer.mean, np.float32), np.sqrt(np.asarray(layer.variance, np.float32))
    fits = [
        (abs(std.mean() - 0.25 * top) / top, top)
        for top in (1.0, 255.0)
        if mean.min() > 0 and mean.max() < top
    ]
    if is_image(shape) and fits and min(fits)[0] < 0.2:
        return InputRange((0.0,), (min(fits)[1],), f"layer {layer.name!r} (Normalization)")
    bounds = [
        np.asarray(bound).reshape(-1, np.shape(bound)[-1] if np.ndim(bound) else 1)
        for bound in (mean - 3 * std, mean + 3 * std)
    ]
    low, high = bounds[0].min(0), bounds[1].max(0)  # along other axes than the channels' the widest
    if len(low) not in (1, shape[-1]):
        return None
    return InputRange(
        tuple(map(float, low)),
        tuple(map(float, high)),
        f"layer {layer.name!r} (mean +- 3 std)",
        1 / 3,
    )


def _rescaled(layer) -> InputRange | None:
    """What a Rescaling layer takes: the stored values that it brings to a span of 1 (0 to 1) or 2
    (-1 to 1), or near it.
    """
    scale, offset = (
        np.abs(np.asarray(value, np.float32)).max() for value in (layer.scale, layer.offset)
    )
    source = f"layer {layer.name!r} (Rescaling by {scale:.4g})"
    if scale >= 0.5:
        return InputRange((0.0,), (1.0,), source)
    distance, top, span = min(
        (abs(float(np.log2(scale * top / span))), top, span) for top in TOPS for span in (1.0, 2.0)
    )
    if distance > CLEAR:
        return None
    low = (
        -(top + 1) / 2 if span == 2.0 and not offset else 0.0
    )  # twice 1 without an offset: signed integers
    return InputRange((low,), (low + top,), source)
