"""How often an integer file should give the float model's class on real inputs, told from what it
does to the logits of generated ones.

Generated images do not show how sure a model is of real inputs, so counting classes on them is off
in either direction. They do show the noise of the logits: a class is lost where the noise exceeds
the margin, so the log odds of keeping it fall with the logarithm of the noise. And they show how
wide the model's logits spread: one that is rarely in doubt has learned wide ones. Where the line of
the log odds lies was fitted over many models and files (docs/experiments/verdict.md).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

PLAIN, STRETCHED = "unstretched", "stretched"  # plain logits lie most like those of real images
_LEAST = 0.003  # of the noise: what two kernels differ by; nothing is told below it
_CHANCE = 0.05  # a count that chance gives less often than this says more than the line
_NARROWEST = 0.05  # of the spread: a model of flatter logits tells nothing by them


@dataclasses.dataclass(frozen=True)
class Features:
    """What one kind of images shows of a file.

    Attributes:
      noise: standard deviation of the logits' error over that of the logits, over the classes; of
        the median image. spread: standard deviation of the float logits over the classes, logit
        units; the mean image's. kept: images that keep their class. images: their number.
    """

    noise: float
    spread: float
    kept: int
    images: int

    def columns(self, *, statistics: bool) -> tuple[float, ...]:
        """What the coefficients of a `Rule` multiply, in their order."""
        noise, spread = self.noise + _LEAST, max(self.spread, _NARROWEST)
        return 1.0, math.log(noise), math.log(spread), 0.0 if statistics else 1.0


@dataclasses.dataclass(frozen=True)
class Rule:
    """log odds of agreement = offset + noise * log(noise of the logits) + spread * log(spread of
    the logits) + without * (1 for a model without running statistics, else 0).

    Attributes:
      below, above: log odds by which the truth was lower and higher than told for all but 2.5 % of
        the files each. below_without, above_without: the same without running statistics.
    """

    offset: float
    noise: float
    spread: float
    without: float
    below: float
    above: float
    below_without: float
    above_without: float

    def odds(self, features: Features, *, statistics: bool) -> float:
        """Log odds of the agreement to expect."""
        coefficients = (self.offset, self.noise, self.spread, self.without)
        columns = features.columns(statistics=statistics)
        return sum(a * b for a, b in zip(coefficients, columns, strict=True))

    def band(self, odds: float, *, statistics: bool) -> tuple[float, float]:
        """Lowest and highest agreement to expect at these log odds."""
        if statistics:
            return share(odds - self.below), share(odds + self.above)
        return share(odds - self.below_without), share(odds + self.above_without)


# fitted over all rows of python -m benchmarks.estimate (docs/experiments/verdict.md), which prints
# these lines
RULES = {
    PLAIN: Rule(0.0759, -1.27, 0.41, -0.306, 0.575, 0.637, 0.575, 0.637),
    STRETCHED: Rule(-0.14, -0.972, 0.342, -0.23, 1.44, 1.58, 1.48, 1.58),
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """agreement: expected, 0..1. low, high: its band."""

    agreement: float
    low: float
    high: float


def features_of(float_logits: np.ndarray, logits: np.ndarray) -> Features:
    """The features of one kind of images. Args: logits of both files, [images, classes]."""
    reference, found = (np.asarray(side, np.float64) for side in (float_logits, logits))
    error = np.std(found - reference, axis=1)
    spread = np.std(reference, axis=1)
    kept = reference.argmax(axis=1) == found.argmax(axis=1)
    noise = float(np.median(error / np.maximum(spread, 1e-12)))
    return Features(noise, float(spread.mean()), int(kept.sum()), len(kept))


def pooled(parts: Sequence[Features]) -> Features:
    """Several seeds of one kind as one: mean noise and spread, and all counts together."""
    return Features(
        float(np.mean([part.noise for part in parts])),
        float(np.mean([part.spread for part in parts])),
        sum(part.kept for part in parts),
        sum(part.images for part in parts),
    )


def predict(kinds: Mapping[str, Features], *, statistics: bool) -> Prediction:
    """The agreement to expect of real inputs.

    Args:
      kinds: by kind of images and seed ("unstretched", "stretched, seed 1"). Plain images alone
        give the line where there are any: stretched ones make a model surer than real ones do.
      statistics: whether the model has running statistics, so that images match them.
    """
    groups: dict[str, list[Features]] = {}
    for name, each in kinds.items():
        groups.setdefault(name.split(",")[0], []).append(each)
    found = {kind: pooled(parts) for kind, parts in groups.items()}
    rule = RULES[PLAIN if PLAIN in found else STRETCHED]
    line = rule.odds(found.get(PLAIN) or next(iter(found.values())), statistics=statistics)
    odds = capped(line, max(found.values(), key=lambda each: each.spread))
    return Prediction(share(odds), *rule.band(odds, statistics=statistics))


def capped(odds: float, widest: Features) -> float:
    """No more than the log odds of the count on the images with the widest logits, where it is
    significantly lower. A model is surer there than of real inputs, and where a file cuts the
    highest logits off, the noise of all of them hardly shows it.
    """
    if _chance_of_so_few(widest.kept, of=widest.images, expected=share(odds)) >= _CHANCE:
        return odds
    lost = widest.images - widest.kept
    return min(odds, math.log((widest.kept + 0.5) / (lost + 0.5)))


def _chance_of_so_few(count: int, *, of: int, expected: float) -> float:
    """How often a binomial count of `of` draws, each kept with probability `expected`, is `count`
    or fewer.
    """
    lost = 1.0 - expected
    return sum(math.comb(of, k) * expected**k * lost ** (of - k) for k in range(count + 1))


def share(odds: float) -> float:
    """The share, 0..1, of these log odds."""
    return 1.0 / (1.0 + math.exp(-odds))
