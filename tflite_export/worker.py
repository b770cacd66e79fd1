"""cli: the process that runs TensorFlow's converter; a crash in it ends only this process.

`python -m tflite_export.worker FOLDER`. FOLDER/request.json says what to do; it holds FOLDER/model (a SavedModel with
the signature serving_default) and one FOLDER/<n>.npy of calibration images per input; or FOLDER/calibrated.tflite, a
float file with the ranges of its activations. Leaves FOLDER/model.tflite, or FOLDER/error.txt with the exception's text.
"""
from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Callable

import numpy as np

from tflite_export.calibration import representative_dataset

# scheme -> (name of the operator set in tf.lite.OpsSet, dtype of inputs and outputs)
SCHEMES = {
    "int8": ("TFLITE_BUILTINS_INT8", "int8"),
    "int16x8": ("EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8", "int16"),
    "w4a8": ("TFLITE_BUILTINS_INT8", "int8"),  # converted as int8; its weights are rewritten afterwards
}


def convert(folder: pathlib.Path) -> bytes:
    """Returns the .tflite bytes for the request in `folder`; scheme null means a float model."""
    request = json.loads((folder / "request.json").read_text())
    import tensorflow as tf

    if (folder / "calibrated.tflite").exists():
        from tensorflow.lite.python.convert import mlir_quantize

        return mlir_quantize((folder / "calibrated.tflite").read_bytes(), input_data_type=tf.int8, output_data_type=tf.int8)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "model"))
    if request["scheme"] is not None:
        operators, io_dtype = SCHEMES[request["scheme"]]
        arrays = {
            name: np.load(folder / f"{i}.npy", mmap_mode="r", allow_pickle=False)
            for i, name in enumerate(request["inputs"])
        }
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative_dataset(arrays)
        converter.target_spec.supported_ops = [getattr(tf.lite.OpsSet, operators)]
        converter.inference_input_type = converter.inference_output_type = getattr(tf, io_dtype)
    return converter.convert()


def main(argv: list[str], make: Callable[[pathlib.Path], bytes]) -> int:
    """Leaves FOLDER/model.tflite with what `make` gives for the folder, or FOLDER/error.txt with its exception's text."""
    folder = pathlib.Path(argv[1])
    try:
        data = make(folder)
    except Exception as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
        raise
    (folder / "model.tflite").write_bytes(data)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main(sys.argv, convert))
