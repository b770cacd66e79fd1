"""How often an integer file should give the float model's class on real inputs, told from what it
does to the logits of generated ones.

Generated images do not show how sure a model is of real inputs, so counting classes on them is off
in either direction. They do show how much of the logits the file keeps: the correlation r of an
image's float and integer logits over the classes. Were real logits independent normal values, the
highest would stay so with a probability that follows from r and the number of classes. And they
show how far a class can stand out from the next: a model that is rarely in doubt has learned wide
margins. The log odds of agreement are a line in both, fitted over many models and files
(docs/experiments/verdict.md).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

PLAIN, STRETCHED = "unstretched", "stretched"  # plain logits lie most like those of real images
_FLATTERING = {STRETCHED, "calibration"}  # of images that calibrated, and of such as them
SURE = 0.9  # told, from which on predictions were found to miss by less
_CHANCE = 0.05  # a count that chance gives less often than this says more than the line
_FLAT = 0.5  # of the median image's spread of logits, below which an image is flat
_COMMON = 0.25  # of what logits vary over the classes; less of it than that differs between images
_FEW = 4  # images, of fewer nothing tells what they have in common
_NOISE = 3.0  # standard deviations: by more than that noise turns one image of a thousand
_MOST = 0.99  # of what is expected: beyond it few images tell nothing more
_NARROWEST = 0.05  # of a margin, in units of the spread
_USUAL = 1.6  # the margin of the models that were fitted, where no stretched images tell it


@dataclasses.dataclass(frozen=True)
class Features:
    """What one kind of images shows of a file.

    Attributes:
      expected: mean of `agreement_of_correlation` over the images that are not flat. noise:
        standard deviation of the logits' error over that of the logits, of the median image.
      margin: of the highest float logit over the next, of the median image, in units of the mean
        spread. spread: standard deviation of the float logits over the classes, the mean image's.
      lost: images that lose their class by more than noise, see `lost_beyond_noise`. images: their
        number. Flat images count for neither.
    """

    expected: float
    noise: float
    margin: float
    spread: float
    lost: int
    images: int


def columns(line: Features, *, margin: float, statistics: bool) -> tuple[float, ...]:
    """What the coefficients of a `Rule` multiply, in their order."""
    expected = min(max(line.expected, 1.0 - _MOST), _MOST)
    odds = math.log(expected / (1.0 - expected))
    return 1.0, odds, math.log(max(margin, _NARROWEST)), 0.0 if statistics else 1.0


@dataclasses.dataclass(frozen=True)
class Rule:
    """log odds of agreement = offset + expected * log odds of what is expected + margin * log(the
    margin of stretched images) + without * (1 for a model without running statistics, else 0).

    Attributes:
      below, above: how far the truth was lower and higher than told for all but 2.5 % of the files
        each, as a difference of angles (see `angle`). below_sure: the same of files of which SURE
        or more is told; these may well keep all, so nothing bounds them above.
    """

    offset: float
    expected: float
    margin: float
    without: float
    below: float
    above: float
    below_sure: float

    def odds(self, line: Features, *, margin: float, statistics: bool) -> float:
        """Log odds of the agreement to expect."""
        coefficients = (self.offset, self.expected, self.margin, self.without)
        values = columns(line, margin=margin, statistics=statistics)
        return sum(a * b for a, b in zip(coefficients, values, strict=True))

    def band(self, agreement: float) -> tuple[float, float]:
        """Lowest and highest agreement to expect where this one is told."""
        middle, sure = angle(agreement), agreement >= SURE
        low = max(0.0, middle - (self.below_sure if sure else self.below))
        high = math.pi / 2 if sure else min(math.pi / 2, middle + self.above)
        return math.sin(low) ** 2, math.sin(high) ** 2


def angle(agreement: float) -> float:
    """arcsin of the square root of a share, 0 .. pi / 2: there misses are about as large for good
    files as for bad ones (the transform that makes the variance of proportions even).
    """
    return math.asin(math.sqrt(agreement))


# fitted over all rows of python -m benchmarks.estimate (docs/experiments/verdict.md), which prints
# these lines
RULES = {
    PLAIN: Rule(-0.577, 1.16, 0.717, -0.269, 0.212, 0.222, 0.0906),
    STRETCHED: Rule(-1.03, 1.11, 1.01, 0.0, 0.178, 0.265, 0.106),
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """agreement: expected, 0..1. low, high: its band."""

    agreement: float
    low: float
    high: float


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


def logit_correlations(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of two arrays [images, classes]; float64 [images]."""
    a, b = (
        side - side.mean(axis=1, keepdims=True)
        for side in (np.asarray(reference, np.float64), np.asarray(logits, np.float64))
    )
    return np.sum(a * b, axis=1) / np.maximum(
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12
    )


def agreement_of_correlation(correlation: np.ndarray, *, classes: int) -> np.ndarray:
    """The agreement, 0..1, where logits keep this correlation.

    Were real logits independent normal values, the highest would stay so with a probability that
    follows from the correlation and the number of classes; a model that never doubts keeps it
    always. This is the geometric mean of both.
    """
    angles = np.arccos(np.clip(correlation, -1.0, 1.0))
    return np.sqrt(np.interp(angles, *_normal_agreement(classes)))


def common_logits(logits: np.ndarray) -> np.ndarray:
    """The mean image's logits, float64 [classes], where images differ by little from it, else 0.

    The correlation of such logits is that of one image's, whatever noise does to the differences,
    which alone choose between the classes that stand highest on all of them.
    """
    mean = logits.mean(axis=0)
    whole = np.var(logits, axis=1).mean()
    varied = np.var(logits - mean, axis=1).mean()
    if len(logits) < _FEW or varied >= _COMMON * whole:
        return np.zeros_like(mean)
    return np.asarray(mean)


def features_of(float_logits: np.ndarray, logits: np.ndarray) -> Features:
    """The features of one kind of images. Args: logits of both files, [images, classes].

    Flat images, whose float logits spread less than half as far as the median image's, are left out
    of what is expected: generation leaves a few on which the model sees next to nothing, and any
    noise turns those. What all images have in common is, too, where it is nearly all there is.
    """
    reference, found = (np.asarray(side, np.float64) for side in (float_logits, logits))
    spread = np.std(reference, axis=1)
    told = spread >= _FLAT * np.median(spread)
    common = common_logits(reference[told])
    alike = logit_correlations(reference[told] - common, found[told] - common)
    error = np.std(found - reference, axis=1)
    second, first = np.sort(reference, axis=1)[:, -2:].T
    return Features(
        expected=float(agreement_of_correlation(alike, classes=reference.shape[1]).mean()),
        noise=float(np.median(error / np.maximum(spread, 1e-12))),
        margin=float(np.median(first - second) / max(float(spread.mean()), 1e-12)),
        spread=float(spread.mean()),
        lost=int(lost_beyond_noise(reference[told], found[told]).sum()),
        images=int(told.sum()),
    )


def pooled(parts: Sequence[Features]) -> Features:
    """Several seeds of one kind as one: means, and all counts together."""

    def mean(field: str) -> float:
        return float(np.mean([getattr(part, field) for part in parts]))

    return Features(
        expected=mean("expected"),
        noise=mean("noise"),
        margin=mean("margin"),
        spread=mean("spread"),
        lost=sum(part.lost for part in parts),
        images=sum(part.images for part in parts),
    )


def odds_of(kinds: Mapping[str, Features], rule: Rule, *, statistics: bool) -> float:
    """Log odds told by a rule of one file, of which each kind of images shows the features."""
    line = next((kinds[kind] for kind in kinds if kind not in _FLATTERING), None)
    margin = kinds[STRETCHED].margin if STRETCHED in kinds else _USUAL
    if line is None:
        line = next(iter(kinds.values()))
        margin = line.margin
    odds = rule.odds(line, margin=margin, statistics=statistics)
    return capped(odds, max(kinds.values(), key=lambda each: each.spread))


def predict(kinds: Mapping[str, Features], *, statistics: bool) -> Prediction:
    """The agreement to expect of real inputs.

    Args:
      kinds: by kind of images and seed ("unstretched", "stretched, seed 1"). Plain images give the
        line where there are any: stretched ones make a model surer than real ones do.
      statistics: whether the model has running statistics, so that images match them.
    """
    groups: dict[str, list[Features]] = {}
    for name, each in kinds.items():
        groups.setdefault(name.split(",")[0], []).append(each)
    found = {kind: pooled(parts) for kind, parts in groups.items()}
    rule = RULES[STRETCHED if set(found) <= _FLATTERING else PLAIN]
    odds = odds_of(found, rule, statistics=statistics)
    agreement = share(odds)
    return Prediction(agreement, *rule.band(agreement))


def lost_beyond_noise(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Which images lose their class although its margin over the one chosen instead is more than
    the noise of the other logits explains: the file cuts the highest logits off. An image of two
    classes in doubt turns by noise alone, and says nothing of surer ones.

    Args:
      reference: float logits, float64 [images, classes].
      found: integer logits, in the same form. Of two classes nothing tells the noise apart: there
        every image that loses its class does.
    Returns: bool [images].
    """
    images, first, chosen = np.arange(len(found)), reference.argmax(axis=1), found.argmax(axis=1)
    others = np.ones(reference.shape, bool)
    others[images, first] = False
    error = (found - reference)[others].reshape(len(images), -1)
    noise = np.sqrt(2.0) * error.std(axis=1)  # of the difference of two logits
    margin = reference[images, first] - reference[images, chosen]
    return np.asarray((chosen != first) & (margin >= _NOISE * noise))


def capped(odds: float, widest: Features) -> float:
    """No more than the log odds of the count on the images with the widest logits, where it is
    significantly lower. A model is surer there than of real inputs, and where a file cuts the
    highest logits off, the noise of all of them hardly shows it.
    """
    kept = widest.images - widest.lost
    if _chance_of_so_few(kept, of=widest.images, expected=share(odds)) >= _CHANCE:
        return odds
    return min(odds, math.log((kept + 0.5) / (widest.lost + 0.5)))


def _chance_of_so_few(count: int, *, of: int, expected: float) -> float:
    """How often a binomial count of `of` draws, each kept with probability `expected`, is `count`
    or fewer.
    """
    lost = 1.0 - expected
    return sum(math.comb(of, k) * expected**k * lost ** (of - k) for k in range(count + 1))


def share(odds: float) -> float:
    """The share, 0..1, of these log odds."""
    return 1.0 / (1.0 + math.exp(-odds))
