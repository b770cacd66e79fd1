"""What the images are optimized for: BatchNorm statistics, stretched outputs, an image prior.

All gaps are in units of the layer's own normalization, sqrt(running variance + epsilon): what the
next layer sees. A raw gap, as the references use, lets the layer with the largest activations drown
all others.
"""

from __future__ import annotations

import tensorflow as tf

from dgh_tf.ops.moments import Moments


def moment_gap(
    observed: Moments,
    *,
    mean: tf.Tensor,
    variance: tf.Tensor,
    epsilon: float,
    std_weight: float = 1.0,
) -> tf.Tensor:
    """Mean over channels of the squared gap of means and, times std_weight, of standard deviations
    (DGH, statistics loss).

    Args:
      observed: pooled moments, float32 [channels].
      mean: running mean, float32 [channels].
      variance: running variance, float32 [channels].
      epsilon: the BN layer's own; added to both variances before the root, so dead channels neither
        divide by zero nor dominate.
      std_weight: weight of the gap of standard deviations against that of means, 0 or above.
    Returns: float32 scalar; 0 means equal, 1 that means are one standard deviation off.
    """
    scale = tf.sqrt(variance + epsilon)
    return tf.reduce_mean(
        channel_gaps(
            (observed.mean - mean) / scale,
            observed.variance / tf.square(scale),
            epsilon=epsilon / tf.square(scale),
            std_weight=std_weight,
        )
    )


def channel_gaps(
    mean: tf.Tensor, variance: tf.Tensor, *, epsilon: tf.Tensor, std_weight: float = 1.0
) -> tf.Tensor:
    """`moment_gap` before the mean over channels, for moments in units of the layer's
    normalization. All float32 [channels].

    Args:
      mean: of (x - running mean) / scale, with scale = sqrt(running variance + layer's epsilon).
      variance: of the same.
      epsilon: the layer's, divided by scale squared.
      std_weight: as for `moment_gap`.
    """
    return tf.square(mean) + std_weight * tf.square(
        tf.sqrt(tf.maximum(variance + epsilon, 1e-12)) - 1.0
    )


def output_spread(logits: tf.Tensor) -> tf.Tensor:
    """Largest minus smallest pre-activation output of each image, float32 [batch], over all
    positions and channels.

    An image of a head with a single output has no spread of its own; there it is that of the whole
    batch, for every image.
    """
    values = tf.reshape(tf.cast(logits, tf.float32), [tf.shape(logits)[0], -1])
    spread = tf.reduce_max(values, axis=1) - tf.reduce_min(values, axis=1)
    single = tf.equal(tf.shape(values)[1], 1)
    return tf.where(single, tf.reduce_max(values) - tf.reduce_min(values), spread)


def stretching(spread: tf.Tensor, *, limit: tf.Tensor) -> tf.Tensor:
    """Output stretching with its automatic weight and end (DGH, distribution-stretching loss: minus
    the mean spread).

    The paper's lambda differs by 300 times between models, because it carries the unit of the
    logits. The logarithm removes the unit: an image's gradient is that of -lambda * spread with
    lambda = 1 / spread, so heads of any size and unit pull equally hard. Images at the limit are
    stretched no more: a wider output only costs resolution.

    Args:
      spread: float32 [batch], positive, in logit units.
      limit: float32 scalar, same unit.
    Returns: float32 scalar, the mean over images of -log(min(spread, limit)).
    """
    return -tf.reduce_mean(tf.math.log(tf.minimum(spread, limit) + 1e-6))


def reaching(largest: tf.Tensor, *, target: tf.Tensor) -> tf.Tensor:
    """Brings a value to a target from both sides, whatever their unit: |log(largest / target)|,
    float32 scalar. largest: above 0. target: at least 0, where 0 stands for one yet unknown.
    """
    return tf.abs(tf.math.log(largest) - tf.math.log(tf.maximum(target, 1e-12)))


def image_hinge(
    image_mean: tf.Tensor,
    image_variance: tf.Tensor,
    *,
    mean: tf.Tensor,
    variance: tf.Tensor,
    epsilon: float,
) -> tf.Tensor:
    """Keeps single images near the statistics of the last BN before a head while that head is
    stretched (DGH).

    relu(gap - 0.5) per image for means and for standard deviations, then the mean over images.

    Args:
      image_mean: mean of each image, float32 [batch, channels].
      image_variance: variance of each image, float32 [batch, channels].
      mean: running mean, float32 [channels].
      variance: running variance, float32 [channels].
      epsilon: the BN layer's own.
    """
    scale = tf.sqrt(variance + epsilon)
    mean_gap = tf.reduce_mean(tf.square((image_mean - mean) / scale), axis=1)
    std_gap = tf.reduce_mean(tf.square(tf.sqrt(image_variance + epsilon) / scale - 1.0), axis=1)
    return tf.reduce_mean(tf.nn.relu(mean_gap - 0.5) + tf.nn.relu(std_gap - 0.5))
