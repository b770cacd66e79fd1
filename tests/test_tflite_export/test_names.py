"""Names of inputs, outputs and layers in any script: each keeps its own, and none is lost."""

import keras
import numpy as np
import pytest
import tiny_models

from tflite_export import Runner, to_tflite
from tflite_export.conversion.freeze import file_names, named_outputs, plain
from tflite_export.tflite.integer_check import graph_io

L = keras.layers


def two_outputs(names, *, image="image", model="two_outputs", layer="conv"):
    inputs = keras.Input((8, 8, 3), name=image)
    x = L.Conv2D(4, 3, activation="relu", name=layer)(inputs)
    outputs = {names[0]: L.Conv2D(2, 1)(x), names[1]: L.Dense(3)(L.GlobalAveragePooling2D()(x))}
    return tiny_models.settle(keras.Model(inputs, outputs, name=model))


@pytest.mark.parametrize(
    "names, wanted",
    [
        (("境界", "分類"), ("境界", "分類")),
        (("класс", "рамка"), ("класс", "рамка")),
        (("a b", "a-b"), ("a_b", "a_b_1")),
    ],
)
def test_outputs_keep_their_names_and_none_is_lost(names, wanted):
    """Which values stand behind a name is compared with Keras, to a few steps of 8 bits."""
    model, images = two_outputs(names), tiny_models.images(8, shape=(8, 8, 3))
    got = Runner(to_tflite(model, images)).predict(images)
    assert set(got) == set(wanted)
    made = model(images, training=False)
    for name, other in zip(names, wanted, strict=True):
        want = np.asarray(made[name])
        assert got[other].shape == want.shape
        assert np.abs(got[other] - want).max() < 0.05 * np.abs(want).max()


def test_a_number_that_tells_names_apart_is_free_itself():
    outputs = {"a b": 1, "a-b": 2, "a_b_1": 3}
    assert named_outputs(None, outputs) == {"a_b": 1, "a_b_2": 2, "a_b_1": 3}
    assert file_names(["境界", "output_0", "分"], side="output") == {
        "output_0": "境界",
        "output_0_1": "output_0",
        "output_2": "分",
    }
    assert plain("_a b-ç") == "x_a_b_ç"


def test_a_name_that_needs_no_change_is_kept_by_its_owner():
    """The fault: "a b" became "a_b", and the model's own "a_b" got a number."""
    outputs = {"a b": 1, "a/b": 2, "a_b": 3}
    assert named_outputs(None, outputs) == {"a_b_1": 1, "a_b_2": 2, "a_b": 3}


def test_a_tensor_that_is_two_outputs_is_two_outputs_of_the_file():
    """The fault: the file had three names, and the reader gave two."""
    model, images = two_outputs(("a", "b")), tiny_models.images(8, shape=(8, 8, 3))
    map_, scores = model.output["a"], model.output["b"]
    got = Runner(to_tflite(keras.Model(model.input, [scores, scores, map_]), images)).predict(
        images
    )
    want = model(images, training=False)
    assert list(got) == ["output_0", "output_1", "output_2"]
    for name, other in zip(got, "bba", strict=True):
        assert np.abs(got[name] - want[other]).max() < 0.05 * np.abs(want[other]).max()


@pytest.mark.parametrize(
    "places",
    [
        {"layer": "conv 1"},
        {"layer": "層:1"},
        {"model": "my model"},
        {"image": "画像 1", "model": "模型"},
        {"layer": "a\\b"},
    ],
)
def test_names_that_tensorflow_refuses_as_scopes_convert(places):
    model = two_outputs(("a", "b"), **places)
    names = [layer.name for layer in model.layers]
    images = tiny_models.images(4, shape=(8, 8, 3))
    tflite = to_tflite(model, images)
    assert graph_io(tflite)["inputs"][0]["name"] == plain(places.get("image", "image"))
    assert [layer.name for layer in model.layers] == names  # the user's model is as it was
    assert model.name == places.get("model", "two_outputs")
