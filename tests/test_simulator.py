"""The simulator computes what LiteRT's integer kernels compute, far closer than the quantization noise itself."""
import numpy as np
import pytest
import tiny_models

from dgh_tf.loading import load_model
from tflite_export import Runner, to_float_tflite, to_tflite_with_ranges
from tflite_export.graph import read_graph
from tflite_export.ranges import collect_ranges
from tflite_export.simulator import channel_axes, predict, quantize_weights, quantized_constants


def sqnr_db(reference, value):
    """Over all outputs, flattened: signal (variance of the reference) over squared error, in dB."""
    reference, value = (np.concatenate([np.ravel(v[k]) for k in sorted(v)]) if isinstance(v, dict) else np.ravel(v)
                        for v in (reference, value))
    return 10 * np.log10(np.var(reference, dtype=np.float64) / np.mean((np.float64(reference) - value) ** 2))


def simulate(tflite, images, **options):
    """(float, simulated, LiteRT's int8) outputs over the calibration images."""
    graph = read_graph(tflite)
    ranges = collect_ranges(graph, images)
    simulated = predict(graph, images, ranges=ranges, constants=quantized_constants(graph), **options)
    return predict(graph, images), simulated, Runner(to_tflite_with_ranges(tflite, ranges=ranges)).predict(images)


@pytest.mark.parametrize("name", ["conv_bn_relu", "two_heads", "segmentation", "sliced_detector", "silu_detector"])
def test_simulated_w8a8_agrees_with_the_integer_kernels(name):
    model = getattr(tiny_models, name)()
    reference, simulated, integer = simulate(to_float_tflite(model), tiny_models.images(16, shape=model.inputs[0].shape[1:]))
    noise = sqnr_db(reference, integer)
    assert noise > 15
    assert sqnr_db(integer, simulated) > noise + 3
    assert sqnr_db(reference, simulated) == pytest.approx(noise, abs=2)


def test_a_single_layer_agrees_to_a_rounding_in_a_hundred():
    import keras

    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(8, 3, padding="same", activation="relu")(inputs))
    reference, simulated, integer = simulate(to_float_tflite(model), tiny_models.images(16))
    assert sqnr_db(integer, simulated) > sqnr_db(reference, integer) + 10
    assert np.mean(np.abs(integer - simulated) > 1e-6) < 0.01


def test_resnet8_simulated_noise_is_that_of_litert(shared_data):
    images = np.load(shared_data / "cifar10_real.npz")["x"][:32].astype(np.float32)
    tflite = to_float_tflite(load_model(str(shared_data / "resnet8_cifar10.keras")))
    reference, simulated, integer = simulate(tflite, images)
    assert sqnr_db(integer, simulated) > sqnr_db(reference, integer) + 1.5
    assert np.mean(integer.argmax(1) == simulated.argmax(1)) > 0.95


def test_fewer_bits_cost_more():
    model, images = tiny_models.conv_bn_relu(), tiny_models.images(16)
    graph = read_graph(to_float_tflite(model))
    reference, noise = predict(graph, images), []
    for weight_bits, activation_bits in ((8, 8), (8, 6), (8, 4), (4, 4)):
        ranges = collect_ranges(graph, images, activation_bits=activation_bits)
        constants = quantized_constants(graph, weight_bits=weight_bits)
        got = predict(graph, images, ranges=ranges, constants=constants, activation_bits=activation_bits)
        noise.append(sqnr_db(reference, got))
    assert noise == sorted(noise, reverse=True)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("axis", [0, 3])
def test_weights_are_rounded_to_nearest_per_channel(bits, axis):
    weights = np.random.default_rng(0).normal(size=(5, 3, 3, 5)).astype(np.float32)
    weights[..., 0] = 0 if axis == 3 else weights[..., 0]
    limit = 2 ** (bits - 1) - 1
    integers, scales = quantize_weights(weights, axis=axis, weight_bits=bits)
    rows, codes = np.moveaxis(weights, axis, 0).reshape(5, -1), np.moveaxis(integers, axis, 0).reshape(5, -1)
    for row, code, scale in zip(rows, codes, scales, strict=True):
        assert not row.any() or scale == pytest.approx(np.abs(row).max() / limit)
        assert np.abs(code * scale - row).max() <= scale / 2 * (1 + 1e-5)
    best, clipped = quantize_weights(weights, axis=axis, weight_bits=bits, rule="mse")
    errors = [np.sum((np.moveaxis(w, axis, 0).reshape(5, -1) * s[:, None] - rows) ** 2)
              for w, s in ((best, clipped), (integers, scales))]
    assert errors[0] <= errors[1] and (bits == 8 or errors[0] < 0.95 * errors[1])


def test_every_weight_tensor_has_an_axis():
    graph = read_graph(to_float_tflite(tiny_models.two_heads()))
    kinds = [o.kind for o in graph.operators]
    assert len(channel_axes(graph)) == sum(k in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") for k in kinds)
