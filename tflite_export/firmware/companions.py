"""The files beside F.tflite: what compilers made of it, sources for microcontrollers, and
test vectors.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgh_tf.models.tflite.model import read_model
from tflite_export.firmware.sources import TOLERANCE, tflm_sources
from tflite_export.firmware.vectors import TestVectors, make_vectors, npz
from tflite_export.targets.report import Judged
from tflite_export.targets.vela import CONFIGURATIONS

_GOLDEN_CASES = 4  # of the test vectors, in the C++ test
_SOURCES = ("_model.h", "_model.cc", "_golden.h", "_golden_test.cc")
_VECTORS = ".testvectors.npz"


@dataclasses.dataclass(frozen=True)
class Companions:
    """What goes beside F.tflite.

    Attributes:
      files: bytes by name. flash: name of the file to flash, by target. vectors: how the test
        vectors were made: {"file", "cases", "kernels"}, empty without targets.
    """

    files: dict[str, bytes]
    flash: dict[str, str]
    vectors: dict[str, Any]

    @property
    def remark(self) -> str:
        """A line on test vectors that are not of the reference kernels; else empty."""
        if self.vectors.get("kernels", "reference") == "reference":
            return ""
        return (
            f"{self.vectors['file']}: of LiteRT's built-in kernels, since its reference kernels do "
            "not run depthwise layers with 4-bit weights; TFLM, which follows those, may differ by "
            f"up to {TOLERANCE['builtin']} steps of the last bit"
        )

    def described(self) -> dict[str, Any]:
        """For F.json: sha256 of every file, and of what the test vectors are."""
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        return {"files": hashes, "test_vectors": self.vectors}


def possible_names(stem: str, targets: Sequence[str]) -> list[str]:
    """Every file that may go beside F.tflite for these targets."""
    compiled = [target for target in targets if target in CONFIGURATIONS]
    return [
        *(f"{stem}.{target}{suffix}" for target in compiled for suffix in (".tflite", ".csv")),
        *(f"{stem}{suffix}" for suffix in _SOURCES if "tflm" in targets),
        *([f"{stem}{_VECTORS}"] if targets else []),
    ]


def left_over(path: pathlib.Path, files: Mapping[str, bytes]) -> list[str]:
    """Names of files beside F.tflite that an earlier conversion made, and this one does not."""
    every = possible_names(path.stem, (*CONFIGURATIONS, "tflm"))
    return [name for name in every if name not in files and path.with_name(name).exists()]


def _sources(stem: str, tflite: bytes, vectors: TestVectors, figures: dict) -> dict[str, bytes]:
    counted = figures.get("arena_bytes")
    return tflm_sources(
        read_model(tflite),
        vectors.first(_GOLDEN_CASES),
        stem=stem,
        arena_bytes=counted or figures["arena_estimate_bytes"],
        counted=counted is not None,
    )


def make_companions(
    stem: str, tflite: bytes, images: Mapping[str, np.ndarray], judged: Judged
) -> Companions:
    """Everything that goes beside F.tflite for the targets that were asked.

    Args:
      stem: of the file names: F of F.tflite.
      tflite: the full-integer file.
      images: float32 [number, *shape] by input name, for the test vectors.
      judged: what the targets say. TFLM's sources are made only if it has a kernel for every
        operator.
    """
    if not judged.verdicts:
        return Companions({}, {}, {})
    files = {f"{stem}{suffix}": data for suffix, data in judged.files.items()}
    vectors = make_vectors(tflite, images)
    flash = {}
    for target, verdict in judged.verdicts.items():
        flash[target] = f"{stem}.tflite"
        if f"{stem}.{target}.tflite" in files:
            flash[target] = f"{stem}.{target}.tflite"
        elif target == "edgetpu":
            flash[target] = f"{stem}.tflite by edgetpu_compiler"
        elif target == "tflm":
            flash[target] = "-"
            if verdict["fully_mapped"]:
                files |= _sources(stem, tflite, vectors, verdict["figures"])
                flash[target] = f"{stem}_model.cc"
    files[f"{stem}{_VECTORS}"] = npz(vectors)
    kept = {"file": f"{stem}{_VECTORS}", "cases": vectors.cases, "kernels": vectors.kernels}
    return Companions(files, flash, kept)
