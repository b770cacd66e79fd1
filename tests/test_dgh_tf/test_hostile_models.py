"""dgh_tf.load_model on a stranger's file: it runs no code, imports no module, reads no other file
and takes no memory that the file's size does not explain. See docs/security.md.
"""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import sys

import h5py
import hostile_models as hostile
import keras
import numpy as np
import pytest
import tiny_models as tiny

from dgh_tf.models.hdf5_texts import text_bytes
from dgh_tf.models.loading import load_model, model_path

MOST_MEMORY = 2**30  # bytes that refusing a bomb of many times that may take


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile")
    hostile.prepare(path)
    sys.path.insert(0, str(path))  # as the current folder is under `python -m`
    yield path
    sys.path.remove(str(path))


def refused(folder, path) -> str:
    """The message with which a file is refused, after a look that nothing else happened."""
    (folder / hostile.TRACE).unlink(missing_ok=True)  # of a test that failed
    sys.modules.pop(hostile.MODULE, None)
    before = set(folder.iterdir())
    with pytest.raises(ValueError) as caught:
        load_model(str(path))
    assert not (folder / hostile.TRACE).exists() and hostile.MODULE not in sys.modules
    assert set(folder.iterdir()) == before
    text = str(caught.value)
    assert str(path) in text and text.isprintable() and len(text) < 1200
    return text


def with_layer(folder, source: str, name: str):
    path = folder / f"{name.replace(' ', '_')}_{source}"
    if path.exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    new = hostile.added(str(folder / hostile.TRACE))[name]
    return hostile.edited(
        folder / source, path, lambda config: config["config"]["layers"].append(new)
    )


@pytest.mark.parametrize("source", ["two.h5", "two.keras", "two", "three.keras", "three.h5"])
@pytest.mark.parametrize("name", hostile.added(""))
def test_what_a_config_may_not_name_is_refused_before_keras_sees_it(folder, source, name):
    text = refused(folder, with_layer(folder, source, name))
    assert "damaged" not in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lambda", "Lambda layer.*allow_unsafe_deserialization"),
        ("vocabulary", "StringLookup.*other files"),
        ("another model", "TFSMLayer.*another SavedModel"),
        ("function that writes", "TFOpLambda of tf.io.write_file"),
        ("module in an initializer", "class.*X"),
        ("module of a known class", f"module '{hostile.MODULE}'"),
        ("function on a constant", "constants instead of tensors"),
    ],
)
def test_refusals_name_what_was_found(folder, name, words):
    assert re.search(words, refused(folder, with_layer(folder, "two.h5", name)))


@pytest.mark.parametrize("name", hostile.BOMBS)
def test_bombs_are_refused_before_they_are_unpacked(folder, name):
    path = hostile.BOMBS[name](folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < MOST_MEMORY


@pytest.mark.parametrize("kind", ["external", "virtual", "outer_link", "soft_link", "second_name"])
def test_weights_that_lie_elsewhere_are_refused(folder, kind):
    assert "model.save" in refused(folder, hostile.links(folder)[kind])


def test_a_file_of_two_kinds_is_refused(folder):
    assert "at once" in refused(folder, hostile.polyglot(folder))
    shutil.copy(folder / "two.keras", folder / "archive.h5")
    assert "at once" in refused(folder, folder / "archive.h5")


def test_savedmodels_load_without_their_functions(folder):
    import tf_keras

    path = hostile.saved_model_that_initializes(folder)
    model = load_model(str(path))
    assert not (folder / hostile.TRACE).exists()
    x = tiny.images(2)
    expected = tiny.conv_bn_relu(keras=tf_keras)(x, training=False)
    np.testing.assert_allclose(np.asarray(model(x, training=False)), expected, atol=1e-5)


def test_savedmodel_folders_with_links_and_pipes_are_refused(folder):
    for name, make in (("link", os.symlink), ("pipe", lambda _, path: os.mkfifo(path))):
        path = folder / f"saved_{name}"
        shutil.copytree(folder / "two", path)
        (path / "variables" / "variables.index").unlink()
        make(folder / hostile.SECRET, path / "variables" / "variables.index")
        refused_text = refused(folder, path)
        assert "regular file" in refused_text


def test_pipes_and_names_that_are_no_text_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "model.h5")
    with pytest.raises(ValueError, match="no regular file"):
        load_model(str(tmp_path / "model.h5"))
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.keras")
    tiny.conv_bn_relu().save(tmp_path / "m.keras")
    os.rename(tmp_path / "m.keras", name)
    with pytest.raises(ValueError, match="not UTF-8.*Rename"):
        model_path(name)


def test_hdf5_that_was_packed_again_loads(folder, tmp_path):
    """Packing alone is no reason to refuse: h5repack and others do that."""
    packed = tmp_path / "packed.h5"
    shutil.copy(folder / "two.h5", packed)
    with h5py.File(packed, "r+") as file:
        for name in hostile.datasets(file):
            values = file[name][...]
            del file[name]
            if values.ndim:
                file.create_dataset(name, data=values, compression="gzip", shuffle=True)
            else:
                file[name] = values
    x = tiny.images(2)
    a, b = (np.asarray(load_model(str(p))(x)) for p in (packed, folder / "two.h5"))
    np.testing.assert_array_equal(a, b)


def test_texts_of_an_hdf5_file_are_counted_as_often_as_they_are_read(folder, tmp_path):
    """Against the lengths that h5py reads, for files that share nothing."""
    path = tmp_path / "texts.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for place in range(40):
            texts = ["x" * int(n) for n in rng.integers(1, 300, 25)]
            file.create_group(str(place)).attrs["weight_names"] = texts
            file[str(place)].attrs["one"] = "y" * 5000
        wanted = sum(
            sum(map(len, np.atleast_1d(value)))
            for group in file.values()
            for value in group.attrs.values()
        )
    assert wanted > 300_000
    assert text_bytes(path.read_bytes()) == wanted
    with h5py.File(folder / "two.h5") as file:
        assert text_bytes((folder / "two.h5").read_bytes()) >= len(file.attrs["model_config"])


def test_places_of_arrays_are_not_taken_for_texts():
    """Of so many arrays, the place of one begins with the bytes of the texts' place."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.attrs["names"] = ["first", "second"]
        for number in range(900):
            file[str(number)] = np.zeros(64, np.float32)
        offsets = [array.id.get_offset() for array in file.values()]
    heap = content.getvalue().index(b"GCOL\x01\0\0\0")
    assert [offset for offset in offsets if offset >> 8 == heap]
    assert text_bytes(content.getvalue()) == len("first" + "second")


def test_classes_that_the_program_registered_load(tmp_path):
    @keras.saving.register_keras_serializable("mine")
    class Twice(keras.layers.Layer):
        def call(self, x):
            return 2.0 * x

    try:
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.BatchNormalization()(Twice()(inputs))
        model = tiny.settle(keras.Model(inputs, keras.layers.Conv2D(2, 3)(x)))
        for name in ("mine.keras", "mine.h5"):
            model.save(tmp_path / name)
            loaded = load_model(str(tmp_path / name))
            x = tiny.images(2, shape=(8, 8, 3))
            np.testing.assert_allclose(np.asarray(loaded(x)), np.asarray(model(x)), atol=1e-6)
    finally:
        keras.saving.get_custom_objects().pop("mine>Twice")
    with pytest.raises(ValueError, match="Twice.*registers"):
        load_model(str(tmp_path / "mine.keras"))


def test_the_config_decides_nothing_by_keys_that_json_repeats(folder):
    """JSON may repeat a key; what is checked must be what is built."""
    path = folder / "repeated.h5"
    shutil.copy(folder / "two.h5", path)
    with h5py.File(path, "r+") as file:
        text = json.dumps(json.loads(file.attrs["model_config"]))
        file.attrs["model_config"] = text.replace(
            '"class_name": "Dense"', '"class_name": "Dense", "class_name": "Lambda"'
        )
    assert "Lambda" in refused(folder, path)
