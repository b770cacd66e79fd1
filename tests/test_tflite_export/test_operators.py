"""Operators without an integer kernel are written as others, or named with tried advice."""

import keras
import numpy as np
import pytest
import tiny_models

from tflite_export import ConversionError, IntegerError, Runner, check_integer, to_float_tflite
from tflite_export.conversion.errors import explained
from tflite_export.conversion.freeze import input_shapes
from tflite_export.quantization import quantize

L = keras.layers
IMAGES = tiny_models.images(8, shape=(8, 8, 3))


def with_layer(layer, *, last=None, **options):
    x = inputs = keras.Input((8, 8, 3), name="image", **options)
    x = layer(L.Conv2D(8, 3, activation="relu")(x))
    x = L.Dense(4, name="scores")(L.GlobalMaxPooling2D()(x))
    return tiny_models.settle(keras.Model(inputs, last(x) if last else x))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: L.GroupNormalization(4),
        lambda: L.UnitNormalization(),
        pytest.param(lambda: L.Activation("squareplus"), marks=pytest.mark.slow),
    ],
)
def test_squares_become_products(layer):
    model = with_layer(layer())
    tflite = to_float_tflite(model)
    want = np.asarray(model(IMAGES, training=False))
    # not XNNPACK: its 1 / sqrt(0) is no number
    got = Runner(tflite, kernels="builtin").predict(IMAGES)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert check_integer(quantize(model, IMAGES, algorithm="minmax").tflite, io_dtype="int8")


def test_biases_are_corrected_where_an_operator_reads_one_tensor_twice():
    """The fault: a KeyError over x * x."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(8, 3, activation="relu")(inputs)
    x = L.GlobalAveragePooling2D()(L.Multiply()([x, x]))
    model = tiny_models.settle(keras.Model(inputs, L.Dense(4)(x)))
    made = quantize(model, IMAGES, algorithm="bias_correction").tflite
    want = np.asarray(model(IMAGES, training=False))
    assert np.abs(Runner(made).predict(IMAGES) - want).max() < 0.05 * np.abs(want).max()


@pytest.mark.parametrize(
    "layer, scheme, advised",
    [
        (lambda: L.Activation(keras.ops.sin), "int8", False),
        (lambda: L.Activation(keras.ops.sin), "int16x8", False),
        (lambda: L.ELU(), "int16x8", True),
        (lambda: L.Activation("hard_swish"), "int16x8", True),
    ],
)
def test_advice_is_tried_before_it_is_given(layer, scheme, advised):
    """The fault: int8 advised int16x8, and int16x8 int8, for an operator that neither has."""
    model = with_layer(layer())
    with pytest.raises((ConversionError, IntegerError)) as caught:
        tflite = quantize(model, IMAGES, scheme=scheme, algorithm="minmax").tflite
        check_integer(tflite, io_dtype={"int8": "int8", "int16x8": "int16"}[scheme])
    error = explained(
        caught.value,
        float_tflite=to_float_tflite(model),
        scheme=scheme,
        model=model,
        images={"image": IMAGES},
    )
    assert "no integer form" in str(error)
    assert ("which takes this model" in str(error)) == advised


def test_a_model_in_double_precision_is_rebuilt():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        model = with_layer(L.ReLU())
    finally:
        keras.config.set_dtype_policy(before)
    want = np.asarray(model(IMAGES, training=False))
    assert want.dtype == np.float64
    got = Runner(to_float_tflite(model)).predict(IMAGES)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_what_keras_quantized_is_named_as_such():
    model = with_layer(L.ReLU())
    model.layers[-1].quantize("int8")
    with pytest.raises(ValueError, match="already quantized: layer 'scores'"):
        to_float_tflite(model)


def test_an_output_that_is_a_choice_is_refused_with_its_layer_and_what_to_give():
    class Choice(L.Layer):
        def call(self, x):
            return keras.ops.argmax(x, -1)

    model = with_layer(L.ReLU(), last=Choice(name="choice"))
    with pytest.raises(ValueError, match="layer 'choice'.*gives int.*--head=logits"):
        input_shapes(model)
