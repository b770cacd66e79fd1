"""Data-free calibration images for Keras models (DGH, WACV 2025).

A name loads its file on first use: TensorFlow is slow to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import dgh_tf.common.interrupt  # noqa: F401

if TYPE_CHECKING:
    from dgh_tf.common.run_folder import representative_dataset
    from dgh_tf.config import GenerationConfig
    from dgh_tf.generation.generator import Generator
    from dgh_tf.generation.images import generate_images
    from dgh_tf.generation.prepared import Prepared
    from dgh_tf.input_range.find import find_input_range
    from dgh_tf.models.loading import load_model
    from dgh_tf.report.again import write_report
    from dgh_tf.run.to_folder import generate_to

__version__ = "0.2.0"
__all__ = [
    "GenerationConfig",
    "Generator",
    "Prepared",
    "find_input_range",
    "generate_images",
    "generate_to",
    "load_model",
    "representative_dataset",
    "write_report",
]
_HOMES = {
    "GenerationConfig": "config",
    "Generator": "generation.generator",
    "Prepared": "generation.prepared",
    "find_input_range": "input_range.find",
    "generate_images": "generation.images",
    "generate_to": "run.to_folder",
    "load_model": "models.loading",
    "representative_dataset": "common.run_folder",
    "write_report": "report.again",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"dgh_tf.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dgh_tf' has no attribute {name!r}. It has {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
