"""math: the value that one step lowers: rows of moments, their pooling with the table, and the weighted sum of the losses."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from dgh_tf import losses
from dgh_tf.config import GenerationConfig
from dgh_tf.moments import Moments, channel_moments, image_moments, merge

if TYPE_CHECKING:
    from dgh_tf.input_range import InputRange
    from dgh_tf.network import BatchNorm, Head, Tapped


class PseudoStatistics(NamedTuple):
    """The input itself as one more BN layer, in canvas units: part of the image prior (DGH, METHOD of both references)."""

    name: str
    axis: int
    epsilon: float
    mean: np.ndarray
    variance: np.ndarray


def pseudo_statistics(valid: InputRange, shape: tuple[int, ...]) -> PseudoStatistics:
    """Mean 0 and the natural spread of inputs in `valid`, for each channel of an input of `shape`."""
    variance = np.full(shape[-1], valid.prior_std**2, np.float32)
    return PseudoStatistics("input", len(shape), 1e-3, np.zeros_like(variance), variance)


def layer_rows(calls: Sequence[tuple[int, tf.Tensor]], layers: Sequence[BatchNorm | PseudoStatistics]) -> list[Moments]:
    """Moments of every layer's input over all its calls (a shared layer has several). calls: (index of layer, input)."""
    rows: list[list[Moments]] = [[] for _ in layers]
    for index, x in calls:
        rows[index].append(channel_moments(x, shift=tf.constant(layers[index].mean), axis=layers[index].axis))
    return [row[0] if len(row) == 1 else _merged(row) for row in rows]


def objective(row: list[Moments], tapped: Tapped, others: list[Moments], *, layers: Sequence[BatchNorm | PseudoStatistics],
              priors: Sequence[float], limits: tf.Tensor, size: tf.Tensor,
              config: GenerationConfig) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """A batch's share of the set's objective.

    (images of the set) * statistics loss + (images of the batch) * output loss: so scaled, the gradient of an image
    depends neither on the batch size nor on the number of batches (a plain mean would shrink it as 1 / batches).

    Args:
      row: fresh moments of each of `layers`, the last of which are the inputs' pseudo-statistics.
      priors: weight of each input's pseudo-statistics, 0 where it is no image.
      limits: the spread up to which each head is stretched, float32 [heads], in logit units; 0 before it is known.
      others: the table's rows of all other batches by layer, constants; empty to match the batch alone.
      size: images in the batch, float32.
    Returns: the value to differentiate, and figures of the step (gaps, spreads in logit units, the loss per image).
    """
    gaps = []
    for i, (layer, fresh) in enumerate(zip(layers, row, strict=True)):
        pooled = merge(_append(others[i], fresh)) if others else fresh
        gaps.append(losses.moment_gap(pooled, mean=tf.constant(layer.mean), variance=tf.constant(layer.variance),
                                      epsilon=layer.epsilon, std_weight=config.std_weight))
    real = len(layers) - len(priors)
    bn, prior = tf.add_n(gaps[:real]) / real, tf.add_n([weight * gap for weight, gap in zip(priors, gaps[real:], strict=True)])
    images = float(config.num_images) if config.pool_statistics else size
    value = images * (config.bn_weight * bn + config.prior_weight * prior / real)  # an input weighs as much as one BN layer
    metrics = {"bn": bn, "prior": prior}
    for i, head in enumerate(tapped.heads):
        spread = losses.output_spread(head.logits)
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
    return losses.image_hinge(*image_moments(x, axis=layer.axis), mean=tf.constant(layer.mean),
                              variance=tf.constant(layer.variance), epsilon=layer.epsilon)


def _merged(rows: list[Moments]) -> Moments:
    """The rows' pooled moments, with a scalar count as channel_moments has it."""
    pooled = merge(_stack(rows))
    return pooled._replace(count=pooled.count[0])


def _stack(rows: list[Moments]) -> Moments:
    return Moments(tf.stack([row.count for row in rows])[:, None], tf.stack([row.mean for row in rows]), tf.stack([row.m2 for row in rows]))


def _append(rest: Moments, fresh: Moments) -> Moments:
    count = tf.concat([rest.count, tf.reshape(fresh.count, [1, 1])], 0)
    return Moments(count, tf.concat([rest.mean, fresh.mean[None]], 0), tf.concat([rest.m2, fresh.m2[None]], 0))


def flatten(row: list[Moments]) -> tuple[tf.Tensor, tf.Tensor]:
    """A batch's row of the table: means and M2 of all layers' channels in order, float32 [channels of all layers] each."""
    return tf.concat([m.mean for m in row], 0), tf.concat([m.m2 for m in row], 0)


def replace_rows(means: tf.Tensor, m2s: tf.Tensor, rows: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The table (means and M2, [batches, values]) with the rows `ids` replaced by `rows` (means, then M2: [n, 2 values])."""
    width = means.shape[1]
    return (tf.tensor_scatter_nd_update(means, ids[:, None], rows[:, :width]),
            tf.tensor_scatter_nd_update(m2s, ids[:, None], rows[:, width:]))


def other_rows(counts: np.ndarray, means: tf.Tensor, m2s: tf.Tensor, batch: tf.Tensor, *,
               layers: Sequence[BatchNorm | PseudoStatistics]) -> list[Moments]:
    """The table without row `batch`, split by layer. counts: float32 [batches, layers]."""
    keep = tf.not_equal(tf.range(len(counts)), batch)
    kept_counts, means, m2s = (tf.boolean_mask(a, keep) for a in (tf.constant(counts), means, m2s))
    lengths = [len(layer.mean) for layer in layers]
    split = zip(tf.split(means, lengths, 1), tf.split(m2s, lengths, 1), strict=True)
    return [Moments(kept_counts[:, i:i + 1], mean, m2) for i, (mean, m2) in enumerate(split)]
