"""Run by an environment that has OpenVINO and NNCF: a float .tflite file and a calibration set
to the integer outputs for an array of images.
"""

from __future__ import annotations

import importlib
import pathlib

import numpy as np


def outputs(float_file: pathlib.Path, folder: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """Outputs float32 [images, ...] of the model that nncf.quantize makes on all images."""
    import nncf
    import openvino

    data = importlib.import_module("calibration_dataset").calibration_dataset()
    count = len(np.load(folder / "images.npy", mmap_mode="r"))
    made = nncf.quantize(openvino.Core().read_model(float_file), data, subset_size=count)
    compiled = openvino.compile_model(made, "CPU")
    return np.stack([compiled(image[None])[0][0] for image in images])
