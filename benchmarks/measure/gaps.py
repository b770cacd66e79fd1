"""How far the statistics of images are from what each BatchNorm layer of a model remembers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dgh_tf.models.network import Network


@functools.lru_cache(maxsize=1)  # all rows of a run ask about the same network: trace it once
def _sums_function(network: Network) -> Callable:
    """From inputs to (layer index, count, sum, sum of squares) of each BN layer's input, per
    channel in float64.
    """
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)
    def sums(*batch: tf.Tensor) -> list[tuple[tf.Tensor, ...]]:
        found = []
        for index, x in network.forward(list(batch)).calls:
            axis = network.layers[index].axis % x.shape.rank
            flat = tf.reshape(
                tf.transpose(x, [*(i for i in range(x.shape.rank) if i != axis), axis]),
                [-1, x.shape[axis]],
            )
            flat = tf.cast(flat, tf.float64)
            found.append(
                (
                    tf.constant(index),
                    tf.shape(flat)[0],
                    tf.reduce_sum(flat, 0),
                    tf.reduce_sum(flat * flat, 0),
                )
            )
        return found

    return sums


def statistics_gaps(
    network: Network, images: np.ndarray | Mapping[str, np.ndarray], *, batch_size: int = 32
) -> dict[str, float]:
    """Gap between the images' pooled statistics and the running statistics, by BN layer, in squared
    standard deviations.

    The mean over channels of ((mean - running mean) / s)^2 + (std / s - 1)^2 with s^2 = running
    variance + epsilon, the form that generation minimizes. 0 means equal; real images in the right
    units stay near 0, whatever they show. Empty for a model without statistics.

    Args:
      network: of the model.
      images: float32 [images, ...] in the model's input units and layout, or a dict by input name.
      batch_size: images at once.
    """
    import tensorflow as tf

    arrays = (
        [images[name] for name in network.input_names] if isinstance(images, Mapping) else [images]
    )
    arrays = [
        np.moveaxis(a, 1, -1) if first else a
        for a, first in zip(arrays, network.channels_first, strict=True)
    ]

    if not network.layers:
        return {}
    sums = _sums_function(network)
    total: dict[int, list] = {}
    for start in range(0, len(arrays[0]), batch_size):
        for index, count, first, second in sums(
            *(tf.constant(a[start : start + batch_size], tf.float32) for a in arrays)
        ):
            kept = total.setdefault(int(index), [0, 0.0, 0.0])
            kept[0], kept[1], kept[2] = (
                kept[0] + int(count),
                kept[1] + first.numpy(),
                kept[2] + second.numpy(),
            )
    gaps = {}
    for index, (count, first, second) in sorted(total.items()):
        layer = network.layers[index]
        mean, scale = first / count, np.sqrt(np.float64(layer.variance) + layer.epsilon)
        std = np.sqrt(np.maximum(second / count - mean**2, 0.0) + layer.epsilon)
        gaps[layer.name] = float(
            np.mean(((mean - layer.mean) / scale) ** 2 + (std / scale - 1.0) ** 2)
        )
    return gaps
