"""The valid input range: from the user, from layers, from statistics, or a clear error."""

import keras
import numpy as np
import pytest
import tiny_models as tiny

from dgh_tf.common.range_text import CONVENTIONS
from dgh_tf.input_range import from_statistics
from dgh_tf.input_range.conventions import alike, parse_input_range
from dgh_tf.input_range.find import network_ranges
from dgh_tf.models.loading import load_model
from dgh_tf.models.network import Network


@pytest.fixture(scope="module")
def demo():
    return load_model("demo")


def fed_in(model, scale, offset):
    """The same network behind x * scale + offset: a model whose convention is known because we made
    it.
    """
    inputs = keras.Input(model.input_shape[1:])
    return keras.Model(inputs, model(inputs * np.float32(scale) + np.float32(offset)))


@pytest.mark.parametrize(
    ("name", "scale", "offset"),
    [
        ("symmetric", 1.0, 0.0),
        ("unit", 2.0, -1.0),
        ("byte", 1 / 127.5, -1.0),
        pytest.param("half", 2.0, 0.0, marks=pytest.mark.slow),
        pytest.param("signed", 1 / 127.5, 1 / 255, marks=pytest.mark.slow),
    ],
)
def test_statistics_tell_the_convention_a_model_was_trained_in(demo, name, scale, offset):
    found = network_ranges(Network(fed_in(demo, scale, offset)))[0]
    chosen = [
        other for other in CONVENTIONS if f": {other}," in found.source
    ]  # caffe does for signed: they hardly differ
    assert len(chosen) == 1 and alike(chosen[0], name)
    np.testing.assert_allclose(
        (found.low, found.high), [np.atleast_1d(bound) for bound in CONVENTIONS[chosen[0]]]
    )


@pytest.mark.parametrize(
    ("file", "low", "high"),
    [
        ("resnet8_cifar10.keras", 0.0, 255.0),
        pytest.param("mobilenet_v1_025_224.keras", -1.0, 1.0, marks=pytest.mark.slow),
    ],
)
def test_real_models_get_the_range_their_authors_used(shared_data, file, low, high):
    found = network_ranges(Network(load_model(str(shared_data / file))))[0]
    assert (found.low, found.high) == ((low,), (high,))


def test_spectrograms_get_a_range_that_holds_most_of_the_real_values(shared_data):
    found = network_ranges(Network(load_model(str(shared_data / "kws_dscnn.keras"))))[0]
    real = np.load(shared_data / "kws_real.npz")["x"]
    inside = ((real >= found.low[0]) & (real <= found.high[0])).mean()
    assert (
        inside > 0.98
    )  # a few first coefficients reach -123; the statistics cannot tell such tails
    assert found.high[0] - found.low[0] < 400  # and the range is not bought by being endless


def test_a_convention_that_fits_in_itself_needs_no_free_fit(demo, monkeypatch):
    expected = network_ranges(Network(demo))[0]
    monkeypatch.setattr(from_statistics, "free_fit", None)  # a call would fail
    assert network_ranges(Network(demo))[0] == expected


def test_a_rescaling_layer_says_the_range(demo):
    inputs = keras.Input(demo.input_shape[1:])
    model = keras.Model(inputs, demo(keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)))
    found = network_ranges(Network(model))[0]
    assert (found.low, found.high) == ((0.0,), (255.0,)) and "Rescaling" in found.source


def behind(layer, *, shape=(16, 16, 3)):
    """conv_bn_relu's kind of network behind one more layer."""
    inputs = keras.Input(shape)
    x = keras.layers.ReLU()(
        keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(layer(inputs)))
    )
    model = tiny.settle(
        keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))
    )
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()  # settle has overwritten what an adapted layer holds
    return model


@pytest.mark.parametrize(
    ("scale", "offset", "low", "high"),
    [
        (1 / 255, 0.0, 0, 255),
        (1 / 127.5, -1.0, 0, 255),
        (1 / 58.4, -2.1, 0, 255),
        (2.0, -1.0, 0, 1),
        (255.0, 0.0, 0, 1),
        (1 / 65535, 0.0, 0, 65535),
        (1 / 128, 0.0, -128, 127),
        (1 / 32768, 0.0, -32768, 32767),
        (1e-4, 0.0, 0, 10000),
    ],
)
def test_a_rescaling_layer_tells_stored_values_of_any_width(scale, offset, low, high):
    found = network_ranges(Network(behind(keras.layers.Rescaling(scale, offset))))[0]
    assert (found.low, found.high) == ((low,), (high,))


@pytest.mark.parametrize(
    ("mean", "std", "shape", "low", "high"),
    [
        ([124, 116, 104], [58, 57, 57], (16, 16, 3), [0], [255]),
        ([0.48, 0.46, 0.41], [0.23, 0.22, 0.22], (16, 16, 3), [0], [1]),
        # by hand: mean +- 3 std of each channel
        ([-40, 3], [10, 1], (16, 16, 2), [-70, 0], [-10, 6]),
        ([-40], [10], (16, 16, 1), [-70], [-10]),
    ],
)
def test_a_normalization_layer_tells_bytes_floats_or_three_deviations(mean, std, shape, low, high):
    layer = keras.layers.Normalization(mean=mean, variance=np.square(std))
    found = network_ranges(Network(behind(layer, shape=shape)))[0]
    np.testing.assert_allclose((found.low, found.high), (low, high), rtol=1e-5)


def test_a_normalization_of_every_pixel_gives_the_widest_range_of_each_channel():
    means = np.linspace(-9, 9, 16 * 16 * 2).reshape(16, 16, 2)
    layer = keras.layers.Normalization(axis=(1, 2, 3), mean=means, variance=np.ones_like(means))
    found = network_ranges(Network(behind(layer, shape=(16, 16, 2))))[0]
    assert found.low[0] == pytest.approx(-12) and found.high[1] == pytest.approx(
        12
    )  # by hand: -9 - 3 and 9 + 3


def test_ranges_that_hardly_differ_are_not_ambiguous():
    assert alike("signed", "caffe") and alike("standard", "imagenet")
    # by hand: 1 of 2 in common, 1 of 1.5, and 127 of 383
    assert (
        not alike("half", "symmetric") and not alike("half", "unit") and not alike("byte", "signed")
    )


def test_the_flag_goes_before_everything(demo):
    assert network_ranges(Network(demo), text="-3,5")[0].low == (-3.0,)
    # by hand: (0 - 0.485) / 0.229 for red
    assert parse_input_range("imagenet", channels=3).low[0] == pytest.approx(-2.1179, abs=1e-4)


@pytest.mark.parametrize("text", ["1", "a,b", "1,0", "0,nan", "0,inf", "1,1", "0,1,2", "photo"])
def test_nonsense_ranges_are_refused_with_the_two_forms_named(text):
    with pytest.raises(ValueError, match="LOW,HIGH"):
        parse_input_range(text, channels=3)


def test_statistics_that_fit_nothing_ask_for_the_flag(demo):
    broken = keras.models.clone_model(demo)
    broken.set_weights(demo.get_weights())
    generator = np.random.default_rng(0)
    for layer in broken.layers:
        if isinstance(
            layer, keras.layers.BatchNormalization
        ):  # statistics that no input can give: alternating far means
            far = (
                5.0
                * np.sqrt(layer.moving_variance)
                * generator.choice([-1.0, 1.0], layer.moving_mean.shape)
            )
            layer.moving_mean.assign(np.float32(layer.moving_mean) + np.float32(far))
    with pytest.raises(ValueError, match="input_range="):
        network_ranges(Network(broken))


def picture_and_features(*, keras=keras):
    """Inputs 'picture' [16, 16, 3] behind a Rescaling layer and 'features' [4] behind nothing; a
    Rescaling of features far inside.
    """
    picture, features = keras.Input((16, 16, 3), name="picture"), keras.Input((4,), name="features")
    x = keras.layers.Conv2D(6, 3)(keras.layers.Rescaling(1 / 255)(picture))
    x = keras.layers.GlobalAveragePooling2D()(
        keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    )
    inner = keras.layers.Rescaling(0.3)(
        keras.layers.Dense(6)(features)
    )  # scales a branch, says nothing of the input
    return tiny.settle(
        keras.Model([picture, features], keras.layers.Dense(2)(keras.layers.Add()([x, inner])))
    )


def test_a_layer_declares_the_range_of_the_input_it_is_fed_from_and_no_other():
    network = Network(picture_and_features())
    with pytest.raises(ValueError, match='tells the range of features.*"features:LOW,HIGH"'):
        network_ranges(network)
    picture, features = network_ranges(network, text="features:-2,3")
    assert (picture.low, picture.high, features.low, features.high) == (
        (0.0,),
        (255.0,),
        (-2.0,),
        (3.0,),
    )
    assert "Rescaling" in picture.source and "input_range" in features.source


def test_every_input_can_have_a_range_of_its_own():
    network = Network(tiny.two_inputs())
    right, left = network_ranges(network, text="left:byte; right:-1,1")
    assert (left.low, left.high, right.low, right.high) == ((0.0,), (255.0,), (-1.0,), (1.0,))
    assert [r.high for r in network_ranges(network, text="0,7")] == [(7.0,), (7.0,)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("top:0,1", "names top.*right, left"),
        ("left:0,1;left:0,2", "an input twice"),
        ("left:0,1", "range of right"),
        ("left:1,0;right:0,1", "LOW,HIGH"),
    ],
)
def test_ranges_by_name_that_cannot_be_meant_are_refused(text, found):
    with pytest.raises(ValueError, match=found):
        network_ranges(Network(tiny.two_inputs()), text=text)
