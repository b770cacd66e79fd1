"""Models with some or no running statistics: what is matched, what stands in for the rest, and what
the run says of it.
"""

import dataclasses
import json
import math

import commands
import keras
import numpy as np
import pytest
import tflite_sources
import tiny_models as tiny
from loops import make, spread_of, started

from dgh_tf import GenerationConfig, generate_images, load_model
from dgh_tf.generation.inputs import natural_statistics
from dgh_tf.generation.objective import PRIOR_LAYERS, make_targets, pseudo_statistics
from dgh_tf.input_range.conventions import InputRange
from dgh_tf.input_range.find import KnownInput, known_inputs
from dgh_tf.input_range.first_filters import within
from dgh_tf.models.network import Network
from dgh_tf.ops.kinds import as_signal
from dgh_tf.ops.signals import natural_spectrum


def convolutional(*middle, shape=(16, 16, 3)):
    """A classifier of 5 logits with these layers after its first convolution."""
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(8, 3)(inputs)
    for layer in middle:
        x = layer(x)
    x = keras.layers.ReLU()(keras.layers.Conv2D(8, 3)(keras.layers.ReLU()(x)))
    return keras.Model(inputs, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))


def attention():
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Reshape((16, 8))(keras.layers.Conv2D(8, 4, strides=4)(inputs))
    y = keras.layers.LayerNormalization()(x)
    x = keras.layers.Add()([x, keras.layers.MultiHeadAttention(2, 4)(y, y)])
    return keras.Model(inputs, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling1D()(x)))


def settled(model):
    return tiny.settle(model)


def unmoved(model):
    """The model with its last BN layer as layers are made."""
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    norms[-1].set_weights([np.ones(8), np.zeros(8), np.zeros(8), np.ones(8)])
    return model


def never_moved():
    return unmoved(settled(convolutional(keras.layers.BatchNormalization())))


def half_moved():
    norms = [keras.layers.BatchNormalization() for _ in range(2)]
    return unmoved(settled(convolutional(*norms)))


def unused():
    """A BN layer that the model holds and its call leaves out."""

    @keras.saving.register_keras_serializable("without_statistics")
    class Skipping(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.norm = keras.layers.BatchNormalization()

        def build(self, shape):
            self.norm.build(shape)

        def call(self, x):
            return 2.0 * x

    return settled(convolutional(Skipping()))


WITHOUT = {
    "no norm": lambda: settled(convolutional()),
    "GroupNormalization": lambda: settled(convolutional(keras.layers.GroupNormalization(2))),
    "LayerNormalization": lambda: settled(convolutional(keras.layers.LayerNormalization())),
    "RMSNormalization": lambda: settled(convolutional(keras.layers.RMSNormalization())),
    "attention": lambda: settled(attention()),
    "never moved": never_moved,
    "unused": unused,
}


# ---- what the images rest on
# ------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "kind", "matched", "words"),
    [
        (tiny.conv_bn_relu, "all", 4, "running statistics of 4 BatchNorm layers"),
        (half_moved, "some", 1, "1 of 2 BatchNorm layers; without 1 BatchNorm layer with mean 0"),
        (WITHOUT["no norm"], "none", 0, "no statistics in this model (no BatchNorm layer)"),
        (WITHOUT["LayerNormalization"], "none", 0, "natural-image priors and stretched outputs"),
        (never_moved, "none", 0, "as before any training; check that its weights are the trained"),
        (unused, "none", 0, "1 BatchNorm layer that its forward pass does not use"),
    ],
)
def test_evidence_says_what_is_matched_and_why_the_rest_is_not(build, kind, matched, words):
    network = Network(build())
    found = network.evidence.as_dict()
    assert (found["statistics"], found["matched"]) == (kind, matched)
    assert words in found["sentence"] and len(network.layers) == matched


def test_statistics_can_be_left_out_on_purpose():
    network = Network(tiny.conv_bn_relu(), use_statistics=False)
    assert not network.layers and "4 BatchNorm layers left out, as asked" in (
        network.evidence.sentence
    )


# ---- what stands in for statistics
# ------------------------------------------------------------


@pytest.mark.parametrize("name", WITHOUT)
def test_outputs_are_stretched_to_the_limit_of_the_start_images(name):
    """The start images' own spread, by Keras and numpy, times 2.25."""
    model = WITHOUT[name]()
    generator = started(model, num_images=6, steps=40, augment=False)
    wanted = float(np.mean(spread_of(model, generator.all_images()[0][::2])))  # without plain ones
    np.testing.assert_allclose(generator.spreads(), [wanted], rtol=1e-5)
    generator.run()
    images = generator.all_images()[0]
    np.testing.assert_allclose(generator.spreads(), [wanted], rtol=1e-5)  # held still
    assert images.min() >= -1.0 and images.max() <= 1.0
    stretched = spread_of(model, images[::2])
    assert 1.1 * wanted < float(np.mean(stretched)) < 2.7 * wanted


@pytest.mark.parametrize("sizes", [{"num_images": 7, "batch_size": 3}, {"num_images": 5}])
def test_every_other_image_is_plain_and_stays_as_it_starts(sizes):
    """Whatever the batches, not a byte of it moves."""
    generator = started(WITHOUT["LayerNormalization"](), steps=8, **sizes)
    before = generator.all_images()[0]
    generator.run()
    after = generator.all_images()[0]
    moved = [x.tobytes() != y.tobytes() for x, y in zip(before, after, strict=True)]
    assert moved == [number % 2 == 0 for number in range(sizes["num_images"])]


def test_plain_images_have_any_contrast_down_to_nearly_none():
    """A share spread evenly by its logarithm from 0.03 to 1 is 0.28 on average."""
    model = WITHOUT["LayerNormalization"]()
    images = started(model, num_images=64, batch_size=64).all_images()[0]
    contrast = images.std(axis=(1, 2)).mean(axis=-1)
    assert 0.2 < contrast[1::2].mean() / contrast[::2].mean() < 0.36
    assert contrast[1::2].min() < 0.06 * contrast[::2].mean()


def test_a_model_with_statistics_has_no_plain_images():
    generator = started(tiny.conv_bn_relu(), num_images=4, steps=8)
    before = generator.all_images()[0]
    generator.run()
    after = generator.all_images()[0]
    assert all(x.tobytes() != y.tobytes() for x, y in zip(before, after, strict=True))


def test_the_same_settings_give_the_same_bytes():
    config = GenerationConfig(num_images=4, steps=4, input_range="unit")
    made = [generate_images(WITHOUT["attention"](), config) for _ in range(2)]
    assert made[0].tobytes() == made[1].tobytes() and made[0].shape == (4, 16, 16, 3)


def test_what_is_no_image_keeps_its_natural_spread():
    """A vector has no smoothing or crops: without a prior its values would go to the ends."""
    inputs = keras.Input((12,))
    model = settled(keras.Model(inputs, keras.layers.Dense(4)(inputs)))
    generator = started(model, num_images=32, batch_size=32, steps=40, input_range="-2,2")
    assert "input" in generator.layer_gaps()
    generator.run()
    assert 0.5 < generator.all_images()[0].std() / (2.0 * 0.5) < 1.6


# ---- signals: what the weights of the first layer tell
# ------------------------------------------------------------

MEANS, STDS = np.array([-20.0, 6.0, 0.0]), np.array([10.0, 6.0, 3.0])


def normalizing(*, activation):
    """A network of sequences [64, 3] whose first layer brings signals of MEANS and STDS to mean 0
    and variance 1 in each of its filters, as a folded BN layer does; by numpy.
    """
    rng = np.random.default_rng(0)
    signals = MEANS + STDS * rng.standard_normal((256, 64, 3))
    kernel = rng.standard_normal((5, 3, 24)) / STDS[:, None]
    windows = np.lib.stride_tricks.sliding_window_view(signals, 5, axis=1)
    seen = np.einsum("ntck,kcf->ntf", windows, kernel)
    mean, std = seen.mean(axis=(0, 1)), seen.std(axis=(0, 1))
    inputs = keras.Input((64, 3))
    first = keras.layers.Conv1D(24, 5, activation=activation)
    x = first(inputs) if activation else keras.layers.LayerNormalization()(first(inputs))
    x = keras.layers.Conv1D(8, 3, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling1D()(x)))
    first.set_weights([kernel / std, -mean / std])
    return model


@pytest.mark.parametrize("kind", ["relu", None, "file"])
def test_weights_of_the_first_layer_tell_mean_and_deviation_of_every_column(kind, tmp_path):
    model = normalizing(activation=kind and "relu")
    if kind == "file":
        (tmp_path / "m.tflite").write_bytes(tflite_sources.converted(model))
        model = load_model(str(tmp_path / "m.tflite"))
    (known,) = known_inputs(Network(model), text="-120,60")
    assert known.kind == "sequence"
    np.testing.assert_allclose(known.spectrum.std, STDS, rtol=0.25)
    np.testing.assert_allclose(known.spectrum.mean, MEANS, atol=4.0)


def test_a_range_settles_the_scale_of_what_weights_tell():
    signal = as_signal((32, 2), "sequence")
    known = natural_spectrum(signal, mean=0.0, std=1.0)
    kept = within(known, low=-4.0, high=4.0)
    np.testing.assert_allclose(kept.std, known.std)
    wide, narrow = within(known, low=-1e4, high=1e4), within(known, low=50.0, high=50.2)
    np.testing.assert_allclose(wide.std, 0.05 * 1e4)
    np.testing.assert_allclose(wide.mean, 0.0)
    np.testing.assert_allclose(narrow.std, 0.577 * 0.1, rtol=1e-6)
    np.testing.assert_allclose(narrow.mean, 50.1)


def test_the_prior_of_a_signal_is_its_spectrum_column_by_column():
    """Against numpy, in units where the range is -1 to 1."""
    signal = as_signal((49, 10, 1), "spectrogram")
    known = natural_spectrum(signal, mean=-20.0, std=5.0)
    power = known.power * np.where(known.atoms.column == 3, 9.0, 1.0)
    known = dataclasses.replace(known, power=power)
    valid = InputRange((-60.0,), (20.0,), "by hand")
    found = natural_statistics(KnownInput(valid, signal, known), (49, 10, 1))
    assert found.axis == 2  # bands, behind the batch and the time
    np.testing.assert_allclose(found.mean, np.zeros(10), atol=1e-6)
    np.testing.assert_allclose(np.sqrt(found.variance), known.std / 40.0, rtol=1e-5)


def test_weight_of_the_prior_is_that_beside_a_usual_number_of_layers():
    valid = InputRange((-1.0,), (1.0,), "by hand")
    targets = make_targets([pseudo_statistics(valid, (16, 16, 3))], [1.0])
    np.testing.assert_allclose(targets.prior_weight, [1.0 / (PRIOR_LAYERS * 3)] * 3)
    assert not targets.bn_weight.any()


def test_a_mixed_model_matches_what_it_has():
    """Against float64 numpy: the gap of the layer that training moved falls; it is the only one."""
    model = half_moved()
    generator = started(model, num_images=16, batch_size=8, steps=60)
    layer = generator.network.layers[0].layer
    before = keras.Model(model.input, layer.input)

    def gap():
        x = np.float64(before(generator.all_images()[0])).reshape(-1, 8)
        mean, variance = (np.float64(v) for v in (layer.moving_mean, layer.moving_variance))
        scale = np.sqrt(variance + layer.epsilon)
        return np.mean(
            ((x.mean(0) - mean) / scale) ** 2
            + (np.sqrt(x.var(0) + layer.epsilon) / scale - 1.0) ** 2
        )

    first = gap()
    generator.run()
    assert gap() < 0.5 * first
    assert set(generator.layer_gaps()) == {layer.path, "input"}
    np.testing.assert_allclose(generator.layer_gaps()[layer.path], gap(), rtol=1e-3)


# ---- refusals and what a run says
# ------------------------------------------------------------


def test_without_statistics_the_range_must_be_given_or_declared():
    with pytest.raises(ValueError, match="no BatchNorm statistics") as caught:
        make(WITHOUT["no norm"](), input_range="")
    assert "byte (0 to 255)" in str(caught.value) and "imagenet (-2.118 to 2.64)" in str(
        caught.value
    )
    declared = convolutional(shape=(16, 16, 3))
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, settled(declared)(keras.layers.Rescaling(1 / 255)(inputs)))
    (found,) = make(model, input_range="").ranges
    assert (found.low, found.high) == ((0.0,), (255.0,))


def test_nothing_to_optimize_is_refused():
    with pytest.raises(ValueError, match="nothing to optimize.*--output_weight"):
        make(WITHOUT["no norm"](), output_weight=0.0, prior_weight=0.0)


def test_outputs_that_are_not_finite_stop_the_run():
    model = settled(convolutional(keras.layers.Rescaling(1e30), keras.layers.Rescaling(1e30)))
    with pytest.raises((ValueError, FloatingPointError)):
        generate_images(model, GenerationConfig(num_images=2, steps=2, input_range="unit"))


def test_run_manifest_and_report_say_what_the_images_rest_on(tmp_path):
    path, folder = tmp_path / "norm.keras", tmp_path / "out"
    WITHOUT["LayerNormalization"]().save(path)
    code, out, err = commands.call(
        "dgh_tf.generate",
        f"--model={path}",
        f"--output_dir={folder}",
        "--num_images=4",
        "--steps=3",
        "--input_range=symmetric",
    )
    assert code == 0, err
    sentence = "no statistics in this model (no BatchNorm layer)"
    assert f"evidence: {sentence}" in out and "BN gap" not in out
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["evidence"]["statistics"] == "none"
    assert all(math.isfinite(v) for v in manifest["stretched_to"].values())
    page = (folder / "report.html").read_text()
    assert sentence in page and "mean gap of statistics" not in page
