"""Equalization leaves the function alone and evens out channels; corrected biases leave no mean
error.
"""

import numpy as np
import pytest
import tiny_models

from dgh_tf.models.loading import load_model
from dgh_tf.models.tflite.run import read_graph
from tflite_export import Runner, to_float_tflite
from tflite_export.algorithms.equalization import correct_biases, equalizable_pairs, equalize
from tflite_export.simulation.fake_quant import predict, quantized_constants
from tflite_export.simulation.ranges import collect_ranges
from tflite_export.tflite.edit import with_constants


def uneven(*, ceiling=None):
    """conv - depthwise - conv - dense whose channels differ by up to 1000 in scale."""
    import keras

    rng = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3, padding="same")(inputs)
    x = keras.layers.ReLU(ceiling)(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    x = keras.layers.ReLU(ceiling)(x)
    x = keras.layers.MaxPooling2D()(keras.layers.Conv2D(6, 1, activation="relu")(x))
    model = keras.Model(inputs, keras.layers.Dense(4)(keras.layers.Flatten()(x)))
    for layer in model.layers:
        weights = [rng.normal(size=w.shape).astype(np.float32) for w in layer.get_weights()]
        if weights and "dense" not in layer.name:
            axis = 2 if "depthwise" in layer.name else 3
            factor = np.geomspace(0.002, 2, weights[0].shape[axis]).astype(np.float32)
            shape = [1] * 4
            shape[axis] = -1
            weights = [weights[0] * factor.reshape(shape), weights[1] * factor]
        layer.set_weights(weights)
    return model


def assert_same_function(tflite, constants, images):
    before, after = (
        Runner(tflite).predict(images),
        Runner(with_constants(tflite, constants=constants)).predict(images),
    )
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()


@pytest.mark.parametrize("ceiling", [None, 6.0])
def test_equalization_preserves_the_function(ceiling):
    tflite, images = (
        to_float_tflite(uneven(ceiling=ceiling)),
        tiny_models.images(16, shape=(8, 8, 3)),
    )
    graph = read_graph(tflite)
    assert len(equalizable_pairs(graph)) == 2  # the flattened pooling ends the chain
    constants = equalize(graph, images=images)
    assert any(np.abs(constants[i] / graph.tensors[i].value - 1).max() > 0.5 for i in constants)
    assert_same_function(tflite, constants, images)


def test_ranges_of_a_pair_become_equal():
    graph = read_graph(to_float_tflite(uneven()))
    constants = equalize(graph)
    for pair in equalizable_pairs(graph):
        first, second = (graph.operators[p] for p in (pair.first, pair.second))
        w1, w2 = constants[first.inputs[1]], constants[second.inputs[1]]
        r1 = (
            np.abs(w1).max((0, 1, 2))
            if first.kind == "DEPTHWISE_CONV_2D"
            else np.abs(w1).max((1, 2, 3))
        )
        np.testing.assert_allclose(r1, np.abs(w2).max((0, 1, 2)), rtol=0.02)


def test_relu6_is_left_alone_without_images():
    graph = read_graph(to_float_tflite(uneven(ceiling=6.0)))
    assert equalize(graph) == {} and all(p.clipped for p in equalizable_pairs(graph))


@pytest.mark.parametrize("file", ["resnet8_cifar10", "kws_dscnn", "mobilenet_v1_025_224"])
def test_real_models_keep_their_function(file, shared_data):
    model = load_model(str(shared_data / f"{file}.keras"))
    tflite, images = to_float_tflite(model), tiny_models.images(4, shape=model.inputs[0].shape[1:])
    graph = read_graph(tflite)
    constants = equalize(graph, images=images)
    assert constants
    assert_same_function(tflite, constants, images)


def test_corrected_biases_leave_no_mean_error():
    """By construction the last layer's mean per channel is the float one; at 4 bits the rest gains
    as well.
    """
    graph, images = read_graph(to_float_tflite(tiny_models.conv_bn_relu())), tiny_models.images(32)
    ranges, constants = collect_ranges(graph, images), quantized_constants(graph, weight_bits=4)
    fixed = correct_biases(graph, images, ranges=ranges, constants=constants)
    wide = {i: (low - 1e-3, high + 1e-3) for i, (low, high) in ranges.items()}
    reference = predict(graph, images)
    before, after = (
        predict(graph, images, ranges=wide, constants=c)
        for c in (constants, {**constants, **fixed})
    )
    assert (
        np.abs((after - reference).mean(0)).max() < 0.3 * np.abs((before - reference).mean(0)).max()
    )
    assert np.mean((after - reference) ** 2) < np.mean((before - reference) ** 2)
