"""The default algorithm is never worse than the plain converter, and says what it compared."""

import re

import keras
import kinds
import numpy as np
import pytest
import tiny_models

from tflite_export import Runner, to_float_tflite, to_tflite
from tflite_export.calibration.hold_out import hold_back
from tflite_export.quality.candidates import Figures, compare
from tflite_export.quantization import quantize
from tflite_export.tflite.edit import without_softmax

MARGIN_DB = 0.3


def noise_ratio(want, got):
    """SQNR in dB around the mean output, in float64."""
    want, got = np.float64(want), np.float64(got)
    return 10 * np.log10(np.var(want - want.mean(0)) / np.mean((want - got) ** 2))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_best_is_never_worse_than_minmax(kind, seed):
    """On real images of the model's own task that neither file has seen, against Keras."""
    model, source = kinds.trained(kind, seed=seed)
    calibration, unseen = (source(n, seed=s)[0] for n, s in ((64, 1 + seed), (192, 50 + seed)))
    want = np.asarray(model(unseen, training=False))
    found = {}
    for name in ("minmax", "best"):
        made = quantize(model, calibration, algorithm=name)
        found[name] = noise_ratio(want, Runner(made.tflite).predict(unseen))
    print(kind, seed, found, made.notes["algorithm"], made.notes.get("candidates"))
    assert found["best"] >= found["minmax"] - MARGIN_DB


def test_the_choice_is_told_with_both_figures():
    model, said = tiny_models.conv_bn_relu(), []
    images, unseen = tiny_models.images(32), tiny_models.images(64, seed=5)
    made = quantize(model, images, say=said.append)
    figures = made.notes["candidates"]
    assert set(figures) == {"minmax", "bias_correction"}
    if made.notes["algorithm"] == "bias_correction":
        assert figures["bias_correction"]["sqnr_db"] > figures["minmax"]["sqnr_db"]
    assert made.notes["held_back"] == 8 and made.notes["images"] == 32
    (line,) = said
    for name, figure in figures.items():
        (told,) = re.findall(rf"{name} ([\d.]+) dB", line)
        assert float(told) == pytest.approx(figure["sqnr_db"], abs=0.06)  # both were rounded
    # the file that is given is that algorithm's own, of all images
    alone = quantize(model, images, algorithm=made.notes["algorithm"])
    assert alone.tflite == made.tflite
    want = np.asarray(model(unseen, training=False))
    assert noise_ratio(want, Runner(made.tflite).predict(unseen)) > 15


def test_images_held_back_calibrate_nothing():
    numbers = np.arange(64, dtype=np.float32)[:, None]
    rest, held = (part["x"][:, 0] for part in hold_back({"x": numbers}, smallest=16))
    assert len(held) == 16 and sorted([*rest, *held]) == list(range(64))
    few = hold_back({"x": numbers[:8]}, smallest=16)
    assert all(len(part["x"]) == 8 for part in few)


def test_logits_of_an_integer_file_are_told_in_their_own_scale():
    """Also behind a reshape, as ImageNet's MobileNet ends. The fault: softmax's scale stayed."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = keras.layers.Conv2D(6, 5, 4, activation="relu")(inputs)
    x = keras.layers.Conv2D(5, 3)(x)
    logits = tiny_models.settle(keras.Model(inputs, x))
    outputs = keras.layers.Reshape((5,))(keras.layers.Softmax()(logits(inputs)))
    model, images = keras.Model(inputs, outputs), tiny_models.images(24)
    tflite = quantize(model, images, algorithm="minmax").tflite
    want = np.asarray(logits(images)).reshape(24, 5)
    got = Runner(without_softmax(tflite).data).predict(images)
    assert noise_ratio(want, got) > 25
    found = compare(to_float_tflite(model), {"minmax": tflite}, {"image": images})["minmax"]
    assert found.given_db == pytest.approx(noise_ratio(want, got), abs=0.05)


def test_a_difference_that_few_images_show_by_chance_decides_nothing():
    """By hand: the same mean advantage of 1, steady in one case, one image's alone in the other."""
    plain = Figures(20.0, 20.0, np.full(8, 3.0))
    steady, lucky = np.full(8, 2.0), np.array([-5.0, *[3.0] * 7])
    assert Figures(21.0, 21.0, steady).surely_better_than(plain, by=0.05)
    assert not Figures(21.0, 21.0, lucky).surely_better_than(plain, by=0.05)
    assert not plain.surely_better_than(plain, by=0.05)
    # 3 % less noise is sure here, but too little to hold on other images; 7 % is enough
    assert not Figures(20.2, 20.2, np.full(8, 2.91)).surely_better_than(plain, by=0.05)
    assert Figures(20.4, 20.4, np.full(8, 2.79)).surely_better_than(plain, by=0.05)
    assert not Figures(20.4, 20.4, np.full(8, 2.79)).surely_better_than(plain, by=0.5)
    assert Figures(23.2, 23.2, np.full(8, 1.4)).surely_better_than(plain, by=0.5)


@pytest.fixture
def only_the_converter_runs_it(monkeypatch):
    """Stands for any error of TensorFlow in a graph that only the converter runs. Gives the rules
    of the ranges that were tried.
    """
    from tflite_export.algorithms import bit_simulation, block_reconstruction
    from tflite_export.simulation import ranges

    tried = []

    def broken(*given, rule, **options):
        import tensorflow as tf

        tried.append(rule)
        return tf.reshape(tf.zeros(3), (2,))

    for module in (ranges, bit_simulation, block_reconstruction):
        monkeypatch.setattr(module, "collect_ranges", broken)
    return tried


@pytest.mark.parametrize(("scheme", "rule"), [("int8", "minmax"), ("w4a8", "mse")])
def test_python_falls_back_to_minmax_as_the_command_does(only_the_converter_runs_it, scheme, rule):
    """Whatever TensorFlow says of a graph run outside the converter stays out of the reason. What
    does not run is tried once: minmax takes the converter's ranges at once.
    """
    model, images = tiny_models.conv_bn_relu(), tiny_models.images(16)
    made = quantize(model, images, scheme=scheme)
    assert only_the_converter_runs_it == [rule]
    assert made.notes["algorithm"] == "minmax"
    assert made.tflite == to_tflite(model, images, scheme=scheme)
    assert "minmax was used, with the converter's own ranges" in made.notes["fallback"]
    assert "reshape" not in made.notes["fallback"].lower()


def test_a_float_file_that_does_not_run_is_tried_once(only_the_converter_runs_it):
    """The converter starts from Keras models alone, so no other way is left."""
    float_tflite = to_float_tflite(tiny_models.conv_bn_relu())
    with pytest.raises(ValueError, match="TensorFlow cannot run a part of it"):
        quantize(float_tflite, tiny_models.images(16))
    assert only_the_converter_runs_it == ["minmax"]


def test_a_choice_of_bits_that_cannot_be_simulated_is_refused_in_words(only_the_converter_runs_it):
    with pytest.raises(ValueError, match="TensorFlow cannot run a part of it"):
        quantize(
            tiny_models.conv_bn_relu(), tiny_models.images(16), scheme="mixed", min_agreement=0.9
        )
    assert only_the_converter_runs_it == ["mse"]


@pytest.mark.parametrize("scheme", ["int8", "w4a8"])
def test_minmax_falls_back_to_the_ranges_of_the_converter(only_the_converter_runs_it, scheme):
    model, images = tiny_models.conv_bn_relu(), tiny_models.images(16)
    made = quantize(model, images, algorithm="minmax", scheme=scheme)
    assert made.tflite == to_tflite(model, images, scheme=scheme)
    assert "the converter's own" in made.notes["fallback"]
    assert "reshape" not in made.notes["fallback"].lower()


def test_options_that_an_algorithm_lacks_are_named_before_work():
    model, images = tiny_models.conv_bn_relu(), tiny_models.images(8)
    with pytest.raises(ValueError, match="bias_correction has no option input_range.*config="):
        quantize(model, images, input_range="unit")
    with pytest.raises(ValueError, match="reconstruction has no option rate; it takes steps"):
        quantize(model, images, scheme="w4a8", rate=0.1)
    made = quantize(model, images, scheme="w4a8", steps=3)  # minmax beside it has no steps
    assert "error" not in made.notes["candidates"]["minmax"]
