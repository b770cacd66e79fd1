"""Adaptive rounding against values worked by hand, and against the best of all choices on a problem
small enough to try them.
"""

import itertools

import numpy as np
import pytest

from tflite_export.algorithms import adaround


def test_rectified_sigmoid_by_hand():
    # sigmoid(0) = 1/2 -> 1/2; sigmoid(ln 3) = 3/4 -> 0.8; sigmoid(-ln 3) = 1/4 -> 0.2; sigmoid(ln
    # 11) = 11/12 -> exactly 1
    v = np.float32([0.0, np.log(3), -np.log(3), np.log(11), 5.0, -5.0])
    np.testing.assert_allclose(
        adaround.rectified_sigmoid(v).numpy(), [0.5, 0.8, 0.2, 1.0, 1.0, 0.0], atol=1e-6
    )


def test_optimization_starts_at_the_float_weights():
    weights, scales = np.float32([[0.13, -0.52], [0.9, -1.3]]), np.float32([[0.1], [0.25]])
    v = adaround.initial_choice(weights, scales)
    start = adaround.soft_weights(
        v, floors=np.floor(weights / scales), scales=scales, limits=(-8, 7)
    )
    np.testing.assert_allclose(start.numpy(), weights, atol=1e-4)


def test_hard_integers_by_hand_and_within_the_limits():
    integers = adaround.hard_integers(
        np.float32([0.3, -0.3, 2.0, -2.0]), floors=np.float32([2, 2, 7, -9]), limits=(-8, 7)
    )
    assert integers.dtype == np.int8 and integers.tolist() == [3, 2, 7, -8]


def test_penalty_by_hand():
    # h = 1/2, 0.8, 1: 1 - 0^2 = 1; 1 - 0.6^2 = 0.64; 0; with beta 20: 1 - 0.6^20 = 0.99996
    v = np.float32([0.0, np.log(3), 5.0])
    assert float(adaround.rounding_penalty(v, 2.0)) == pytest.approx(1.64, abs=1e-5)
    assert float(adaround.rounding_penalty(v, 20.0)) == pytest.approx(2 - 0.6**20, abs=1e-5)


@pytest.mark.parametrize(
    "progress, beta, weight", [(0.0, 20, 0), (0.1, 20, 0), (0.2, 20, 1), (0.6, 11, 1), (1.0, 2, 1)]
)
def test_beta_falls_after_the_warmup(progress, beta, weight):
    got = adaround.annealed_beta(progress)
    assert float(got[0]) == pytest.approx(beta, abs=1e-4) and float(got[1]) == weight


def test_learned_rounding_finds_what_nearest_misses():
    """Six weights on nearly equal inputs: what counts is the sum of the errors, which rounding to
    nearest leaves at 2.45. All 64 choices are tried one by one: the learned one is close to the
    best, nearest far from it.
    """
    import keras
    import tensorflow as tf

    x = (1.0 + 0.05 * np.random.default_rng(2).normal(size=(200, 6))).astype(np.float32)
    weights, scale = np.float32([0.4, 1.45, -0.6, 2.4, 0.35, -1.55]), np.float32(1.0)
    floors = np.floor(weights / scale)

    def error(integers):
        return float(np.mean((x @ (weights - scale * integers)) ** 2))

    choices = [error(floors + np.float32(choice)) for choice in itertools.product((0, 1), repeat=6)]
    v, optimizer, steps = (
        tf.Variable(adaround.initial_choice(weights, scale)),
        keras.optimizers.Adam(0.02),
        500,
    )
    optimizer.build([v])

    @tf.function(autograph=False)
    def move(progress):
        beta, on = adaround.annealed_beta(progress)
        with tf.GradientTape() as tape:
            soft = adaround.soft_weights(v, floors=floors, scales=scale, limits=(-8, 7))
            loss = tf.reduce_mean(
                tf.linalg.matvec(x, weights - soft) ** 2
            ) + 0.1 * on * adaround.rounding_penalty(v, beta)
        optimizer.apply([tape.gradient(loss, v)], [v])

    for step in range(steps):
        move(tf.constant(step / steps))
    learned = error(adaround.hard_integers(v.numpy(), floors=floors, limits=(-8, 7)))
    assert (
        min(choices) < 0.25 and error(np.rint(weights)) > 5
    )  # 2 or 3 of 6 go up: 0.45^2 or 0.55^2; none: 2.45^2
    assert learned < 0.5
