"""Run by an environment that has ONNX Runtime and tf2onnx: a float .tflite file and a calibration
set to the integer outputs for an array of images.
"""

from __future__ import annotations

import importlib
import pathlib
import subprocess
import sys
import tempfile

import numpy as np


def outputs(float_file: pathlib.Path, folder: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """Outputs float32 [images, ...] of the model that quantize_static makes, weights by channel."""
    import onnxruntime
    from onnxruntime.quantization import quantize_static

    with tempfile.TemporaryDirectory() as name:
        source, made = (pathlib.Path(name) / file for file in ("float.onnx", "int8.onnx"))
        subprocess.run(
            [sys.executable, "-m", "tf2onnx.convert", "--tflite", float_file, "--output", source],
            check=True,
            capture_output=True,
        )
        data = importlib.import_module("calibration_reader").CalibrationImages(
            [onnxruntime.InferenceSession(source).get_inputs()[0].name]
        )
        quantize_static(source, made, data, per_channel=True)
        session = onnxruntime.InferenceSession(made)
    key = session.get_inputs()[0].name
    return np.stack([session.run(None, {key: image[None]})[0][0] for image in images])
