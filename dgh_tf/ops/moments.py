"""Per-channel moments of activations in float32, and the gradient that makes them cheap."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dgh_tf.ops.fusion import fused

SAFE_OFFSET = 10.0  # deviations: up to here the variance keeps four digits
LONG_ROW = 64  # channels
LARGE = (
    2**13
)  # values of an image: from here on a pass over memory costs more than starting compiled code


class Moments(NamedTuple):
    """count: float32 scalar; mean and m2 (sum of squared deviations from the mean): float32
    [channels].
    """

    count: tf.Tensor
    mean: tf.Tensor
    m2: tf.Tensor

    @property
    def variance(self) -> tf.Tensor:
        """Population variance, as BatchNorm's running variance (up to its n/(n-1) where a framework
        uses that).
        """
        return self.m2 / self.count


class Move(NamedTuple):
    """factor * d + offset, float32 [channels] both: a quantity told from another, d."""

    factor: np.ndarray
    offset: np.ndarray


def safe_shift(mean: np.ndarray, *, variance: np.ndarray, epsilon: float) -> np.ndarray:
    """The shift for `channel_sums` that channels of these running statistics need, float32
    [channels]: zeros where no mean is so far from zero that squares in float32 lose the variance; a
    shift costs a pass over the activations.
    """
    far = np.square(mean) > SAFE_OFFSET**2 * (variance + epsilon)
    return mean if far.any() else np.zeros_like(mean)


def channel_sums(
    x: tf.Tensor, *, shift: np.ndarray, axis: int = -1
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Sums of d = x - shift and of d squared over all axes but `axis`, float32 [channels] both, and
    how many d there are.

    Args:
      x: activations of any float type; sums are float32.
      shift: float32 [channels], a guess of the mean: deviations are taken from it before squaring,
        so a large mean does not cancel the variance away. All zeros save a pass over x.
      axis: the channel axis.
    """
    x = tf.cast(x, tf.float32)
    axis = axis % x.shape.rank
    if axis != x.shape.rank - 1:
        x = tf.transpose(x, [*(i for i in range(x.shape.rank) if i != axis), axis])
    sums, half_squares = _sums(x, shift if np.any(shift) else None)
    return sums, 2.0 * half_squares, _count(x)


def channel_moments(x: tf.Tensor, *, shift: np.ndarray, axis: int = -1) -> Moments:
    """Moments of x over all axes but `axis`; arguments as those of `channel_sums`, which it is made
    from.
    """
    sums, squares, count = channel_sums(x, shift=shift, axis=axis)
    offset = sums / count
    return Moments(count, shift + offset, tf.maximum(squares - sums * offset, 0.0))


def row_repeat(x: tf.Tensor) -> int:
    """How many neighbouring positions to take as one row of x [..., width, channels]: Eigen
    broadcasts short vectors slowly.
    """
    wide = x.shape.rank > 2 and x.shape[-1] < LONG_ROW and x.shape[-2]
    return x.shape[-2] if wide else 1


def _total(ones: tf.Tensor, rows: tf.Tensor, channels: int) -> tf.Tensor:
    """Sums of rows [n, repeat * channels] by channel; as a matrix product, because Eigen's column
    sums are slower.
    """
    found = tf.matmul(ones, rows)
    return (
        found[0]
        if rows.shape[1] == channels
        else tf.reduce_sum(tf.reshape(found, [-1, channels]), 0)
    )


def _sums(x: tf.Tensor, shift: np.ndarray | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums over positions of d = x - shift and of d^2 / 2. Their gradient g1 + g2 d is one product
    and one sum over x.
    """
    repeat, channels = row_repeat(x), x.shape[-1]
    affine = fused(_affine) if _is_large(x) else _affine

    @tf.custom_gradient
    def sums(x: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        def gradient(by_sum: tf.Tensor, by_square: tf.Tensor) -> tf.Tensor:
            rows = tf.reshape(x, [-1, repeat * channels])
            factor, offset = _slope(by_sum, by_square, shift, repeat)
            return tf.reshape(affine(rows, factor, offset), tf.shape(x))

        return _shifted_sums(x, shift), gradient

    return sums(x)


def _is_large(x: tf.Tensor) -> bool:
    return (x.shape[1:].num_elements() or 0) >= LARGE


def _shifted_sums(x: tf.Tensor, shift: np.ndarray | None) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums over positions of d = x - shift, and of d^2 / 2."""
    repeat, channels = row_repeat(x), x.shape[-1]
    if _is_large(x):
        # over the images first: compiled, that is one pass over x for both sums
        size = x.shape[1:].num_elements()
        shifts = 0.0 if shift is None else tf.tile(tf.constant(shift), [size // channels])
        parts = fused(_image_sums)(tf.reshape(x, [-1, size]), shifts)
        values, squares = (tf.reshape(part, [-1, repeat * channels]) for part in parts)
        ones = tf.ones([1, size // (repeat * channels)])
    else:
        values = tf.reshape(x, [-1, repeat * channels])
        if shift is not None:
            values -= np.tile(shift, repeat).astype(np.float32)
        squares, ones = tf.square(values), tf.ones([1, tf.shape(values)[0]])
    return _total(ones, values, channels), 0.5 * _total(ones, squares, channels)


def _image_sums(rows: tf.Tensor, shift: tf.Tensor | float) -> tuple[tf.Tensor, tf.Tensor]:
    d = rows - shift
    return tf.reduce_sum(d, 0), tf.reduce_sum(tf.square(d), 0)


def _slope(
    by_sum: tf.Tensor, by_square: tf.Tensor, shift: np.ndarray | None, repeat: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Factor and offset of x in the gradient of `_shifted_sums`, for rows of `repeat` positions."""
    offset = by_sum if shift is None else by_sum - by_square * shift.astype(np.float32)
    return tuple(v if repeat == 1 else tf.tile(v, [repeat]) for v in (by_square, offset))


def normalize(
    x: tf.Tensor, *, scale: np.ndarray, offset: np.ndarray, shift: np.ndarray
) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
    """x * scale + offset along the last axis, which is batch normalization in inference mode, and
    `channel_sums` of x.

    Together they read a large x half as often as apart, forward and backward.

    Args:
      x: float32 [batch, ..., channels].
      scale: float32 [channels].
      offset: float32 [channels].
      shift: float32 [channels], see `channel_sums`.
    """
    repeat, channels = row_repeat(x), x.shape[-1]
    scales, offsets = (tf.constant(np.tile(v, repeat), tf.float32) for v in (scale, offset))
    needed = shift if np.any(shift) else None
    forward, backward = (
        (fused(_affine), fused(_affine_gradient)) if _is_large(x) else (_affine, _affine_gradient)
    )

    @tf.custom_gradient
    def normalized(x: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        rows = tf.reshape(x, [-1, repeat * channels])

        def gradient(upstream: tf.Tensor, by_sum: tf.Tensor, by_square: tf.Tensor) -> tf.Tensor:
            factor, constant = _slope(by_sum, by_square, needed, repeat)
            return tf.reshape(
                backward(
                    tf.reshape(upstream, [-1, repeat * channels]), rows, scales, factor, constant
                ),
                tf.shape(x),
            )

        return (
            tf.reshape(forward(rows, scales, offsets), tf.shape(x)),
            *_shifted_sums(x, needed),
        ), gradient

    y, sums, half_squares = normalized(x)
    return tf.ensure_shape(y, x.shape), (sums, 2.0 * half_squares, _count(x))


def with_sums(
    x: tf.Tensor, *, shift: np.ndarray
) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """x as it is, and its `channel_sums` along the last axis. What comes back through both is added
    up in one pass over a large x.

    Args:
      x: float32 [batch, ..., channels].
      shift: float32 [channels], see `channel_sums`.
    """
    repeat, channels = row_repeat(x), x.shape[-1]
    needed = shift if np.any(shift) else None
    backward = fused(_sums_gradient) if _is_large(x) else _sums_gradient

    @tf.custom_gradient
    def summed(x: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        def gradient(upstream: tf.Tensor, by_sum: tf.Tensor, by_square: tf.Tensor) -> tf.Tensor:
            rows, above = (tf.reshape(v, [-1, repeat * channels]) for v in (x, upstream))
            factor, constant = _slope(by_sum, by_square, needed, repeat)
            return tf.reshape(backward(above, rows, factor, constant), tf.shape(x))

        return (tf.identity(x), *_shifted_sums(x, needed)), gradient

    y, sums, half_squares = summed(x)
    return tf.ensure_shape(y, x.shape), (sums, 2.0 * half_squares, _count(x))


def relu_with_sums(
    x: tf.Tensor, *, shift: np.ndarray, cap: float
) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """min(max(x, 0), cap), and `channel_sums` of x along the last axis. What comes back through
    both takes one pass over a large x, as long as ReLU's gradient alone.

    Args:
      x: float32 [batch, ..., channels].
      shift: float32 [channels], see `channel_sums`.
      cap: 6 or infinity.
    """
    if cap not in (6.0, math.inf):
        raise ValueError(f"cap={cap}: expected 6 or infinity.")
    repeat, channels = row_repeat(x), x.shape[-1]
    needed = shift if np.any(shift) else None
    relu, plain_gradient = (
        (tf.nn.relu6, tf.raw_ops.Relu6Grad) if cap == 6.0 else (tf.nn.relu, tf.raw_ops.ReluGrad)
    )

    @tf.custom_gradient
    def rectified(x: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        def gradient(upstream: tf.Tensor, by_sum: tf.Tensor, by_square: tf.Tensor) -> tf.Tensor:
            rows, above = (tf.reshape(v, [-1, repeat * channels]) for v in (x, upstream))
            factor, constant = _slope(by_sum, by_square, needed, repeat)
            if _is_large(x):
                back = fused(_relu_sums_gradient)(above, rows, factor, constant, tf.constant(cap))
            else:
                passed = plain_gradient(gradients=above, features=rows)
                back = _sums_gradient(passed, rows, factor, constant)
            return tf.reshape(back, tf.shape(x))

        return (relu(x), *_shifted_sums(x, needed)), gradient

    y, sums, half_squares = rectified(x)
    return tf.ensure_shape(y, x.shape), (sums, 2.0 * half_squares, _count(x))


def moved_sums(
    total: tf.Tensor, squares: tf.Tensor, count: tf.Tensor, *, move: Move
) -> tuple[tf.Tensor, tf.Tensor]:
    """The first two of `channel_sums` of factor * d + offset from all three of d; float32
    [channels].
    """
    factor, offset = move
    moved = factor * total + count * offset
    return moved, factor**2 * squares + 2.0 * offset * factor * total + count * offset**2


def _affine(rows: tf.Tensor, scales: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    return rows * scales + offsets


def _affine_gradient(
    upstream: tf.Tensor, rows: tf.Tensor, scales: tf.Tensor, factor: tf.Tensor, constant: tf.Tensor
) -> tf.Tensor:
    return upstream * scales + (rows * factor + constant)


def _sums_gradient(
    upstream: tf.Tensor, rows: tf.Tensor, factor: tf.Tensor, constant: tf.Tensor
) -> tf.Tensor:
    return upstream + (rows * factor + constant)


def _relu_sums_gradient(
    upstream: tf.Tensor, rows: tf.Tensor, factor: tf.Tensor, constant: tf.Tensor, cap: tf.Tensor
) -> tf.Tensor:
    passed = tf.where((rows > 0.0) & (rows < cap), upstream, 0.0)
    return passed + (rows * factor + constant)


def _count(x: tf.Tensor) -> tf.Tensor:
    """Positions of x [batch, ..., channels] over all images, float32."""
    positions = x.shape[1:-1].num_elements()
    return (
        tf.cast(tf.shape(x)[0], tf.float32) * positions
        if positions
        else tf.cast(tf.size(x) // x.shape[-1], tf.float32)
    )


def image_moments(x: tf.Tensor, *, axis: int = -1) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of each image over its positions: float32 [batch, channels] both (variance
    0 for plain vectors).
    """
    x = tf.cast(x, tf.float32)
    axes = [i for i in range(1, x.shape.rank) if i != axis % x.shape.rank]
    if not axes:
        return x, tf.zeros_like(x)
    return tf.nn.moments(x, axes)
