"""math: the value that one step lowers: rows of the table, their pooling, and the weighted sum of
the losses.

A batch's row holds its share of the set's first and second moments, in units of each layer's own
normalization:
float32 [2, channels of all layers], batch images / set images * (mean of u, mean of u^2), u = (x -
running mean) / scale.
Shares add up, so the pooled moments are the sum of all rows, whatever the sizes of the batches, and
a batch knows all
others by that sum alone. Nothing is lost to cancellation: where the statistics are met, u has mean
0 and mean square 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from dgh_tf.config import GenerationConfig
from dgh_tf.ops import losses
from dgh_tf.ops.layer_moments import layer_sums
from dgh_tf.ops.moments import image_moments, safe_shift

if TYPE_CHECKING:
    from dgh_tf.input_range.conventions import InputRange
    from dgh_tf.models.batchnorm import BatchNorm
    from dgh_tf.models.heads import Head
    from dgh_tf.models.network import Tapped


class PseudoStatistics(NamedTuple):
    """The input itself as one more BN layer, in canvas units: part of the image prior (DGH, METHOD
    of both references).
    """

    name: str
    axis: int
    epsilon: float
    mean: np.ndarray
    variance: np.ndarray


class Targets(NamedTuple):
    """Statistics of all layers side by side, float32 [channels of all layers] each.

    mean, scale: running mean, sqrt(running variance + epsilon). epsilon: in units of scale squared.
      shift: subtracted from
    activations before squaring. bn_weight, prior_weight: of every channel's gap in the two losses.
    layer: number of the
    layer of every channel, int32. names: of the layers.
    """

    mean: np.ndarray
    scale: np.ndarray
    epsilon: np.ndarray
    shift: np.ndarray
    bn_weight: np.ndarray
    prior_weight: np.ndarray
    layer: np.ndarray
    names: list[str]


def pseudo_statistics(valid: InputRange, shape: tuple[int, ...]) -> PseudoStatistics:
    """Mean 0 and the natural spread of inputs in `valid`, for each channel of an input of
    `shape`.
    """
    variance = np.full(shape[-1], valid.prior_std**2, np.float32)
    return PseudoStatistics("input", len(shape), 1e-3, np.zeros_like(variance), variance)


def make_targets(
    layers: Sequence[BatchNorm | PseudoStatistics], priors: Sequence[float]
) -> Targets:
    """Targets of `layers`, the last of which are the inputs' pseudo-statistics, weighted by
    `priors`.

    Layers count equally whatever their width; an input weighs as much as one BN layer.
    """
    real = len(layers) - len(priors)
    bn_weights = [
        1.0 / (real * len(layer.mean)) if i < real else 0.0 for i, layer in enumerate(layers)
    ]
    prior_weights = [0.0] * real + [
        weight / (real * len(layer.mean))
        for weight, layer in zip(priors, layers[real:], strict=True)
    ]
    lengths = [len(layer.mean) for layer in layers]
    scale = np.concatenate([np.sqrt(layer.variance + layer.epsilon) for layer in layers]).astype(
        np.float32
    )
    epsilon = np.repeat([layer.epsilon for layer in layers], lengths) / scale**2
    shift = np.concatenate(
        [safe_shift(layer.mean, variance=layer.variance, epsilon=layer.epsilon) for layer in layers]
    )
    bn, prior = np.asarray(bn_weights, np.float32), np.asarray(prior_weights, np.float32)
    numbers = np.repeat(np.arange(len(layers), dtype=np.int32), lengths)
    return Targets(
        np.concatenate([layer.mean for layer in layers]),
        scale,
        epsilon.astype(np.float32),
        shift,
        np.repeat(bn, lengths),
        np.repeat(prior, lengths),
        numbers,
        [layer.name for layer in layers],
    )


def batch_moments(
    tapped: Tapped,
    units: Sequence[tf.Tensor],
    layers: Sequence[BatchNorm | PseudoStatistics],
    targets: Targets,
) -> tf.Tensor:
    """(mean of u, mean of u^2) of a batch, float32 [2, channels of all layers]; times the batch's
    share it is its row.

    Args: units: the inputs in canvas units, for the pseudo-statistics that `layers` ends with.
    """
    calls = [*tapped.calls, *enumerate(units, start=len(layers) - len(units))]
    ends = np.cumsum(np.bincount(targets.layer))[:-1]
    sums, squares, counts = zip(
        *layer_sums(
            calls, layers, np.split(targets.shift, ends), [*tapped.sums, *[None] * len(units)]
        ),
        strict=True,
    )
    counts = tf.gather(
        tf.stack(counts), targets.layer
    )  # all layers side by side from here on: few operations, whatever the depth
    away = (targets.shift - targets.mean) / targets.scale
    u = tf.concat(sums, 0) / counts / targets.scale
    return tf.stack(
        [u + away, tf.concat(squares, 0) / counts / targets.scale**2 + 2.0 * away * u + away**2]
    )


def layer_gaps(pooled: np.ndarray, targets: Targets) -> dict[str, float]:
    """`losses.moment_gap` of every layer by name, for pooled moments [2, channels of all layers].

    Pseudo-statistics of weight 0 (of an input that is no image) are nobody's aim and left out.
    """
    gaps = _channel_gaps(tf.constant(pooled, tf.float32), targets, std_weight=1.0).numpy()
    sums, sizes, aims = (
        np.bincount(targets.layer, weights=w)
        for w in (gaps, None, targets.bn_weight + targets.prior_weight)
    )
    return {
        name: float(total / size)
        for name, total, size, aim in zip(targets.names, sums, sizes, aims, strict=True)
        if aim
    }


def _channel_gaps(pooled: tf.Tensor, targets: Targets, *, std_weight: float) -> tf.Tensor:
    mean, square = tf.unstack(pooled)
    return losses.channel_gaps(
        mean,
        tf.maximum(square - tf.square(mean), 0.0),
        epsilon=targets.epsilon,
        std_weight=std_weight,
    )


def objective(
    pooled: tf.Tensor,
    tapped: Tapped,
    spreads: list[tf.Tensor],
    *,
    layers: Sequence[BatchNorm | PseudoStatistics],
    targets: Targets,
    limits: tf.Tensor,
    size: tf.Tensor,
    set_images: float,
    config: GenerationConfig,
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """A batch's share of the set's objective.

    (images of the set) * statistics loss + (images of the batch) * output loss: so scaled, the
    gradient of an image
    depends neither on the batch size nor on the number of batches (a plain mean would shrink it as
    1 / batches).

    Args:
      pooled: moments of the whole set [2, channels of all layers], of which this batch's share
        carries the gradient; of
        the batch alone where statistics are not pooled.
      spreads: every head's `losses.output_spread`.
      limits: the spread up to which each head is stretched, float32 [heads], in logit units; 0
        before it is known.
      size: images in the batch, float32. set_images: in the set, real ones included, since they too
        share the pooled moments.
    Returns: the value to differentiate, and figures of the step (gaps, spreads in logit units, the
      loss per image).
    """
    gaps = _channel_gaps(pooled, targets, std_weight=config.std_weight)
    bn, prior = tf.reduce_sum(gaps * targets.bn_weight), tf.reduce_sum(gaps * targets.prior_weight)
    images = set_images if config.pool_statistics else size
    value = images * (config.bn_weight * bn + config.prior_weight * prior)
    metrics = {"bn": bn, "prior": prior}
    for i, (head, spread) in enumerate(zip(tapped.heads, spreads, strict=True)):
        metrics[f"spread/{head.name}"] = tf.reduce_mean(spread)
        if config.output_weight:  # heads share the weight equally, whatever their size and unit
            weight = config.output_weight / len(tapped.heads)
            stretch = losses.stretching(spread, limit=limits[i]) + _hinge(head, tapped, layers)
            value += size * tf.where(limits[i] > 0.0, weight * stretch, 0.0)
    metrics["loss"] = value / images
    return value, metrics


def _hinge(head: Head, tapped: Tapped, layers: Sequence[BatchNorm | PseudoStatistics]) -> tf.Tensor:
    if head.last_call is None:
        return tf.constant(0.0)
    index, x = tapped.calls[head.last_call]
    layer = layers[index]
    return losses.image_hinge(
        *image_moments(x, axis=layer.axis),
        mean=tf.constant(layer.mean),
        variance=tf.constant(layer.variance),
        epsilon=layer.epsilon,
    )
