"""Whether a set of images is large enough for the ranges of a model's tensors to hold still."""

from __future__ import annotations

import numpy as np

from dgh_tf.common.subsets import halves

# change of a range, in widths of it, above which a set is too small or a run too short (median over
# tensors)
STABLE = 0.2


def range_change(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How far apart two ranges of each tensor lie: the larger difference of their ends over the
    width of both together.

    Args:
      low: lower ends of both ranges, [2, tensors], in any unit.
      high: upper ends, in the same form.
    Returns: [tensors], 0..1; a tensor that never moves counts 0.
    """
    apart = np.maximum(np.abs(low[0] - low[1]), np.abs(high[0] - high[1]))
    return apart / np.maximum(high.max(axis=0) - low.min(axis=0), 1e-12)


def halves_change(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """`range_change` between two halves of a set.

    Args:
      low: lowest value per image, [images, tensors], of at least two images, in any unit.
      high: highest value per image, in the same form.
    Returns: [tensors], 0..1.
    """
    parts = halves(len(low))
    return range_change(
        np.stack([low[part].min(axis=0) for part in parts]),
        np.stack([high[part].max(axis=0) for part in parts]),
    )
