"""Ranges of the variances that normalizations divide by: in LiteRT against Keras, and the rule
against float64 numpy.
"""

import keras
import numpy as np
import pytest

from dgh_tf.models.tflite.run import read_graph
from tflite_export import Runner, to_float_tflite, to_tflite
from tflite_export.quantization import quantize
from tflite_export.simulation.ranges import collect_ranges
from tflite_export.simulation.variances import Losses, Variance, variances_of

LOUD = 12.0  # times the others' contrast


def signals(count, *, loud):
    x = np.random.default_rng(count).standard_normal((count, 6, 16)).astype(np.float32)
    x[: count // 16] *= loud
    return x


def normalizing():
    inputs = keras.Input((6, 16))
    return keras.Model(inputs, keras.layers.LayerNormalization()(inputs))


def decibels(wanted, made):
    return 10 * np.log10(np.sum(wanted**2) / np.sum((wanted - made) ** 2))


@pytest.mark.parametrize("algorithm", ["minmax", "bias_correction", "mse"])
def test_plain_signals_survive_loud_ones_in_the_calibration_set(algorithm):
    """Whose squares are 144 times as large: the steps of the converter's own range, from the
    smallest to the largest, hide what is plain.
    """
    model, calibration = normalizing(), signals(64, loud=LOUD)
    plain = signals(48, loud=1.0)
    wanted = model.predict(plain, verbose=0)
    own = decibels(wanted, Runner(to_tflite(model, calibration)).predict(plain))
    made = quantize(model, calibration, algorithm=algorithm).tflite
    assert own < 7.0
    assert decibels(wanted, Runner(made).predict(plain)) > own + 6.0


def test_ranges_that_are_good_enough_stay_as_they_were_seen():
    model, images = normalizing(), signals(64, loud=1.0)
    graph = read_graph(to_float_tflite(model))
    (variance,) = variances_of(graph)
    assert variance.epsilon == pytest.approx(1e-3) and variance.axes == (-1,)
    ranges = collect_ranges(graph, images)
    squares = (images - images.mean(-1, keepdims=True)) ** 2
    assert ranges[variance.squares] == (0.0, pytest.approx(squares.max(), rel=1e-5))
    assert ranges[variance.mean] == (0.0, pytest.approx(squares.mean(-1).max(), rel=1e-5))


def test_the_chosen_ranges_lose_less_than_those_seen():
    """By float64 numpy over other squares of the same kind."""
    given, others = (signals(n, loud=LOUD).astype(np.float64) ** 2 for n in (64, 96))
    seen = {0: (0.0, given.max()), 1: (0.0, given.mean(-1).max()), 2: (0.0, given.mean(-1).max())}
    losses = Losses(Variance(0, 1, 2, axes=(-1,), epsilon=1e-3), seen)
    losses.add(given)
    best = losses.best()
    assert set(best) == {0, 1, 2} and best[0][1] < seen[0][1]

    def loss(ranges):
        def rounded(x, step):
            return np.minimum(np.round(x / step), 255) * step

        steps = [ranges[i][1] / 255 for i in range(3)]
        mean = rounded(rounded(others, steps[0]).mean(-1), steps[1])
        made = np.maximum(rounded(mean + 1e-3, steps[2]), steps[2] / 2)
        return np.mean((np.sqrt((others.mean(-1) + 1e-3) / made) - 1) ** 2)

    assert loss(best) < 0.4 * loss(seen)


def test_other_reciprocal_roots_are_left_alone():
    inputs = keras.Input((6, 16))
    made = keras.ops.rsqrt(keras.ops.abs(inputs) + 1.0)
    assert variances_of(read_graph(to_float_tflite(keras.Model(inputs, made)))) == []


def signed(x):
    """Values below zero in what the mean runs over."""
    return x * keras.ops.rsqrt(keras.ops.mean(x, -1, keepdims=True) + 3.0)


def with_its_variance(x):
    variance = keras.ops.mean(x * x, -1, keepdims=True)
    return x * keras.ops.rsqrt(variance + 1e-5), keras.ops.tanh(variance)


def with_its_squares(x):
    squares = x * x
    mean = keras.ops.mean(squares, -1, keepdims=True)
    return x * keras.ops.rsqrt(mean + 1e-5), squares


@pytest.mark.parametrize(
    "function, loud", [(signed, 1.0), (with_its_variance, LOUD), (with_its_squares, LOUD)]
)
def test_ranges_that_hold_more_than_a_variance_are_those_seen(function, loud):
    """A shorter one would cut off the rest."""
    inputs, images = keras.Input((6, 16)), signals(64, loud=loud)
    graph = read_graph(to_float_tflite(keras.Model(inputs, function(inputs))))
    (mean,) = (o for o in graph.operators if o.kind == "MEAN")
    squares = images if function is signed else images.astype(np.float64) ** 2
    ranges = collect_ranges(graph, images)
    for index, values in ((mean.inputs[0], squares), (mean.outputs[0], squares.mean(-1))):
        seen = (min(0.0, values.min()), max(0.0, values.max()))
        assert ranges[index] == pytest.approx(seen, rel=1e-5)
