"""What can be told without TensorFlow is refused before it is imported: a model that is not there,
and numbers, ranges and folders that are none.
"""

import subprocess
import sys

import numpy as np
import pytest

_LAUNCH = """
import atexit, runpy, sys
atexit.register(lambda: print("tensorflow" in sys.modules))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__")
"""


def arguments(command, folder):
    """What the command needs besides a model, all of it sound."""
    images = folder / "images.npy"
    np.save(images, np.zeros((4, 8, 8, 3), np.float32))
    sets = [f"--real={images}", f"--evaluation={images}", f"--output_dir={folder / 'new'}"]
    return {
        "dgh_tf.generate": [f"--output_dir={folder / 'new'}"],
        "tflite_export.convert": [f"--output={folder / 'new.tflite'}"],
        "benchmarks.verdict": [f"--tflite={folder / 'm.tflite'}"],
        "benchmarks.speed": [f"--output={folder / 'new.json'}"],
        "benchmarks.layers": [f"--calibrations={images}"],
        "benchmarks.privacy": [f"--training={images}", f"--unseen={images}", sets[2]],
        "benchmarks.calibration": sets,
        "benchmarks.lowbit": sets,
        "benchmarks.structure": [sets[0], sets[2]],
        "benchmarks.convergence": sets[1:],
        "benchmarks.tools": [*sets, f"--environments={folder / 'environments'}"],
    }[command]


@pytest.mark.parametrize(
    "command",
    [
        "dgh_tf.generate",
        "tflite_export.convert",
        "benchmarks.verdict",
        "benchmarks.speed",
        "benchmarks.layers",
        "benchmarks.privacy",
        "benchmarks.calibration",
        "benchmarks.lowbit",
        "benchmarks.structure",
        "benchmarks.convergence",
        "benchmarks.tools",
    ],
)
def test_an_absent_model_is_one_line_before_tensorflow(command, tmp_path):
    told = refused(command, folder=tmp_path, model="absent.keras")
    assert told.startswith("error: No model at 'absent.keras'.")


def refused(command, *options, folder, model="demo"):
    """The one line with which a command refuses options; it leaves nothing."""
    (folder / "m.tflite").write_bytes(b"")
    given = arguments(command, folder)
    before = set(folder.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCH, command, f"--model={model}", *given, *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == "False\n", done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and set(folder.iterdir()) == before
    return done.stderr


@pytest.mark.parametrize(
    "command", ["dgh_tf.generate", "tflite_export.convert", "benchmarks.speed"]
)
def test_a_mistyped_range_is_one_line_before_tensorflow(command, tmp_path):
    told = refused(command, "--input_range=simmetric", folder=tmp_path)
    assert told.startswith("error: --input_range=simmetric: expected LOW,HIGH")
    assert "symmetric" in told and "decibels" in told


@pytest.mark.parametrize(
    ("command", "option", "told"),
    [
        ("benchmarks.calibration", "--noise_range=foo", "error: --noise_range=foo: expected LOW"),
        ("benchmarks.lowbit", "--preprocess=foo", "error: --preprocess=foo is not understood"),
        ("benchmarks.convergence", "--evaluation=no.npz", "error: --evaluation=no.npz: no such"),
        ("benchmarks.structure", "--images=a=no.npz", "error: There is no calibration data at no"),
        ("benchmarks.privacy", "--unseen=no.npz", "error: --unseen=no.npz: no such"),
        ("benchmarks.privacy", "--generated=no.npz", "error: There is no calibration data at no"),
    ],
)
def test_what_a_benchmark_could_find_late_is_one_line_before_tensorflow(
    command, option, told, tmp_path
):
    assert refused(command, option, folder=tmp_path).startswith(told)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--fail_below=nan", "error: --fail_below=nan: expected a finite number."),
        ("--timeout=inf", "error: --timeout=inf: expected a finite number."),
        ("--images_dir=/proc/x", "error: --images_dir=/proc/x: the folder cannot be made"),
        ("--signature=x", "error: --signature=x is for .tflite files"),
    ],
)
def test_what_convert_could_find_late_is_one_line_before_tensorflow(option, told, tmp_path):
    assert refused("tflite_export.convert", option, folder=tmp_path).startswith(told)
