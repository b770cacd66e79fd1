"""Models that fix the size of their batch: the same numbers at any other, or one clear line."""

import keras
import numpy as np
import pytest
import tf_keras
import tiny_models

import dgh_tf
from dgh_tf.models.batches import with_any_batch
from tflite_export import Runner, to_float_tflite, to_tflite

SHAPE = (12, 12, 3)


def network(middle, *, batch, library=keras):
    """A small network whose middle may name the batch; batch: its size, None for any."""
    inputs = library.Input(batch_shape=(batch, *SHAPE), name="image")
    x = library.layers.Conv2D(4, 3, strides=2, use_bias=False)(inputs)
    x = library.layers.ReLU()(library.layers.BatchNormalization()(x))  # [batch, 5, 5, 4]
    model = library.Model(inputs, library.layers.Dense(3)(middle(x, batch or -1)), name="fixed")
    return tiny_models.settle(model)


def flattened(x, n):
    return keras.ops.reshape(x, (n, 100))


def inferred(x, n):
    return keras.ops.reshape(x, (n, -1)) if n > 0 else keras.layers.Flatten()(x)


def folded(x, n):
    """Rows become images of their own and come back."""
    rows = keras.ops.reshape(x, (n * 5 if n > 0 else -1, 20))
    return keras.ops.reshape(keras.layers.Dense(2, activation="relu")(rows), (n, 10))


def by_layer(x, n):
    return keras.layers.Flatten()(keras.layers.Reshape((5, 20))(x))


def recurrent(x, n):
    return keras.layers.GRU(4)(keras.layers.Reshape((5, 20))(x))


def keras2(x, n):
    import tensorflow as tf

    return tf.reshape(x, (n, 100))


MIDDLES = [flattened, inferred, folded, by_layer, recurrent, keras2]


@pytest.fixture(scope="module")
def images():
    return tiny_models.images(5, shape=SHAPE)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("middle", MIDDLES)
def test_a_fixed_batch_gives_the_numbers_of_a_free_one(middle, batch, images, tmp_path):
    """Against the same weights in a network that was built for any batch."""
    library = tf_keras if middle is keras2 else keras
    want = np.asarray(network(middle, batch=None, library=library)(images))
    path = tmp_path / f"m.{'h5' if library is tf_keras else 'keras'}"
    network(middle, batch=batch, library=library).save(path)
    loaded = dgh_tf.load_model(path)
    assert loaded.input_shape == (None, *SHAPE)
    np.testing.assert_allclose(np.asarray(loaded(images)), want, rtol=0, atol=1e-5)


def nested(*, batch, inner_batch):
    inputs = keras.Input(batch_shape=(batch, *SHAPE))
    inner = network(folded, batch=inner_batch)
    return tiny_models.settle(keras.Model(inputs, keras.layers.Softmax()(inner(inputs))))


@pytest.mark.parametrize("batch, inner_batch", [(8, 8), (None, 8), (1, 1)])
def test_nested_models_are_freed_too(batch, inner_batch, images):
    want = np.asarray(nested(batch=None, inner_batch=None)(images))
    found = with_any_batch(nested(batch=batch, inner_batch=inner_batch))
    np.testing.assert_allclose(np.asarray(found(images)), want, rtol=0, atol=1e-5)


def test_files_and_images_are_made_of_a_model_with_a_fixed_batch(images):
    """Both from Python, which gets the model as it is."""
    fixed, free = network(folded, batch=8), network(folded, batch=None)
    want = np.asarray(free(images))
    np.testing.assert_allclose(Runner(to_float_tflite(fixed)).predict(images), want, atol=1e-4)
    data = tiny_models.images(32, shape=SHAPE)
    made = Runner(to_tflite(fixed, data)).predict(images)
    assert np.var(want - want.mean(0)) / np.mean((made - want) ** 2) > 100  # 20 dB
    made = dgh_tf.generate_images(fixed, num_images=3, steps=1, input_range="-1,1", verbose=0)
    assert made.shape == (3, *SHAPE)


def placed(x, n):
    """Adds another number to each place in the batch."""
    return keras.layers.Flatten()(x) + keras.ops.arange(8, dtype="float32")[:, None]


def mixed(x, n):
    x = keras.layers.Flatten()(x)
    return x - keras.ops.mean(x, axis=0, keepdims=True)


def unstacked(x, n):
    return keras.ops.stack(keras.ops.unstack(keras.layers.Flatten()(x), num=8, axis=0), axis=0)


@pytest.mark.parametrize("middle", [placed, mixed, unstacked])
def test_a_model_that_needs_its_batch_is_refused_in_one_line(middle, tmp_path):
    path = tmp_path / "m.keras"
    network(middle, batch=8).save(path)
    with pytest.raises(ValueError, match="'fixed' takes batches of 8 alone.*keras.Input") as told:
        dgh_tf.load_model(path)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_a_layer_that_keeps_its_state_is_named(library):
    inputs = library.Input(batch_shape=(2, 6, 3))
    outputs = library.layers.Dense(2)(library.layers.GRU(3, stateful=True, name="memory")(inputs))
    model = library.Model(inputs, outputs)
    for use in (to_float_tflite, lambda given: dgh_tf.generate_images(given, num_images=2)):
        with pytest.raises(ValueError, match="'memory'.*stateful=True") as told:
            use(model)
        assert "\n" not in str(told.value)


def across(x, n):
    """Attention over the images of a batch."""
    x = keras.layers.Flatten()(x)
    return keras.ops.softmax(x @ keras.ops.transpose(x)) @ x


def over_batch(x, n):
    return keras.ops.softmax(keras.layers.Flatten()(x), axis=0)


@pytest.mark.parametrize("middle", [mixed, across, over_batch])
@pytest.mark.parametrize("given", [True, False])
def test_a_file_of_one_image_is_not_made_of_a_model_that_mixes_images(middle, given):
    """The fault: exit code 0, and a constant for every image."""
    images = tiny_models.images(4, shape=SHAPE) if given else None
    with pytest.raises(ValueError, match="'output' of model 'fixed' mixes the images"):
        to_float_tflite(network(middle, batch=None), images=images)


def test_a_shape_that_names_a_batch_the_input_leaves_open_is_told_in_one_line():
    model = network(lambda x, n: keras.ops.reshape(x, (8, 100)), batch=None)
    uses = (to_float_tflite, lambda given: dgh_tf.generate_images(given, num_images=2))
    for use, told in zip(uses, ("cannot take one image", "3 images at once"), strict=True):
        with pytest.raises(ValueError, match=f"'fixed'.*{told}.*-1 wherever") as error:
            use(model)
        assert "\n" not in str(error.value) and "\x1b" not in str(error.value)
