"""Kinds of models through the converter: several inputs, recurrent layers, half precision,
subclassed; each against Keras itself.
"""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_models
from measures import sqnr_db

from tflite_export import Runner, check_integer, to_float_tflite, to_tflite
from tflite_export.conversion import freeze


def test_two_inputs_are_fed_by_name():
    model = tiny_models.two_inputs()

    def data(seed):
        return {
            "left": tiny_models.images(seed=seed),
            "right": tiny_models.images(shape=(8, 8, 1), seed=seed + 1),
        }

    runner = Runner(to_tflite(model, data(1)))
    x = data(7)
    expected = np.asarray(model([x["right"], x["left"]], training=False))
    # 23.5 dB was measured; unrelated outputs of equal variance give -3 dB.
    assert sqnr_db(expected, runner.predict(x)) > 20
    with pytest.raises(ValueError, match="the model takes"):
        runner.predict({"left": x["left"]})


def test_tf_keras_and_16_bit_activations():
    import tf_keras

    model, images = tiny_models.softmax_head(keras=tf_keras), tiny_models.images()
    tflite = to_tflite(model, images, scheme="int16x8")
    assert (
        check_integer(tflite, io_dtype="int16")["inputs"][0]["zero_point"] == 0
    )  # 16-bit is symmetric by its spec
    expected = model.predict(images, verbose=0)
    assert sqnr_db(expected, Runner(tflite).predict(images)) > 30


@pytest.mark.parametrize("package", ["keras", pytest.param("tf_keras", marks=pytest.mark.slow)])
def test_recurrent_layers_convert_as_they_were_built(package):
    """Loops crash the converter. Against the model's own outputs; its layers are left as
    they were.
    """
    keras = importlib.import_module(package)
    keras.utils.set_random_seed(0)
    inputs = keras.layers.Input((12, 4), name="sound")
    x = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GRU(5)(x)))
    sounds = tiny_models.images(16, shape=(12, 4))
    wanted, got = model.predict(sounds, verbose=0), Runner(to_tflite(model, sounds)).predict(sounds)
    np.testing.assert_allclose(Runner(to_float_tflite(model)).predict(sounds), wanted, atol=1e-5)
    assert np.mean((got - wanted) ** 2) < 0.05 * np.mean(
        wanted**2
    )  # 13 dB; 16 and more when this was written
    assert model.layers[-2].unroll is False and np.array_equal(
        model.predict(sounds, verbose=0), wanted
    )


def test_layer_normalization_is_integer_and_equals_keras():
    """Its negation has no integer kernel and is written as a product; the float file against the
    model's own outputs.
    """
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.LayerNormalization()(keras.layers.Conv2D(6, 3)(inputs))
    model = keras.Model(
        inputs,
        -keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))),
    )
    images = tiny_models.images(16, shape=(8, 8, 3))
    wanted, tflite = model.predict(images, verbose=0), to_tflite(model, images)
    check_integer(tflite, io_dtype="int8")
    np.testing.assert_allclose(Runner(to_float_tflite(model)).predict(images), wanted, atol=1e-5)
    assert np.mean((Runner(tflite).predict(images) - wanted) ** 2) < 0.01 * np.mean(
        wanted**2
    )  # 20 dB
    # LiteRT has no squared difference of 16 bits: that of the variance is written as a product
    wide = Runner(to_tflite(model, images, scheme="int16x8")).predict(images)
    assert np.mean((wide - wanted) ** 2) < 0.0001 * np.mean(wanted**2)  # 40 dB


def test_gelu_is_one_integer_operator_and_equals_its_definition():
    """Keras writes it with erfc, which TFLite does not know; wanted values are from math.erf."""
    import math

    inputs, weights = keras.Input((6,)), keras.initializers.GlorotUniform(seed=0)
    dense = keras.layers.Dense(8, activation="gelu", kernel_initializer=weights)
    model = keras.Model(inputs, dense(inputs))
    images = 2.0 * tiny_models.images(32, shape=(6,))
    kernel, bias = (np.float64(weight) for weight in model.get_weights())
    x = images.astype(np.float64) @ kernel + bias
    wanted = 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))
    np.testing.assert_allclose(Runner(to_float_tflite(model)).predict(images), wanted, atol=1e-5)
    tflite = to_tflite(model, images)
    assert check_integer(tflite, io_dtype="int8")["operators"] == {"FULLY_CONNECTED": 1, "GELU": 1}
    step = (wanted.max() - wanted.min()) / 255
    np.testing.assert_allclose(Runner(tflite).predict(images), wanted, atol=3 * step)


def test_inputs_and_outputs_stand_in_the_models_order():
    """Alphabetical order, the converter's own and the model's differ here; shapes tell the tensors
    apart.
    """
    from ai_edge_litert.interpreter import Interpreter

    wide, narrow = keras.Input((6,), name="z_wide"), keras.Input((3,), name="a_narrow")
    x = keras.layers.Concatenate()([wide, narrow])
    model = keras.Model(
        [wide, narrow],
        [
            keras.layers.Dense(n, name=name)(x)
            for n, name in ((4, "last"), (2, "first"), (5, "middle"))
        ],
    )
    tflite = to_tflite(
        model,
        {
            "z_wide": tiny_models.images(8, shape=(6,)),
            "a_narrow": tiny_models.images(8, shape=(3,)),
        },
    )
    interpreter = Interpreter(model_content=tflite)
    assert [list(row["shape"]) for row in interpreter.get_input_details()] == [[1, 6], [1, 3]]
    assert [list(row["shape"]) for row in interpreter.get_output_details()] == [
        [1, 4],
        [1, 2],
        [1, 5],
    ]
    runner = Runner(tflite)
    assert (list(runner.inputs), list(runner.outputs)) == (
        ["z_wide", "a_narrow"],
        ["last", "first", "middle"],
    )


def test_subclassed_models_of_several_inputs_are_called_as_they_were():
    assert freeze._as_called(["input"], "x") == "x"
    assert freeze._as_called(["input_0", "input_1"], ("x", "y")) == ["x", "y"]
    assert freeze._as_called(["left", "right"], ("x", "y")) == {"left": "x", "right": "y"}


def test_subclassed_model_takes_its_shape_from_the_images():
    model, images = tiny_models.subclassed(), tiny_models.images()
    got = Runner(to_tflite(model, images)).predict(images)
    assert sqnr_db(model(images), got) > 25
    with pytest.raises(ValueError, match="subclassed"):
        to_float_tflite(model)


def in_policy(policy, build):
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return build()
    finally:
        keras.config.set_dtype_policy(usual)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_models_in_half_precision_are_converted_in_float32(policy):
    model, x = in_policy(policy, tiny_models.softmax_head), tiny_models.images(8)
    got = Runner(to_float_tflite(model)).predict(x)
    assert (
        got.dtype == np.float32 and sqnr_db(np.float32(model(x, training=False)), got) > 20
    )  # bfloat16 holds 8 bits


def test_a_half_precision_model_that_cannot_be_rebuilt_is_refused():
    with pytest.raises(
        ValueError,
        match="'subclassed' computes in half or double precision .* dtype policy float32",
    ):
        to_float_tflite(
            in_policy("mixed_bfloat16", tiny_models.subclassed), images=tiny_models.images(1)
        )


def test_a_loaded_sequential_model_converts_before_its_first_call(tmp_path):
    layers = [keras.Input((4, 4, 1), name="image"), keras.layers.Flatten(), keras.layers.Dense(2)]
    keras.Sequential(layers).save(tmp_path / "m.keras")
    model = keras.models.load_model(tmp_path / "m.keras", compile=False)
    x = tiny_models.images(1, shape=(4, 4, 1))
    # what the converter is given; running it as well would take ten times as long and prove no more
    assert freeze.save_frozen(model, tmp_path / "frozen", shapes=freeze.input_shapes(model)) == [
        "output"
    ]
    got = tf.saved_model.load(str(tmp_path / "frozen")).signatures["serving_default"](
        image=tf.constant(x)
    )["output"]
    weights, bias = (w.astype(np.float64) for w in model.get_weights())
    np.testing.assert_allclose(
        got, x.reshape(len(x), -1) @ weights + bias, atol=1e-5
    )  # the layers by hand, in float64


def test_inputs_that_would_share_a_name_in_the_file_are_refused():
    inputs = [keras.Input((8,), name=name) for name in ("a.b", "a_b")]
    model = keras.Model(inputs, keras.layers.Add()(inputs))
    with pytest.raises(ValueError, match=r"a\.b, a_b .* same name"):
        to_tflite(model, {"a.b": np.zeros((2, 8), np.float32), "a_b": np.zeros((2, 8), np.float32)})
