"""math: per-channel moments of activations, their exact merge over batches, and the gradient that makes them cheap.

Moments are held as count, mean and M2 (sum of squared deviations from the mean), float32 [channels], so that merging
loses nothing to cancellation, whatever the batch sizes (Chan, Golub, LeVeque 1983).
"""
from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Moments(NamedTuple):
    """count: scalar or [rows, 1]; mean and m2: float32 [..., channels]."""

    count: tf.Tensor
    mean: tf.Tensor
    m2: tf.Tensor

    @property
    def variance(self) -> tf.Tensor:
        """Population variance, as BatchNorm's running variance (up to its n/(n-1) where a framework uses that)."""
        return self.m2 / self.count


def channel_moments(x: tf.Tensor, *, shift: tf.Tensor, axis: int = -1) -> Moments:
    """Moments of x over all axes but `axis`.

    Args:
      x: activations of any float type; sums are float32.
      shift: float32 [channels], a guess of the mean (the running mean): deviations are taken from it before squaring, so
        a large mean does not cancel the variance away. It does not change the result otherwise.
      axis: the channel axis.
    """
    x = tf.cast(x, tf.float32)
    axis = axis % x.shape.rank
    if axis != x.shape.rank - 1:
        order = [i for i in range(x.shape.rank) if i != axis] + [axis]
        x = tf.transpose(x, order)
    count = tf.cast(tf.size(x) // tf.shape(x)[-1], tf.float32)
    offset, square = _shifted_sums(tf.reshape(x, [-1, x.shape[-1]]), tf.cast(shift, tf.float32))
    offset, square = offset / count, square / count
    return Moments(count, shift + offset, count * tf.maximum(square - tf.square(offset), 0.0))


@tf.custom_gradient
def _shifted_sums(x: tf.Tensor, shift: tf.Tensor):
    """Sums over rows of d = x - shift and of d squared. Its gradient g1 + 2 g2 d is one product and one sum over x."""
    d = x - shift
    ones = tf.ones([1, tf.shape(x)[0]], tf.float32)
    sums = tf.matmul(ones, d)[0]  # a matrix product: Eigen's column sums are slower
    squares = tf.matmul(ones, tf.square(d))[0]

    def gradient(by_sum, by_square):
        return x * (2.0 * by_square) + (by_sum - 2.0 * by_square * shift), None

    return (sums, squares), gradient


def merge(rows: Moments) -> Moments:
    """Exact moments of the concatenation of all rows (count [rows, 1], mean and m2 [rows, channels])."""
    count = tf.reduce_sum(rows.count, axis=0)
    mean = tf.reduce_sum(rows.count * rows.mean, axis=0) / count
    m2 = tf.reduce_sum(rows.m2 + rows.count * tf.square(rows.mean - mean), axis=0)
    return Moments(count, mean, m2)


def image_moments(x: tf.Tensor, *, axis: int = -1) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of each image over its positions: float32 [batch, channels] both (variance 0 for plain vectors)."""
    x = tf.cast(x, tf.float32)
    axes = [i for i in range(1, x.shape.rank) if i != axis % x.shape.rank]
    if not axes:
        return x, tf.zeros_like(x)
    return tf.nn.moments(x, axes)
