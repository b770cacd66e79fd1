"""The networks of sensors, the signals they learn from, and how masks are scored."""

import commands
import numpy as np
import pytest

from benchmarks.measure.scoring import scorer
from benchmarks.zoo import signal_data
from benchmarks.zoo.signal_networks import NETWORKS
from dgh_tf.ops.kinds import kind_of_shape
from tflite_export.quality import masks

SHAPES = {"motion": (64, 6), "speech": (25, 12), "current": (29, 16, 1), "pulse": (256, 1)}
SHAPES |= {
    "peaks": (signal_data.PEAKS, 1),
    "beats": (signal_data.BEAT, 1),
    "rhythm": (signal_data.RHYTHM, 1),
}


def test_recordings_are_read_with_time_first_and_sensors_last(tmp_path):
    path = tmp_path / "set.ts"
    path.write_text("# words\n@problemName set\n@data\n1,2,3:4,5,6:walk\n7,8:9,10:run\n")
    recordings, names = signal_data.read_ts(path)
    np.testing.assert_array_equal(recordings[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(recordings[1], [[7, 9], [8, 10]])
    assert list(names) == ["walk", "run"]


def test_an_absent_package_is_named_with_what_installs_it():
    with pytest.raises(FileNotFoundError, match="pip install --no-deps no_such_package"):
        signal_data.package_file("no_such_package", "a.ts")


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_take_their_signals(network):
    data, build = NETWORKS[network]
    shape = SHAPES[data]
    model = build(shape, 5)
    assert kind_of_shape(shape) == ("spectrogram" if data == "current" else "sequence")
    assert model.count_params() < 40_000
    assert any("moving_variance" in weight.path for weight in model.weights)
    heads = model.output if isinstance(model.output, dict) else {"": model.output}
    assert heads.pop("rate", None) is None or network == "rhythm_heads"
    assert [output.shape[-1] for output in heads.values()] == [5]


def test_a_drawn_rhythm_has_the_beats_that_its_kind_and_rate_say():
    """Waves of one triangle each: intervals between starts, told by the train's own starts and by
    the feet that the values show.
    """
    shapes = [np.concatenate([np.linspace(0, 1, 20), np.linspace(1, 0, 21)[1:]])]
    spreads = []
    for kind in range(3):
        values, starts = signal_data._pulse_train(shapes, kind, np.random.default_rng(3))
        intervals = np.diff(starts)
        assert len(values) >= 2 * signal_data.RHYTHM
        assert np.all(values[starts] == 0) and values.min() >= 0
        spreads.append(intervals.std() / intervals.mean())
    assert spreads[0] < 0.05 < 0.1 < min(spreads[1:])
    parts = signal_data._rhythms(shapes, 6, np.random.default_rng(0))
    assert parts.x.shape == (6, signal_data.RHYTHM, 1)
    assert parts.rate is not None and parts.rate.shape == (6,)
    assert parts.x.min() == 0 and parts.x.max() == 1
    assert np.array_equal(parts.y, [0, 1, 2, 0, 1, 2])
    # a regular rhythm: the strongest wave of the spectrum is the rate
    spectrum = np.abs(np.fft.rfft(parts.x[0, :, 0] - parts.x[0].mean(), 2048))
    strongest = np.fft.rfftfreq(2048, 1 / 32)[spectrum[40:].argmax() + 40]
    assert abs(strongest - parts.rate[0]) < 0.1


def test_several_heads_are_scored_by_the_classes_of_the_least_faithful_one():
    first = np.array([[0.6, 0.4], [0.3, 0.7], [0.8, 0.2], [0.1, 0.9]])
    second = np.array([[0.2, 0.5, 0.3], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.4, 0.35, 0.25]])
    rate = np.array([[1.0], [2.0], [0.5], [1.5]])
    reference = {"kind": first, "rate": rate, "place": second}
    score, how = scorer(None, np.zeros((4, 8, 1)), None, reference=reference)
    turned = second[:, [1, 0, 2]]  # three of four classes differ
    assert score({"kind": first, "rate": 0 * rate, "place": turned}) == {"agreement": 1 / 4}
    assert "kind, place" in how


def test_masks_are_scored_by_both_sides_of_one_half():
    """Worked by hand: 8 places, the float mask marks 3 of them, the integer one 2 of these and 1
    more.
    """
    reference = np.array([0.9, 0.8, 0.6, 0.4, 0.1, 0.2, 0.0, 0.3]).reshape(1, 8, 1)
    outputs = np.array([0.7, 0.6, 0.4, 0.6, 0.0, 0.1, 0.0, 0.2]).reshape(1, 8, 1)
    assert masks.mask_agreement(reference, outputs) == 6 / 8
    assert masks.iou(reference, outputs) == 2 / 4
    assert masks.iou(np.zeros((1, 8, 1)), np.zeros((1, 8, 1))) == 1.0
    score, how = scorer(None, np.zeros((1, 8, 1)), None, reference={"beats": reference})
    assert score({"beats": outputs}) == {"agreement": 6 / 8, "iou": 2 / 4}
    assert "IoU" in how


def test_a_softmax_over_places_is_no_mask():
    scores = np.full((2, 4, 3), 1 / 3)
    assert not masks.is_mask(scores)
    assert not masks.is_mask(np.full((2, 3), 0.2))
    assert masks.is_mask(np.full((2, 4, 3), 0.2))


@pytest.mark.slow
def test_the_command_leaves_what_the_benchmarks_read(tmp_path, monkeypatch):
    import keras

    from benchmarks.data.datasets import load

    rng = np.random.default_rng(0)

    def half():
        x, y = rng.uniform(0, 1, (40, 64, 1)), rng.integers(0, 2, (40, 64, 1))
        return signal_data.Parts(x.astype(np.float32), y)

    halves = half(), half()
    monkeypatch.setitem(signal_data.SETS, "pulse", lambda: halves)
    code, out, _ = commands.call(
        "benchmarks.zoo.signals",
        "--network=pulse_unet",
        "--epochs=1",
        f"--output_dir={tmp_path / 'zoo'}",
    )
    assert code == 0 and "IoU" in out
    model = keras.models.load_model(tmp_path / "zoo" / "pulse_unet.keras", compile=False)
    x, y = load(str(tmp_path / "zoo" / "real.npz"), role="real", input_shape=(64, 1))
    assert y is None and np.array_equal(x, halves[0].x)
    assert model(x).shape == (40, 64, 1)
