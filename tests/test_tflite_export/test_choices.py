"""Models that end in a choice (argmax): the file ends before it, or the error says how."""

import commands
import keras
import numpy as np
import pytest
import tiny_models

import dgh_tf
import tflite_export


def _ends(model):
    """The model with each kind of choice behind it, by name."""
    numbers, soft = model.output, keras.layers.Softmax()(model.output)
    where = keras.ops.argmax(soft, axis=-1)
    return {
        "plain": keras.ops.argmax(numbers, axis=-1),
        "softmax": where,
        "cast": keras.ops.cast(keras.ops.argmax(numbers, axis=-1), "float32"),
        "both": [soft, where],
    }


@pytest.fixture(scope="module")
def numbers():
    """A model that ends at its logits, of which 'softmax' and the others choose."""
    return tiny_models.settle(tiny_models.conv_bn_relu())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(16, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("end", ["plain", "softmax", "cast", "both"])
def test_the_file_ends_at_the_numbers_that_the_choice_is_made_of(end, numbers, images, tmp_path):
    model = keras.Model(numbers.input, _ends(numbers)[end])
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", images)
    given = (
        f"--model={tmp_path / 'm.keras'}",
        f"--calibration={tmp_path / 'x.npy'}",
        f"--output={tmp_path / 'm.tflite'}",
        "--algorithm=minmax",
    )
    code, _, err = commands.call("tflite_export.convert", *given)
    assert code == 1 and "argmax" in err and "--head=logits" in err and err.count("\n") == 1, err
    assert not (tmp_path / "m.tflite").exists()
    code, out, err = commands.call("tflite_export.convert", *given, "--head=logits")
    assert code == 0, err
    found = tflite_export.Runner((tmp_path / "m.tflite").read_bytes()).predict(images)
    wanted = numbers.predict(images, verbose=0)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


def test_python_does_the_same_and_generation_sees_the_same_head(numbers):
    model = keras.Model(numbers.input, _ends(numbers)["plain"])
    config = dgh_tf.GenerationConfig(num_images=4, steps=3, input_range="symmetric")
    with pytest.raises(ValueError, match="argmax.*--head=logits"):
        tflite_export.quantize(model, config=config, verbose=0)
    made = dgh_tf.generate_images(model, config, verbose=0)
    np.testing.assert_array_equal(made, dgh_tf.generate_images(numbers, config, verbose=0))
    ended = tflite_export.quantize(model, made, head="logits", algorithm="minmax", verbose=0)
    plain = tflite_export.quantize(numbers, made, algorithm="minmax", verbose=0)
    found, wanted = (tflite_export.Runner(q.tflite).predict(made) for q in (ended, plain))
    assert found.shape == (4, 5)
    np.testing.assert_array_equal(found, wanted)


def test_a_choice_inside_a_nested_model_is_refused_by_name(numbers):
    inner = keras.Model(numbers.input, _ends(numbers)["plain"], name="inside")
    outer = keras.Input(numbers.input.shape[1:])
    model = keras.Model(outer, inner(outer))
    with pytest.raises(ValueError, match="'inside' does not show"):
        tflite_export.quantize(
            model, np.zeros((4, 16, 16, 3), np.float32), head="logits", verbose=0
        )
