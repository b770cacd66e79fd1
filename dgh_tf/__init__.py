"""Data-free calibration images for Keras models (DGH, WACV 2025). Names load when first used:
TensorFlow is slow to import.
"""

from __future__ import annotations

import importlib

import dgh_tf.interrupt  # noqa: F401

__version__ = "0.1.0"
_HOMES = {
    "GenerationConfig": "config",
    "generate_images": "generation",
    "Generator": "generation",
    "load_model": "loading",
    "find_input_range": "input_range",
    "representative_dataset": "output",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"dgh_tf.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dgh_tf' has no attribute {name!r}")
