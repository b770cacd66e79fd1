"""Quantization algorithms, one file or folder each. `quantization` chooses among them."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "quantize":  # where 0.1 had it
        from tflite_export.quantization import quantize

        return quantize
    raise AttributeError(f"module 'tflite_export.algorithms' has no attribute {name!r}.")
