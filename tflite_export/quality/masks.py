"""Outputs that mark places of an image or signal, as a sigmoid gives them for segmentation.

What counts is on which side of 0.5 a place falls. Decibels judge a mask by the exact values of its
empty places, of which most masks are made.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def is_mask(outputs: np.ndarray) -> bool:
    """Whether outputs [images, ...] are shares 0..1 at every place. A softmax over the last axis is
    none.
    """
    outputs = np.asarray(outputs)
    if outputs.ndim < 3 or outputs.min() < 0.0 or outputs.max() > 1.0:
        return False
    return outputs.shape[-1] == 1 or not np.allclose(outputs.sum(axis=-1), 1.0, atol=1e-3)


def is_sigmoid(outputs: np.ndarray, *, logits: np.ndarray) -> bool:
    """Whether outputs are the sigmoid of as many logits, value for value."""
    if outputs.size != logits.size:
        return False
    behind = 1.0 / (1.0 + np.exp(-np.clip(np.ravel(logits), -80.0, 80.0)))
    return bool(np.allclose(behind, np.ravel(outputs), atol=1e-3))


def mask_agreement(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Share of places that both masks put on the same side of 0.5, 0..1."""
    return float(np.mean((reference > 0.5) == (outputs > 0.5)))


def iou(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Intersection over union of what two masks mark at 0.5, over all images, 0..1; 1 where neither
    marks anything. Unlike agreement it does not count the many places that both leave out.
    """
    union = np.sum((reference > 0.5) | (outputs > 0.5))
    return float(np.sum((reference > 0.5) & (outputs > 0.5)) / union) if union else 1.0


def worst_mask(
    reference: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """{"agreement", "iou"} of the worst of all outputs: the heads of one model may mark different
    things.
    """
    pairs = [(value, outputs[name]) for name, value in reference.items()]
    return {
        "agreement": min(mask_agreement(*pair) for pair in pairs),
        "iou": min(iou(*pair) for pair in pairs),
    }


def mask_scores(
    reference: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    *,
    logits: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """{"agreement", "iou"} of the worst output.

    Args:
      reference: the float model's outputs by name, [images, ...].
      outputs: the integer file's, in the same form.
      logits: what stands before each output's sigmoid in the float model, in as many values.
    Returns: nothing where an output is no mask and no labels behind a sigmoid (boxes lie in 0..1,
      too), or where the float model marks nothing that could be lost.
    """
    if not all(name in logits for name in reference):
        return {}
    for name, value in reference.items():
        if not is_sigmoid(value, logits=logits[name]) or not (value > 0.5).any():
            return {}
    return worst_mask(reference, outputs)
