"""What kind of input a model takes, from the user or from its shape, first layers and range."""

from __future__ import annotations

import math

from dgh_tf.models.network import Network
from dgh_tf.ops.kinds import Signal, as_signal, kind_of_shape


def input_signals(
    network: Network, *, kind: str = "auto", stored: bool = False
) -> list[Signal | None]:
    """Every input that is no picture as a matrix of time and columns; None for a picture.

    Args:
      network: the model.
      kind: image, spectrogram, sequence or vector for all inputs; auto tells it from the shape that
        the first layer with a kernel sees, which may come after a Reshape.
      stored: whether the inputs are stored bytes or scaled by a layer, as pictures of one channel
        are.
    """
    views = _views(network)
    found: list[Signal | None] = []
    for shape, view in zip(network.input_shapes, views, strict=True):
        told = kind
        if kind == "auto":
            told = kind_of_shape(view or shape)
            if stored and told == "spectrogram" and len(shape) == 3:
                told = "image"
            if told == "image" and len(shape) != 3:
                told = "vector"
        found.append(None if told == "image" else as_signal(shape, told, view=view))
    return found


def _views(network: Network) -> list[tuple[int, ...] | None]:
    """The shape in which the first layer with a kernel sees each input, where only the order of
    values in a row stands between them; None where it sees the input as it is or cannot be told.
    """
    shapes, seen = network.input_shapes, network.kernel_shape
    if len(shapes) != 1 or seen is None or network.channels_first[0]:
        return [None] * len(shapes)
    if seen == tuple(shapes[0]) or len(seen) < len(shapes[0]):
        return [None]
    sides = tuple(side or 0 for side in seen)
    return [sides if math.prod(sides) == math.prod(shapes[0]) else None]
