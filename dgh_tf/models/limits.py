"""Bounds on what a config makes, asked while and after Keras builds it.

A config of a few hundred bytes can declare a layer of a terabyte. Keras allocates it long before it
finds that the file holds no such weights; so every variable is weighed before it exists.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

SPARE_VALUES = 2**20  # weights a model may have beyond the file's: seeds, counters
MOST_ACTIVATIONS = 2**30  # values of all tensors of one image: 4 GiB of float32
DYNAMIC_SIDE = 64  # pixels that stand for a dynamic size


@contextlib.contextmanager
def weights_limited(most: int) -> Iterator[None]:
    """Within it, models whose weights would exceed `most` values and some spare ones are refused
    before the first one too many is allocated. Raises ValueError then.
    """
    import tensorflow as tf

    made = 0

    def weighed(make: Callable[..., tf.Variable], **arguments: Any) -> tf.Variable:
        nonlocal made
        made += _declared(arguments)
        if made > most + SPARE_VALUES:
            raise ValueError(
                f"its config declares at least {made:,} weights, but the file holds {most:,}"
            )
        return make(**arguments)

    with tf.variable_creator_scope(weighed):
        yield


def _declared(arguments: dict) -> int:
    """How many values a variable about to be made has. Keras 3 gives an initializer without its
    shape; in a graph of its own that makes a symbol and no values.
    """
    import tensorflow as tf

    shape, value = arguments.get("shape"), arguments.get("initial_value")
    if shape is None and callable(value):
        with tf.Graph().as_default():
            shape = value().shape
    elif shape is None:
        shape = getattr(value, "shape", ())
    return tf.TensorShape(shape).num_elements() or 0


def require_reasonable_activations(model: Any) -> None:
    """Refuses a model whose tensors, for one image, would fill the memory. Raises ValueError."""
    import tensorflow as tf

    total = 0
    for layer in model._flatten_layers():
        for node in layer._inbound_nodes:
            for tensor in tf.nest.flatten(node.outputs):
                sides = tuple(getattr(tensor, "shape", ()) or ())[1:]
                total += math.prod(DYNAMIC_SIDE if side is None else int(side) for side in sides)
    if total > MOST_ACTIVATIONS:
        raise ValueError(
            f"its tensors hold {total:,} values for one image; at most {MOST_ACTIVATIONS:,} can be "
            "worked on here"
        )
