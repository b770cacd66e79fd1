"""The Python modules that quantizers import for calibration data.

Each is whole in itself, finds its files beside it from any current folder, and reads what differs
between sets from calibration.json. So no name of a model ever becomes code.
"""

from __future__ import annotations

_HEADER = '''"""{title}

{use}

Written by python -m dgh_tf.export; calibration.json beside it says which model the images are for.
"""

import json
import pathlib

{imports}

FOLDER = pathlib.Path(__file__).resolve().parent


def load_inputs():
    """{{input name: float32 [images, ...]}} in model input units, read from disk as needed."""
    described = json.loads((FOLDER / "calibration.json").read_text(encoding="utf-8"))
    # mode c: a tool may write into what it gets, and the files stay as they are
    return {{
        each["name"]: np.load(FOLDER / each["file"], mmap_mode="c") for each in described["inputs"]
    }}


def samples():
    """One {{input name: float32 [1, ...]}} per image, in order."""
    inputs = load_inputs()
    for i in range(len(next(iter(inputs.values())))):
        yield {{name: np.asarray(images[i : i + 1]) for name, images in inputs.items()}}
'''

_LITERT = '''

def get_calibration_data():
    """{signature: [{input name: float32 [1, ...]}]}; None stands for the file's only signature."""
    return {None: list(samples())}
'''

_ONNXRUNTIME = '''

class CalibrationImages(CalibrationDataReader):
    """Feeds the images to onnxruntime.quantization one by one."""

    def __init__(self, input_names=None):
        """input_names: the ONNX model's, in the order of calibration.json; None keeps those."""
        self._names = dict(zip(load_inputs(), input_names, strict=True)) if input_names else None
        self.rewind()

    def get_next(self):
        """The next {input name: float32 [1, ...]}, None after the last."""
        sample = next(self._samples, None)
        if sample is None or self._names is None:
            return sample
        return {self._names[name]: value for name, value in sample.items()}

    def rewind(self):
        """Starts again with the first image."""
        self._samples = samples()
'''

_OPENVINO = '''

def calibration_dataset():
    """An nncf.Dataset: an array per image for one input, {input name: array} for several."""
    several = len(load_inputs()) > 1
    return nncf.Dataset(
        list(samples()), lambda sample: sample if several else next(iter(sample.values()))
    )
'''

_MCT = '''

def representative_data_gen():
    """Yields [float32 [1, ...]] per image, one array for every input in the model's order."""
    for sample in samples():
        yield list(sample.values())
'''


def _module(title: str, use: str, body: str, *, imports: str = "import numpy as np") -> str:
    return _HEADER.format(title=title, use=use, imports=imports) + body


MODULES = {
    "litert": (
        "calib_data.py",
        _module(
            "Calibration images for litert-quantizer.",
            "On the command line:\n"
            "litert quantize F.tflite --recipe static_wi8_ai8 --calibration-data calib_data.py\n\n"
            "In Python: quantizer.calibrate(get_calibration_data())",
            _LITERT,
        ),
    ),
    "onnxruntime": (
        "calibration_reader.py",
        _module(
            "Calibration images for onnxruntime.",
            "Use: onnxruntime.quantization.quantize_static(\n"
            '    "float.onnx", "int8.onnx", CalibrationImages())',
            _ONNXRUNTIME,
            imports="import numpy as np\n"
            "from onnxruntime.quantization import CalibrationDataReader",
        ),
    ),
    "openvino": (
        "calibration_dataset.py",
        _module(
            "Calibration images for NNCF, the quantizer of OpenVINO.",
            'Use: nncf.quantize(openvino.Core().read_model("float.tflite"), calibration_dataset())',
            _OPENVINO,
            imports="import nncf\nimport numpy as np",
        ),
    ),
    "mct": (
        "representative_data.py",
        _module(
            "Calibration images for Sony's Model Compression Toolkit.",
            "Use: mct.ptq.keras_post_training_quantization(model, representative_data_gen, ...)",
            _MCT,
        ),
    ),
}
