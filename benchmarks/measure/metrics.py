"""How far an integer model is from its float model. Everything is computed in float64.

Outputs are class scores, float [images, classes]: probabilities or logits, the same kind on both
sides; the squared error and the ratio take outputs of any shape.
"""

from __future__ import annotations

import numpy as np


def _pair(reference: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    reference, outputs = np.asarray(reference, np.float64), np.asarray(outputs, np.float64)
    if reference.shape != outputs.shape or not reference.size:
        raise ValueError(
            f"Outputs of shape {outputs.shape} cannot be compared with a reference of shape "
            f"{reference.shape}. Both must come from the same, non-empty set of images."
        )
    return reference, outputs


def top1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose highest score is the label's, 0..1.

    Args:
      outputs: scores, [images, classes]. The first of equal highest scores counts, as in
        `np.argmax`.
      labels: class indices, int [images].
    """
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    if outputs.ndim != 2 or labels.shape != outputs.shape[:1] or not labels.size:
        raise ValueError(
            "top1 needs scores [images, classes] and as many labels, got shapes "
            f"{outputs.shape} and "
            f"{labels.shape}."
        )
    return float(np.mean(outputs.argmax(axis=1) == labels))


def agreement(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Share of images on which both models choose the same class, 0..1. Both are scores, [images,
    classes].
    """
    reference, outputs = _pair(reference, outputs)
    return top1(outputs, reference.argmax(axis=1))


def mse(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Mean squared error over all elements, in squared output units."""
    reference, outputs = _pair(reference, outputs)
    return float(np.mean(np.square(outputs - reference)))


def sqnr_db(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Signal to quantization noise ratio, 10 log10(sum reference^2 / sum (outputs - reference)^2),
    in dB.

    Infinite where both are equal, minus infinite for a reference of zeros that was not met.
    """
    reference, outputs = _pair(reference, outputs)
    signal, noise = np.sum(np.square(reference)), np.sum(np.square(outputs - reference))
    if noise == 0.0:
        return float("inf")
    return float(10.0 * np.log10(signal / noise)) if signal > 0.0 else float("-inf")


def spread(outputs: np.ndarray) -> float:
    """Mean over images of highest minus lowest score, in output units. Tells how far logits are
    stretched.
    """
    outputs = np.asarray(outputs, np.float64)
    return float(np.mean(outputs.max(axis=1) - outputs.min(axis=1)))


def range_coverage(real: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of each real range that lies inside the other range, 0..1. Below 1, real values are cut
    off.

    Args:
      real: ranges on real images, float [tensors, 2] as (low, high) with low <= high.
      other: ranges of the same tensors on other images, in the same form.

    Returns:
      float64 [tensors]. A real range of width 0 is covered (1) where its point lies inside, else 0.
    """
    real, other = _ranges(real, other)
    low, high = np.maximum(real[:, 0], other[:, 0]), np.minimum(real[:, 1], other[:, 1])
    width = real[:, 1] - real[:, 0]
    inside = np.maximum(high - low, 0.0) / np.where(width > 0.0, width, 1.0)
    return np.where(width > 0.0, inside, (high >= low).astype(np.float64))


def range_ratio(real: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Width of the other range over width of the real one. Above 1, resolution is lost. Arguments
    as `range_coverage`.

    Returns:
      float64 [tensors]; NaN where the real range has no width.
    """
    real, other = _ranges(real, other)
    width = real[:, 1] - real[:, 0]
    return np.where(
        width > 0.0, (other[:, 1] - other[:, 0]) / np.where(width > 0.0, width, 1.0), np.nan
    )


def _ranges(real: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, other = _pair(real, other)
    if (
        real.ndim != 2
        or real.shape[1] != 2
        or np.any(real[:, 0] > real[:, 1])
        or np.any(other[:, 0] > other[:, 1])
    ):
        raise ValueError(f"Ranges must be [tensors, 2] with low <= high, got shape {real.shape}.")
    return real, other
