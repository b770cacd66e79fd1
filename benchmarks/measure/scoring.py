"""What a model's outputs are scored by: class indices, boxes, or nothing but the float
model's own outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.measure import metrics
from tflite_export.quality.masks import is_mask, worst_mask

Outputs = Mapping[str, np.ndarray]
Truth = np.ndarray | dict[str, np.ndarray] | None
FLOAT = ("top1", "map")  # scores that the float model has too; agreement is with that model


def scorer(
    model: Any, x: np.ndarray, truth: Truth, *, reference: Outputs
) -> tuple[Callable[[Outputs], dict[str, float]], str]:
    """The scores that a model's outputs on an evaluation set allow.

    Args:
      model: the Keras model; one with decode_predictions can be scored by its boxes.
      x: the set's images [images, ...].
      truth: class indices, int [images]; boxes as `detection.mean_average_precision` takes them; or
        None for images alone.
      reference: the float model's outputs for them, by output name.

    Returns:
      A function from outputs by name to scores (top1 and agreement; map; agreement and iou of
      masks; the least agreement of several heads that classify; or none), and a line that says
      which and why.

    Raises: ValueError for classes that the model does not have.
    """
    shapes = ", ".join(f"{name} {list(value.shape[1:])}" for name, value in reference.items())
    heads = (
        "compared with the float model by the squared error and SQNR of its outputs "
        f"alone ({shapes}): "
    )
    if isinstance(truth, dict):
        if not hasattr(model, "decode_predictions"):
            return (
                lambda outputs: {},
                heads + "the model has no decode_predictions that would make boxes of them",
            )
        return _detection(
            model, x, truth
        ), f"scored by COCO mAP, decoded by {type(model).__name__}.decode_predictions"
    if all(is_mask(value) for value in reference.values()):
        return functools.partial(
            worst_mask, reference
        ), "scored by agreement and IoU of the float model's masks at 0.5"
    classes = [name for name, value in reference.items() if _is_shares(value)]
    if len(reference) > 1 and classes:
        return (
            functools.partial(_least_agreement, {name: reference[name] for name in classes}),
            f"scored by agreement with the float model's classes ({', '.join(classes)})",
        )
    if truth is None:
        return lambda outputs: {}, heads + "the evaluation set has neither classes nor boxes"
    scores = _two_classes(next(iter(reference.values())))
    if len(reference) > 1 or scores.shape[-1] < 2 or scores.size != len(x) * scores.shape[-1]:
        return (
            lambda outputs: {},
            heads
            + (
                "class indices score a model with one output and a score for each of two "
                "or more classes"
            ),
        )
    return _classification(
        scores.reshape(len(x), -1), truth
    ), "scored by top-1 and by agreement with the float model"


def _is_shares(scores: np.ndarray) -> bool:
    """Whether a head gives each image the shares of two or more classes, as a softmax does."""
    if scores.ndim != 2 or scores.shape[1] < 2 or scores.min() < 0.0:
        return False
    return bool(np.allclose(scores.sum(axis=1), 1.0, atol=1e-3))


def _least_agreement(reference: Outputs, outputs: Outputs) -> dict[str, float]:
    """Agreement of the classifying head that keeps least of it."""
    each = [metrics.agreement(scores, outputs[name]) for name, scores in reference.items()]
    return {"agreement": min(each)}


def _two_classes(scores: np.ndarray) -> np.ndarray:
    """One share 0..1 for each image, as a sigmoid gives it, as the scores of two classes; others as
    they are.
    """
    if scores.shape[1:] != (1,) or scores.min() < 0.0 or scores.max() > 1.0:
        return scores
    return np.concatenate([1.0 - scores, scores], axis=1)


def _classification(reference: np.ndarray, y: np.ndarray) -> Callable[[Outputs], dict[str, float]]:
    if y.max() >= reference.shape[1]:
        raise ValueError(
            f"The evaluation set has the class index {y.max()}, the model "
            f"{reference.shape[1]} classes. "
            "Expected indices of the model's own classes, from 0."
        )

    def scores(outputs: Outputs) -> dict[str, float]:
        values = _two_classes(next(iter(outputs.values()))).reshape(len(y), -1)
        return {"top1": metrics.top1(values, y), "agreement": metrics.agreement(reference, values)}

    return scores


def _detection(
    detector: Any, x: np.ndarray, truth: dict[str, np.ndarray]
) -> Callable[[Outputs], dict[str, float]]:
    from benchmarks.measure.detection import mean_average_precision

    classes = getattr(detector, "num_classes", None)
    if classes is not None and truth["classes"].max() >= classes:
        raise ValueError(
            f"The evaluation set has the class index {int(truth['classes'].max())}, "
            f"the detector {classes} classes. "
            "COCO categories are numbered from 0 in the order of their ids; give the "
            "set that the detector was trained for."
        )
    return lambda outputs: {"map": mean_average_precision(detector, outputs, x, truth)}
