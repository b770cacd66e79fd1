"""Inputs that are no pictures: their kind, spectrum, range and start."""

import keras
import numpy as np
import pytest
import scipy.signal

import dgh_tf
from dgh_tf.input_range.find import known_inputs
from dgh_tf.input_range.first_filters import before_relu, estimate_spectrum
from dgh_tf.input_range.kind import input_signals
from dgh_tf.input_range.of_signals import fitting_convention, free_range
from dgh_tf.models.loading import load_model
from dgh_tf.models.network import Network
from dgh_tf.ops.kinds import as_signal, kind_of_shape
from dgh_tf.ops.signals import draw_signal, natural_spectrum


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        ((64, 64, 3), "image"),
        ((96, 96, 1), "image"),
        ((480, 640, 1), "image"),
        ((98, 40, 1), "spectrogram"),
        ((49, 10, 1), "spectrogram"),
        ((96, 64, 1), "spectrogram"),
        ((128, 1, 6), "sequence"),
        ((2048, 1), "sequence"),
        ((30,), "vector"),
    ],
)
def test_shapes_tell_pictures_from_signals(shape, kind):
    assert kind_of_shape(shape) == kind


def after(*, shape, reshape=None, layers, values=None):
    """A network of linear layers, then BN with the statistics that `values` give it (float64, by
    numpy, not by Keras), then a head.
    """
    inputs = keras.Input(shape)
    x = keras.layers.Reshape(reshape)(inputs) if reshape else inputs
    for layer in layers:
        x = layer(x)
    norm = keras.layers.BatchNormalization()
    y = keras.layers.Flatten()(keras.layers.ReLU()(norm(x)))
    model = keras.Model(inputs, keras.layers.Dense(3)(y))
    if values is not None:
        seen = keras.Model(inputs, x).predict(values, verbose=0).astype(np.float64)
        axes = tuple(range(seen.ndim - 1))
        norm.moving_mean.assign(seen.mean(axes))
        norm.moving_variance.assign(seen.var(axes))
    return model


@pytest.mark.parametrize(
    ("shape", "reshape", "layer", "kind"),
    [
        ((68, 21), (68, 21, 1), keras.layers.Conv2D(4, 3), "spectrogram"),
        ((490,), (49, 10, 1), keras.layers.Conv2D(4, 3), "spectrogram"),
        ((256,), (256, 1), keras.layers.Conv1D(4, 3), "sequence"),
        ((64, 6), None, keras.layers.Conv1D(4, 3), "sequence"),
    ],
)
def test_a_reshape_in_front_tells_what_a_flat_input_is(shape, reshape, layer, kind):
    keras.utils.set_random_seed(0)
    values = np.random.default_rng(0).standard_normal((8, *shape)).astype(np.float32)
    network = Network(after(shape=shape, reshape=reshape, layers=[layer], values=values))
    (found,) = input_signals(network)
    assert found.kind == kind and found.shape == shape
    assert found.length * found.columns == np.prod(shape)
    (chosen,) = input_signals(network, kind="vector")
    assert chosen.kind == "vector"


def test_a_declared_byte_range_makes_one_channel_a_picture():
    keras.utils.set_random_seed(0)
    values = np.random.default_rng(0).uniform(0, 255, (8, 48, 128, 1)).astype(np.float32)
    scaled, conv = keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3)
    network = Network(after(shape=(48, 128, 1), layers=[scaled, conv], values=values))
    assert known_inputs(network)[0].kind == "image"
    assert known_inputs(network, kind="spectrogram")[0].kind == "spectrogram"


def sensors(count=64, length=128):
    """Coloured noise of known strength: an accelerometer (std 2 about 9.8) and a gyroscope
    (std 0.1), as scipy filters white noise.
    """
    white = np.random.default_rng(1).standard_normal((count, 4 * length, 2))
    slow = scipy.signal.lfilter([1.0], [1.0, -0.8], white, axis=1)[:, -length:]
    return (slow / slow.std((0, 1)) * [2.0, 0.1] + [9.8, 0.0]).astype(np.float32)


def test_the_first_filters_tell_mean_and_deviation_of_every_sensor():
    keras.utils.set_random_seed(0)
    values = sensors()
    conv = keras.layers.Conv1D(32, 9, padding="same")
    network = Network(after(shape=(128, 2), layers=[conv], values=values))
    (signal,) = input_signals(network)
    found = estimate_spectrum(network, signal)
    np.testing.assert_allclose(found.std[0], values[..., 0].std(), rtol=0.3)
    np.testing.assert_allclose(found.mean[0], 9.8, rtol=0.1)
    valid = known_inputs(network)[0].valid
    assert valid.fitted and "guessed" in valid.guess and valid.as_dict()["guessed"]
    assert valid.low[0] <= values.min() and valid.high[0] >= values.max()


def test_a_layer_behind_an_activation_is_no_filter():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv1D(8, 5, activation="relu"), keras.layers.Conv1D(8, 5)]
    network = Network(after(shape=(128, 2), layers=layers, values=sensors()))
    assert estimate_spectrum(network, input_signals(network)[0]) is None


@pytest.mark.parametrize("shape", [(256, 3), (49, 10, 1), (40, 98, 1)])
def test_drawn_signals_have_the_power_and_the_mean_that_they_are_asked_for(shape):
    signal = as_signal(shape, kind_of_shape(shape))
    spectrum = natural_spectrum(signal, mean=2.0, std=3.0)
    drawn = np.stack(
        [draw_signal(signal, spectrum, generator=np.random.default_rng([3, i])) for i in range(300)]
    )
    np.testing.assert_allclose(drawn.mean(), 2.0, atol=0.5)
    np.testing.assert_allclose(drawn.std(), 3.0, rtol=0.15)
    assert signal.to_input(drawn).shape == (300, *shape)
    if signal.kind == "sequence":  # as 1/f on the logarithmic grid: more power below than above
        frequency, power = scipy.signal.welch(drawn, axis=1, nperseg=128)
        power = power.mean((0, 2))
        assert (
            power[(frequency > 0.01) & (frequency < 0.05)].mean()
            > 5 * power[frequency > 0.2].mean()
        )


@pytest.mark.parametrize(("shape", "spread"), [((256, 3), 0.3), ((49, 10, 1), 0.5)])
def test_signals_differ_in_strength_as_their_kind_does(shape, spread):
    """Powers are given, so that only the strength makes the deviation differ between draws."""
    signal = as_signal(shape, kind_of_shape(shape))
    spectrum = natural_spectrum(signal)
    drawn = [
        draw_signal(signal, spectrum, generator=np.random.default_rng([5, i]), family=False)
        for i in range(400)
    ]
    found = np.log([np.sqrt(x.var(axis=0).mean()) for x in drawn])
    np.testing.assert_allclose(found.std(), spread, rtol=0.15)


def test_bands_of_a_turned_spectrogram_lie_on_the_first_axis():
    signal = as_signal((40, 98, 1), "spectrogram")
    assert (signal.length, signal.columns, signal.turned) == (98, 40, True)
    values = np.arange(98 * 40.0).reshape(1, 98, 40)
    np.testing.assert_array_equal(signal.to_input(values)[0, :, :, 0], values[0].T)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        (np.random.default_rng(0).standard_normal(10**5), "standard"),
        (np.random.default_rng(0).beta(3, 3, 10**5), "unit"),
        (2 * np.random.default_rng(0).beta(3, 3, 10**5) - 1, "symmetric"),
        (0.2 * np.sin(np.arange(10**5)), "symmetric"),
        (4000 * np.random.default_rng(0).standard_normal(10**5), "int16"),
        (np.clip(-35 + 15 * np.random.default_rng(0).standard_normal(10**5), -80, 0), "decibels"),
        (300 + 20 * np.random.default_rng(0).standard_normal(10**5), None),
        (60 * np.random.default_rng(0).standard_normal(10**5), None),
    ],
)
def test_moments_tell_the_convention(values, name):
    assert fitting_convention(values.mean(keepdims=True), values.std(keepdims=True)) == name


def test_a_free_range_is_symmetric_where_values_cross_zero():
    both = free_range(np.array([-1.0, 3.0]), np.array([2.0, 1.0]), source="")
    assert (both.low, both.high) == ((-13.0,), (13.0,))  # by hand: -1 - 6 * 2
    above = free_range(np.array([30.0]), np.array([2.0]), source="")
    assert (above.low, above.high) == ((18.0,), (42.0,))


@pytest.mark.parametrize(
    ("file", "kind", "low", "high"),
    [
        ("kws_dscnn.keras", "kws", -123.4, 26.0),
        ("audio_speech_music_noise_keras2.hdf5", "audio", -8.0, 8.0),
    ],
)
def test_real_networks_of_signals_get_ranges_that_hold_real_data(
    shared_data, file, kind, low, high
):
    network = Network(load_model(str(shared_data / file)))
    (found,) = known_inputs(network)
    real = np.load(shared_data / f"{kind}_real.npz")["x"].astype(np.float64)
    assert found.kind == "spectrogram"
    assert found.valid.low[0] <= min(low, real.min()) and found.valid.high[0] >= max(
        high, real.max()
    )
    columns = real.reshape(-1, found.signal.columns)
    np.testing.assert_allclose(found.spectrum.std.max(), columns.std(0).max(), rtol=0.2)


def test_statistics_that_no_signal_gives_ask_for_the_full_scale():
    keras.utils.set_random_seed(0)
    conv = keras.layers.Conv1D(16, 5)
    model = after(shape=(128, 2), layers=[conv], values=sensors())
    (norm,) = [y for y in model.layers if isinstance(y, keras.layers.BatchNormalization)]
    signs = np.where(np.arange(16) % 2, 5.0, -5.0)
    norm.moving_mean.assign(signs * np.sqrt(norm.moving_variance))
    with pytest.raises(ValueError, match="full scale.*int16.*input_kind"):
        known_inputs(Network(model))


def test_statistics_of_zeros_are_refused():
    keras.utils.set_random_seed(0)
    model = after(shape=(32, 2), layers=[keras.layers.Conv1D(4, 3, use_bias=False)])
    (norm,) = [y for y in model.layers if isinstance(y, keras.layers.BatchNormalization)]
    norm.moving_variance.assign(np.full(4, 0.99**500))
    with pytest.raises(ValueError, match="trained on nothing"):
        Network(model)
    assert not Network(model, use_statistics=False).layers


def test_generated_signals_keep_to_the_range_and_to_every_sensors_own_scale():
    keras.utils.set_random_seed(0)
    values = sensors()
    conv = keras.layers.Conv1D(32, 9, padding="same")
    model = after(shape=(128, 2), layers=[conv], values=values)
    images = dgh_tf.generate_images(model, num_images=16, steps=8, verbose=0)
    again = dgh_tf.generate_images(model, num_images=16, steps=8, verbose=0)
    np.testing.assert_array_equal(images, again)
    assert images.shape == (16, 128, 2)
    spread = images.std((0, 1))
    assert 1.0 < spread[0] < 4.0 and spread[1] < 1.0  # white noise over the range has them equal


def test_normal_values_are_told_from_what_relu_left_of_them():
    """Against samples, which know nothing of the formulas."""
    rng = np.random.default_rng(0)
    mean, std = np.array([2.0, 0.0, -0.3, 5.0, -4.0]), np.array([1.0, 3.0, 0.6, 0.5, 1.0])
    cut = np.maximum(mean + std * rng.standard_normal((400_000, 5)), 0.0)
    found, variance, told = before_relu(cut.mean(0), cut.var(0))
    np.testing.assert_array_equal(told, [True, True, True, True, False])
    np.testing.assert_allclose(found[told], mean[told], atol=0.02)
    np.testing.assert_allclose(np.sqrt(variance[told]), std[told], rtol=0.01)


@pytest.mark.parametrize("inside", [True, False])
def test_the_power_is_told_from_statistics_behind_relu(inside):
    inputs = keras.Input((64, 1))
    x = keras.layers.Conv1D(24, 9, padding="valid", activation="relu" if inside else None)(inputs)
    x = x if inside else keras.layers.ReLU()(x)
    behind = keras.Model(inputs, x)
    signals = 30.0 + 12.0 * np.cumsum(np.random.default_rng(0).standard_normal((400, 64, 1)), 1) / 6
    seen = np.asarray(behind(signals.astype("float32")))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(norm(x))))
    norm.set_weights([*norm.get_weights()[:2], seen.mean((0, 1)), seen.var((0, 1))])
    network = Network(model)
    (signal,) = input_signals(network, kind="auto")
    spectrum = estimate_spectrum(network, signal)
    assert spectrum is not None and spectrum.gap < 0.1
    assert spectrum.mean[0] == pytest.approx(signals.mean(), abs=0.15 * signals.std())
    assert spectrum.std[0] == pytest.approx(signals.std(), rel=0.25)
    again = np.asarray(behind(signals.astype("float32")))  # the activation is put back
    np.testing.assert_array_equal(again, seen)
