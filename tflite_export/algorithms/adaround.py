"""Adaptive rounding of weights: a continuous choice between the two neighbouring integers
that ends as a choice.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization" (AdaRound),
sections 3.3 and 3.4: each weight is floor(w / scale) + h(v), with h between 0 and 1 learned by
gradient descent and pushed to 0 or 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_HIGH, _LOW = (
    1.1,
    -0.1,
)  # zeta and gamma: the sigmoid is stretched beyond 0 and 1, so that it reaches both
_SAFE = 1e-4  # keeps the inverse finite


def rectified_sigmoid(v: Any) -> Any:
    """h(v) = clip(sigmoid(v) (zeta - gamma) + gamma, 0, 1), zeta 1.1 and gamma -0.1 (eq. 23). A
    tensor of v's shape.
    """
    import tensorflow as tf

    return tf.clip_by_value(tf.sigmoid(v) * (_HIGH - _LOW) + _LOW, 0.0, 1.0)


def initial_choice(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The v whose h(v) is the fraction of weights / scales, so that optimization starts at the
    float weights.

    Args:
      weights: float [...].
      scales: positive, broadcastable to them.
    Returns: float32 of the weights' shape.
    """
    ratio = np.asarray(weights, np.float64) / scales
    share = np.clip((ratio - np.floor(ratio) - _LOW) / (_HIGH - _LOW), _SAFE, 1 - _SAFE)
    return np.log(share / (1 - share)).astype(np.float32)


def soft_weights(v: Any, *, floors: Any, scales: Any, limits: tuple[int, int]) -> Any:
    """scale * clip(floor(w / scale) + h(v), *limits) (eq. 22): weights in between,
    differentiable in v.

    Args:
      v: float32 [...].
      floors: floor(w / scale) of the same shape.
      scales: broadcastable to it.
      limits: the smallest and the largest integer, such as -8 and 7.
    """
    import tensorflow as tf

    low, high = map(float, limits)
    return scales * tf.clip_by_value(floors + rectified_sigmoid(v), low, high)


def hard_integers(v: np.ndarray, *, floors: np.ndarray, limits: tuple[int, int]) -> np.ndarray:
    """The chosen integers: floor + 1 where h(v) >= 1/2, which is v >= 0, else floor; int8 within
    the limits.
    """
    return np.clip(floors + (np.asarray(v) >= 0), *limits).astype(np.int8)


def rounding_penalty(v: Any, beta: Any) -> Any:
    """Sum of 1 - |2 h(v) - 1|^beta (eq. 24): 0 where every choice is made, largest at h = 1/2. A
    scalar tensor.

    Args:
      v: float32 [...], as for `soft_weights`.
      beta: a scalar; a large one leaves all but the ends free, 2 pushes everything to its nearer
        end.
    """
    import tensorflow as tf

    return tf.reduce_sum(1.0 - tf.abs(2.0 * rectified_sigmoid(v) - 1.0) ** beta)


def annealed_beta(
    progress: Any, *, warmup: float = 0.2, start: float = 20.0, end: float = 2.0
) -> tuple[Any, Any]:
    """(beta, weight of the penalty) at `progress` in 0..1 of the optimization, float tensors
    (section 3.3).

    The penalty is off (weight 0) during the first share `warmup`; then beta falls linearly from
    `start` to `end`.
    """
    import tensorflow as tf

    progress = tf.cast(progress, tf.float32)
    after = tf.clip_by_value((progress - warmup) / (1.0 - warmup), 0.0, 1.0)
    return start + (end - start) * after, tf.cast(progress >= warmup, tf.float32)
