"""Selected ranges: found right, shared as TFLite shares scales, and honoured by the converter to
the last float.
"""

import numpy as np
import pytest
import tiny_models

from dgh_tf.models.tflite.model import read_model
from dgh_tf.models.tflite.run import feeds_of, read_graph, run
from tflite_export import check_integer, to_float_tflite, to_tflite, to_tflite_with_ranges
from tflite_export.simulation.ranges import collect_ranges, least_squares_range, percentile_range


def scales_by_name(tflite):
    return {
        t.name: t for t in read_model(tflite).tensors if len(t.scales) == 1 and t.dtype == "INT8"
    }


@pytest.mark.parametrize("rule", ["minmax", "mse", "percentile"])
@pytest.mark.parametrize("name", ["softmax_head", "silu_detector"])
def test_scales_of_the_file_equal_the_selected_ranges(name, rule):
    model = getattr(tiny_models, name)()
    tflite, images = to_float_tflite(model), tiny_models.images(8, shape=model.inputs[0].shape[1:])
    graph = read_graph(tflite)
    ranges = collect_ranges(graph, images, rule=rule)
    made = to_tflite_with_ranges(tflite, ranges=ranges)
    check_integer(made, io_dtype="int8")
    rows, activations = (
        scales_by_name(made),
        {i for o in graph.operators for i in o.outputs} | set(graph.inputs),
    )
    found = [i for i in ranges if graph.tensors[i].name in rows]
    assert set(ranges) == activations and len(found) >= 0.9 * len(ranges)
    for i in found:
        row, (low, high) = rows[graph.tensors[i].name], ranges[i]
        assert row.scales[0] == pytest.approx((high - low) / 255, rel=1e-5), graph.tensors[i].name
        assert row.zero_points[0] == pytest.approx(-128 - low / row.scales[0], abs=0.51)


def test_min_max_equals_the_converters_own_calibration():
    model, images = tiny_models.two_heads(), tiny_models.images(8)
    tflite = to_float_tflite(model)
    ours = scales_by_name(
        to_tflite_with_ranges(tflite, ranges=collect_ranges(read_graph(tflite), images))
    )
    theirs = scales_by_name(to_tflite(model, images))
    common = set(ours) & set(theirs)
    assert len(common) >= 0.8 * len(theirs)
    for name in common:
        assert ours[name].scales[0] == pytest.approx(theirs[name].scales[0], rel=1e-4), name


def test_min_max_is_that_of_the_activations():
    tflite, images = to_float_tflite(tiny_models.conv_bn_relu()), tiny_models.images(8)
    graph, seen = read_graph(tflite), {}
    run(graph, feeds_of(graph, images), observe=lambda i, v: seen.setdefault(i, v))
    ranges = collect_ranges(graph, images, batch_size=3)
    out = graph.outputs[0]
    assert ranges[out] == pytest.approx(
        (min(0, seen[out].numpy().min()), max(0, seen[out].numpy().max())), rel=1e-5
    )


@pytest.mark.parametrize("bits", [4, 6])
def test_least_squares_clipping_beats_min_max_and_every_other_clipping(bits):
    values = np.append(np.abs(np.random.default_rng(0).normal(size=20000)), 20.0)
    counts, _ = np.histogram(values, 2048, (0, 20))

    def error(high):
        step = high / (2**bits - 1)
        return np.mean((np.clip(np.round(values / step), 0, 2**bits - 1) * step - values) ** 2)

    low, high = least_squares_range(counts, 0.0, 20.0, bits=bits)
    assert low == 0 and error(high) <= 1.15 * min(
        error(h) for h in np.linspace(1, 20, 191)
    ) < error(20.0)


def test_percentile_leaves_out_the_outliers():
    values = np.append(np.linspace(-1, 1, 100_000), [-50, 50])
    counts, _ = np.histogram(values, 2048, (-50, 50))
    low, high = percentile_range(counts, -50.0, 50.0, percentile=99.9)
    width = 100 / 2048
    assert low == pytest.approx(-1, abs=2 * width) and high == pytest.approx(1, abs=2 * width)


def test_an_unknown_rule_and_values_that_are_not_finite_are_refused():
    graph = read_graph(to_float_tflite(tiny_models.conv_bn_relu()))
    with pytest.raises(ValueError, match="expected one of minmax, mse, percentile"):
        collect_ranges(graph, tiny_models.images(2), rule="best")
    with pytest.raises(ValueError, match="not finite"):
        collect_ranges(graph, tiny_models.images(2) * np.float32("inf"))


def test_values_that_are_not_finite_are_named_where_the_converter_crashes():
    """It ends in a signal on the logarithm of zero, without a word of why."""
    import keras

    from tflite_export.quantization import quantize

    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.ops.log(keras.ops.relu(inputs)))
    images = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    with pytest.raises(ValueError, match=r"is not finite on the calibration images"):
        quantize(model, images, algorithm="minmax")
