"""Whether a model's first BatchNorm layers know such inputs. A check that needs no range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dgh_tf.common.quiet import without_retracing_warnings
from dgh_tf.common.subsets import spread
from dgh_tf.models.batchnorm import batchnorm_layers, read_batchnorm
from dgh_tf.models.hooks import record_calls
from dgh_tf.models.network import call_model

FIRST_LAYERS = 2  # deeper ones say more of content than of units
_MOST_IMAGES, _AT_ONCE = 64, 16


def first_gap(model: Any, inputs: Sequence[np.ndarray]) -> float | None:
    """How far the inputs' statistics are from those of the training set, in the first BN layers.

    Args:
      model: Keras 3 or tf_keras model.
      inputs: for every input of the model, in order, float32 [n, *shape] as the model takes it; at
        most 64 of them are looked at, evenly spread.
    Returns: the mean over layers and channels of ((mean - running mean) / s)^2 + (std / s - 1)^2,
      s^2 = running variance + epsilon, in float64: 0 for equal statistics; None where the model has
      no BN layer, or only untrained ones.

    Example: `first_gap(model, [images])`.
    """
    norms = [layer for layer in batchnorm_layers(model) if _is_trained(layer)]
    if not norms:
        return None
    found: list[Any] = []

    def trace(*batch: tf.Tensor) -> list[tuple[tf.Tensor, ...]]:
        with record_calls(norms) as recorded:
            call_model(model, list(batch))
        first = list({id(layer): layer for layer, *_ in recorded}.values())[:FIRST_LAYERS]
        ranks = [next(x.shape.rank for each, x, _ in recorded if each is layer) for layer in first]
        with tf.init_scope():  # outside of the graph, where weights have values
            found[:] = map(read_batchnorm, first, ranks)
        sums = []
        for norm in found:
            calls = [tf.cast(x, tf.float64) for each, x, _ in recorded if each is norm.layer]
            flat = tf.concat([_by_channel(x, norm.axis) for x in calls], axis=0)
            sums.append(
                (tf.shape(flat)[0], tf.reduce_sum(flat, 0), tf.reduce_sum(tf.square(flat), 0))
            )
        return sums

    step = tf.function(trace, autograph=False, reduce_retracing=True)
    count = len(inputs[0])
    chosen = spread(_MOST_IMAGES, total=count)
    with without_retracing_warnings():
        parts = [
            step(*(tf.constant(x[chosen[start : start + _AT_ONCE]], tf.float32) for x in inputs))
            for start in range(0, len(chosen), _AT_ONCE)
        ]
    gaps = []
    for norm, rows in zip(found, zip(*parts, strict=True), strict=True):
        number, total, squares = (
            np.sum([row[i].numpy() for row in rows], axis=0) for i in range(3)
        )
        mean, scale = total / number, np.sqrt(np.float64(norm.variance) + norm.epsilon)
        std = np.sqrt(np.maximum(squares / number - mean**2, 0.0) + norm.epsilon)
        gaps.append(np.mean(((mean - norm.mean) / scale) ** 2 + (std / scale - 1.0) ** 2))
    return float(np.mean(gaps)) if gaps else None


def _by_channel(x: tf.Tensor, axis: int) -> tf.Tensor:
    """[values, channels] of a BN layer's input."""
    order = [*(i for i in range(x.shape.rank) if i != axis), axis]
    return tf.reshape(tf.transpose(x, order), [-1, x.shape[axis]])


def _is_trained(layer: Any) -> bool:
    """Whether its statistics are not those it was made with."""
    mean, variance = np.asarray(layer.moving_mean), np.asarray(layer.moving_variance)
    return not (np.all(mean == 0) and np.all(variance == 1))
