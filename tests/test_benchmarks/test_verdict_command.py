"""The command of the verdict: which images it judges by, and where it judges nothing."""

import json

import commands
import numpy as np
import pytest
import tiny_models


def test_images_that_did_not_converge_predict_nothing(tmp_path):
    """After one step they are start images, which tell little more than noise."""
    from tflite_export import to_tflite

    model, images = tiny_models.conv_bn_relu(), tiny_models.images(8)
    model.save(tmp_path / "m.keras")
    (tmp_path / "m.tflite").write_bytes(to_tflite(model, images))
    code, out, err = commands.call(
        "benchmarks.verdict",
        f"--model={tmp_path}/m.keras",
        f"--tflite={tmp_path}/m.tflite",
        "--num_images=4",
        "--steps=1",
        "--input_range=-1,1",
        f"--output={tmp_path}/verdict.json",
    )
    assert code == 0 and "UserWarning" not in err, err
    assert "Not judged: the generated images did not converge" in out
    told = json.loads((tmp_path / "verdict.json").read_text())
    assert (told["level"], told["predicted_agreement"], told["band"]) == ("unknown", None, None)


@pytest.mark.slow
def test_command_judges_a_file_of_noise_by_images_of_its_own(tmp_path):
    from dgh_tf import load_model
    from tflite_export import to_tflite

    noise = np.random.default_rng(0).uniform(-1, 1, (16, 64, 64, 3)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    (tmp_path / "noise.tflite").write_bytes(to_tflite(load_model("demo"), noise))
    code, out, err = commands.call(
        "benchmarks.verdict",
        "--model=demo",
        f"--tflite={tmp_path}/noise.tflite",
        "--num_images=8",
        "--steps=40",
        f"--images={tmp_path}/noise.npy",
        f"--output={tmp_path}/verdict.json",
    )
    assert code == 0, err
    assert "noise.npy is not used to judge" in out
    assert json.loads((tmp_path / "verdict.json").read_text())["level"] != "fine"
