"""Losses: hand-worked values and numeric gradients."""

import math

import numpy as np
import pytest
import tensorflow as tf

from dgh_tf.ops.losses import image_hinge, moment_gap, output_spread, stretching
from dgh_tf.ops.moments import Moments, channel_moments


def observed(mean, variance, count=10.0):
    return Moments(tf.constant(count), tf.constant(mean), tf.constant(variance) * count)


RUNNING = {"mean": tf.constant([1.0, -2.0]), "variance": tf.constant([4.0, 9.0]), "epsilon": 0.0}


def test_gap_is_zero_for_equal_moments():
    assert float(moment_gap(observed([1.0, -2.0], [4.0, 9.0]), **RUNNING)) == 0.0


def test_gap_is_one_when_every_mean_is_one_deviation_off():
    assert float(moment_gap(observed([3.0, 1.0], [4.0, 9.0]), **RUNNING)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("std_weight", "wanted"), [(1.0, 0.25 * 0.5 + 0.25), (4.0, 0.25 * 0.5 + 1.0), (0.0, 0.125)]
)
def test_gap_worked_by_hand(std_weight, wanted):
    """Means: channel 0 off by 1 = 0.5 deviations (0.25), channel 1 right: 0.125. Deviations 1 and
    4.5 of 2 and 3: 0.25 each.
    """
    assert float(
        moment_gap(observed([2.0, -2.0], [1.0, 20.25]), **RUNNING, std_weight=std_weight)
    ) == pytest.approx(wanted, rel=1e-6)


def test_gap_of_a_dead_channel_is_finite_with_a_finite_gradient():
    """Running variance 0 and a constant input: the root of epsilon stands in for both, so the gap
    is (0.1 / 0.1)^2 = 1.
    """
    running = {"mean": tf.constant([0.0]), "variance": tf.constant([0.0]), "epsilon": 0.01}
    with tf.GradientTape() as tape:
        x = tf.fill([2, 3, 3, 1], 0.1)
        tape.watch(x)
        gap = moment_gap(channel_moments(x, shift=np.zeros(1, np.float32)), **running)
    assert float(gap) == pytest.approx(1.0, rel=1e-4)
    assert np.isfinite(tape.gradient(gap, x)).all()


def test_spread_counts_positions_and_channels_of_each_image():
    logits = tf.constant([[[1.0, 2.0], [-3.0, 0.0]], [[5.0, 5.0], [5.0, 7.5]]])
    np.testing.assert_allclose(output_spread(logits), [5.0, 2.5])


def test_spread_of_a_single_output_is_that_of_the_batch():
    np.testing.assert_allclose(output_spread(tf.constant([[1.0], [4.0], [-2.5]])), [6.5, 6.5, 6.5])
    np.testing.assert_allclose(
        output_spread(tf.constant([1.0, 4.0])[:, None, None, None]), [3.0, 3.0]
    )
    _, gradient = stretch([[1.0], [4.0], [-2.5]])
    np.testing.assert_allclose(
        gradient, [[0.0], [-1 / 6.5], [1 / 6.5]], rtol=1e-4
    )  # of -log(6.5): the extremes part


def stretch(y, limit=math.inf):
    """Loss and its gradient for the outputs y."""
    with tf.GradientTape() as tape:
        y = tf.constant(y)
        tape.watch(y)
        loss = stretching(output_spread(y), limit=tf.constant(limit))
    return float(loss), tape.gradient(loss, y).numpy()


def test_stretching_is_minus_the_mean_log_of_the_spreads_up_to_the_limit():
    spread = tf.constant([2.0, 8.0])
    assert float(stretching(spread, limit=tf.constant(math.inf))) == pytest.approx(
        -math.log(4.0), rel=1e-5
    )  # sqrt(2 * 8)
    assert float(stretching(spread, limit=tf.constant(4.5))) == pytest.approx(
        -math.log(3.0), rel=1e-5
    )  # sqrt(2 * 4.5)


def test_stretching_pulls_equally_hard_whatever_the_unit_of_the_logits():
    """Relative growth of the outputs per step of the loss: y * d loss / d y is the same for y and
    for 300 y.
    """
    y = np.array([[1.0, -1.0, 0.5], [2.0, 0.0, -3.0]], np.float32)
    pull, large = (unit * y * stretch(unit * y)[1] for unit in (1.0, 300.0))
    np.testing.assert_allclose(pull, large, rtol=1e-4)
    assert pull[1, 0] < 0.0  # the loss falls as the largest output of an image grows ...
    assert pull[0, 2] == 0.0  # ... and does not see those between


def test_stretching_gradient_is_one_over_spread_for_the_extremes_of_each_image():
    """d/dy of -mean(log(max - min)): -1/(2 * 2) and +1/(2 * 2) for spread 2, -1/(2 * 5) and +1/(2 *
    5) for spread 5.
    """
    _, gradient = stretch([[1.0, -1.0, 0.5], [2.0, 0.0, -3.0]])
    np.testing.assert_allclose(gradient, [[-0.25, 0.25, 0.0], [-0.1, 0.0, 0.1]], rtol=1e-4)


def test_an_image_at_the_limit_is_stretched_no_more_and_the_others_are():
    _, gradient = stretch([[1.0, -1.0, 0.5], [2.0, 0.0, -3.0]], limit=4.0)
    np.testing.assert_allclose(gradient, [[-0.25, 0.25, 0.0], [0.0, 0.0, 0.0]], rtol=1e-4)


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_constant_outputs_and_an_unknown_limit_give_finite_values(limit):
    loss, gradient = stretch([[0.0, 0.0]], limit=limit)
    assert math.isfinite(loss) and np.isfinite(gradient).all()


def test_hinge_worked_by_hand():
    """Image 0: means 2 and 0 deviations off: mean square 2, minus 0.5 = 1.5; deviations right: 0.
    Image 1: means right; deviations 2 and 1 times: mean square 0.5, which the hinge allows. The
    mean over images: 0.75.
    """
    mean, variance = tf.constant([[5.0, -2.0], [1.0, -2.0]]), tf.constant([[4.0, 9.0], [16.0, 9.0]])
    assert float(image_hinge(mean, variance, **RUNNING)) == pytest.approx(0.75, rel=1e-6)


def test_hinge_does_not_pull_inside_its_margin():
    with tf.GradientTape() as tape:
        mean = tf.constant([[1.5, -2.5]])
        tape.watch(mean)
        loss = image_hinge(mean, tf.constant([[4.0, 9.0]]), **RUNNING)
    assert float(loss) == 0.0 and not tape.gradient(loss, mean).numpy().any()


def test_gap_gradient_equals_central_differences_of_float64_numpy():
    x = np.random.default_rng(3).normal(0.5, 2.0, (4, 3, 3, 2))
    mean, variance, epsilon = np.array([0.2, -0.4]), np.array([1.5, 0.7]), 1e-3

    def value_of(array):
        scale = np.sqrt(variance + epsilon)
        gap = ((array.mean((0, 1, 2)) - mean) / scale) ** 2 + 2.0 * (
            np.sqrt(array.var((0, 1, 2)) + epsilon) / scale - 1.0
        ) ** 2
        return gap.mean()

    with tf.GradientTape() as tape:
        variable = tf.constant(x, tf.float32)
        tape.watch(variable)
        got = moment_gap(
            channel_moments(variable, shift=mean.astype(np.float32)),
            mean=tf.constant(mean, tf.float32),
            variance=tf.constant(variance, tf.float32),
            epsilon=epsilon,
            std_weight=2.0,
        )
    assert float(got) == pytest.approx(value_of(x), rel=1e-5)
    gradient, step = tape.gradient(got, variable).numpy(), 1e-5
    for index in [(0, 0, 0, 0), (3, 2, 1, 1), (1, 1, 2, 0)]:
        high, low = x.copy(), x.copy()
        high[index] += step
        low[index] -= step
        assert gradient[index] == pytest.approx(
            (value_of(high) - value_of(low)) / (2 * step), rel=1e-3, abs=1e-6
        )
