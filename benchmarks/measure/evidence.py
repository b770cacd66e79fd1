"""Held-out generated images, and the evidence that they give of an integer file, kept as .npz."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from dgh_tf.common.files import atomic_path

if TYPE_CHECKING:
    from dgh_tf.config import GenerationConfig

HELD_OUT_SEED = 1000  # of images that take no part in calibration
_ARRAYS = ("limits", "low", "high", "signal", "noise", "clipped")
_HEADS = ("reference", "outputs", "float_logits", "logits")


def held_out_images(model: Any, config: GenerationConfig, *, kind: str, seed: int) -> Any:
    """Generated images of one kind: 'stretched', by the whole method, or 'unstretched', without
    output stretching.
    """
    from dgh_tf import generate_images

    changes: dict[str, Any] = {} if kind == "stretched" else {"output_weight": 0.0}
    return generate_images(model, dataclasses.replace(config, seed=seed, **changes), verbose=0)


def save_evidence(path: str | pathlib.Path, evidence: Any) -> None:
    """Writes an Evidence as .npz, so that verdicts can be told again without running the files."""
    arrays = {name: getattr(evidence, name) for name in _ARRAYS}
    arrays |= {
        f"{side}/{name}": np.float32(values)
        for side in _HEADS
        for name, values in getattr(evidence, side).items()
    }
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary, names=np.array(evidence.names), kinds=np.array(evidence.kinds), **arrays
        )


def load_evidence(path: str | pathlib.Path) -> Any:
    """The Evidence that `save_evidence` wrote; outputs in float32."""
    from tflite_export.quality.accuracy_estimate import Evidence

    with np.load(path) as file:
        sides: dict[str, Any] = {
            side: {
                key.split("/", 1)[1]: file[key] for key in file.files if key.startswith(f"{side}/")
            }
            for side in _HEADS
        }
        return Evidence(
            names=file["names"].tolist(),
            kinds=file["kinds"].tolist(),
            **{name: file[name] for name in _ARRAYS},
            **sides,
        )
