"""What an integer file costs, told from images alone: figures, their bounds, and one plain
sentence.

Nothing here knows a label. The float model's outputs on images that did not calibrate the file
stand in for the truth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dgh_tf.common.convergence import Convergence
from dgh_tf.common.stable_ranges import STABLE, halves_change
from tflite_export.quality.agreement import (
    Features,
    Prediction,
    common_logits,
    differ,
    features_of,
    predict,
)
from tflite_export.quality.masks import is_sigmoid, mask_scores

FINE, DOUBTFUL, NO = "fine", "doubtful", "do not ship"
UNKNOWN = "unknown"  # level of a file that the images cannot judge
AGREEMENT = (
    0.95,
    0.75,
)  # predicted agreement from which a file is fine, and below which it is not to be shipped
_SAME = (
    "the model gives these images nearly the same logits, so they tell little: is it trained, and "
    "are the images in its range?"
)
_ALL_ONE = (
    "Not judged: the model gives all images of a kind the same outputs, so they tell nothing of "
    "other inputs. Is it trained, and are the images in its range?"
)
_DOUBT = 0.05  # how far below the border the lower end of a fine file's band may lie
IOU = (0.9, 0.75)  # the same for masks: of what they mark at 0.5, in the worst kind of images
SQNR_DB = (20.0, 10.0)  # the same for models without classes to agree on: of the worst head


class Evidence(NamedTuple):
    """Two files on the same images. Arrays are float64, [images, tensors] unless said; tensors in
    order of execution.

    names, kinds: tensor and operator that makes it. limits: lowest and highest value the integer
    tensor can hold [tensors, 2]. low, high: of the float tensor. signal, noise: sums of squares of
    the float tensor and of the difference. clipped: share of the float tensor's values outside the
    limits. reference, outputs: by output name [images, ...] of the float and the integer file;
    float_logits, logits: the same before a softmax.
    """

    names: list[str]
    kinds: list[str]
    limits: np.ndarray
    low: np.ndarray
    high: np.ndarray
    signal: np.ndarray
    noise: np.ndarray
    clipped: np.ndarray
    reference: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    float_logits: Mapping[str, np.ndarray]
    logits: Mapping[str, np.ndarray]


def decibels(signal: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """10 log10(signal / noise), bounded to -20 .. 100 dB so that exact or silent tensors stay plain
    numbers.
    """
    ratio = np.maximum(np.asarray(signal, np.float64), 1e-30) / np.maximum(
        np.asarray(noise, np.float64), 1e-30
    )
    return np.clip(10.0 * np.log10(ratio), -20.0, 100.0)


def range_change(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """How much the range of each tensor differs between two halves of the images.

    Args:
      low: lowest value per image, [images, tensors], in any unit.
      high: highest value per image, in the same form.
    Returns:
      [tensors]: the larger difference of the two ends over the width of the whole range, 0..1;
      zeros for one image.
    """
    if len(low) < 2:
        return np.zeros(low.shape[1])
    return halves_change(np.minimum(low, 0.0), np.maximum(high, 0.0))  # TFLite's ranges hold zero


def interval(values: np.ndarray, *, draws: int = 400, seed: int = 0) -> tuple[float, float]:
    """5 and 95 per cent bounds of the mean by the bootstrap over images (Efron 1979). values:
    [images].
    """
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(np.asarray(values)[picks].mean(axis=1), (5, 95))
    return float(low), float(high)


def _scores(evidence: Evidence) -> tuple[np.ndarray, ...] | None:
    """Scores of classes [images, classes]: reference, outputs, float_logits, logits. None where
    there are no classes: several outputs, one number, or labels of which several may hold.

    One sigmoid tells two classes apart; the second side's score is 1 less its own.
    """
    name, several = next(iter(evidence.reference)), len(evidence.reference) > 1
    images, classes = len(evidence.reference[name]), evidence.reference[name].shape[-1]
    if several or evidence.reference[name].size != images * classes:
        return None
    reference, outputs, float_logits, logits = (
        np.asarray(next(iter(side.values())), np.float64).reshape(images, -1)
        for side in (evidence.reference, evidence.outputs, evidence.float_logits, evidence.logits)
    )
    if is_sigmoid(reference, logits=float_logits):
        if classes > 1:
            return None
        reference, outputs = (np.concatenate([1.0 - p, p], 1) for p in (reference, outputs))
        float_logits, logits = (
            np.concatenate([np.zeros_like(z), z], 1) for z in (float_logits, logits)
        )
    return (reference, outputs, float_logits, logits) if reference.shape[1] > 1 else None


def agreements(evidence: Evidence) -> np.ndarray | None:
    """1.0 for every image on which both files choose the same class, else 0.0; [images]. None where
    there are no classes.
    """
    scores = _scores(evidence)
    if scores is None:
        return None
    return (scores[0].argmax(axis=1) == scores[1].argmax(axis=1)).astype(np.float64)


def logits_of_classes(evidence: Evidence) -> tuple[np.ndarray, np.ndarray] | None:
    """Float and integer logits [images, classes]; None where there are no classes."""
    scores = _scores(evidence)
    return None if scores is None else (scores[2], scores[3])


def heads(evidence: Evidence) -> dict[str, dict[str, float]]:
    """{"mse": squared output units, "sqnr_db"} of every output over all images."""
    found = {}
    for name, reference in evidence.reference.items():
        noise = np.square(evidence.outputs[name] - reference)
        found[name] = {
            "mse": float(noise.mean()),
            "sqnr_db": float(decibels(np.sum(reference**2), noise.sum())),
        }
    return found


def layers(evidence: Evidence) -> list[dict[str, Any]]:
    """One row per activation tensor in order of execution.

    Each has index (in that order), tensor, operator, sqnr_db, clipped (share of values outside what
    the integer tensor can hold), range (of the integer tensor), seen (of the float tensor) and
    range_change (see there).
    """
    ratio = decibels(evidence.signal.sum(axis=0), evidence.noise.sum(axis=0))
    change = range_change(evidence.low, evidence.high)
    finite = np.where(np.isfinite(evidence.limits), evidence.limits, 0.0)
    return [
        {
            "index": j,
            "tensor": name,
            "operator": evidence.kinds[j],
            "sqnr_db": round(float(ratio[j]), 2),
            "clipped": round(float(evidence.clipped[:, j].mean()), 6),
            "range": finite[j].tolist(),
            "seen": [float(evidence.low[:, j].min()), float(evidence.high[:, j].max())],
            "range_change": round(float(change[j]), 4),
        }
        for j, name in enumerate(evidence.names)
    ]


def worst_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `layers`, those with the most quantization noise for their signal first; of equal
    ones the earlier first.
    """
    return sorted(rows, key=lambda row: (row["sqnr_db"], row["index"]))


def side_by_side(found: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of `layers` of several files of one model, measured on the same images, beside each
    other.

    Args:
      found: rows by the file's or its calibration's name.
    Returns: rows {"index", "tensor", "operator", "files": {name: row}}, the worst SQNR of any file
      first. A tensor that one of the files does not hold is left out.
    """
    by_name = {name: {row["tensor"]: row for row in rows} for name, rows in found.items()}
    shared = [
        row
        for row in next(iter(found.values()))
        if all(row["tensor"] in rows for rows in by_name.values())
    ]
    joined = [
        {
            "index": row["index"],
            "tensor": row["tensor"],
            "operator": row["operator"],
            "files": {name: rows[row["tensor"]] for name, rows in by_name.items()},
        }
        for row in shared
    ]
    return sorted(
        joined,
        key=lambda row: (min(each["sqnr_db"] for each in row["files"].values()), row["index"]),
    )


def judge(
    evidence: Mapping[str, Evidence], *, held_out: bool = True, statistics: bool = True
) -> dict[str, Any]:
    """The verdict on one file.

    `agreement.predict` tells the agreement of models with classes. A file is fine where at least
    95 % are expected and the lower end of the band is no more than five points below. Images of a
    kind that all have the same outputs judge nothing: the level is "unknown".

    Args:
      evidence: by kind of images and seed ("stretched", "stretched, seed 1", "unstretched": the
        kind is what stands before the comma); the first tells the ranges' stability.
      held_out: whether no image calibrated the file; if not, the figures flatter it and the
        sentence says so.
      statistics: whether the model has running statistics that generated images match. Without
        them nothing bounds the agreement above.
    Returns: {"level", "sentence", "reasons", "predicted_agreement", "band", "kinds",
      "range_change", "layers" (worst first)}; agreement and band are None for models without
      classes; "mask" is the worst {"agreement", "iou"} of models that mark places, else None. All
      three are None where nothing is judged.
    """
    if not evidence:
        raise ValueError("A verdict needs evidence of at least one kind of images; got none.")
    seen = _see(evidence)
    kinds = seen.kinds
    rows = layers(_pooled(list(evidence.values())))
    first = next(iter(evidence.values()))
    change = range_change(first.low, first.high)
    told = bool(seen.features) and not seen.all_one
    predicted = predict(seen.features, statistics=statistics) if told else None
    worst = min(head["sqnr_db"] for kind in kinds.values() for head in kind["heads"].values())
    masks = [kind["mask"] for kind in kinds.values() if "mask" in kind and not seen.all_one]
    mask = min(masks, key=lambda scores: scores["iou"], default=None)
    if seen.all_one:
        level = UNKNOWN
    elif predicted is not None:
        level = level_of(predicted.agreement, predicted.low)
    elif mask is not None:
        level = _by_border(mask["iou"], IOU)
    else:
        level = _by_border(worst, SQNR_DB)
    result = {
        "level": level,
        "predicted_agreement": predicted.agreement if predicted else None,
        "band": [predicted.low, predicted.high] if predicted else None,
        "worst_head_sqnr_db": worst,
        "mask": mask,
        "linear": predicted is not None and _is_linear(first),
        "held_out": held_out,
        "kinds": kinds,
        "range_change": {"median": float(np.median(change)), "largest": float(change.max())},
        "reasons": [*seen.reasons, *_reasons(change, len(first.low), predicted)],
        "layers": worst_first(rows),
    }
    return {**result, "sentence": sentence(result)}


def not_judged(verdict: Mapping[str, Any], why: str) -> dict[str, Any]:
    """The verdict of `judge` where the images say nothing of real inputs, and `why` they do not:
    the level is "unknown", and nothing is predicted. What was measured stays.
    """
    nothing = {"predicted_agreement": None, "band": None, "mask": None, "linear": False}
    sentence_ = f"Not judged: {why}"
    return {**verdict, **nothing, "level": UNKNOWN, "reasons": [], "sentence": sentence_}


def not_converged(convergence: Convergence) -> str:
    """Why images that did not reach the model's statistics judge nothing: `not_judged` takes it."""
    return f"the generated images did not converge, {convergence.summary}. {convergence.advice}"


class _Seen(NamedTuple):
    """What the images show: figures and features by kind; the latter of models with classes alone.
    all_one: whether the images of a kind all have the same outputs.
    """

    kinds: dict[str, dict[str, Any]]
    features: dict[str, Features]
    reasons: list[str]
    all_one: bool


def _see(evidence: Mapping[str, Evidence]) -> _Seen:
    kinds: dict[str, dict[str, Any]] = {}
    features: dict[str, Features] = {}
    same = all_one = False
    for name, each in evidence.items():
        kinds[name] = {"images": len(each.low), "heads": heads(each)}
        found, logits = agreements(each), logits_of_classes(each)
        if found is None or logits is None:
            marked = mask_scores(each.reference, each.outputs, logits=each.float_logits)
            kinds[name] |= {"mask": marked} if marked else {}
            all_one |= not any(map(_varies, each.reference.values()))
            continue
        features[name] = features_of(*logits)
        same |= bool(common_logits(logits[0]).any())
        all_one |= not differ(logits[0])
        kinds[name] |= {
            "agreement": float(found.mean()),
            "interval": list(interval(found)),
            "noise": features[name].noise,
            "margin": features[name].margin,
        }
    return _Seen(kinds, features, [_SAME] if same and not all_one else [], all_one)


def _varies(output: np.ndarray) -> bool:
    """Whether an output [images, ...] differs between images by more than a ten-thousandth of its
    size. Nobody knows of a single image.
    """
    varied = np.square(output - output.mean(axis=0)).mean()
    return len(output) < 2 or bool(varied > 1e-8 * np.square(output).mean())


def _is_linear(evidence: Evidence) -> bool:
    """Whether no softmax or sigmoid tells that the outputs are scores."""
    return all(
        np.array_equal(np.ravel(evidence.float_logits[name]), np.ravel(value))
        for name, value in evidence.reference.items()
    )


def _by_border(value: float, borders: tuple[float, float]) -> str:
    return FINE if value >= borders[0] else DOUBTFUL if value >= borders[1] else NO


def level_of(agreement: float, low: float) -> str:
    """The level of a file: by the agreement to expect and the lower end of its band."""
    if agreement >= AGREEMENT[0] and low >= AGREEMENT[0] - _DOUBT:
        return FINE
    return DOUBTFUL if agreement >= AGREEMENT[1] else NO


def _pooled(parts: list[Evidence]) -> Evidence:
    """All images of several kinds as one; the outputs are the first kind's, since layers do not
    need them.
    """

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return parts[0]._replace(
        low=joined("low"),
        high=joined("high"),
        signal=joined("signal"),
        noise=joined("noise"),
        clipped=joined("clipped"),
    )


def short(tensor: str) -> str:
    """The last part of a tensor's name that a person recognizes, at most 40 characters.

    Example:
      >>> short("serving_default_image:0")
      'input image'
    """
    if tensor.startswith("serving_default_"):
        return f"input {tensor.removeprefix('serving_default_').split(':')[0]}"
    name = tensor.split(";")[-1]
    return name if len(name) <= 40 else "..." + name[-37:]


def _reasons(change: np.ndarray, images: int, predicted: Prediction | None) -> list[str]:
    found = []
    least = AGREEMENT[0] - _DOUBT
    if predicted and predicted.agreement >= AGREEMENT[0] and predicted.low < least:
        found.append(f"it may be less than {least:.0%}, so the file is not called fine")
    if np.median(change) <= STABLE:
        return found
    return [
        *found,
        f"the ranges change by {np.median(change):.0%} (median) between the two halves of "
        f"{images} images: too few images",
    ]


def sentence(result: Mapping[str, Any]) -> str:
    """The verdict in words; that of `not_judged` keeps its own."""
    if result["level"] == UNKNOWN:
        return result.get("sentence", _ALL_ONE)
    if result["predicted_agreement"] is not None:
        low, high = result["band"]
        told = (
            f"about {result['predicted_agreement']:.0%} of real inputs should get the "
            f"float model's class ({low:.0%} to {high:.0%})"
        )
        if result.get("linear"):
            told += (
                "; if the outputs are numbers and no scores of classes, they keep "
                f"{result['worst_head_sqnr_db']:.0f} dB over quantization noise"
            )
    elif result.get("mask"):
        told = (
            f"{result['mask']['agreement']:.1%} of all outputs stay on their side of 0.5, and what "
            f"is marked overlaps by IoU {result['mask']['iou']:.2f}"
        )
    else:
        told = (
            f"the outputs keep {result['worst_head_sqnr_db']:.0f} dB over quantization "
            "noise in the worst head"
        )
    tail = (
        ""
        if result["held_out"]
        else " These images calibrated the file, so this is the best case; judge with others."
    )
    if result["level"] == FINE:
        return f"Fine: {told}.{tail}"
    named = [row["layer"] or short(row["tensor"]) for row in result.get("look_first", [])]
    where = f" Look first at {', '.join(named)}." if named else ""
    return f"{'Doubtful' if result['level'] == DOUBTFUL else 'Do not ship'}: {told}.{where}{tail}"
