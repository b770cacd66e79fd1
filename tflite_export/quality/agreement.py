"""How often an integer file should give the float model's class on real inputs, told from what it
does to the logits of generated ones.

Generated images do not show how sure a model is of real inputs, so counting classes on them is off
in either direction. They do show the noise that the file adds to the logits, and how far the
highest of them stands above the next. Plain images leave a model less sure than real ones do,
stretched ones surer, so the geometric mean of both is taken. How often normal logits of that noise
and that margin keep their highest is known. The log odds of agreement are a line in the log odds of
that, fitted over many models and files (docs/experiments/verdict.md).

A file rounds to fixed steps, so in units of the logits it adds about as much noise on images of
both kinds. Stretched ones show more where they exceed the ranges of a file that other images
calibrated. Real inputs reach less far, so no more is counted than on plain images.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

PLAIN, STRETCHED, REAL, BOTH = "unstretched", "stretched", "real", "both"
SURE = 0.9  # told, from which on predictions were found to miss by less
_CHANCE = 0.1  # a count that chance gives less often than this says more than the line
_FLAT = 0.5  # of the median image's spread of logits, below which an image is flat
_COMMON = 0.25  # of what logits vary over the classes; less of it than that differs between images
_FEW = 4  # images, of fewer nothing tells what they have in common
_DIFFER = 1e-4  # of what logits vary over the classes; of less no image differs from another
_BEYOND = 3.0  # standard deviations: by more than that noise turns one image of a thousand
_MOST = 0.99  # of what is expected: beyond it few images tell nothing more
_LEAST_NOISE = 0.01  # of the logits: below it every file keeps all
_LEAST_ALIKE = 0.1  # correlation; less of it is none, and must not outweigh all other images
_SMALL = 0.1  # noise of normal logits, by which the noise that is found is told
_LEAST_MARGIN = 0.02  # of the spread: a near tie must not outweigh all other images


@dataclasses.dataclass(frozen=True)
class Features:
    """What one kind of images shows of a file. Flat images have no part in it.

    Attributes:
      noise: of the logits, as a share of the signal that the integer file keeps; see `_noise`.
      margin: of the highest float logit over the next, in units of the spread; geometric mean.
      spread: standard deviation of the float logits over the classes, root mean square, without
        what all images have in common.
      classes: their number.
      lost: images that lose their class by more than noise, see `lost_beyond_noise`.
      images: their number.
      across: what the integer logits hold across the float ones, in units of the logits, root mean
        square over images and classes. `noise` is its share of what they hold along them.
    """

    noise: float
    margin: float
    spread: float
    classes: int
    lost: int
    images: int
    across: float

    @property
    def width(self) -> float:
        """The margin over that of independent normal logits."""
        return self.margin / _normal(self.classes).margin


@dataclasses.dataclass(frozen=True)
class Rule:
    """log odds of agreement = offset + slope * log odds of what is expected.

    Attributes:
      below, above: how far the truth was lower and higher than told for nearly all files, as a
        difference of angles (see `angle`). below_sure: the same of files of which SURE or more is
        told; these may well keep all, so nothing bounds them above.
    """

    offset: float
    slope: float
    below: float
    above: float
    below_sure: float

    def odds(self, expected: float) -> float:
        """Log odds of the agreement to expect."""
        return self.offset + self.slope * log_odds(expected)

    def band(self, agreement: float, *, statistics: bool = True) -> tuple[float, float]:
        """Lowest and highest agreement to expect where this one is told. Nothing shows how sure a
        model without running statistics is of real inputs: it may keep all.
        """
        middle, sure = angle(agreement), agreement >= SURE
        low = max(0.0, middle - (self.below_sure if sure else self.below))
        open_end = sure or not statistics
        high = math.pi / 2 if open_end else min(math.pi / 2, middle + self.above)
        return math.sin(low) ** 2, math.sin(high) ** 2


def angle(agreement: float) -> float:
    """arcsin of the square root of a share, 0 .. pi / 2: there misses are about as large for good
    files as for bad ones (the transform that makes the variance of proportions even).
    """
    return math.asin(math.sqrt(agreement))


def log_odds(expected: float) -> float:
    """Log odds of a share, which is taken for no more than _MOST and no less than the rest."""
    bounded = min(max(expected, 1.0 - _MOST), _MOST)
    return math.log(bounded / (1.0 - bounded))


# fitted over all rows of python -m benchmarks.estimate (docs/experiments/verdict.md), which prints
# these lines; by the kinds of images that there are
RULES = {
    BOTH: Rule(-0.79, 1.18, 0.222, 0.221, 0.0818),
    PLAIN: Rule(0.824, 0.889, 0.701, 0.349, 0.115),
    STRETCHED: Rule(-0.516, 1.09, 0.296, 0.337, 0.106),
    REAL: Rule(-0.876, 1.2, 0.364, 0.249, 0.228),
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """agreement: expected, 0..1. low, high: its band."""

    agreement: float
    low: float
    high: float


class _Normal(NamedTuple):
    """Independent normal logits with normal noise. angles: arctan of the noise, 0..pi / 2. kept:
    how often the highest stays the highest. margin: as `features_of` finds it. found: noise that it
    finds, as a share of what there is; less than 1, since few classes happen to show little.
    """

    angles: np.ndarray
    kept: np.ndarray
    margin: float
    found: float


@functools.lru_cache(maxsize=16)
def _normal(classes: int) -> _Normal:
    rng, most = np.random.default_rng(0), min(classes, 1000)
    draws = max(1000, 100_000 // most)
    a, b = (rng.standard_normal((draws, most), dtype=np.float32) for _ in range(2))
    angles, first = np.linspace(0.0, np.pi / 2, 65), a.argmax(axis=1)
    kept = [
        np.mean((np.float32(np.cos(t)) * a + np.float32(np.sin(t)) * b).argmax(axis=1) == first)
        for t in angles
    ]
    told = a[_not_flat(a)]
    margin = _geometric(margins(told) / _root_mean_square(np.std(told, axis=1)))
    found = _noise(told, told + _SMALL * b[_not_flat(a)]) / _SMALL
    return _Normal(angles, np.array(kept), margin, found)


def normal_agreement(noise: float, *, width: float, classes: int) -> float:
    """How often the highest of normal logits stays the highest, 0..1.

    Args:
      noise: of the logits, as a share of what the file keeps of them.
      width: of the margins over those of independent normal logits. A margin twice as wide halves
        the noise.
      classes: number of logits.
    """
    normal = _normal(classes)
    return float(np.interp(math.atan(noise / width), normal.angles, normal.kept))


def expected(found: Mapping[str, Features]) -> float:
    """How often normal logits like those of real inputs would keep their class, 0..1.

    Args:
      found: by kind, as `of_kinds` gives them. Real images have the margins of real inputs. Those
        of real inputs lie between the margins of plain and of stretched images; where one kind is
        missing, independent normal logits stand for it.
    """
    classes = next(iter(found.values())).classes
    noise = _geometric(np.array(_noises(found))) / _normal(classes).found
    width = math.prod(each.width for each in found.values())
    return normal_agreement(
        noise, width=width if REAL in found else math.sqrt(width), classes=classes
    )


def _noises(found: Mapping[str, Features]) -> list[float]:
    """The noise of every kind; of stretched images as if they held no more across than plain ones
    do.
    """
    noises = {kind: each.noise for kind, each in found.items()}
    if PLAIN in found and STRETCHED in found:
        beyond = found[STRETCHED].across / max(found[PLAIN].across, 1e-12)
        noises[STRETCHED] = max(noises[STRETCHED] / max(beyond, 1.0), _LEAST_NOISE)
    return list(noises.values())


def _geometric(values: np.ndarray) -> float:
    return float(np.exp(np.mean(np.log(np.maximum(values, 1e-12)))))


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def _not_flat(logits: np.ndarray) -> np.ndarray:
    """Images that are not flat, bool [images]. Of two classes, flat images are those in doubt."""
    spread = np.std(logits, axis=1)
    return np.asarray(spread >= (_FLAT * np.median(spread) if logits.shape[1] > 2 else 0.0))


def margins(logits: np.ndarray) -> np.ndarray:
    """The highest logit less the next of each image. logits: [images, classes]."""
    second, first = np.partition(logits, -2, axis=1)[:, -2:].T
    return np.asarray(first - second)


def _rows(logits: np.ndarray) -> np.ndarray:
    """Logits less their mean over the classes, float64 [images, classes]. Two classes leave one
    number of each image: these make one row.
    """
    rows = np.asarray(logits, np.float64)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows.reshape(1, -1) if rows.shape[1] == 2 else rows


def logit_correlations(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Pearson correlation of each row of two arrays [images, classes]; float64 [images].

    That of two classes is 1 or -1 whatever the noise; there it is over all images at once, [1].
    """
    a, b = _rows(reference), _rows(logits)
    return np.sum(a * b, axis=1) / np.maximum(
        np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12
    )


def _noise(reference: np.ndarray, logits: np.ndarray) -> float:
    """What logits hold across the float ones, as a share of what they hold along them: the tangent
    of the angle between the rows of two arrays [images, classes], the mean over the images. How
    often classes are lost goes about with the angle, so few ruined images count for what they are.
    """
    alike = np.clip(logit_correlations(reference, logits), _LEAST_ALIKE, 1.0)
    return max(math.tan(float(np.mean(np.arccos(alike)))), _LEAST_NOISE)


def _across(reference: np.ndarray, logits: np.ndarray) -> float:
    """`Features.across` of two arrays [images, classes]: by Pythagoras, what is left of logits
    without what they hold along the float ones.
    """
    a, b = _rows(reference), _rows(logits)
    along = np.sum(a * b, axis=1) / np.maximum(np.linalg.norm(a, axis=1), 1e-12)
    return float(np.sqrt(max(np.sum(b * b) - np.sum(along * along), 0.0) / b.size))


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


def differ(logits: np.ndarray) -> bool:
    """Whether images differ at all. Logits that are the same on all of them, [images, classes],
    tell nothing of a file: other inputs may have any. Nobody knows of a single image.
    """
    varied = np.var(logits - logits.mean(axis=0), axis=1).mean()
    return len(logits) < 2 or bool(varied > _DIFFER * np.var(logits, axis=1).mean())


def features_of(float_logits: np.ndarray, logits: np.ndarray) -> Features:
    """The features of one kind of images. Args: logits of both files, [images, classes].

    Flat images, whose float logits spread less than half as far as the median image's, are left
    out: generation leaves a few on which the model sees next to nothing, and any noise turns those.
    What all images have in common is, too, where it is nearly all there is.
    """
    reference, found = (np.asarray(side, np.float64) for side in (float_logits, logits))
    told = _not_flat(reference)
    reference, found = reference[told], found[told]
    common = common_logits(reference)
    spread = max(_root_mean_square(np.std(reference - common, axis=1)), 1e-12)
    margin = _geometric(np.maximum(margins(reference) / spread, _LEAST_MARGIN))
    if common.any():  # their one class stands as high as they are alike, and no real input need be
        margin = min(margin, _normal(reference.shape[1]).margin)
    return Features(
        noise=_noise(reference - common, found - common),
        margin=margin,
        spread=spread,
        classes=reference.shape[1],
        lost=int(lost_beyond_noise(reference, found).sum()),
        images=int(told.sum()),
        across=_across(reference - common, found - common),
    )


def pooled(parts: Sequence[Features]) -> Features:
    """Several seeds of one kind as one: geometric means, and all counts together."""

    def mean(field: str) -> float:
        return _geometric(np.array([getattr(part, field) for part in parts]))

    return Features(
        noise=mean("noise"),
        margin=mean("margin"),
        spread=mean("spread"),
        classes=parts[0].classes,
        lost=sum(part.lost for part in parts),
        images=sum(part.images for part in parts),
        across=mean("across"),
    )


def of_kinds(kinds: Mapping[str, Features]) -> dict[str, Features]:
    """All seeds of a kind as one, by PLAIN, REAL and STRETCHED. Other images may be stretched ones
    (such as those that calibrated the file), and are taken for them.
    """
    groups: dict[str, list[Features]] = {}
    for name, each in kinds.items():
        kind = name.split(",")[0]
        groups.setdefault(kind if kind in (PLAIN, REAL) else STRETCHED, []).append(each)
    return {kind: pooled(parts) for kind, parts in groups.items()}


def odds_of(found: Mapping[str, Features], rule: Rule) -> float:
    """Log odds told by a rule of one file, from what `of_kinds` gives."""
    widest = max(found.values(), key=lambda each: each.spread)
    return capped(rule.odds(expected(found)), widest)


def predict(kinds: Mapping[str, Features], *, statistics: bool = True) -> Prediction:
    """The agreement to expect of real inputs.

    Args:
      kinds: by kind of images and seed ("unstretched", "stretched, seed 1"), or "real" alone.
      statistics: whether the model has running statistics, so that generated images match them.
    """
    found = of_kinds(kinds)
    rule = RULES[BOTH if len(found) > 1 else next(iter(found))]
    agreement = share(odds_of(found, rule))
    return Prediction(agreement, *rule.band(agreement, statistics=statistics))


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
    return np.asarray((chosen != first) & (margin >= _BEYOND * noise))


def capped(odds: float, widest: Features) -> float:
    """No more than what the count on the images with the widest logits allows: the log odds of the
    share that would leave so few with a probability of _CHANCE. A model is surer there than of real
    inputs, and where a file cuts the highest logits off, the noise of all of them hardly shows it.
    """
    kept = widest.images - widest.lost
    if _chance_of_so_few(kept, of=widest.images, expected=share(odds)) >= _CHANCE:
        return odds
    low, high = -10.0, odds
    for _ in range(40):
        middle = (low + high) / 2
        rare = _chance_of_so_few(kept, of=widest.images, expected=share(middle)) < _CHANCE
        low, high = (low, middle) if rare else (middle, high)
    return low


def _chance_of_so_few(count: int, *, of: int, expected: float) -> float:
    """How often a binomial count of `of` draws, each kept with probability `expected`, is `count`
    or fewer.
    """
    kept, lost = (math.log(max(each, 1e-300)) for each in (expected, 1.0 - expected))
    ways = math.lgamma(of + 1)
    return sum(
        math.exp(ways - math.lgamma(k + 1) - math.lgamma(of - k + 1) + k * kept + (of - k) * lost)
        for k in range(count + 1)
    )


def share(odds: float) -> float:
    """The share, 0..1, of these log odds."""
    return 1.0 / (1.0 + math.exp(-odds))
