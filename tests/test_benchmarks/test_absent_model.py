"""A model that is not there is refused by every command before TensorFlow is imported."""

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
        "benchmarks.convergence",
        "benchmarks.tools",
    ],
)
def test_an_absent_model_is_one_line_before_tensorflow(command, tmp_path):
    (tmp_path / "m.tflite").write_bytes(b"")
    given = arguments(command, tmp_path)
    before = set(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCH, command, "--model=absent.keras", *given],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == "False\n", done.stdout + done.stderr
    assert done.stderr.startswith("error: No model at 'absent.keras'.")
    assert done.stderr.count("\n") == 1
    assert set(tmp_path.iterdir()) == before
