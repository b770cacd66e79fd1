"""Integer files of one model compared with it on images that took no part in calibration.

Images that stretch the outputs wide (generated ones) and images that do not (most real ones) suffer
differently from the same file, so each is also tried at half its contrast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_export.quality.accuracy_estimate import decibels, interval
from tflite_export.tflite.edit import without_softmax
from tflite_export.tflite.interpreter import Runner

_CONTRAST = 0.5


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a file keeps of the float model's outputs; with several outputs the mean over them.

    Attributes:
      given_db, soft_db: SQNR in dB around the mean output, of images as given and at half contrast.
      noise: squared error over the outputs' variance, of each image, the mean of both kinds
        [images].
    """

    given_db: float
    soft_db: float
    noise: np.ndarray

    def as_json(self) -> dict[str, float]:
        """The figures for F.json."""
        return {
            "sqnr_db": round(self.mean_db, 2),
            "given_db": round(self.given_db, 2),
            "soft_db": round(self.soft_db, 2),
        }

    @property
    def mean_db(self) -> float:
        """SQNR in dB, the mean of both kinds of images."""
        return (self.given_db + self.soft_db) / 2

    def surely_better_than(self, other: Figures, *, by: float) -> bool:
        """Whether it removes more than the share `by` of the other's noise on these images, also at
        the 5 per cent bound over images: few images show a small difference by chance.
        """
        gain = interval(other.noise - self.noise)[0]
        clear = gain > by * float(other.noise.mean())
        return bool(clear) and self.mean_db > other.mean_db


def soft(images: np.ndarray) -> np.ndarray:
    """The images at half contrast: each channel halfway to its mean in its image."""
    axes = tuple(range(1, images.ndim - 1))
    mean = images.mean(axis=axes, keepdims=True)
    return (mean + _CONTRAST * (images - mean)).astype(np.float32)


def before_softmax(tflite: bytes) -> bytes:
    """The file that ends at its logits."""
    try:
        return without_softmax(tflite).data
    except ValueError:  # the outputs are the logits
        return tflite


def outputs_of(runner: Runner, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a file gives, by output name, also where it has one output."""
    names = list(runner.outputs)
    made: Any = runner.predict(images)
    return made if isinstance(made, dict) else {names[0]: made}


def relative_noise(want: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Mean squared error of each image over the variance of `want` around its mean; [images]."""
    want, got = want.astype(np.float64), got.astype(np.float64)
    error = np.square(want - got).reshape(len(want), -1).mean(axis=1)
    return error / max(float(np.var(want - want.mean(axis=0))), 1e-30)


def compare(
    float_tflite: bytes, files: Mapping[str, bytes], images: Mapping[str, np.ndarray]
) -> dict[str, Figures]:
    """What each file keeps of the float model's logits.

    Args:
      float_tflite: of `to_float_tflite`.
      files: integer files of it, by algorithm.
      images: float32 [images, ...] by input name, best ones that calibrated none of the files.
    """
    kinds = [dict(images), {name: soft(array) for name, array in images.items()}]
    reference = Runner(before_softmax(float_tflite))
    wanted = [outputs_of(reference, kind) for kind in kinds]
    found = {}
    for name, tflite in files.items():
        runner = Runner(before_softmax(tflite))
        noise, ratios = [], []
        for kind, want in zip(kinds, wanted, strict=True):
            got = outputs_of(runner, kind)
            heads = [relative_noise(want[head], got[head]) for head in want]
            noise.append(np.mean(heads, axis=0))
            ratios.append(
                float(np.mean([decibels(np.ones(1), h.mean(keepdims=True)) for h in heads]))
            )
        found[name] = Figures(ratios[0], ratios[1], np.mean(noise, axis=0))
    return found
