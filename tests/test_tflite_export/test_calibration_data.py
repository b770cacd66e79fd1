"""Defective calibration images are refused before TensorFlow sees them; good ones pass
unchanged.
"""

import json
import pickle

import numpy as np
import pytest
import tiny_models

from dgh_tf.common.files import sha256_array, sha256_file
from tflite_export import check_calibration, load_calibration, representative_dataset

SHAPES = {"image": (16, 16, 3)}


@pytest.fixture
def good():
    return tiny_models.images(8)


def with_value(value):
    images = tiny_models.images(8)
    images[5, 3, 2, 1] = value
    return images


DEFECTS = {
    "one NaN": (with_value(np.nan), "nan at image 5, position \\[3, 2, 1\\]"),
    "all NaN": (np.full((8, 16, 16, 3), np.nan, np.float32), "nan at image 0"),
    "one Inf": (with_value(np.inf), "inf at image 5"),
    "minus Inf": (with_value(-np.inf), "-inf at image 5"),
    "float64 beyond float32": (with_value(0.0).astype(np.float64) + 1e300, "inf at image 0"),
    "span beyond float32": (
        with_value(3e38) + with_value(-3e38)[::-1],
        "more than float32 can hold",
    ),
    "no image": (np.empty((0, 16, 16, 3), np.float32), "is empty"),
    "constant": (np.full((8, 16, 16, 3), 0.5, np.float32), "constant: all 6144 values are 0.5"),
    "objects": (np.full((8, 16, 16, 3), None), "dtype object"),
    "complex": (np.ones((8, 16, 16, 3), np.complex64), "dtype complex64"),
    "text": (np.full((8, 16, 16, 3), "a"), "dtype <U1"),
    "wrong size": (tiny_models.images(8, shape=(8, 8, 3)), "Resize or crop"),
    "no batch axis": (tiny_models.images(8)[0], "Add the batch axis"),
    "channels first": (tiny_models.images(8).transpose(0, 3, 1, 2), "channels to the last axis"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_is_refused_by_name(defect):
    images, text = DEFECTS[defect]
    with pytest.raises(ValueError, match=text):
        check_calibration(images, input_shapes=SHAPES)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.0, 255.0, "expected values in -1 .. 1"),
        (-1.01, 1.0, "expected values in"),
        (0.0, 0.1, "fills 0.05 of the"),
        (0.0, 1.0, "one half of the range"),
        (-1.0, 0.0, "one half of the range"),
    ],
)
def test_wrong_range_is_refused(low, high, text):
    with pytest.raises(ValueError, match=text):
        check_calibration(
            tiny_models.images(8, low=low, high=high), input_shapes=SHAPES, value_range=(-1.0, 1.0)
        )


def test_good_images_pass_without_a_copy(good):
    checked = check_calibration(good, input_shapes=SHAPES, value_range=(-1.0, 1.0))
    assert list(checked) == ["image"]
    assert np.shares_memory(checked["image"], good)


def test_range_per_channel(good):
    wide = good * np.float32([1.0, 2.0, 3.0])
    limits = ([-1.0, -2.0, -3.0], [1.0, 2.0, 3.0])
    check_calibration(wide, input_shapes=SHAPES, value_range=limits)
    with pytest.raises(ValueError, match="input range"):
        check_calibration(wide[..., ::-1], input_shapes=SHAPES, value_range=limits)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float16, np.int64])
def test_other_numbers_become_float32_with_equal_values(dtype):
    images = tiny_models.images(8, low=0, high=255).astype(dtype)
    checked = check_calibration(images, input_shapes=SHAPES)["image"]
    assert checked.dtype == np.float32
    np.testing.assert_array_equal(
        checked.astype(np.float64), images.astype(np.float32).astype(np.float64)
    )


def test_several_inputs_need_their_names_and_equal_counts(good):
    shapes = {"a": (16, 16, 3), "b": (None, 16, 3)}
    assert list(check_calibration({"b": good, "a": good}, input_shapes=shapes)) == ["a", "b"]
    for images, text in [(good, "dict of arrays"), ({"a": good}, "names the inputs a"),
                         ({"a": good, "b": good[:4]}, "different numbers")]:  # fmt: skip
        with pytest.raises(ValueError, match=text):
            check_calibration(images, input_shapes=shapes)


def test_representative_dataset_yields_every_image_once_at_batch_one(good):
    samples = list(representative_dataset(good)())
    assert [s[0].shape for s in samples] == [(1, 16, 16, 3)] * 8
    np.testing.assert_array_equal(np.concatenate([s[0] for s in samples]), good)
    named = list(representative_dataset({"a": good, "b": good[:, :2]})())
    assert {k: v.shape for k, v in named[3].items()} == {"a": (1, 16, 16, 3), "b": (1, 2, 16, 3)}


@pytest.mark.parametrize("digest", ["file", "array"])
def test_generate_folder_is_checked_against_its_manifest(tmp_path, good, digest):
    path = tmp_path / "images.npy"
    np.save(path, good)
    sha256 = sha256_file(path) if digest == "file" else sha256_array(good)
    manifest = {
        "images_sha256": sha256,
        "input_range": {"low": [-1.0], "high": [1.0]},
        "model_sha256": "abc",
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    loaded = load_calibration(tmp_path)
    assert isinstance(loaded.images, np.memmap)
    assert (loaded.value_range, loaded.model_sha256) == (([-1.0], [1.0]), "abc")
    np.testing.assert_array_equal(loaded.images, good)
    np.save(path, good + np.float32(1e-3))
    with pytest.raises(ValueError, match="sha256 differs"):
        load_calibration(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="missing"):
        load_calibration(tmp_path)


def test_generate_folder_of_two_inputs(tmp_path, good):
    for name in "ab":
        np.save(tmp_path / f"images_{name}.npy", good)
    sha256 = sha256_array(good)
    manifest = {
        "images_sha256": {"a": sha256, "b": sha256},
        "input_range": {"a": [-1, 1], "b": [0, 1]},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    loaded = load_calibration(tmp_path)
    assert sorted(loaded.images) == ["a", "b"]
    assert loaded.value_range == {"a": (-1, 1), "b": (0, 1)}


def test_arrays_from_npy_and_npz(tmp_path, good):
    np.save(tmp_path / "a.npy", good)
    np.savez(tmp_path / "x.npz", x=good, y=np.arange(8))
    np.savez(tmp_path / "inputs.npz", left=good, right=good[:, :4])
    np.testing.assert_array_equal(load_calibration(tmp_path / "a.npy").images, good)
    np.testing.assert_array_equal(load_calibration(tmp_path / "x.npz").images, good)
    assert load_calibration(tmp_path / "inputs.npz").images["right"].shape == (8, 4, 16, 3)
    assert (
        load_calibration(tmp_path / "a.npy").sha256 == load_calibration(tmp_path / "x.npz").sha256
    )


class Trap:
    """Unpickling it makes a file: the proof that nothing was unpickled is that the file is
    absent.
    """

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_are_never_run(tmp_path):
    trap = tmp_path / "sprung"
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Trap(trap)))
    np.save(tmp_path / "object.npy", np.array([Trap(trap)], object), allow_pickle=True)
    np.savez(tmp_path / "object.npz", x=np.array([Trap(trap)], object))
    for name in ("raw.npy", "object.npy", "object.npz"):
        with pytest.raises(ValueError, match="cannot be read"):
            load_calibration(tmp_path / name)
    assert not trap.exists()


def test_folder_of_images_is_resized_and_preprocessed(tmp_path):
    from PIL import Image

    (tmp_path / "class").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "class" / "1.png")
    Image.fromarray(np.full((40, 30, 3), 51, np.uint8)).save(tmp_path / "2.png")
    loaded = load_calibration(
        tmp_path, image_shape=(16, 16, 3), scale=1 / 127.5, offset=-1.0
    ).images
    np.testing.assert_allclose(
        loaded[1], values / 127.5 - 1.0, atol=1e-6
    )  # 2.png sorts before class/1.png
    np.testing.assert_allclose(loaded[0], -0.6, atol=1e-6)  # 51 / 127.5 - 1
    assert load_calibration(tmp_path, image_shape=(16, 16, 1)).images.shape == (2, 16, 16, 1)
    with pytest.raises(ValueError, match="fixed height"):
        load_calibration(tmp_path, image_shape=(49, 10))


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no calibration data"):
        load_calibration(tmp_path / "absent")
    with pytest.raises(ValueError, match="finished generate folder"):
        load_calibration(tmp_path)
    (tmp_path / "a.txt").write_text("no images")
    with pytest.raises(ValueError, match="no known calibration data"):
        load_calibration(tmp_path / "a.txt")
