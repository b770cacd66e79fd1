"""Full-integer TFLite export: checked calibration data in, proven integer .tflite bytes out.

A name loads its file on first use: `import tflite_export` costs nothing and starts no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import dgh_tf.common.interrupt  # noqa: F401

if TYPE_CHECKING:
    from tflite_export.calibration.check import check_calibration, representative_dataset
    from tflite_export.calibration.load import Calibration, load_calibration
    from tflite_export.conversion.converter import (
        ConversionError,
        to_float_tflite,
        to_tflite,
        to_tflite_with_ranges,
    )
    from tflite_export.quantized import QuantizedModel, quantize
    from tflite_export.simulation.ranges import collect_ranges
    from tflite_export.tflite.integer_check import IntegerError, check_integer, operator_table
    from tflite_export.tflite.interpreter import Runner

__all__ = [
    "Calibration",
    "ConversionError",
    "IntegerError",
    "QuantizedModel",
    "Runner",
    "check_calibration",
    "check_integer",
    "collect_ranges",
    "load_calibration",
    "operator_table",
    "quantize",
    "representative_dataset",
    "to_float_tflite",
    "to_tflite",
    "to_tflite_with_ranges",
]
_HOMES = {
    "Calibration": "calibration.load",
    "ConversionError": "conversion.converter",
    "IntegerError": "tflite.integer_check",
    "QuantizedModel": "quantized",
    "Runner": "tflite.interpreter",
    "check_calibration": "calibration.check",
    "check_integer": "tflite.integer_check",
    "collect_ranges": "simulation.ranges",
    "load_calibration": "calibration.load",
    "operator_table": "tflite.integer_check",
    "quantize": "quantized",
    "representative_dataset": "calibration.check",
    "to_float_tflite": "conversion.converter",
    "to_tflite": "conversion.converter",
    "to_tflite_with_ranges": "conversion.converter",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"tflite_export.{_HOMES[name]}"), name)
    raise AttributeError(
        f"module 'tflite_export' has no attribute {name!r}. It has {', '.join(__all__)}."
    )


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
