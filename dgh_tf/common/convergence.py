"""Whether generated images have reached the statistics of their model, in words.

Gaps are in units of each layer's own normalization: 0 means equal statistics, 1 that the means are
one standard deviation off. The bounds are those of the measured tables (docs/experiments):

  0.003 to 0.05   sets of 8 to 512 generated images of classifiers; real images 0.015 to 0.05
  0.07 to 0.11    sets of 8 to 32 generated images of a detector; real images 0.02 to 0.09
  0.31 to 30      random noise, which is what images that did not converge are worth
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dgh_tf.common.text import rounded

GOOD_GAP = 0.15  # mean over layers: above all sets of real and of generated images measured
POOR_GAP = 0.3  # mean over layers: from here on noise does no worse
AWAY_GAP = 1.0  # of one layer: its means are a whole standard deviation off
MOST_NAMES = 3  # layers listed in the sentence


@dataclasses.dataclass(frozen=True)
class Convergence:
    """How near the statistics of images have come to those of their model.

    Attributes:
      level: good, fair or poor.
      mean_gap: over all layers.
      layers_away: gap of each layer whose statistics were not reached, the widest first.
      advice: what to do; empty where the level is good.
    """

    level: str
    mean_gap: float
    layers_away: dict[str, float]
    advice: str

    @property
    def summary(self) -> str:
        """The gap in words, with the layers that stay away: a part of a sentence."""
        text = f"mean statistics gap {rounded(self.mean_gap)} ({self.level}"
        if self.layers_away:
            named = [f"{name} {rounded(gap, digits=2)}" for name, gap in self.layers_away.items()]
            more = len(named) - MOST_NAMES
            listed = ", ".join(named[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
            text += f"; layers that stay away: {listed}"
        return f"{text})"

    def as_dict(self) -> dict[str, object]:
        """The manifest's part."""
        return dataclasses.asdict(self)


def judge_convergence(gaps: Mapping[str, float]) -> Convergence:
    """Classifies the gaps of a finished set, by layer name.

    Poor is a mean gap above POOR_GAP, as that of noise, or one that is not a number; fair is one
    above GOOD_GAP, or a single layer more than AWAY_GAP away. Raises ValueError without a layer.

    Example:
      >>> judge_convergence({"bn_1": 0.004, "bn_2": 0.02}).level
      'good'
      >>> judge_convergence({"bn_1": 0.1, "bn_2": 1.3}).summary
      'mean statistics gap 0.7 (poor; layers that stay away: bn_2 1.3)'
    """
    if not gaps:
        raise ValueError("judge_convergence needs the gap of one layer at least; got none.")
    mean = sum(gaps.values()) / len(gaps)
    level = "good"
    if not mean <= POOR_GAP:
        level = "poor"
    elif mean > GOOD_GAP or any(gap > AWAY_GAP for gap in gaps.values()):
        level = "fair"
    bound = AWAY_GAP if mean <= GOOD_GAP else POOR_GAP
    away = {n: g for n, g in sorted(gaps.items(), key=lambda pair: -pair[1]) if not g <= bound}
    return Convergence(level, mean, {} if level == "good" else away, _ADVICE[level])


_ADVICE = {
    "good": "",
    "fair": "Usable; more steps may bring the images closer.",
    "poor": "The images are no better than noise for these layers: do not calibrate on them. Check "
    "input_range, give more steps and images, and check that the model is trained and its running "
    "statistics are those of its weights.",
}
