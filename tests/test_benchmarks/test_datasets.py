"""Labeled sets come out as they were stored, and every bad file is an error that says what
to do.
"""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from benchmarks.data import datasets
from benchmarks.data.choice import part_of
from benchmarks.data.preprocessing import preprocessing

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, size=(6, 8, 10, 3), dtype=np.uint8)
Y = np.array([3, 1, 4, 1, 5, 9])


def load(spec, **options):
    options = {"role": "real", "input_shape": (8, 10, 3), **options}
    return datasets.load(str(spec), **options)


def save_folder(root, names, x=X):
    for index, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.squeeze(x[index])).save(root / name / f"{index}.png")
    return root


@pytest.mark.parametrize("text", ["imagenet", "caffe", "symmetric"])
def test_named_preprocessing_equals_keras(text):
    from keras.applications import imagenet_utils  # the independent source

    mode = {"imagenet": "torch", "caffe": "caffe", "symmetric": "tf"}[text]
    expected = imagenet_utils.preprocess_input(X.astype(np.float32), mode=mode)
    np.testing.assert_allclose(preprocessing(text)(X), expected, atol=2e-5)


def test_scale_and_offset_by_hand():
    # 10 * 0.5 - 1 = 4
    result = preprocessing("0.5,-1")(np.full((1, 2, 2, 1), 10, np.uint8))
    assert result.dtype == np.float32 and (result == 4.0).all()
    assert (preprocessing("unit")(np.full((1, 2, 2, 1), 255, np.uint8)) == 1.0).all()


@pytest.mark.parametrize("text", ["tf", "1", "1,2,3", "a,b"])
def test_unknown_preprocessing_names_the_choices(text):
    with pytest.raises(ValueError, match="SCALE,OFFSET.*symmetric"):
        preprocessing(text)


def test_npz_keeps_values_and_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    x, y = load(tmp_path / "a.npz", preprocess="unit")
    np.testing.assert_allclose(x, X / 255.0, atol=1e-7)
    np.testing.assert_array_equal(y, Y)
    assert x.dtype == np.float32 and y.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, bool])
def test_one_hot_labels_are_their_argmax(tmp_path, dtype):
    np.savez(tmp_path / "a.npz", x=X, y=np.eye(10, dtype=dtype)[Y])
    np.testing.assert_array_equal(load(tmp_path / "a.npz")[1], Y)
    np.savez(tmp_path / "column.npz", x=X, y=Y[:, None])
    np.testing.assert_array_equal(load(tmp_path / "column.npz")[1], Y)


def test_soft_labels_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=np.full((6, 10), 0.1))
    with pytest.raises(ValueError, match="one-hot"):
        load(tmp_path / "a.npz")


def test_limit_keeps_images_with_their_labels(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, y=Y)
    x, y = load(tmp_path / "a.npz", limit=4)
    kept = [int(np.flatnonzero((image == X).all(axis=(1, 2, 3)))[0]) for image in x]
    assert len(set(kept)) == 4
    np.testing.assert_array_equal(y, Y[kept])


def test_integer_folders_are_class_indices_also_with_gaps(tmp_path):
    x, y = load(save_folder(tmp_path, ["0007", "0002", "0007", "0030"]))
    np.testing.assert_array_equal(y, [2, 7, 7, 30])
    np.testing.assert_array_equal(x, X[[1, 0, 2, 3]])


def test_named_folders_are_numbered_in_sorted_order(tmp_path):
    _, y = load(save_folder(tmp_path, ["dog", "cat", "7up"]))
    np.testing.assert_array_equal(y, [0, 1, 2])


def test_images_of_another_size_are_cropped_centrally_and_resized(tmp_path):
    # 8 x 30 cropped to 8 x 10 in the middle: all white. Pillow's filter reads up to 2 pixels
    # beyond, so these are too.
    wide = np.zeros((1, 8, 30, 3), np.uint8)
    wide[:, :, 8:22] = 255
    x, _ = load(save_folder(tmp_path, ["0"], wide), input_shape=(4, 5, 3))
    assert x.shape == (1, 4, 5, 3) and x.min() == 255.0


def test_one_channel_model_gets_grey_images(tmp_path):
    x, _ = load(
        save_folder(tmp_path, ["0"], np.full((1, 8, 10, 3), 90, np.uint8)), input_shape=(8, 10, 1)
    )
    assert x.shape == (1, 8, 10, 1) and (x == 90.0).all()


class Bomb:
    """Unpickling it would create the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_arrays_are_refused_without_running_them(tmp_path):
    array = np.empty(1, object)
    array[0] = Bomb(tmp_path / "ran")
    np.savez(tmp_path / "bad.npz", x=array, y=[0])
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    for name in ("bad.npz", "raw.npz"):
        with pytest.raises(ValueError, match="np.savez"):
            load(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def npz(**arrays):
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a zip", "np.savez"),
        (b"", "np.savez"),
        (npz(x=X, y=Y)[:800], "np.savez"),
        (npz(images=X), "holds the arrays images"),
        (npz(x=X, y=Y[:3]), "as many integer"),
        (npz(x=X, y=Y.astype(float)), "as many integer"),
        (npz(x=X[:, :4], y=Y), "the model takes"),
        (npz(x=X[:0], y=Y[:0]), "no images"),
        (npz(x=X, y=-Y), "negative"),
        (npz(x=np.where(X > 250, np.nan, X), y=Y), "NaN"),
    ],
)
def test_bad_files_are_told_apart(tmp_path, content, message):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.npz")


def test_absent_empty_and_broken_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="tfds:NAME"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="folders by class"):
        load(tmp_path)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.jpg").write_bytes(b"no jpeg")
    with pytest.raises(ValueError, match="a.jpg cannot be read"):
        load(tmp_path)


def test_spectrogram_models_are_told_to_use_npz(tmp_path):
    with pytest.raises(ValueError, match="as .npz"):
        load(save_folder(tmp_path, ["0"]), input_shape=(40,))


def test_tfds_data_on_disk(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip(
        "importlib_resources", reason="TFDS 4.9.10 writes data sets with it but does not require it"
    )
    examples = {
        "train": [(i, {"image": X[i], "label": int(Y[i])}) for i in range(4)],
        "test": [(i, {"image": X[i], "label": int(Y[i])}) for i in (4, 5)],
    }
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(8, 10, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        "tiny_set", "1.0.0", features, examples, data_dir=tmp_path
    )
    x, y = load("tfds:tiny_set", data_dir=str(tmp_path), role="evaluation")
    assert {(int(label), image.tobytes()) for image, label in zip(x, y, strict=True)} == {
        (int(Y[i]), X[i].astype(np.float32).tobytes()) for i in (4, 5)
    }
    assert len(load("tfds:tiny_set/train[:3]", data_dir=str(tmp_path))[0]) == 3
    with pytest.raises(ValueError, match="splits train, test, not 'val'"):
        load("tfds:tiny_set/val", data_dir=str(tmp_path))
    with pytest.raises(ValueError, match="cannot give 'no_such_set'"):
        load("tfds:no_such_set", data_dir=str(tmp_path))


def test_even_and_odd_parts_share_no_image_and_keep_each_label_with_its_image():
    x, y = np.arange(7.0)[:, None], np.arange(7) * 10
    even, odd = (part_of(x, y, part=name) for name in ("even", "odd"))
    assert even[0].ravel().tolist() == [0, 2, 4, 6] and even[1].tolist() == [0, 20, 40, 60]
    assert odd[0].ravel().tolist() == [1, 3, 5] and odd[1].tolist() == [10, 30, 50]
    assert part_of(x, {"boxes": y}, part="odd")[1]["boxes"].tolist() == [10, 30, 50]
    assert part_of(x, None, part="even")[1] is None
    assert part_of(x, y, part="all")[0] is x


def test_a_part_without_images_is_refused():
    with pytest.raises(ValueError, match="--part=odd of 1 evaluation images leaves none"):
        part_of(np.zeros((1, 2)), None, part="odd")
