"""RAdam and the step-size schedules as pure functions: state in, new state out."""

from __future__ import annotations

import math

import tensorflow as tf

EPSILON = 1e-12  # far below any pixel's gradient, which shrinks with the image area


def radam(
    gradient: tf.Tensor,
    first: tf.Tensor,
    second: tf.Tensor,
    *,
    step: tf.Tensor,
    rate: tf.Tensor,
    beta1: float,
    beta2: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One step of RAdam (Liu et al. 2020, "On the Variance of the Adaptive Learning Rate and
    Beyond", algorithm 2).

    While the variance of the adaptive rate is unbounded (its first few steps) only the slots fill:
    an unadapted step would depend on the gradient's scale, which here means on the image's size.

    Args:
      gradient: of the loss by the variable, float32.
      first: running mean of the gradient, of its shape; starts at 0.
      second: running mean of the squared gradient, of its shape; starts at 0.
      step: int32 scalar counted from 0.
      rate: learning rate, float32 scalar.
      beta1: weight of the past in `first`, 0..1.
      beta2: weight of the past in `second`, 0..1.
    Returns: the change to add to the variable, and the new first and second slots.
    """
    t = tf.cast(step + 1, tf.float32)
    first = beta1 * first + (1.0 - beta1) * gradient
    second = beta2 * second + (1.0 - beta2) * tf.square(gradient)
    size = adaptive_rate(t, beta1=beta1, beta2=beta2) * rate
    return -size * first / (tf.sqrt(second) + EPSILON), first, second


def apply_radam(
    variable: tf.Variable,
    first: tf.Variable,
    second: tf.Variable,
    gradient: tf.Tensor,
    *,
    step: tf.Tensor,
    rate: tf.Tensor,
    beta1: float,
    beta2: float,
) -> None:
    """`radam` in place, by TensorFlow's Adam kernel: one pass over memory instead of a dozen.

    The kernel's own bias corrections are turned off (powers 0); `adaptive_rate` holds them. No
    Keras optimizer: under tf.distribute those add up the gradients of different replicas' images.
    """
    size = adaptive_rate(tf.cast(step + 1, tf.float32), beta1=beta1, beta2=beta2) * rate
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=first.handle,
        v=second.handle,
        beta1_power=0.0,
        beta2_power=0.0,
        lr=size,
        beta1=beta1,
        beta2=beta2,
        epsilon=EPSILON,
        grad=gradient,
    )


def adaptive_rate(t: tf.Tensor, *, beta1: float, beta2: float) -> tf.Tensor:
    """RAdam's rectification times both bias corrections at step t (from 1); 0 while it is undefined
    (rho <= 5).
    """
    power = tf.pow(beta2, t)
    longest = 2.0 / (1.0 - beta2) - 1.0
    rho = longest - 2.0 * t * power / (1.0 - power)
    safe = tf.maximum(rho, 5.0)
    rectified = tf.sqrt(
        (safe - 4.0) * (safe - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * safe)
    )
    correction = tf.sqrt(1.0 - power) / (1.0 - tf.pow(beta1, t))
    return tf.where(rho > 5.0, rectified * correction, 0.0)


def cosine(step: tf.Tensor, *, steps: int | tf.Tensor) -> tf.Tensor:
    """Share of the peak step size at `step` of `steps`: from 1 to 0 along half a cosine (Loshchilov
    & Hutter 2017).
    """
    return 0.5 * (1.0 + tf.cos(math.pi * tf.cast(step, tf.float32) / tf.cast(steps, tf.float32)))


def plateau(
    state: tuple[float, float, int], loss: float, *, patience: int
) -> tuple[float, float, int]:
    """Halves the scale when the loss has not fallen by 0.01% for `patience` steps (as PyTorch's
    ReduceLROnPlateau).

    Args:
      state: (scale, best loss, steps without a better one); starts as (1.0, inf, 0).
      loss: of the step that has just ended.
      patience: steps without a better loss after which the scale is halved.
    """
    scale, best, waited = state
    if loss < best * (1.0 - 1e-4):
        return scale, loss, 0
    return (scale * 0.5, best, 0) if waited + 1 > patience else (scale, best, waited + 1)
