"""Full-integer TFLite export: checked calibration data in, .tflite bytes with a proof of integers
out.

The names below load their file on first use, so `import tflite_export` costs nothing and starts no
TensorFlow.
"""

from __future__ import annotations

import importlib

import dgh_tf.interrupt  # noqa: F401

_HOME = {
    "check_calibration": "calibration",
    "representative_dataset": "calibration",
    "load_calibration": "sources",
    "Calibration": "sources",
    "to_tflite": "converter",
    "to_float_tflite": "converter",
    "to_tflite_with_ranges": "converter",
    "collect_ranges": "ranges",
    "ConversionError": "converter",
    "operator_table": "integer_check",
    "check_integer": "integer_check",
    "IntegerError": "integer_check",
    "Runner": "runtime",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(
            f"module 'tflite_export' has no attribute {name!r}. It has {', '.join(__all__)}."
        )
    return getattr(importlib.import_module(f"tflite_export.{_HOME[name]}"), name)
