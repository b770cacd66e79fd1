"""Images in the wrong units: what is refused, what is one warning, and that right ones pass."""

import dataclasses

import keras
import numpy as np
import pytest
import tiny_models
from commands import call

from benchmarks.measure.comparison import load_task
from dgh_tf import GenerationConfig
from dgh_tf.common.text import rounded
from dgh_tf.common.value_range import KnownRange, check_units, place, span
from dgh_tf.generation.generator import Generator
from dgh_tf.models.declared_range import declared_ranges
from dgh_tf.models.first_statistics import first_gap
from dgh_tf.models.network import call_model
from tflite_export import check_calibration


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and a set of `models`, the exit code, and what the output or the error holds."""

    model: str
    data: str
    flags: list[str]
    code: int
    said: list[str]


SLOW = pytest.mark.slow
UNIT = tiny_models.images(48, low=0.0, high=1.0)  # 16 x 16 x 3


def trained_on(x, *, first=None):
    """A small classifier whose running statistics are exactly those of x."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(x.shape[1:], name="image")
    y = inputs if first is None else first(inputs)
    for filters in (8, 12):
        y = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(y)
        y = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.0)(y))
    y = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(y))
    model = keras.Model(inputs, y, name="trained")
    for _ in range(2):  # the second layer's statistics follow the first's
        model(x, training=True)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Paths of models that take 0..1, found from statistics, and 0..255, declared by a layer; and
    sets in several units.
    """
    folder = tmp_path_factory.mktemp("units")
    trained_on(UNIT).save(folder / "unit.keras")
    rescaling = keras.layers.Rescaling(1 / 255)
    trained_on(UNIT * np.float32(255), first=rescaling).save(folder / "bytes.keras")
    np.savez(folder / "unit.npz", x=UNIT, y=np.arange(48) % 5)
    np.savez(folder / "bytes.npz", x=np.uint8(UNIT * 255), y=np.arange(48) % 5)
    np.savez(folder / "double.npz", x=UNIT * np.float32(510), y=np.arange(48) % 5)
    return folder


def test_placement_by_hand():
    wrong = place(np.zeros(3), np.full(3, 255.0), valid_low=(0.0,), valid_high=(1.0,))
    assert wrong.excess == 254 and wrong.mapping == pytest.approx((1 / 255, 0))
    inside = place(np.zeros(1), np.ones(1), valid_low=-1, valid_high=1)
    assert inside.excess == 0 and inside.one_half and inside.mapping == (2, -1)
    narrow = place(np.zeros(1), np.ones(1), valid_low=0, valid_high=255)
    assert "fills 0.0039" in narrow.odd and narrow.mapping == (255, 0)
    right = place(np.zeros(3), np.full(3, 250.0), valid_low=0, valid_high=255)
    assert not right.odd and right.mapping is None
    # each channel against its own: the third leaves 0..4 by a quarter of its width
    by_channel = place(np.zeros(3), np.array([1, 2, 5]), valid_low=[0, 0, 0], valid_high=[1, 2, 4])
    assert by_channel.excess == 0.25 and by_channel.mapping is None


def test_first_gap_is_that_of_numpy_in_float64():
    model = tiny_models.conv_bn_relu()
    x = tiny_models.images(40)
    norms = [y for y in model.layers if isinstance(y, keras.layers.BatchNormalization)][:2]
    gaps = []
    for norm in norms:
        given = keras.Model(model.input, norm.input).predict(x, verbose=0).astype(np.float64)
        scale = np.sqrt(np.float64(norm.moving_variance) + norm.epsilon)
        std = np.sqrt(given.var((0, 1, 2)) + norm.epsilon)
        off = (given.mean((0, 1, 2)) - np.float64(norm.moving_mean)) / scale
        gaps.append(np.mean(off**2 + (std / scale - 1) ** 2))
    assert first_gap(model, [x]) == pytest.approx(np.mean(gaps), rel=1e-4)
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert first_gap(dense, [np.ones((2, 4), np.float32)]) is None


@pytest.mark.parametrize(
    ("first", "low", "high", "firm"),
    [
        (keras.layers.Rescaling(1 / 255), 0, 255, True),
        (keras.layers.Rescaling(1 / 127.5, -1.0), 0, 255, True),
        (keras.layers.Rescaling(0.5, 0.5), 0, 1, False),  # may as well take -1 .. 1
        (keras.layers.Rescaling(1 / 128), -128, 127, False),  # ... or 0 .. 255 as 0 .. 2
    ],
)
def test_layers_declare_firmly_only_what_has_one_meaning(first, low, high, firm):
    model = trained_on(UNIT, first=first)
    (found,) = declared_ranges(
        model, shapes=[(16, 16, 3)], call=lambda inputs: call_model(model, inputs)
    )
    assert (found.low, found.high, found.firm) == ((low,), (high,), firm)


def checked(images, known, gap):
    return check_units(
        images, known, what="x", gap=gap, preprocess="--preprocess", input_range="--input_range"
    )


def test_statistics_that_know_the_values_never_refuse():
    """A range found from statistics may be wrong; values far outside it whose own statistics fit
    are one warning. A guess never refuses, whatever the statistics say.
    """
    found = KnownRange(0.0, 1.0, "statistics", firm=False)
    spectra = np.float32([[[[-123.0], [26.0]]]])
    assert "told from statistics" in checked(spectra, found, lambda x: 0.05)
    with pytest.raises(ValueError, match=r"spans -123 \.\. 26, but the model takes 0 \.\. 1"):
        checked(spectra, found, lambda x: 9.0)
    guess = KnownRange(-41.0, 38.0, "free fit", firm=False, guess=True)
    for gap in (0.05, 9.0):
        text = checked(spectra, guess, lambda x, gap=gap: gap)
        assert "--input_range=-123,26" in text
    dark = np.float32([[[[0.0], [0.1]]]])
    assert checked(dark, found, lambda x: 0.3) is None


@pytest.mark.parametrize(
    "case",
    [
        Case("unit", "bytes", [], 1, ["0 .. 255", "0 .. 1", "--preprocess=0.0039215686,0"]),
        Case("unit", "bytes", ["--preprocess=unit"], 0, []),
        Case("unit", "unit", [], 0, []),
        Case("bytes", "bytes", [], 0, []),
        Case("bytes", "double", [], 1, ["0 .. 510", "0 .. 255", "--input_range"]),
        Case("bytes", "unit", [], 0, ["warning", "0 .. 1", "0 .. 255", "--preprocess=255,0"]),
        Case("bytes", "bytes", ["--preprocess=unit"], 0, ["correct --preprocess=unit"]),
    ],
)
def test_benchmarks_tell_wrong_units(models, tmp_path, case):
    ended, out, err = call(
        "benchmarks.calibration",
        f"--model={models / case.model}.keras",
        f"--real={models / case.data}.npz",
        f"--evaluation={models / case.data}.npz",
        "--sources=noise",
        "--num_images=4",
        "--seeds=1",
        f"--output_dir={tmp_path / 'out'}",
        *case.flags,
    )
    told = err if case.code else out
    assert ended == case.code, err
    assert all(text.lower() in told.lower() for text in case.said)
    assert ("warning" in out) == (not case.code and bool(case.said))
    assert (tmp_path / "out").exists() == (not case.code)


@pytest.mark.parametrize(
    "case",
    [
        Case(
            "unit", "bytes", [], 0, ["warning", "0 .. 255", "--preprocess"]
        ),  # nothing declares 0..1
        Case(
            "unit", "bytes", ["--input_range=0,1"], 1, ["0 .. 255", "0 .. 1", "--preprocess=0.0039"]
        ),
        Case("unit", "bytes", ["--input_range=0,1", "--preprocess=0.0039215686,0"], 0, []),
        Case("unit", "unit", [], 0, []),
        Case("bytes", "bytes", [], 0, []),
        Case("bytes", "double", [], 1, ["0 .. 510", "0 .. 255", "rescaling"]),
        Case("bytes", "unit", [], 0, ["warning", "0 .. 1", "0 .. 255", "--preprocess=255,0"]),
    ],
)
def test_convert_tells_wrong_units(models, tmp_path, case):
    ended, out, err = call(
        "tflite_export.convert",
        f"--model={models / case.model}.keras",
        f"--calibration={models / case.data}.npz",
        f"--output={tmp_path / 'f.tflite'}",
        "--algorithm=minmax",
        "--noverdict",
        *case.flags,
    )
    told = err if case.code else out
    assert ended == case.code, err
    assert all(text in told for text in case.said)
    assert ("warning" in out) == (not case.code and bool(case.said))
    assert (tmp_path / "f.tflite").exists() == (not case.code)


def test_preprocess_maps_arrays_as_it_maps_image_files(models, tmp_path):
    """The scale of the file's input is that of the mapped values: (high - low) / 255 by hand."""
    from tflite_export.tflite.integer_check import graph_io

    path = tmp_path / "f.tflite"
    call(
        "tflite_export.convert",
        f"--model={models / 'unit.keras'}",
        f"--calibration={models / 'bytes.npz'}",
        f"--output={path}",
        "--preprocess=0.0039215686,0",
        "--algorithm=minmax",
        "--noverdict",
    )
    assert graph_io(path.read_bytes())["inputs"][0]["scale"] == pytest.approx(1 / 255, rel=0.02)


def test_layers_refuses_wrong_units(models):
    code, out, err = call(
        "benchmarks.layers",
        f"--model={models / 'bytes.keras'}",
        f"--calibrations={models / 'double.npz'}",
    )
    assert code == 1 and "0 .. 510" in err and "0 .. 255" in err


def test_real_hint_refuses_0_to_1_for_0_to_255_and_takes_dark_pictures():
    model = trained_on(UNIT * np.float32(255), first=keras.layers.Rescaling(1 / 255))
    config = GenerationConfig(num_images=2, steps=1)
    with pytest.raises(ValueError, match=r"spans 0 \.\. 1.*0 \.\. 255"):
        Generator(model, config, real_hint=UNIT[:8])
    Generator(model, config, real_hint=np.uint8(UNIT[:2] * 40))


def test_python_names_no_flags():
    with pytest.raises(ValueError, match=r"spans 0 \.\. 1.*0 \.\. 255") as told:
        check_calibration(UNIT, input_shapes={"x": (16, 16, 3)}, value_range=(0, 255))
    assert "--" not in str(told.value)


@pytest.mark.parametrize(
    ("model", "real", "preprocess"),
    [
        ("resnet8_cifar10.keras", "cifar10_real.npz", "none"),
        pytest.param("mobilenet_v1_025_224.keras", "imagenet_real", "symmetric", marks=SLOW),
        pytest.param(
            "efficientnet_lite0_imagenet.keras",
            "imagenet_real",
            "0.0078125,-0.9921875",
            marks=SLOW,
        ),
        ("kws_dscnn.keras", "kws_real.npz", "none"),
    ],
)
def test_real_models_with_their_own_images_are_not_refused(
    shared_data, capsys, model, real, preprocess
):
    path = str(shared_data / real)
    load_task(
        str(shared_data / model),
        real=path,
        evaluation=path,
        preprocess=preprocess,
        real_limit=16,
        evaluation_limit=16,
    )
    # DS-CNN's range is a guess, and wide enough to be no reason for a warning
    assert "warning" not in capsys.readouterr().out


def test_span_is_per_channel():
    low, high = span(np.float32([[[1, 2], [3, 8]], [[0, 4], [2, 9]]]))
    np.testing.assert_array_equal([low, high], [[0, 2], [3, 9]])


@pytest.mark.parametrize(
    ("value", "digits", "wanted"),
    [
        (4561.3, 3, "4560"),
        (-32768.0, 4, "-32768"),  # of 16-bit audio: whole numbers stay whole
        (0.012345, 3, "0.0123"),
        (np.float32(254.99), 3, "255"),
        (2.357e-8, 3, "2.36e-8"),
        (1.5e12, 3, "1.5e12"),
        (float("nan"), 3, "nan"),
    ],
)
def test_numbers_in_lines_have_no_exponent_where_none_is_needed(value, digits, wanted):
    assert rounded(value, digits=digits) == wanted
