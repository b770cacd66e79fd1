"""Every form in which Python users hold calibration images gives the same arrays, or one error."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tiny_models

from tflite_export import representative_dataset, to_float_tflite, to_tflite
from tflite_export.calibration.collect import as_images
from tflite_export.quantization import quantize

X = tiny_models.images(8)
SHAPES = {"image": (16, 16, 3)}
TWO = {"right": (8, 8, 1), "left": (16, 16, 3)}
PAIR = {"right": tiny_models.images(8, shape=(8, 8, 1)), "left": X}

FORMS = {
    "list of images": lambda: list(X),
    "tuple of images": lambda: tuple(X),
    "list of dicts": lambda: [{"image": x} for x in X],
    "dataset of images": lambda: tf.data.Dataset.from_tensor_slices(X),
    "dataset of batches": lambda: tf.data.Dataset.from_tensor_slices(X).batch(3),
    "dataset with labels": lambda: tf.data.Dataset.from_tensor_slices((X, range(8))).batch(3),
    "dataset of dicts": lambda: tf.data.Dataset.from_tensor_slices({"image": X}).batch(3),
    "generator": lambda: (x for x in X),
    "generator of batches": lambda: (X[i : i + 2] for i in range(0, 8, 2)),
    "representative dataset": lambda: representative_dataset(X),
    "representative dataset of dicts": lambda: representative_dataset({"image": X}),
    "tensor": lambda: tf.constant(X),
    "dict of tensors": lambda: {"image": tf.constant(X)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_images(form):
    made = as_images(FORMS[form](), shapes=SHAPES)
    np.testing.assert_array_equal(made["image"] if isinstance(made, dict) else made, X)


@pytest.mark.parametrize(
    "source",
    [
        lambda: representative_dataset(PAIR),
        lambda: ([PAIR["right"][i : i + 1], PAIR["left"][i : i + 1]] for i in range(8)),
        lambda: tf.data.Dataset.from_tensor_slices((PAIR, range(8))).batch(4),
        lambda: tf.data.Dataset.from_tensor_slices((PAIR["right"], PAIR["left"])),
    ],
)
def test_several_inputs_come_by_name_or_in_the_models_order(source):
    made = as_images(source(), shapes=TWO)
    assert set(made) == set(PAIR)
    for name, array in PAIR.items():
        np.testing.assert_array_equal(made[name], array)


@pytest.mark.parametrize(
    "source, error, text",
    [
        (lambda: "images.npy", TypeError, "load_calibration"),
        (lambda: pathlib.Path("images"), TypeError, "load_calibration"),
        (lambda: 3, TypeError, "of type int; expected a float32 array"),
        (lambda: None, TypeError, "of type NoneType"),
        (lambda: [], ValueError, "gives no images"),
        (lambda: [X[0], X[1][:8]], ValueError, "different shapes"),
        (lambda: iter(tf.data.Dataset.from_tensors(X).repeat()), ValueError, "never end"),
        (lambda: [[X, X, X]], ValueError, "3 arrays at once; the model takes 1"),
    ],
)
def test_what_holds_no_images_is_one_clear_error(source, error, text):
    with pytest.raises(error, match=text):
        as_images(source(), shapes=SHAPES)


@pytest.mark.parametrize("form", ["dataset with labels", "representative dataset"])
def test_the_same_images_in_another_form_give_the_same_file(form):
    """The fault: an AttributeError of internals."""
    model = tiny_models.conv_bn_relu()
    assert to_tflite(model, FORMS[form]()) == to_tflite(model, X)


def test_quantize_takes_them_too_also_for_a_float_file():
    tflite = to_float_tflite(tiny_models.conv_bn_relu())
    wanted = quantize(tflite, X, algorithm="minmax").tflite
    assert quantize(tflite, FORMS["generator"](), algorithm="minmax").tflite == wanted
    with pytest.raises(TypeError, match="of type int"):
        quantize(tflite, 3)
