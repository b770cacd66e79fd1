"""Few real images: files to model units by hand, and what is refused before anything runs."""

import dataclasses

import numpy as np
import pytest
import tiny_models
from PIL import Image

from dgh_tf import GenerationConfig
from dgh_tf.generation.generator import Generator
from dgh_tf.generation.real_images import load_hint, real_images
from dgh_tf.input_range.conventions import InputRange
from dgh_tf.models.network import Network

SHAPE = (4, 6, 3)


def pictures(folder, *, count, size=(6, 4), value=51):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", size, (value, 0, 255)).save(folder / f"{i}.png")
    return folder


def test_pixels_become_model_units(tmp_path):
    images = load_hint(
        pictures(tmp_path / "p", count=3), shape=SHAPE, low=[-1, -1, 0], high=[1, 1, 10]
    )
    assert images.shape == (3, *SHAPE) and images.dtype == np.float32
    np.testing.assert_allclose(images[0, 0, 0], [-1 + 2 * 51 / 255, -1, 10], atol=1e-6)  # by hand


def test_pictures_of_another_size_are_cropped_in_the_middle(tmp_path):
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 6:18] = 200  # twice the input's size in the middle, black beside it
    Image.fromarray(image).save(tmp_path / "a.png")
    assert (load_hint(tmp_path, shape=SHAPE, low=0, high=255)[0, :, 1:-1] == 200).all()


def test_uint8_arrays_are_pixels_and_others_model_units(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), dtype=np.uint8)
    np.save(tmp_path / "u.npy", x)
    np.savez(tmp_path / "f.npz", x=x / 127.5 - 1)
    pixels, units = (
        load_hint(tmp_path / name, shape=SHAPE, low=-1, high=1) for name in ("u.npy", "f.npz")
    )
    np.testing.assert_allclose(pixels, units, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((2, 5, 5, 3), np.float32), "shape"),
        (np.full((1, *SHAPE), 200.0), "uint8 pixels"),
        (np.full((1, *SHAPE), np.nan), "outside"),
        (np.zeros((33, *SHAPE), np.float32), "1 to 32"),
        (np.zeros((0, *SHAPE), np.float32), "1 to 32"),
        (np.array(["a"]), "numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, array, told):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=told):
        load_hint(tmp_path / "x.npy", shape=SHAPE, low=-1, high=1)


def test_absent_empty_large_and_broken_sources_are_refused(tmp_path):
    options = {"shape": SHAPE, "low": 0, "high": 1}
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_hint(tmp_path / "none", **options)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="0 images"):
        load_hint(tmp_path / "empty", **options)
    with pytest.raises(ValueError, match="33 images"):
        load_hint(pictures(tmp_path / "many", count=33), **options)
    (tmp_path / "empty" / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="bad.png cannot be read"):
        load_hint(tmp_path / "empty", **options)
    (tmp_path / "bad.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match="cannot be read"):
        load_hint(tmp_path / "bad.npy", **options)
    with pytest.raises(ValueError, match="npy"):
        load_hint(pictures(tmp_path / "spectra", count=1), shape=(49, 10), low=0, high=1)


def test_real_images_count_in_the_pooled_statistics_and_end_the_set():
    """Pooled moments of all images against float64 numpy on what Keras gives the first BN layer."""
    import keras

    model, real = tiny_models.softmax_head(), tiny_models.images(5)
    generator = Generator(
        model,
        GenerationConfig(num_images=6, batch_size=3, steps=2, input_range="-1,1"),
        real_hint=real,
    )
    generator.start()
    generator.run()
    images = generator.all_images()[0]
    assert len(images) == 11 and np.array_equal(images[6:], real)
    first = generator.network.layers[0]
    x = keras.Model(model.input, first.layer.input).predict(images, verbose=0).astype(np.float64)
    std = np.sqrt(x.var((0, 1, 2)) + first.epsilon)
    wanted = np.sqrt(np.float64(first.variance) + first.epsilon)
    gap = np.mean(((x.mean((0, 1, 2)) - first.mean) / wanted) ** 2 + (std / wanted - 1) ** 2)
    assert generator.layer_gaps()[first.name] == pytest.approx(gap, rel=1e-3)


def test_models_with_several_inputs_take_no_hint():
    with pytest.raises(ValueError, match="one input"):
        Generator(
            tiny_models.two_inputs(),
            GenerationConfig(num_images=2, steps=1, input_range="-1,1"),
            real_hint=tiny_models.images(2),
        )


def fitted_model():
    """Spectrogram-shaped inputs of mean -50 and deviation 20 by the first BN layer's running
    statistics.
    """
    import keras

    inputs = keras.Input((49, 10, 1))
    first = keras.layers.BatchNormalization(name="first")
    x = keras.layers.Conv2D(4, 3)(first(inputs))
    model = keras.Model(
        inputs, keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.BatchNormalization()(x)))
    )
    first.moving_mean.assign([-50.0])
    first.moving_variance.assign([400.0])
    return model


def test_real_images_widen_a_range_that_no_convention_stands_behind():
    """The widened ends are the images' own, the start's deviation in model units is kept, and a
    convention's range still refuses.
    """
    network = Network(fitted_model())
    images = np.random.default_rng(0).normal(-50, 20, (4, 49, 10, 1)).astype(np.float32)
    fitted = InputRange((-70.0,), (-20.0,), "fit", prior_std=0.4, fitted=True)
    real, (valid,) = real_images(images, network=network, ranges=[fitted])
    assert np.array_equal(real, images) and (valid.low, valid.high) == (
        (images.min(),),
        (images.max(),),
    )
    assert (
        valid.prior_std * (valid.high[0] - valid.low[0]) == pytest.approx(0.4 * 50)
        and "widened" in valid.source
    )
    wide = dataclasses.replace(fitted, low=(-200.0,), high=(100.0,))
    assert real_images(images, network=network, ranges=[wide])[1] == [wide]
    with pytest.raises(ValueError, match="do not know such values"):
        real_images(images / 100, network=network, ranges=[fitted])
    with pytest.raises(ValueError, match="outside the model's valid range"):
        real_images(images, network=network, ranges=[dataclasses.replace(fitted, fitted=False)])
