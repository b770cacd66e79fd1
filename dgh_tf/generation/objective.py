"""The value that one step lowers: rows of the table, their pooling, and the weighted sum of
the losses.

A batch's row holds its share of the set's first and second moments, in units of each layer's own
normalization: float32 [2, channels of all layers], batch images / set images * (mean of u, mean of
u^2), u = (x - running mean) / scale. Shares add up: the pooled moments are the sum of all rows,
whatever the sizes of the batches, and that sum is all that a batch needs of the others. Nothing is
lost to cancellation: where the statistics are met, u has mean 0 and mean square 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import tensorflow as tf

from dgh_tf.config import GenerationConfig
from dgh_tf.models.batchnorm import inference_affine
from dgh_tf.ops import losses
from dgh_tf.ops.layer_moments import layer_sums
from dgh_tf.ops.moments import Move, image_moments, moved_sums, safe_shift

if TYPE_CHECKING:
    from dgh_tf.input_range.conventions import InputRange
    from dgh_tf.models.batchnorm import BatchNorm
    from dgh_tf.models.heads import Head
    from dgh_tf.models.network import Tapped

# Rare values set the range of a layer, and matched statistics tell nothing of those. The largest
# output over a set of real signals is 1.2 to 3.6 times the mean of the signals' own largest (seven
# networks, 35 layers), which the statistics do tell. Generated sets are brought to the middle: a
# range of 0.7 of the true one costs a spectrogram network 8 dB, one of 1.5 a single dB.
# Where values cannot differ as much from the usual, the factor is less or none, see
# `inputs.largest_reach`.
LARGEST_REACH = 2.5
REACH_WEIGHT = 10.0  # of all layers together, in units of the weight of outputs
_LEAST_REACH = 1e-3
PRIOR_LAYERS = 30  # BN layers of a usual network: a model without any is not held to its prior more


@dataclasses.dataclass(frozen=True)
class PseudoStatistics:
    """The input itself as one more BN layer, in canvas units: part of the image prior (DGH)."""

    name: str
    axis: int
    epsilon: float
    mean: np.ndarray
    variance: np.ndarray


Layers: TypeAlias = "Sequence[BatchNorm | PseudoStatistics]"


@dataclasses.dataclass(frozen=True)
class Targets:
    """Statistics of all layers side by side, float32 [channels of all layers] each.

    Attributes:
      mean, scale: running mean, and sqrt(running variance + epsilon).
      epsilon: the layer's own, in units of scale squared.
      shift: what is taken off activations before they are squared, see `moments.safe_shift`.
      bn_weight, prior_weight: of every channel's gap in the two losses.
      layer: number of the layer of every channel, int32.
      names: of the layers.
    """

    mean: np.ndarray
    scale: np.ndarray
    epsilon: np.ndarray
    shift: np.ndarray
    bn_weight: np.ndarray
    prior_weight: np.ndarray
    layer: np.ndarray
    names: list[str]


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a run minimizes, the same in all its steps.

    Attributes:
      layers: BN layers, then the pseudo-statistics of every input; targets: theirs.
      heads: names of the model's heads.
      ranged: scale and offset of those BN layers whose largest output is aimed at, by their number.
      reach: that largest output over the set, in units of the mean of the images' own largest.
      stretch_masks: whether heads over places of the input are stretched, too; not where matched
        statistics of signals bring them to the spread of real ones.
    """

    config: GenerationConfig
    layers: Layers
    targets: Targets
    heads: list[str]
    ranged: Mapping[int, tuple[np.ndarray, np.ndarray]]
    reach: float = LARGEST_REACH
    stretch_masks: bool = True


@dataclasses.dataclass(frozen=True)
class Observation:
    """What one forward pass of a batch showed.

    Attributes:
      moments: mean of u and of u squared, float32 [2, channels of all layers].
      tapped: inputs of BN layers, and heads.
      spreads: of every head, `losses.output_spread` of each image, in logit units; then of every
        ranged layer its `reach`.
    """

    moments: tf.Tensor
    tapped: Tapped
    spreads: list[tf.Tensor]

    @property
    def finite(self) -> tf.Tensor:
        """Whether each channel's moments are finite, bool [channels of all layers]."""
        return tf.math.is_finite(tf.reduce_sum(tf.abs(self.moments), 0))


def pseudo_statistics(valid: InputRange, shape: tuple[int, ...]) -> PseudoStatistics:
    """Mean 0 and the natural spread of inputs in `valid`, for each channel of an input of
    `shape`.
    """
    variance = np.full(shape[-1], valid.prior_std**2, np.float32)
    return PseudoStatistics(
        name="input",
        axis=len(shape),
        epsilon=1e-3,
        mean=np.zeros_like(variance),
        variance=variance,
    )


def make_targets(layers: Layers, priors: Sequence[float]) -> Targets:
    """Targets of `layers`, the last of which are the inputs' pseudo-statistics, weighted by
    `priors`.

    Layers count equally whatever their width; an input weighs as much as one BN layer, or where
    there is none, as one of PRIOR_LAYERS.
    """
    real = len(layers) - len(priors)
    lengths = [len(layer.mean) for layer in layers]
    weights = [1.0 / ((real or PRIOR_LAYERS) * length) for length in lengths]
    bn = [weight if i < real else 0.0 for i, weight in enumerate(weights)]
    prior = [0.0] * real + [p * w for p, w in zip(priors, weights[real:], strict=True)]
    scales = [np.sqrt(layer.variance + layer.epsilon) for layer in layers]
    shifts = [
        safe_shift(layer.mean, variance=layer.variance, epsilon=layer.epsilon) for layer in layers
    ]
    scale = np.concatenate(scales).astype(np.float32)
    epsilon = np.repeat([layer.epsilon for layer in layers], lengths) / scale**2
    return Targets(
        mean=np.concatenate([layer.mean for layer in layers]),
        scale=scale,
        epsilon=epsilon.astype(np.float32),
        shift=np.concatenate(shifts),
        bn_weight=np.repeat(np.asarray(bn, np.float32), lengths),
        prior_weight=np.repeat(np.asarray(prior, np.float32), lengths),
        layer=np.repeat(np.arange(len(layers), dtype=np.int32), lengths),
        names=[layer.name for layer in layers],
    )


def batch_moments(tapped: Tapped, units: Sequence[tf.Tensor], problem: Problem) -> tf.Tensor:
    """(mean of u, mean of u^2) of a batch, float32 [2, channels of all layers]; times the batch's
    share it is its row.

    Args:
      tapped: what a forward pass of the batch gave.
      units: the inputs in canvas units, for the pseudo-statistics that the layers end with.
      problem: what the run minimizes.
    """
    layers, targets = problem.layers, problem.targets
    calls = [*tapped.calls, *enumerate(units, start=len(layers) - len(units))]
    ends = np.cumsum(np.bincount(targets.layer))[:-1]
    shifts, known = np.split(targets.shift, ends), [*tapped.sums, *[None] * len(units)]
    sums, squares, counts = zip(*layer_sums(calls, layers, shifts, known), strict=True)
    # all layers side by side from here on: few operations, whatever the depth
    counts = tf.gather(tf.stack(counts), targets.layer)
    total, square = moved_sums(
        tf.concat(sums, 0), tf.concat(squares, 0), counts, move=_moves(tapped.moves, shifts)
    )
    away = (targets.shift - targets.mean) / targets.scale
    u = total / counts / targets.scale
    return tf.stack([u + away, square / counts / targets.scale**2 + 2.0 * away * u + away**2])


def _moves(moves: Mapping[int, Move], shifts: Sequence[np.ndarray]) -> Move:
    """Those of all layers side by side; layers without one stay as they are."""
    each = [moves.get(i, Move(np.ones_like(s), np.zeros_like(s))) for i, s in enumerate(shifts)]
    return Move(*(np.concatenate(parts) for parts in zip(*each, strict=True)))


def ranged_layers(layers: Sequence[BatchNorm]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """`Problem.ranged` of a model of signals."""
    affines = {i: inference_affine(layer) for i, layer in enumerate(layers)}
    return {i: affine for i, affine in affines.items() if affine is not None}


def reach(x: tf.Tensor, *, scale: np.ndarray, offset: np.ndarray) -> tf.Tensor:
    """The largest output of a layer scale * x + offset on each image, float32 [batch], above 0:
    what an activation behind it passes on.
    """
    y = tf.reshape(tf.cast(x, tf.float32) * scale + offset, [tf.shape(x)[0], -1])
    return tf.maximum(tf.reduce_max(y, axis=1), _LEAST_REACH)


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
    seen: Observation,
    problem: Problem,
    *,
    limits: tf.Tensor,
    size: tf.Tensor,
    set_images: tf.Tensor,
    stretch_weight: tf.Tensor,
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """A batch's share of the set's objective.

    (images of the set) * statistics loss + (images of the batch) * output loss: so scaled, the
    gradient of an image depends neither on the batch size nor on the number of batches (a plain
    mean would shrink it as 1 / batches).

    Args:
      pooled: moments of the whole set [2, channels of all layers], of which this batch's share
        carries the gradient; of the batch alone where statistics are not pooled.
      seen: what the forward pass of this batch showed.
      problem: what the run minimizes.
      limits: the spread up to which each head is stretched, then the largest reach that each layer
        is to have; float32, in the units of `Observation.spreads`; 0 before they are known.
      size: images in the batch, float32 scalar.
      set_images: images that share the pooled statistics, float32 scalar.
      stretch_weight: of each head's output loss, float32.
    Returns: the value to differentiate, and figures of the step (gaps, spreads in logit units, the
      loss per image).
    """
    config, targets, heads = problem.config, problem.targets, seen.tapped.heads
    gaps = _channel_gaps(pooled, targets, std_weight=config.std_weight)
    bn, prior = tf.reduce_sum(gaps * targets.bn_weight), tf.reduce_sum(gaps * targets.prior_weight)
    images = set_images if config.pool_statistics else size
    value = images * (config.bn_weight * bn + config.prior_weight * prior)
    metrics = {"bn": bn, "prior": prior}
    spreads, reaches = seen.spreads[: len(heads)], seen.spreads[len(heads) :]
    for i, (head, spread) in enumerate(zip(heads, spreads, strict=True)):
        metrics[f"spread/{head.name}"] = tf.reduce_mean(spread)
        if not problem.stretch_masks and _is_dense(head.logits):
            continue
        hinge = _hinge(head, seen.tapped, problem.layers)
        stretch = losses.stretching(spread, limit=limits[i]) + hinge
        value += size * tf.where(limits[i] > 0.0, stretch_weight * stretch, 0.0)
    for i, largest in enumerate(reaches, start=len(heads)):
        weight = REACH_WEIGHT * stretch_weight * len(heads) / len(reaches)
        reaching = losses.reaching(tf.reduce_max(largest), target=limits[i])
        value += tf.where(limits[i] > 0.0, weight * reaching, 0.0)
    metrics["loss"] = value / images
    return value, metrics


def _is_dense(logits: tf.Tensor) -> bool:
    """Whether a head has outputs for places of the input, such as a mask. Each input then shows
    most of what such a head can say.
    """
    return any(side != 1 for side in logits.shape[1:-1])


def _hinge(head: Head, tapped: Tapped, layers: Layers) -> tf.Tensor:
    """`losses.image_hinge` of the input of the last BN layer before the head, 0 without one."""
    if head.last_call is None:
        return tf.constant(0.0)
    index, x = tapped.calls[head.last_call]
    layer = layers[index]
    mean, variance = image_moments(x, axis=layer.axis)
    return losses.image_hinge(
        mean,
        variance,
        mean=tf.constant(layer.mean),
        variance=tf.constant(layer.variance),
        epsilon=layer.epsilon,
    )
