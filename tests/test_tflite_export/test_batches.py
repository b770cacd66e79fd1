"""Images that cannot run together run alone: nothing is measured on a mix of several."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_models

from dgh_tf.models.tflite.batch import proven
from dgh_tf.models.tflite.run import feeds_of, read_graph, run
from tflite_export import Runner, collect_ranges, to_float_tflite
from tflite_export.quantization import quantize
from tflite_export.simulation.fake_quant import predict
from tflite_export.simulation.ranges import share_scales

SHAPE = (12, 4)


class TimeMajor(keras.layers.Layer):
    """Swaps batch and time, and takes the maximum or the mean over time there."""

    def __init__(self, reduce, **options):
        super().__init__(**options)
        self.reduce = reduce
        self.dense = keras.layers.Dense(5)

    def call(self, x):
        return self.reduce(self.dense(tf.transpose(x, [1, 0, 2])), axis=0)


class Sliced(keras.layers.Layer):
    """Takes two steps of time-major order out by slices, whose axis 0 is time."""

    def call(self, x):
        x = tf.transpose(x, [1, 0, 2])
        return x[2] + 2.0 * x[5:6, :, :][0]


def recurrent(layer):
    def build():
        x = inputs = keras.Input(SHAPE, name="signal")
        x = keras.layers.Dense(3)(layer()(keras.layers.Conv1D(5, 3, activation="relu")(x)))
        return tiny_models.settle(keras.Model(inputs, x, name="recurrent"))

    return build


MODELS = {
    "maximum": recurrent(lambda: TimeMajor(tf.reduce_max)),
    "mean": recurrent(lambda: TimeMajor(tf.reduce_mean)),
    "sliced": recurrent(Sliced),
    "lstm": recurrent(lambda: keras.layers.LSTM(3)),
    "gru": recurrent(lambda: keras.layers.GRU(3)),
}


@pytest.fixture(scope="module", params=list(MODELS))
def case(request):
    model = MODELS[request.param]()
    return model, to_float_tflite(model), tiny_models.images(6, shape=SHAPE)


def test_a_moved_batch_axis_is_found_and_images_stay_apart(case):
    """Outputs against Keras; every range against the extremes of runs of one image each."""
    model, tflite, images = case
    graph = proven(read_graph(tflite), images)
    assert graph.batched is False
    want = np.asarray(model(images, training=False))
    np.testing.assert_allclose(predict(graph, images), want, rtol=0, atol=1e-5 * np.abs(want).max())
    ends = {}
    for image in images:
        seen = {}
        feeds = feeds_of(graph, image[None])
        run(graph, feeds, observe=lambda i, v, seen=seen: seen.setdefault(i, v))
        for i, value in seen.items():
            low, high = ends.get(i, (0.0, 0.0))
            ends[i] = (min(low, float(np.min(value))), max(high, float(np.max(value))))
    ranges, want = collect_ranges(read_graph(tflite), images), share_scales(graph, ends)
    assert set(ranges) == set(want)
    for i in want:
        np.testing.assert_allclose(ranges[i], want[i], rtol=1e-4, atol=1e-6)


def test_what_stands_in_a_traced_function_runs_alone_too():
    """Reconstruction traces the graph for any number of images."""
    images = tiny_models.images(6, shape=SHAPE)
    graph = proven(read_graph(to_float_tflite(MODELS["sliced"]())), images)

    @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE), tf.float32)], autograph=False)
    def traced(x):
        return run(graph, {graph.inputs[0]: x})[graph.outputs[0]]

    eager = run(graph, feeds_of(graph, images))[graph.outputs[0]]
    np.testing.assert_allclose(traced(images), eager, atol=1e-6)


@pytest.mark.parametrize(
    "algorithm", ["bias_correction", pytest.param("mse", marks=pytest.mark.slow)]
)
def test_algorithms_work_on_time_major_models(algorithm):
    """The fault: up to 11 dB were lost to ranges and biases of mixed images."""
    model = MODELS["mean"]()
    images, unseen = (tiny_models.images(24, shape=SHAPE, seed=seed) for seed in (1, 7))
    want = np.float64(model(unseen, training=False))
    plain, ours = (
        np.mean(
            np.square(Runner(quantize(model, images, algorithm=name).tflite).predict(unseen) - want)
        )
        for name in ("minmax", algorithm)
    )
    assert ours <= plain * 10 ** (1.0 / 10)


@pytest.mark.parametrize("name", ["softmax_head", "sliced_detector", "one_dimensional"])
def test_images_that_can_run_together_do(name):
    model = getattr(tiny_models, name)()
    images = tiny_models.images(4, shape=model.inputs[0].shape[1:])
    assert proven(read_graph(to_float_tflite(model)), images).batched is True
    same = np.repeat(images[:1], 2, 0)  # equal images show nothing: they are told apart by noise
    assert proven(read_graph(to_float_tflite(model)), same).batched is True


def test_equal_images_do_not_hide_a_mix():
    graph = read_graph(to_float_tflite(MODELS["maximum"]()))
    assert proven(graph, np.repeat(tiny_models.images(1, shape=SHAPE), 8, 0)).batched is False
