"""The scale of the loss in float16, whose small gradients would vanish unscaled.

It doubles after GROWTH_STEPS good steps and halves after one that overflowed (Micikevicius et al.
2018, "Mixed Precision Training").
"""

from __future__ import annotations

import tensorflow as tf

FIRST_SCALE = 2.0**12
LARGEST_SCALE = 2.0**16
GROWTH_STEPS = 100.0


def next_scale(
    scale: tf.Tensor, good: tf.Tensor, *, finite: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The scale of the next step, and the good steps since it last changed.

    Args:
      scale: of this step, float32 scalar.
      good: good steps since the scale last changed, float32 scalar.
      finite: whether the gradient of this step was finite, bool scalar.
    """
    grown = good + 1.0 >= GROWTH_STEPS
    larger = tf.where(grown, tf.minimum(2.0 * scale, LARGEST_SCALE), scale)
    return tf.where(finite, larger, 0.5 * scale), tf.where(finite & ~grown, good + 1.0, 0.0)
