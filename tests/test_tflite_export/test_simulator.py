"""The simulator computes what LiteRT's integer kernels compute, far closer than the quantization
noise itself.
"""

import numpy as np
import pytest
import tiny_models
from measures import sqnr_db

from dgh_tf.models.loading import load_model
from dgh_tf.models.tflite.run import read_graph
from tflite_export import Runner, to_float_tflite, to_tflite_with_ranges
from tflite_export.simulation.fake_quant import (
    channel_axes,
    nudged,
    predict,
    quantize_weights,
    quantized_constants,
)
from tflite_export.simulation.ranges import collect_ranges


def off_by(tflite, images):
    """Steps of the output's grid between the simulated run and LiteRT's reference kernels, which
    are plain integer code, the same on every CPU; and between the simulated and the float run. Both
    flat, over all outputs.
    """
    graph = read_graph(tflite)
    ranges = collect_ranges(graph, images)
    runner = Runner(to_tflite_with_ranges(tflite, ranges=ranges), kernels="reference")
    runs = [
        runner.predict(images),
        predict(graph, images, ranges=ranges, constants=quantized_constants(graph)),
        predict(graph, images),
    ]
    integer, simulated, reference = (
        each if isinstance(each, dict) else {next(iter(runner.outputs)): each} for each in runs
    )
    steps = {name: detail["quantization"][0] for name, detail in runner.outputs.items()}
    return [
        np.concatenate(
            [np.ravel(np.abs(simulated[n] - other[n])) / step for n, step in steps.items()]
        )
        for other in (integer, reference)
    ]


@pytest.mark.parametrize("name", ["two_heads", "sliced_detector"])
def test_simulated_w8a8_is_steps_from_the_integer_kernels(name):
    """A rounding that falls the other way in one layer moves the next ones by a step: the mean
    stays under half a step.
    """
    model = getattr(tiny_models, name)()
    steps, noise = off_by(
        to_float_tflite(model), tiny_models.images(16, shape=model.inputs[0].shape[1:])
    )
    assert steps.mean() < 0.5 and steps.max() < 16
    assert noise.max() > 1  # there is an error to simulate


def test_a_single_layer_is_a_step_off_at_most():
    """One layer has nothing to add up: only ties and the 31-bit multiplier can differ."""
    import keras

    inputs = keras.Input((16, 16, 3))
    keras.utils.set_random_seed(0)
    model = keras.Model(
        inputs, keras.layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    )
    steps, _ = off_by(to_float_tflite(model), tiny_models.images(16))
    assert steps.max() < 1.5 and np.mean(steps > 0.5) < 0.05


def test_zero_of_a_symmetric_range_is_the_converters():
    """[-1, 1] puts zero between codes 127 and 128; the file says which."""
    tflite = to_float_tflite(tiny_models.conv_bn_relu())
    runner = Runner(
        to_tflite_with_ranges(
            tflite, ranges=collect_ranges(read_graph(tflite), tiny_models.images(8))
        )
    )
    scale, zero_point = next(iter(runner.inputs.values()))["quantization"]
    low, high = nudged(-1.0, 1.0, bits=8)
    assert scale == pytest.approx(2 / 255, rel=1e-6)
    assert (low, high) == pytest.approx(((-128 - zero_point) * scale, (127 - zero_point) * scale))


def test_resnet8_simulated_is_steps_from_litert(shared_data):
    images = np.load(shared_data / "cifar10_real.npz")["x"][:32].astype(np.float32)
    steps, _ = off_by(
        to_float_tflite(load_model(str(shared_data / "resnet8_cifar10.keras"))), images
    )
    assert steps.mean() < 4  # of 256 steps of a probability


def test_fewer_bits_cost_more():
    model, images = tiny_models.conv_bn_relu(), tiny_models.images(16)
    graph = read_graph(to_float_tflite(model))
    reference, noise = predict(graph, images), []
    for weight_bits, activation_bits in ((8, 8), (8, 6), (8, 4), (4, 4)):
        ranges = collect_ranges(graph, images, activation_bits=activation_bits)
        constants = quantized_constants(graph, weight_bits=weight_bits)
        got = predict(
            graph, images, ranges=ranges, constants=constants, activation_bits=activation_bits
        )
        noise.append(sqnr_db(reference, got))
    assert noise == sorted(noise, reverse=True)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("axis", [0, 3])
def test_weights_are_rounded_to_nearest_per_channel(bits, axis):
    weights = np.random.default_rng(0).normal(size=(5, 3, 3, 5)).astype(np.float32)
    weights[..., 0] = 0 if axis == 3 else weights[..., 0]
    limit = 2 ** (bits - 1) - 1
    integers, scales = quantize_weights(weights, axis=axis, weight_bits=bits)
    rows, codes = (
        np.moveaxis(weights, axis, 0).reshape(5, -1),
        np.moveaxis(integers, axis, 0).reshape(5, -1),
    )
    for row, code, scale in zip(rows, codes, scales, strict=True):
        assert not row.any() or scale == pytest.approx(np.abs(row).max() / limit)
        assert np.abs(code * scale - row).max() <= scale / 2 * (1 + 1e-5)


def test_clipping_is_the_best_that_can_be_found():
    """Against the least squared error over 2000 scales, tried one by one in float64. An outlier of
    8 deviations makes clipping pay.
    """
    row = np.random.default_rng(0).normal(size=(1, 1, 1, 400))
    row[..., 0] = 8.0

    def error(scale):
        return np.sum((np.clip(np.rint(row / scale), -7, 7) * scale - row) ** 2)

    _, (scale,) = quantize_weights(row.astype(np.float32), axis=0, weight_bits=4, rule="mse")
    best = min(error(s) for s in np.linspace(0.05, 8 / 7, 2000))
    assert error(scale) < 1.05 * best < 0.7 * error(8 / 7)


def test_sixteen_levels_on_request_and_the_narrow_range_otherwise():
    """By hand: with -8 a channel whose largest weight is negative fits a scale of 1."""
    row = np.float32([[-8.0, 7.0, 3.0]])
    codes, scales = quantize_weights(row, axis=0, weight_bits=4, rule="mse", narrow=False)
    assert codes.tolist() == [[-8, 7, 3]] and scales == pytest.approx([1.0], rel=0.01)
    for bits, narrow in ((4, True), (8, True), (8, False)):
        codes, _ = quantize_weights(row, axis=0, weight_bits=bits, rule="mse", narrow=narrow)
        assert codes.min() == 1 - 2 ** (bits - 1)


def test_every_weight_tensor_has_an_axis():
    graph = read_graph(to_float_tflite(tiny_models.two_heads()))
    kinds = [o.kind for o in graph.operators]
    assert len(channel_axes(graph)) == sum(
        k in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") for k in kinds
    )
