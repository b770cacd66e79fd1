"""dgh_tf.output: what a finished folder holds comes back as it was, whatever the inputs are called,
here and in tflite_export.
"""

import json

import numpy as np
import pytest

from dgh_tf.common.run_folder import image_files, load_images, write_images, write_manifest
from tflite_export import load_calibration

NAMES = ["left image.1", "räght", "a/b", "a_b", "A:B"]


def finished(folder, names):
    arrays = [np.full((2, 3), i + 0.5, np.float32) for i in range(len(names))]
    ranges = [{"low": [0.0], "high": [float(i + 1)]} for i in range(len(names))]
    parts = [[a[:1] for a in arrays], [a[1:] for a in arrays]]
    write_manifest(
        folder,
        {**write_images(folder, parts, names, count=2), "identity": {}, "input_range": ranges},
    )
    return dict(zip(names, arrays, strict=True))


def test_every_input_has_a_file_of_its_own_with_a_plain_name():
    files = image_files(NAMES)
    assert list(files) == NAMES and len({file.lower() for file in files.values()}) == len(NAMES)
    assert all(
        file.replace(".npy", "").replace("_", "").replace("-", "").isalnum() and file.isascii()
        for file in files.values()
    )
    assert image_files(["any/name"]) == {"any/name": "images.npy"}


def test_images_come_back_by_name(tmp_path):
    expected = finished(tmp_path, NAMES)
    for name, array in load_images(tmp_path).items():
        np.testing.assert_array_equal(array, expected[name])
    (tmp_path / "one").mkdir()
    np.testing.assert_array_equal(
        load_images(tmp_path / "one") if finished(tmp_path / "one", ["x"]) else None,
        [[0.5] * 3] * 2,
    )


def test_conversion_finds_them_under_the_names_in_the_file(tmp_path):
    expected = finished(tmp_path, NAMES[:2])
    loaded = load_calibration(tmp_path)
    np.testing.assert_array_equal(loaded.images["left_image_1"], expected["left image.1"])
    np.testing.assert_array_equal(loaded.images["räght"], expected["räght"])
    assert loaded.value_range == {"left_image_1": ([0.0], [1.0]), "räght": ([0.0], [2.0])}


def test_a_changed_file_and_one_outside_the_folder_are_refused(tmp_path):
    finished(tmp_path, NAMES[:2])
    np.save(tmp_path / image_files(NAMES[:2])["räght"], np.zeros((2, 3), np.float32))
    for load in (load_images, load_calibration):
        with pytest.raises(ValueError, match="sha256 differs"):
            load(tmp_path)
    inner = tmp_path / "inner"
    inner.mkdir()
    finished(inner, ["x"])
    manifest = json.loads((inner / "manifest.json").read_text())
    (inner / "manifest.json").write_text(
        json.dumps({**manifest, "files": {"x": "../images_left_image_1.npy"}})
    )
    with pytest.raises((ValueError, FileNotFoundError), match="missing|cannot be read"):
        load_calibration(inner)
