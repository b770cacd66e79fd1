"""What the converter stores once for several operators is corrected for each of them alone."""

import collections

import keras
import numpy as np
import pytest
import tflite_files
import tiny_models

from dgh_tf.models.tflite.run import read_graph
from dgh_tf.models.tflite.spec import CHANNEL_AXIS
from tflite_export import Runner, collect_ranges, to_float_tflite
from tflite_export.algorithms.block_reconstruction import reconstruct
from tflite_export.algorithms.equalization import correct_biases
from tflite_export.quantization import quantize
from tflite_export.simulation.fake_quant import quantized_constants
from tflite_export.tflite.edit import with_own_biases


def signal_to_noise(want, got):
    """SQNR in dB of the outputs around their mean, in float64."""
    want, got = np.float64(want), np.float64(got)
    return 10 * np.log10(np.var(want - want.mean(0)) / np.mean((want - got) ** 2))


def without_biases():
    """Convolutions without a bias whose BatchNorm stands behind ReLU and pooling, so it stays."""
    layers = keras.layers
    x = inputs = keras.Input((16, 16, 3), name="image")
    for _ in range(3):
        x = layers.Conv2D(8, 3, padding="same", use_bias=False, activation="relu")(x)
        x = layers.BatchNormalization()(layers.MaxPooling2D()(x))
    x = layers.Dense(5, use_bias=False)(layers.GlobalAveragePooling2D()(x))
    return tiny_models.settle(keras.Model(inputs, x, name="without_biases"))


def called_twice():
    """One dense layer at two places: its weights are one tensor, its biases are two."""
    inputs = keras.Input((16, 16, 3), name="image")
    pooled = [
        keras.layers.GlobalAveragePooling2D()(layer(inputs))
        for layer in (keras.layers.Conv2D(6, 3), keras.layers.Conv2D(6, 1, activation="relu"))
    ]
    dense = keras.layers.Dense(4)
    outputs = keras.layers.Subtract()([dense(x) for x in pooled])
    return tiny_models.settle(keras.Model(inputs, outputs, name="called_twice"))


def biases(graph):
    return [o.inputs[2] for o in graph.operators if o.kind in CHANNEL_AXIS]


@pytest.fixture(scope="module")
def model():
    return without_biases()


@pytest.fixture(scope="module")
def tflite(model):
    return to_float_tflite(model)


@pytest.mark.parametrize("build", [without_biases, called_twice])
def test_every_operator_has_a_bias_of_its_own(build):
    model = build()
    tflite, images = to_float_tflite(model), tiny_models.images(4)
    found = biases(read_graph(tflite))
    assert min(found) >= 0 and len(set(found)) == len(found)
    want = np.asarray(model(images, training=False))
    np.testing.assert_allclose(Runner(tflite).predict(images), want, atol=1e-5 * np.abs(want).max())
    assert with_own_biases(tflite).data == tflite  # nothing is left to do


def test_bias_correction_serves_every_layer(model, tflite):
    """The fault: the first layer's correction went to all, which left a tenth of minmax's SQNR."""
    images, unseen = tiny_models.images(32), tiny_models.images(32, seed=7)
    want = np.asarray(model(unseen, training=False))
    plain, corrected = (
        signal_to_noise(
            want, Runner(quantize(tflite, images, algorithm=name).tflite).predict(unseen)
        )
        for name in ("minmax", "bias_correction")
    )
    assert corrected >= plain - 0.3


def test_a_bias_that_is_still_shared_is_left_alone(tflite):
    """Also where a graph comes from elsewhere: one value cannot correct several layers."""
    graph, images = read_graph(tflite), tiny_models.images(8)
    first = biases(graph)[0]
    convolutions = [o.kind == "CONV_2D" for o in graph.operators]

    def share(parts):
        for operator, is_one in zip(parts.subgraphs[0].operators, convolutions, strict=True):
            if is_one:
                operator.inputs = np.int32([*operator.inputs[:2], first])

    shared = read_graph(tflite_files.changed(tflite, share))
    assert collections.Counter(biases(shared))[first] == 3
    ranges = collect_ranges(shared, images)
    constants = quantized_constants(shared, weight_bits=4)
    found = correct_biases(shared, images, ranges=ranges, constants=constants)
    assert set(found) == set(biases(shared)) - {first}
    learned = reconstruct(shared, images, ranges=ranges, weight_bits=4, steps=2)
    assert first not in learned.biases


def test_weights_shared_by_two_layers_are_learned_once_and_serve_both():
    model, images = called_twice(), tiny_models.images(32)
    made = quantize(model, images, scheme="w4a8", algorithm="reconstruction", steps=40)
    unseen = tiny_models.images(32, seed=7)
    want = np.asarray(model(unseen, training=False))
    nearest = quantize(model, images, scheme="w4a8", algorithm="minmax")
    errors = [
        np.mean(np.square(Runner(file.tflite).predict(unseen) - want)) for file in (made, nearest)
    ]
    assert errors[0] < errors[1]
