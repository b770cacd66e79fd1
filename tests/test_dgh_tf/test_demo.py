"""The shipped demo models are small, load safely, and do on held-out images what their training
scripts promise.
"""

import pathlib

import numpy as np
import pytest

from benchmarks.measure.detection import decode, mean_average_precision
from dgh_tf.demo import data, detector_data, signal_data

DEMO = pathlib.Path(data.__file__).parent
MIB = 2**20


@pytest.fixture(scope="module")
def demo():
    import keras

    return keras.models.load_model(DEMO / "demo.keras", compile=False, safe_mode=True)


@pytest.fixture(scope="module")
def detector():
    import keras
    import keras_cv  # noqa: F401 - registers the detector's class

    return keras.models.load_model(DEMO / "demo_detector.keras", compile=False, safe_mode=True)


@pytest.mark.parametrize(
    ("name", "limit"),
    [("demo.keras", MIB // 4), ("demo_detector.keras", MIB), ("demo_signal.keras", MIB // 8)],
)
def test_shipped_file_is_small(name, limit):
    assert (DEMO / name).stat().st_size < limit


def test_images_repeat_exactly_and_fill_the_stated_range():
    for source in (data.real, data.evaluation):
        (first, labels), (second, again) = source(), source()
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(labels, again)
        assert first.dtype == np.float32 and first.shape == (len(labels), data.SIZE, data.SIZE, 3)
        assert -1.0 <= first.min() < -0.9 and 0.9 < first.max() <= 1.0


def test_no_scan_is_on_both_sides_of_the_split():
    sides = [
        {scan.tobytes() for scan in data.digits(held_out=held_out)[0]} for held_out in (False, True)
    ]
    assert not sides[0] & sides[1]
    assert [len(side) for side in sides] == [1200, 597]  # scikit-learn's 1797 scans, all different


def test_upsampling_is_linear_interpolation():
    places = np.clip((np.arange(10) + 0.5) * 4 / 10 - 0.5, 0, 3)
    samples = np.array([3.0, -1.0, 4.0, 1.5])
    np.testing.assert_allclose(
        data.upsampling(10, 4) @ samples, np.interp(places, np.arange(4), samples), atol=1e-6
    )


def test_demo_reads_held_out_digits(demo):
    images, labels = data.evaluation()
    assert np.mean(demo.predict(images, verbose=0).argmax(axis=1) == labels) > 0.97


def test_scene_boxes_hold_their_digits():
    """A black texture leaves only ink, so every box must touch ink on its four sides and no ink may
    lie outside.
    """
    ink, labels = data.digits(held_out=True)
    mask, boxes, classes = detector_data._place(ink, labels, rng=np.random.default_rng(5))
    inside = np.zeros(mask.shape, bool)
    for left, top, right, bottom in boxes[classes >= 0].astype(int):
        patch = mask[top:bottom, left:right] > detector_data._INK
        assert all(edge.any() for edge in (patch[0], patch[-1], patch[:, 0], patch[:, -1]))
        inside[top:bottom, left:right] = True
    assert (classes >= 0).any() and not (mask[~inside] > detector_data._INK).any()


def test_scenes_repeat_exactly():
    (first, truth), (second, again) = detector_data.real(count=8), detector_data.real(count=8)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(truth["boxes"], again["boxes"])
    assert first.min() >= 0.0 and 200.0 < first.max() <= 255.0


def test_detector_finds_held_out_digits(detector):
    images, truth = detector_data.evaluation(count=100)
    raw = {name: head.numpy() for name, head in detector(images, training=False).items()}
    assert set(raw) == {"boxes", "classes"}
    assert mean_average_precision(detector, raw, images, truth) > 0.5
    blind = raw | {"classes": np.zeros_like(raw["classes"])}
    assert mean_average_precision(detector, blind, images, truth) <= 0.0


def test_a_perfect_box_decodes_to_itself(detector):
    """By hand: a head that puts all weight on bin 2 of the 16 lies 2 strides from its anchor's
    centre on each side.
    """
    raw = {
        "boxes": np.zeros((1, 189, 64), np.float32),
        "classes": np.zeros((1, 189, 10), np.float32),
    }
    raw["boxes"][0, 0].reshape(4, 16)[:, 2] = 100.0
    raw["classes"][0, 0, 7] = 0.9
    found = decode(detector, raw, np.zeros((1, 96, 96, 3), np.float32))
    np.testing.assert_allclose(
        found["boxes"][0, 0], [4 - 16, 4 - 16, 4 + 16, 4 + 16], atol=1e-3
    )  # stride 8, centre 4
    assert found["classes"][0, 0] == 7 and found["confidence"][0, 0] == pytest.approx(0.9)


def test_missing_head_is_named(detector):
    with pytest.raises(ValueError, match="classes"):
        decode(
            detector,
            {"boxes": np.zeros((1, 189, 64), np.float32)},
            np.zeros((1, 96, 96, 3), np.float32),
        )


def test_demo_signal_tells_states_that_it_never_saw():
    import dgh_tf

    model = dgh_tf.load_model("demo_signal")
    x, y = signal_data.evaluation()
    assert x.dtype == np.float32 and x.shape == (len(y), *model.input_shape[1:])
    assert np.mean(model.predict(x, verbose=0).argmax(axis=1) == y) > 0.97
    np.testing.assert_array_equal(x, signal_data.evaluation()[0])
    (found,) = dgh_tf.find_input_range(model)
    inside = (x >= found.low[0]) & (x <= found.high[0])
    assert found.fitted and inside.mean() > 0.9995 and found.high[0] < 2 * x.max()
