"""What the images of a model can rest on: all, some or none of its running statistics."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dgh_tf.models.batchnorm import BatchNorm, is_initial


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What generated images of a model rest on.

    Attributes:
      matched: BN layers whose running statistics the images match.
      layers: all BN layers of the model.
      sentence: the same for people, with the reason for what is not matched.
    """

    matched: int
    layers: int
    sentence: str

    def as_dict(self) -> dict[str, Any]:
        """As it stands in a run's manifest."""
        kind = "none" if not self.matched else "all" if self.matched == self.layers else "some"
        return {"statistics": kind, **dataclasses.asdict(self)}


def tell_evidence(norms: Sequence[Any], reached: Sequence[BatchNorm], *, asked: bool) -> Evidence:
    """The evidence of a model.

    Args:
      norms: all its BN layers.
      reached: those that a forward pass uses.
      asked: False where the statistics are to be left out on purpose.
    """
    total = len(norms)
    if total and not asked:
        return Evidence(0, total, _without(f"its {_layers(total)} left out, as asked"))
    initial = [bn.name for bn in reached if is_initial(bn.mean, bn.variance)]
    matched, unused = len(reached) - len(initial), total - len(reached)
    reasons = []
    if initial:
        reasons.append(
            f"{_layers(len(initial))} with mean 0 and variance 1, as before any training"
        )
    if unused:
        reasons.append(f"{_layers(unused)} that its forward pass does not use")
    why = " and ".join(reasons)
    if matched == total and total:
        return Evidence(matched, total, f"running statistics of {_layers(total)}")
    if matched:
        sentence = f"running statistics of {matched} of {_layers(total)}; without {why}"
        return Evidence(matched, total, sentence)
    hint = "; check that its weights are the trained ones" if initial else ""
    return Evidence(0, total, _without((why or "no BatchNorm layer") + hint))


def _layers(count: int) -> str:
    return f"{count} BatchNorm layer{'s' if count > 1 else ''}"


def _without(why: str) -> str:
    return (
        f"no statistics in this model ({why}): images follow natural-image priors and "
        "stretched outputs"
    )
