"""How near generated images came to their model's statistics, in words; bounds by the measured
tables, and what a conversion makes of a folder that stayed away.
"""

import json
import math

import commands
import numpy as np
import pytest
import tiny_models

from dgh_tf.common.convergence import judge_convergence
from tflite_export import to_float_tflite, to_tflite
from tflite_export.quality.held_out import estimate


@pytest.mark.parametrize(
    "gap, level",
    [
        (0.003, "good"),  # ResNet-8, 64 generated images
        (0.049, "good"),  # MobileNet, 8 generated images; real images of the demo
        (0.111, "good"),  # detector, 8 generated images, as accurate as real ones
        (0.2, "fair"),
        (0.313, "poor"),  # detector, noise
        (0.463, "poor"),  # demo, noise
        (0.6, "poor"),  # three files that were called fine
        (30.0, "poor"),
        (math.nan, "poor"),
    ],
)
def test_levels_are_those_of_the_measured_tables(gap, level):
    found = judge_convergence({"first": gap, "last": gap})
    assert found.level == level and f"({level}" in found.summary
    assert bool(found.advice) == (level != "good")


def test_layers_that_stay_away_are_named_widest_first():
    found = judge_convergence({"a": 0.01, "b": 1.2, "c": 0.5, "d": 2.0, "e": 0.9, "f": 0.4})
    assert found.level == "poor"
    assert list(found.layers_away) == ["d", "b", "e", "c", "f"]
    assert "d 2, b 1.2, e 0.9 and 2 more" in found.summary


def test_one_layer_far_away_among_many_is_not_good():
    gaps = {**{f"near_{i}": 0.001 for i in range(50)}, "far": 1.5}
    found = judge_convergence(gaps)
    assert found.level == "fair" and list(found.layers_away) == ["far"]


def test_nothing_to_judge_is_refused():
    with pytest.raises(ValueError, match="one layer"):
        judge_convergence({})


@pytest.mark.parametrize("gap, level", [(0.01, "good"), (0.6, "poor")])
def test_calibration_knows_the_convergence_of_its_folder(tmp_path, gap, level):
    """Of a folder of version 0.1, too, whose manifest holds the gaps alone."""
    from dgh_tf.common.files import sha256_array
    from tflite_export.calibration.load import load_calibration

    images = np.zeros((2, 4, 4, 3), np.float32)
    np.save(tmp_path / "images.npy", images)
    manifest = {"images_sha256": sha256_array(images), "model_sha256": "x", "gap_end": {"bn": gap}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert load_calibration(tmp_path).convergence.level == level
    np.save(tmp_path / "alone.npy", images)
    assert load_calibration(tmp_path / "alone.npy").convergence is None


def test_a_run_that_did_not_converge_is_told_and_never_called_fine(tmp_path):
    """One step from white noise: the last line, the manifest and the converted file all say so."""
    folder, file = tmp_path / "images", tmp_path / "demo.tflite"
    options = ("--model=demo", "--num_images=4", "--steps=1", "--start=white")
    code, out, _ = commands.call("dgh_tf.generate", *options, f"--output_dir={folder}")
    told = out.strip().splitlines()[-1]
    assert code == 0 and "(poor; layers that stay away: " in told and "input_range" in told
    kept = json.loads((folder / "manifest.json").read_text())
    assert kept["convergence"]["level"] == "poor"
    assert kept["convergence"]["mean_gap"] == pytest.approx(np.mean(list(kept["gap_end"].values())))
    for layer, gap in kept["convergence"]["layers_away"].items():
        assert gap == kept["gap_end"][layer] > 0.3
    convert = ("--algorithm=minmax", f"--calibration={folder}", f"--output={file}")
    code, out, _ = commands.call("tflite_export.convert", "--model=demo", *convert)
    verdict = json.loads(file.with_suffix(".json").read_text())["verdict"]
    assert code == 0 and verdict["level"] == "unknown"
    assert verdict["sentence"].startswith("Not judged") and verdict["sentence"] in out
    assert (verdict["predicted_agreement"], verdict["band"], verdict["reasons"]) == (None, None, [])
    assert verdict["layers"]  # what was measured stays


def test_an_estimate_on_images_that_did_not_converge_predicts_nothing():
    model, images = tiny_models.softmax_head(), tiny_models.images(16)
    files = to_float_tflite(model), to_tflite(model, images)
    kinds = {"unstretched": images[:8], "stretched": images[8:]}
    poor = judge_convergence({"bn": 0.5})
    fine = estimate(*files, kinds, same_inside=True)
    found = estimate(*files, kinds, same_inside=True, convergence=poor)
    assert None not in (fine.agreement, fine.low, fine.high)
    assert (found.agreement, found.low, found.high, found.level) == (None, None, None, "unknown")
    assert str(found) == (
        f"Not judged: the generated images did not converge, {poor.summary}. {poor.advice}"
    )
