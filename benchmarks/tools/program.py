"""Run by a tool's environment: NAME FLOAT.tflite SET IMAGES.npy OUTPUTS.npy, with NAME a module
beside this one.
"""

from __future__ import annotations

import importlib
import pathlib
import sys

import numpy as np

if __name__ == "__main__":
    name, file, calibration, images, outputs = sys.argv[1:]
    sys.path.insert(0, calibration)  # of the module that the tool takes calibration data from
    tool = importlib.import_module(f"benchmarks.tools.{name}")
    np.save(outputs, tool.outputs(pathlib.Path(file), pathlib.Path(calibration), np.load(images)))
