"""An integer file judged on images that took no part in its calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dgh_tf.common.convergence import Convergence
from dgh_tf.models.tflite.model import TFLiteModel
from tflite_export.calibration.check import Images
from tflite_export.quality.accuracy_estimate import judge, not_converged, not_judged
from tflite_export.quality.layer_comparison import gather
from tflite_export.quality.layer_errors import look_first


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What an integer file should keep of its float model on real inputs.

    Attributes:
      agreement: predicted share of inputs that get the float model's class, 0..1. low, high: its
        band. All three are None for a model without classes, and where the images tell nothing.
      level: "fine", "doubtful", "do not ship" or "unknown".
      sqnr_db: signal over quantization noise of the worst output.
      images: how many judged. verdict: all figures (see `accuracy_estimate.judge`).
    """

    agreement: float | None
    low: float | None
    high: float | None
    level: str
    sqnr_db: float
    images: int
    verdict: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The figures for F.json."""
        return {
            "agreement": self.agreement,
            "low": self.low,
            "high": self.high,
            "level": self.level,
            "sqnr_db": self.sqnr_db,
            "images": self.images,
        }

    def __str__(self) -> str:
        """One sentence, and the reasons for it."""
        return "\n  ".join([self.verdict["sentence"], *self.verdict["reasons"]])


def estimate(
    float_tflite: bytes | TFLiteModel,
    tflite: bytes | TFLiteModel,
    images: Mapping[str, Images],
    *,
    same_inside: bool,
    layers: Sequence[str] = (),
    statistics: bool = True,
    convergence: Convergence | None = None,
) -> Estimate:
    """Judges an integer file on held-out images.

    Args:
      float_tflite: the same model in float32, with the same outputs.
      tflite: the integer file.
      images: by kind, none of which calibrated the file: float32 [images, ...] in the model's input
        units, or a dict by input name. Generated ones come in two kinds, with stretched outputs and
        without: real inputs lie between them (docs/experiments/verdict.md).
      same_inside: whether tensors between the layers hold what the float model's hold; see
        `calibration_verdict`.
      layers: the Keras model's layer names, which the verdict then speaks of.
      statistics: whether the model has running statistics, which the images then match; see
        `accuracy_estimate.judge`.
      convergence: of the images, where they were generated. Where it is poor the level is
        "unknown": such images judge no better than noise.
    Raises: ValueError: the two files are not of one model, or their tensors cannot be followed.
    """
    evidence = {kind: gather(float_tflite, tflite, each) for kind, each in images.items()}
    result = judge(evidence, held_out=True, statistics=statistics)
    if convergence is not None and convergence.level == "poor":
        result = not_judged(result, not_converged(convergence))
    if same_inside:
        first = next(iter(images.values()))
        result = look_first(result, float_tflite, tflite, first, layers=layers)
    else:
        result |= {"layers": []}
    low, high = result["band"] or (None, None)
    return Estimate(
        agreement=result["predicted_agreement"],
        low=low,
        high=high,
        level=result["level"],
        sqnr_db=result["worst_head_sqnr_db"],
        images=sum(len(each.low) for each in evidence.values()),
        verdict=result,
    )
