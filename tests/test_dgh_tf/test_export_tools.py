"""Calibration sets in the real tools, each in an environment of its own: the file that a tool makes
of the demo agrees with the float model. Set DGH_BUILD_ENVIRONMENTS=1 to let the tests install them.
"""

import os
import site
import subprocess
import sys

import commands
import numpy as np
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("DGH_BUILD_ENVIRONMENTS"),
        reason="set DGH_BUILD_ENVIRONMENTS=1: it installs other quantizers",
    ),
]
_AGREEMENT = 0.9  # measured: 0.95 (LiteRT, OpenVINO) to 1.0


def run(*arguments):
    done = subprocess.run(
        list(map(str, arguments)), capture_output=True, text=True, timeout=900, cwd="/"
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def environment(folder, *packages, with_ours=False):
    """The Python of a new environment. with_ours: it also finds the packages installed here, for
    tools that need TensorFlow but do not bring it.
    """
    run(sys.executable, "-m", "venv", folder / "env")
    python = folder / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", *packages)
    if with_ours:
        (home,) = (folder / "env").glob("lib/python*/site-packages")
        (home / "ours.pth").write_text("\n".join(site.getsitepackages()))
    return python


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder with images of the demo in `run`, and its float.tflite."""
    import dgh_tf
    import tflite_export

    folder = tmp_path_factory.mktemp("tools")
    code, _, err = commands.call(
        "dgh_tf.generate", "--model=demo", f"--output_dir={folder}/run", "--num_images=64",
        "--steps=100",
    )  # fmt: skip
    assert code == 0, err
    (folder / "float.tflite").write_bytes(tflite_export.to_float_tflite(dgh_tf.load_model("demo")))
    return folder


def exported(demo, folder, form, *options):
    code, _, err = commands.call(
        "dgh_tf.export", f"--images={demo}/run", f"--format={form}", f"--output={folder}/set",
        *options,
    )  # fmt: skip
    assert code == 0, err
    return folder / "set"


def agreement_of(demo, path):
    """Share of the images that an integer .tflite file puts into the float file's class."""
    import tflite_export

    images = np.load(demo / "run" / "images.npy")
    float_file, ours = (
        tflite_export.Runner(each).predict(images).argmax(axis=1)
        for each in (demo / "float.tflite", path)
    )
    return np.mean(float_file == ours)


def test_litert_quantizer(demo, tmp_path):
    python = environment(tmp_path, "litert-quantizer>=0.11,<0.12")
    (tmp_path / "program.py").write_text(f"""
import sys
sys.path.insert(0, {str(exported(demo, tmp_path, "litert"))!r})
import calib_data
from litert_quantizer import quantizer, recipe
tool = quantizer.Quantizer({str(demo / "float.tflite")!r})
tool.load_quantization_recipe(recipe.static_wi8_ai8())
made = tool.quantize(tool.calibrate(calib_data.get_calibration_data()))
open({str(tmp_path / "int8.tflite")!r}, "wb").write(made.quantized_model)
""")
    run(python, tmp_path / "program.py")
    assert agreement_of(demo, tmp_path / "int8.tflite") >= _AGREEMENT


def test_litert_command_line(demo, tmp_path):
    python = environment(tmp_path, "litert-cli[quantize]")
    run(
        python.parent / "litert", "quantize", demo / "float.tflite", "--recipe", "static_wi8_ai8",
        "--calibration-data", exported(demo, tmp_path, "litert") / "calib_data.py",
        "--output", tmp_path / "int8.tflite",
    )  # fmt: skip
    assert agreement_of(demo, tmp_path / "int8.tflite") >= _AGREEMENT


def told_agreement(python, program, *arguments):
    return float(run(python, program, *arguments).split("agreement ")[1].split()[0])


def test_onnxruntime(demo, tmp_path):
    python = environment(tmp_path, "onnxruntime", "onnx", "tf2onnx", with_ours=True)
    run(python, "-m", "tf2onnx.convert", "--tflite", demo / "float.tflite",
        "--output", tmp_path / "float.onnx")  # fmt: skip
    exported(demo, tmp_path, "onnxruntime", "--input_names=serving_default_image:0")
    (tmp_path / "program.py").write_text("""
import pathlib, sys
import numpy as np
work = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(work / "set"))
import calibration_reader, onnxruntime
from onnxruntime.quantization import quantize_static
quantize_static(work / "float.onnx", work / "int8.onnx", calibration_reader.CalibrationImages())
images, classes = np.load(work / "set" / "images.npy"), []
for name in ("float.onnx", "int8.onnx"):
    session = onnxruntime.InferenceSession(work / name)
    key = session.get_inputs()[0].name
    classes.append([session.run(None, {key: x[None]})[0].argmax() for x in images])
print("agreement", np.mean(np.equal(*classes)))
""")
    assert told_agreement(python, tmp_path / "program.py", tmp_path) >= _AGREEMENT


def test_openvino(demo, tmp_path):
    python = environment(tmp_path, "openvino", "nncf")
    exported(demo, tmp_path, "openvino")
    (tmp_path / "program.py").write_text("""
import pathlib, sys
import numpy as np
work, file = map(pathlib.Path, sys.argv[1:])
sys.path.insert(0, str(work / "set"))
import calibration_dataset, nncf, openvino
model = openvino.Core().read_model(file)
made = nncf.quantize(model, calibration_dataset.calibration_dataset(), subset_size=64)
assert any(each.get_type_name() == "FakeQuantize" for each in made.get_ops())
images, classes = np.load(work / "set" / "images.npy"), []
for each in (model, made):
    compiled = openvino.compile_model(each, "CPU")
    classes.append([compiled(x[None])[0].argmax() for x in images])
print("agreement", np.mean(np.equal(*classes)))
""")
    told = told_agreement(python, tmp_path / "program.py", tmp_path, demo / "float.tflite")
    assert told >= _AGREEMENT


def test_rknn(demo, tmp_path):
    """Its simulator, on a PC; the list's files are found from any current folder."""
    converter = environment(tmp_path, "onnx", "tf2onnx", with_ours=True)
    run(converter, "-m", "tf2onnx.convert", "--tflite", demo / "float.tflite",
        "--inputs-as-nchw", "serving_default_image:0", "--output", tmp_path / "f.onnx")  # fmt: skip
    (tmp_path / "rknn").mkdir()
    python = environment(tmp_path / "rknn", "rknn-toolkit2", "setuptools<80", "pillow")
    told = exported(demo, tmp_path, "png") / "calibration.json"
    (tmp_path / "program.py").write_text("""
import json, pathlib, sys
import numpy as np
from PIL import Image
from rknn.api import RKNN
work, told = pathlib.Path(sys.argv[1]), json.loads(pathlib.Path(sys.argv[2]).read_text())
values = [told["inputs"][0][key] * 3 for key in ("mean", "std")]  # one for all, per channel
tool = RKNN()
tool.config(mean_values=[values[0]], std_values=[values[1]], target_platform="rk3588")
assert tool.load_onnx(model=str(work / "f.onnx")) == 0
assert tool.build(do_quantization=True, dataset=str(work / "set" / "dataset.txt")) == 0
assert tool.init_runtime() == 0
pixels = [np.asarray(Image.open(each)) for each in sorted((work / "set/images").iterdir())]
made = [tool.inference(inputs=[each[None]], data_format=["nhwc"])[0].argmax() for each in pixels]
np.save(work / "classes.npy", made)
""")
    run(python, tmp_path / "program.py", tmp_path, told)
    import tflite_export

    images = np.load(demo / "run" / "images.npy")
    wanted = tflite_export.Runner(demo / "float.tflite").predict(images).argmax(axis=1)
    assert np.mean(np.load(tmp_path / "classes.npy") == wanted) >= _AGREEMENT
