"""Models that end in a choice (argmax): the file ends before it, or the error says how."""

import json

import commands
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_models

import dgh_tf
import tflite_export
from dgh_tf.models.choices import without_choices
from tflite_export import quantization

DATA = {"model": "m.keras", "real": "x.npz", "evaluation": "x.npz", "output_dir": "out"}


def _ends(model):
    """The model with each kind of choice behind it, by name."""
    numbers, soft = model.output, keras.layers.Softmax()(model.output)
    where = keras.ops.argmax(soft, axis=-1)
    return {
        "plain": keras.ops.argmax(numbers, axis=-1),
        "softmax": where,
        "cast": keras.ops.cast(keras.ops.argmax(numbers, axis=-1), "float32"),
        "both": [soft, where],
        "one_hot": keras.ops.one_hot(keras.ops.argmax(numbers, axis=-1), numbers.shape[-1]),
    }


@pytest.fixture(scope="module")
def numbers():
    """A model that ends at its logits, of which 'softmax' and the others choose."""
    return tiny_models.settle(tiny_models.conv_bn_relu())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(16, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("end", ["plain", "softmax", "cast", "both", "one_hot"])
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


@pytest.mark.parametrize("end", ["plain", "softmax", "cast", "both"])
def test_a_choice_inside_a_nested_model_is_taken_off_too(end, numbers, images):
    """The fault: the error advised --head=logits, which then refused the model as well."""
    inner = keras.Model(numbers.input, _ends(numbers)[end], name="inside")
    outer = keras.Input(numbers.input.shape[1:])
    ended = without_choices(keras.Model(outer, inner(outer)))
    assert len(ended.outputs) == 1
    wanted = numbers(images)
    wanted = wanted if end in ("plain", "cast") else keras.ops.softmax(wanted)
    np.testing.assert_allclose(ended(images), wanted, rtol=0, atol=1e-6)


def test_a_choice_inside_a_subclassed_model_is_refused_by_name(images):
    class Inside(keras.Model):
        def call(self, x):
            return keras.ops.argmax(keras.ops.mean(x, axis=(1, 2)), axis=-1)

    outer = keras.Input(images.shape[1:])
    with pytest.raises(ValueError, match="'inside' does not show"):
        without_choices(keras.Model(outer, Inside(name="inside")(outer)))


@pytest.mark.parametrize("head", ["model", "logits"])
@pytest.mark.parametrize("end", ["plain", "softmax"])
def test_a_benchmark_measures_before_the_choice(end, head, numbers, images, tmp_path):
    """The fault: it advised --head=logits, also where that was given."""
    keras.Model(numbers.input, _ends(numbers)[end]).save(tmp_path / "m.keras")
    wanted = np.asarray(numbers(images))
    np.savez(tmp_path / "x.npz", x=images, y=wanted.argmax(1))
    given = (f"--{name}={tmp_path / file}" for name, file in DATA.items())
    code, out, err = commands.call(
        "benchmarks.calibration",
        *given,
        *("--num_images=16", "--seeds=1", "--sources=real", "--input_range=-5,5"),
        f"--head={head}",
    )
    assert code == 0, err
    assert "measured before the choice" in out
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert row["float_top1"] == 1.0 and row["agreement"] > 0.8 and row["sqnr_db"] > 15


def test_a_tflite_file_that_ends_in_a_choice_is_told_in_one_line(numbers, tmp_path):
    choose = tf.function(lambda x: tf.cast(tf.argmax(numbers(x), axis=-1), tf.float32))
    spec = tf.TensorSpec((1, *numbers.input.shape[1:]), tf.float32)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [choose.get_concrete_function(spec)]
    )
    (tmp_path / "m.tflite").write_bytes(converter.convert())
    with pytest.raises(ValueError, match="ARG_MAX of '.*logits.*--head=logits") as told:
        dgh_tf.load_model(tmp_path / "m.tflite")
    assert "\n" not in str(told.value)


def test_no_file_that_is_partly_float_is_measured(tmp_path):
    """The fault: a rounding stayed float, and benchmarks measured that file as full integer."""
    model = tiny_models.conv_bn_relu()
    rounded = keras.Model(model.input, keras.ops.round(model.output))
    with pytest.raises(tflite_export.IntegerError, match="FLOAT32"):
        quantization.quantize(rounded, tiny_models.images(8), algorithm="minmax")
