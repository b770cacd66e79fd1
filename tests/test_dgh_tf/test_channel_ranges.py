"""A range for every channel: an accelerometer beside a gyroscope."""

import json

import keras
import numpy as np
import pytest
import tiny_models as tiny

import dgh_tf
from dgh_tf.common.value_range import parse_pairs, place
from dgh_tf.config import range_text
from dgh_tf.input_range.find import network_ranges
from dgh_tf.models.network import Network
from tflite_export.calibration.check import UnitsError, check_calibration
from tflite_export.calibration.load import load_calibration
from tflite_export.calibration.units import checked_images

PAIRS = [(-16.0, 16.0), (-2000.0, 2000.0)]
TEXT = "-16,16;-2000,2000"


@pytest.fixture(scope="module")
def motion():
    """A sequence network whose statistics come from an accelerometer of deviation 5 beside a
    gyroscope of deviation 600, white in time; its filters hardly see the first.
    """
    keras.utils.set_random_seed(0)
    x = keras.Input((32, 2))
    norm = keras.layers.BatchNormalization()
    y = norm(keras.layers.Conv1D(8, 5, padding="same", use_bias=False, name="first")(x))
    y = keras.layers.GlobalAveragePooling1D()(keras.layers.ReLU()(y))
    model = keras.Model(x, keras.layers.Dense(3)(y))
    kernel = model.get_layer("first").get_weights()[0]
    variance = ((kernel * np.array([5.0, 600.0])[None, :, None]) ** 2).sum((0, 1))
    norm.set_weights([np.ones(8), np.zeros(8), np.zeros(8), variance])
    return model


def test_pairs_are_read_as_text_lists_and_arrays():
    assert parse_pairs(TEXT) == PAIRS and parse_pairs("0,1") == [(0.0, 1.0)]
    wrong = ["-16,16;", "1,0;0,1", "0,1;0,nan", "0;1", "unit;0,1", ""]
    assert [text for text in wrong if parse_pairs(text) is not None] == []
    assert range_text(PAIRS) == range_text(np.array(PAIRS)) == TEXT
    assert range_text({"left": PAIRS, "right": "unit"}) == f"left:{TEXT};right:unit"
    with pytest.raises(TypeError, match="^input_range="):
        range_text([(0, 1), 2])
    for text in ("simmetric", "0,1;unit", "left:unit;right:1,0", "left:0,1;2", "unit;0,1"):
        with pytest.raises(ValueError, match="^input_range=.*expected LOW,HIGH .* or one of byte"):
            range_text(text)
    for text in ("", "unit", "int16", "0,1", TEXT, f"left:{TEXT};right:unit", "a:b:byte; c:-1,1;"):
        assert range_text(text) == text


def test_each_input_takes_pairs_of_its_own(motion):
    (found,) = network_ranges(Network(motion), text=TEXT)
    assert list(zip(found.low, found.high, strict=True)) == PAIRS and found.firm
    pairs = "0,1;0,2;0,3"
    right, left = network_ranges(Network(tiny.two_inputs()), text=f"left:{pairs}; right:-1,1")
    assert left.high == (1.0, 2.0, 3.0) and right.high == (1.0,)


@pytest.mark.parametrize("text", [f"{TEXT};0,1", "-16,16;2000,-2000", "-16,16;", "unit;symmetric"])
def test_another_number_of_pairs_or_a_wrong_one_is_refused_in_one_line(motion, text):
    with pytest.raises(ValueError, match="^input_range=.*LOW,HIGH") as caught:
        network_ranges(Network(motion), text=text)
    assert "\n" not in str(caught.value)


def test_bands_of_a_reshaped_spectrogram_take_one_pair():
    layers = [keras.Input((48,)), keras.layers.Reshape((12, 4, 1)), keras.layers.Conv2D(4, 3)]
    model = keras.Sequential([*layers, keras.layers.BatchNormalization()])
    with pytest.raises(ValueError, match="takes one LOW,HIGH. "):
        network_ranges(Network(model), text=TEXT)


def test_every_channel_of_the_images_fills_its_own_range_and_none_leaves_it(motion, tmp_path):
    motion.save(tmp_path / "motion.keras")
    config = dgh_tf.GenerationConfig(num_images=16, steps=2, input_range=PAIRS)
    dgh_tf.generate_to(tmp_path / "set", model=tmp_path / "motion.keras", config=config)
    images = np.load(tmp_path / "set" / "images.npy")
    for channel, (low, high) in enumerate(PAIRS):
        values = images[..., channel]
        assert low <= values.min() and values.max() <= high
        assert 0.1 * high < values.std() < 0.6 * high
        assert np.mean(np.abs(values) > 0.999 * high) < 0.1, "most values lie at the ends"
    (entry,) = json.loads((tmp_path / "set" / "manifest.json").read_text())["input_range"]
    assert entry["low"] == [-16.0, -2000.0] and entry["high"] == [16.0, 2000.0]
    stored = load_calibration(tmp_path / "set")
    _, warnings = checked_images(
        motion,
        stored.images,
        value_range=stored.value_range,
        what="set",
        preprocess=None,
        input_range=None,
    )
    # 32 of 4000 over 256 values, by hand: 2.05
    assert len(warnings) == 1 and "channel 0 (-16 .. 16) keeps about 2 of 256 values" in warnings[0]


def test_a_check_names_the_channel_that_leaves_its_range():
    images = np.random.default_rng(0).uniform(-15, 15, (4, 32, 2)).astype(np.float32)
    images[..., 1] *= 100
    limits = tuple(zip(*PAIRS, strict=True))
    check_calibration(images, input_shapes={"x": (32, 2)}, value_range=limits)
    with pytest.raises(UnitsError, match=r"in channel 0; expected values in -16 \.\. 16 there"):
        check_calibration(images * 2, input_shapes={"x": (32, 2)}, value_range=limits)
    with pytest.raises(ValueError, match="3 pairs.*no 3 channels"):
        three = ((0.0,) * 3, (1.0,) * 3)
        check_calibration(images, input_shapes={"x": (32, 2)}, value_range=three)
    # the excess is a share of the channel's own width, by hand: 8 beyond 16 in a width of 32
    found = place(
        np.array([-24.0, 0]), np.array([16.0, 2000]), valid_low=limits[0], valid_high=limits[1]
    )
    assert found.excess == 0.25
