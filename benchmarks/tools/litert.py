"""Run by an environment that has litert-quantizer: a float .tflite file and a calibration set
to the integer outputs for an array of images.
"""

from __future__ import annotations

import importlib
import pathlib

import numpy as np


def outputs(float_file: pathlib.Path, folder: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """Outputs float32 [images, ...] of the file that litert-quantizer makes, all 8 bits."""
    from ai_edge_litert.interpreter import Interpreter
    from litert_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(str(float_file))
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    data = importlib.import_module("calib_data").get_calibration_data()
    made = tool.quantize(tool.calibrate(data))
    interpreter = Interpreter(model_content=bytes(made.quantized_model))
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    (scale, zero), (out_scale, out_zero) = source["quantization"], result["quantization"]
    found = []
    for image in images:
        values = np.clip(np.rint(image[None] / scale + zero), -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], values)
        interpreter.invoke()
        found.append(interpreter.get_tensor(result["index"])[0].astype(np.float32))
    return (np.stack(found) - out_zero) * out_scale
