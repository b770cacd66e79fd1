"""What is chosen by the device: strategies and compiled passes, with a GPU listed and without one.
Both ways of a pass give the numbers of float64 numpy.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tiny_models

from dgh_tf import GenerationConfig, Generator
from dgh_tf.generation.distribution import exchange, has_devices, make_strategy
from dgh_tf.generation.replicas import Replicas
from dgh_tf.ops.canvas import smooth
from dgh_tf.ops.fusion import fused
from dgh_tf.ops.moments import LARGE, channel_moments, relu_with_sums


@pytest.fixture(params=["CPU", "GPU"])
def device(request, monkeypatch):
    """TensorFlow with CPUs alone, or as if it listed two GPUs; the pass itself runs on this CPU."""
    named = [SimpleNamespace(name=f"/device:{request.param}:{i}") for i in range(2)]
    listed = {"CPU": named, "GPU": named if request.param == "GPU" else []}
    monkeypatch.setattr(tf.config, "list_logical_devices", listed.get)
    fused.cache_clear()
    yield request.param
    fused.cache_clear()


def test_strategies_take_gpus_where_there_are_some(device):
    assert make_strategy("one").extended.worker_devices[0].endswith(f"{device}:0")
    mirrored = make_strategy("mirrored").extended.worker_devices
    assert [name[-5:] for name in mirrored] == [f"{device}:0", f"{device}:1"]


def test_strategies_of_one_process_do_not_meet():
    """TensorFlow's all-reduce keeps the shapes and devices of the first: the second, of other ones,
    would fail.
    """
    random = np.random.default_rng(0)
    for places, channels in ((0, 1), 3), ((1, 0), 5), ((0, 1), 4):
        strategy = tf.distribute.MirroredStrategy([f"CPU:{place}" for place in places])
        replicas, rows = Replicas(strategy), random.standard_normal((2, 2, channels))
        spreads = random.random((2, 1))

        @tf.function
        def exchanged(row, spread):
            return exchange(row, [spread[0]], replicas=2)

        given = [
            replicas.each([tf.constant(v, tf.float32) for v in both]) for both in (rows, spreads)
        ]
        for change, spread in replicas.local(replicas.run(exchanged, *given)):
            np.testing.assert_allclose(change, rows.sum(0), rtol=1e-6)
            np.testing.assert_allclose(spread, spreads.mean(0), rtol=1e-6)
        np.testing.assert_allclose(replicas.total(given[0]), rows.sum(0), rtol=1e-6)


def test_the_default_strategy_runs_as_none_does():
    model, settings = tiny_models.vector(), GenerationConfig(num_images=2, steps=1)
    generators = [
        Generator(model, settings, strategy=strategy)
        for strategy in (tf.distribute.get_strategy(), None)
    ]
    assert not has_devices(tf.distribute.get_strategy()) and has_devices(make_strategy("none"))
    first, second = (generator.start_images()[0] for generator in generators)
    np.testing.assert_array_equal(first, second)


def test_workers_meet_before_tensorflow_runs_or_not_at_all(monkeypatch):
    tf.constant(0.0)
    addresses = ["127.0.0.1:9", "127.0.0.1:19"]  # nobody answers: none is asked
    job = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(job))
    with pytest.raises(RuntimeError, match=r"(?s)at the program's start.*give this object"):
        make_strategy("multi_worker")


def test_passes_are_compiled_on_cpus_alone(device):
    def double(x):
        return 2.0 * x

    assert (fused(double) is double) == (device == "GPU")
    assert float(fused(double)(tf.constant(3.0))) == 6.0


def test_smoothing_is_that_of_numpy(device):
    x = np.random.default_rng(0).random((2, 7, 8, 3), np.float32)
    side = np.exp(-0.5 / 0.8**2)
    taps = np.array([side, 1.0, side]) / (1.0 + 2.0 * side)
    wanted = sum(
        taps[i] * taps[j] * np.float64(x)[:, i : i + 5, j : j + 6]
        for i in range(3)
        for j in range(3)
    )
    np.testing.assert_allclose(smooth(tf.constant(x), sigma=0.8), wanted, rtol=1e-5)


def test_statistics_and_their_gradient_are_those_of_numpy(device):
    """Of a map that is large enough for the compiled pass."""
    x = 0.5 + np.random.default_rng(0).standard_normal((3, LARGE // 64, 16, 4)).astype(np.float32)
    flat = np.float64(x).reshape(-1, 4)
    moments = channel_moments(tf.constant(x), shift=np.full(4, 0.4, np.float32))
    np.testing.assert_allclose(moments.mean, flat.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.variance, flat.var(0), rtol=1e-4)

    shift = np.full(4, 0.25, np.float32)
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        y, (sums, squares, _) = relu_with_sums(variable, shift=shift, cap=6.0)
        loss = tf.reduce_sum(y) + 2.0 * tf.reduce_sum(sums) + 3.0 * tf.reduce_sum(squares)
    wanted = ((x > 0) & (x < 6)) + 2.0 + 3.0 * 2.0 * (np.float64(x) - 0.25)
    np.testing.assert_allclose(tape.gradient(loss, variable), wanted, rtol=1e-4, atol=1e-4)
