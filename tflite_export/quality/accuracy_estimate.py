"""What an integer file costs, told from images alone: figures, their bounds, and one plain
sentence.

Nothing here knows a label. The float model's outputs on images that did not calibrate the file
stand in for the truth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

FINE, DOUBTFUL, NO = "fine", "doubtful", "do not ship"
STABLE = 0.2  # change of a range between the halves of a set, above which the set is too small
AGREEMENT = (
    0.95,
    0.75,
)  # predicted agreement from which a file is fine, and below which it is not to be shipped
SQNR_DB = (20.0, 10.0)  # the same for models without classes to agree on: of the worst head
# how far predictions were too high and too low, in log odds (docs/experiments/verdict.md)
_TOO_HIGH, _TOO_LOW = -0.9, 1.5
_FLAT = 0.5  # of the median image's spread of logits, below which an image is flat
_CHANCE = 0.05  # a count that chance gives less often than this says more than the expectation


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
      low, high: lowest and highest value per image, [images, tensors], in any unit. Even and odd
        images are the halves.
    Returns:
      [tensors]: the larger difference of the two ends over the width of the whole range, 0..1;
      zeros for one image.
    """
    if len(low) < 2:
        return np.zeros(low.shape[1])
    lows, highs = (
        np.stack([f(v[half::2], axis=0) for half in (0, 1)])
        for f, v in ((np.min, low), (np.max, high))
    )
    lows, highs = np.minimum(lows, 0.0), np.maximum(highs, 0.0)  # TFLite's ranges hold zero
    width = np.maximum(highs.max(axis=0) - lows.min(axis=0), 1e-12)
    return np.maximum(np.abs(lows[0] - lows[1]), np.abs(highs[0] - highs[1])) / width


def interval(values: np.ndarray, *, draws: int = 400, seed: int = 0) -> tuple[float, float]:
    """5 and 95 per cent bounds of the mean by the bootstrap over images (Efron 1979). values:
    [images].
    """
    picks = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    low, high = np.percentile(np.asarray(values)[picks].mean(axis=1), (5, 95))
    return float(low), float(high)


def agreements(evidence: Evidence) -> np.ndarray | None:
    """1.0 for every image on which both files choose the same class, else 0.0; [images]. None where
    there are no classes.
    """
    reference, outputs = (
        next(iter(side.values())) for side in (evidence.reference, evidence.outputs)
    )
    classes = reference.shape[-1] if reference.ndim > 1 else 1
    if len(evidence.reference) > 1 or classes < 2 or reference.size != len(reference) * classes:
        return None
    chosen = [side.reshape(len(side), classes).argmax(axis=1) for side in (reference, outputs)]
    return (chosen[0] == chosen[1]).astype(np.float64)


@functools.lru_cache(maxsize=4)
def _normal_agreement(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Angles arccos(r), 0..pi, and how often the highest of `classes` normal values stays the
    highest at that correlation r.
    """
    rng, most = np.random.default_rng(0), min(classes, 1000)
    draws = max(1000, 100_000 // most)
    a, b = (rng.standard_normal((draws, most), dtype=np.float32) for _ in range(2))
    angles, first = np.linspace(0.0, np.pi / 2, 65), a.argmax(axis=1)
    kept = [
        np.mean((np.float32(np.cos(t)) * a + np.float32(np.sin(t)) * b).argmax(axis=1) == first)
        for t in angles
    ]
    return np.append(angles, np.pi), np.append(kept, 0.0)


def correlations(evidence: Evidence) -> np.ndarray | None:
    """Pearson correlation of each image's float and integer logits over the classes; [images]. None
    where there are no classes.
    """
    if agreements(evidence) is None:
        return None
    sides = (
        np.asarray(next(iter(side.values())), np.float64)
        for side in (evidence.float_logits, evidence.logits)
    )
    return logit_correlations(*(side.reshape(len(side), -1) for side in sides))


def logit_correlations(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of two arrays [images, classes]; float64 [images]."""
    a, b = (
        side - side.mean(axis=1, keepdims=True)
        for side in (np.asarray(reference, np.float64), np.asarray(logits, np.float64))
    )
    return np.sum(a * b, axis=1) / np.maximum(
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12
    )


def expected_agreements(evidence: Evidence) -> np.ndarray | None:
    """The agreement to expect of real inputs whose logits suffer like each image's; [images that
    are not flat], 0..1. None where there are no classes.

    Flat images, whose float logits spread less than half as far as the median image's, are left
    out: generation leaves a few on which the model sees next to nothing, and any noise turns those.

    How sure a model is of real inputs, generated ones do not show: their margins are wider or
    narrower. What they do show is how much of the logits an integer file keeps, their correlation
    r. Were real logits independent normal values, the highest would stay so with a probability that
    follows from r and the number of classes; a model that never doubts keeps it always. The
    geometric mean of both is expected (docs/experiments/verdict.md tells what else was tried, on
    what).
    """
    found = correlations(evidence)
    if found is None:
        return None
    classes = next(iter(evidence.reference.values()))[0].size
    spread = _spreads(evidence)
    found = found[spread >= _FLAT * np.median(spread)]
    return agreement_of_correlation(found, classes=classes)


def agreement_of_correlation(correlation: np.ndarray, *, classes: int) -> np.ndarray:
    """The agreement to expect, 0..1, where logits keep this correlation: see
    `expected_agreements`.
    """
    angles = np.arccos(np.clip(correlation, -1.0, 1.0))
    return np.sqrt(np.interp(angles, *_normal_agreement(classes)))


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


def judge(evidence: Mapping[str, Evidence], *, held_out: bool = True) -> dict[str, Any]:
    """The verdict on one file.

    The prediction is the mean over the kinds (of a kind, over its seeds) of `expected_agreements`,
    unless significantly fewer were counted on the kind with the widest logits: then it is no more
    than that share. A model is surer there than of real inputs, and where the file cuts the highest
    logits off, the correlation of all of them hardly shows it. See `_band` for the band. A file is
    fine only where the lower end of its band is.

    Args:
      evidence: by kind of images and seed ("stretched", "stretched, seed 1", "unstretched": the
        kind is what stands before the comma); the first tells the ranges' stability.
      held_out: whether no image calibrated the file; if not, the figures flatter it and the
        sentence says so.
    Returns: {"level", "sentence", "reasons", "predicted_agreement", "band", "kinds",
      "range_change", "layers" (worst first)}; agreement and band are None for models without
      classes.
    """
    if not evidence:
        raise ValueError("A verdict needs evidence of at least one kind of images; got none.")
    kinds: dict[str, dict[str, Any]] = {}
    for name, each in evidence.items():
        kinds[name] = {"images": len(each.low), "heads": heads(each)}
        found, expected = agreements(each), expected_agreements(each)
        alike = correlations(each)
        if found is not None and expected is not None and alike is not None:
            ends = interval(found)
            kinds[name] |= {
                "agreement": float(found.mean()),
                "expected": float(expected.mean()),
                "interval": list(ends),
                "expected_interval": list(interval(expected)),
                "correlation": float(alike.mean()),
                "logits_std": _logits_std(each),
            }
    rows = layers(_pooled(list(evidence.values())))
    first = next(iter(evidence.values()))
    change = range_change(first.low, first.high)
    told = [kind for kind in kinds.values() if "expected" in kind]
    predicted = _predicted(kinds) if told else None
    band = None if predicted is None else _band(predicted, told)
    worst = min(head["sqnr_db"] for kind in kinds.values() for head in kind["heads"].values())
    if predicted is None or band is None:
        level = FINE if worst >= SQNR_DB[0] else DOUBTFUL if worst >= SQNR_DB[1] else NO
    else:
        sure = band[0] >= AGREEMENT[0]
        level = FINE if sure else DOUBTFUL if predicted >= AGREEMENT[1] else NO
    result = {
        "level": level,
        "predicted_agreement": predicted,
        "band": band,
        "worst_head_sqnr_db": worst,
        "held_out": held_out,
        "kinds": kinds,
        "range_change": {"median": float(np.median(change)), "largest": float(change.max())},
        "reasons": _reasons(change, len(first.low)),
        "layers": worst_first(rows),
    }
    return {**result, "sentence": sentence(result)}


def _spreads(evidence: Evidence) -> np.ndarray:
    """Standard deviation of each image's float logits over the classes, logit units; [images]."""
    logits = next(iter(evidence.float_logits.values()))
    return np.asarray(np.std(np.reshape(logits, (len(logits), -1)), axis=1), np.float64)


def _logits_std(evidence: Evidence) -> float:
    """The mean of `_spreads`."""
    return float(np.mean(_spreads(evidence)))


def _predicted(kinds: Mapping[str, Mapping[str, Any]]) -> float:
    """The prediction of `judge`. Three seeds of one kind weigh as much as one of the other."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for name, figures in kinds.items():
        groups.setdefault(name.split(",")[0], []).append(figures)

    def mean(group: list[Mapping[str, Any]], figure: str) -> float:
        return float(np.mean([seed[figure] for seed in group]))

    expected = float(np.mean([mean(group, "expected") for group in groups.values()]))
    widest = max(groups.values(), key=lambda group: mean(group, "logits_std"))
    images = sum(seed["images"] for seed in widest)
    kept = sum(round(seed["agreement"] * seed["images"]) for seed in widest)
    if _chance_of_so_few(kept, of=images, share=expected) < _CHANCE:
        return min(expected, kept / images)
    return expected


def _chance_of_so_few(count: int, *, of: int, share: float) -> float:
    """How often a binomial count of `of` draws, each kept with probability `share`, is `count` or
    fewer.
    """
    lost = 1.0 - share
    return sum(math.comb(of, k) * share**k * lost ** (of - k) for k in range(count + 1))


def _band(predicted: float, kinds: Sequence[Mapping[str, Any]]) -> list[float]:
    """Lowest and highest agreement that the images leave possible: the prediction's own error over
    the images, then what predictions were found to miss on other models.

    The misses are shifts of the log odds, so that a band is narrow near 1, where predictions are
    good, and stays within 0..1.
    """
    expected = float(np.mean([kind["expected"] for kind in kinds]))
    ends = [float(np.mean([kind["expected_interval"][i] for kind in kinds])) for i in (0, 1)]
    below, above = expected - ends[0], ends[1] - expected
    return [
        _shifted(max(0.0, predicted - below), _TOO_HIGH),
        _shifted(min(1.0, predicted + above), _TOO_LOW),
    ]


def _shifted(share: float, log_odds: float) -> float:
    """The share whose log odds are so much higher; 0 and 1 stay."""
    return share / (share + (1.0 - share) * math.exp(-log_odds))


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
    """The last part of a tensor's name that a person recognizes, at most 40 characters."""
    name = tensor.split(";")[-1]
    return name if len(name) <= 40 else "..." + name[-37:]


def _reasons(change: np.ndarray, images: int) -> list[str]:
    if np.median(change) <= STABLE:
        return []
    return [
        f"the ranges change by {np.median(change):.0%} (median) between the two halves of "
        f"{images} images: too few images"
    ]


def sentence(result: Mapping[str, Any]) -> str:
    """The verdict in words."""
    if result["predicted_agreement"] is not None:
        low, high = result["band"]
        told = (
            f"about {result['predicted_agreement']:.0%} of real inputs should get the "
            f"float model's class ({low:.0%} to {high:.0%})"
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
