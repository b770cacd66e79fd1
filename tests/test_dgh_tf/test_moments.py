"""Moments: against float64 numpy, over uneven batches, for large means, and their gradient against
the formula and differences.
"""

import numpy as np
import pytest
import tensorflow as tf

from dgh_tf.ops.moments import (
    channel_moments,
    image_moments,
    normalize,
    relu_with_sums,
    safe_shift,
)


def activations(shape, *, mean=0.0, std=1.0, seed=0):
    return (mean + std * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def numpy_moments(x, axis=-1):
    """Count, mean and M2 in float64, the independent source of this file."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, -1).reshape(-1, x.shape[axis])
    return len(x), x.mean(0), ((x - x.mean(0)) ** 2).sum(0)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((4, 5, 6, 3), -1), ((4, 3, 5, 6), 1), ((7, 10, 4), -1), ((9, 4), -1), ((2, 3, 4, 5, 6), 4)],
)
def test_equal_to_float64_numpy_for_every_rank_and_channel_axis(shape, axis):
    x = activations(shape, mean=0.7, std=2.0)
    count, mean, m2 = numpy_moments(x, axis)
    got = channel_moments(tf.constant(x), shift=np.full(shape[axis], 0.5, np.float32), axis=axis)
    assert float(got.count) == count
    np.testing.assert_allclose(got.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.m2, m2, rtol=1e-5)
    np.testing.assert_allclose(got.variance, m2 / count, rtol=1e-5)


def test_variance_survives_a_mean_ten_thousand_times_the_deviation():
    x = activations((8, 16, 16, 4), mean=1000.0, std=0.1)
    _, mean, m2 = numpy_moments(x)
    naive = (x**2).mean((0, 1, 2)) - x.mean(
        (0, 1, 2)
    ) ** 2  # E[x^2] - E[x]^2 in float32: what the shift is there to avoid
    assert np.max(np.abs(naive / 0.01 - 1.0)) > 0.5
    got = channel_moments(
        tf.constant(x), shift=np.full(4, 1000.2, np.float32)
    )  # the guess is two deviations off
    np.testing.assert_allclose(got.mean, mean, rtol=1e-7)
    np.testing.assert_allclose(got.m2, m2, rtol=1e-3)


def test_shift_changes_nothing_but_rounding():
    x = tf.constant(activations((4, 8, 8, 3), mean=1.0))
    first, second = (
        channel_moments(x, shift=np.full(3, shift, np.float32)) for shift in (0.0, 1.3)
    )
    np.testing.assert_allclose(first.mean, second.mean, rtol=1e-5)
    np.testing.assert_allclose(first.m2, second.m2, rtol=1e-4)


def test_half_precision_activations_are_summed_in_float32():
    x = tf.cast(activations((8, 32, 32, 2), mean=3.0, std=0.5), tf.float16)
    _, mean, m2 = numpy_moments(x.numpy())
    got = channel_moments(x, shift=np.full(2, 3.0, np.float32))
    assert got.m2.dtype == tf.float32
    np.testing.assert_allclose(got.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(got.m2, m2, rtol=1e-4)  # float16 would overflow to inf at 65504


def test_constant_channel_has_variance_zero_and_never_below():
    x = tf.fill([4, 9, 9, 2], 0.1)
    assert (channel_moments(x, shift=np.array([0.0, 5.0], np.float32)).m2.numpy() >= 0.0).all()


@pytest.mark.parametrize("shape", [(3, 40, 40, 8), (3, 6, 6, 8), (5, 7, 70), (4, 3)])
@pytest.mark.parametrize("far", [False, True])
def test_normalization_and_sums_in_one_are_those_of_float64_numpy_forward_and_backward(shape, far):
    """Large maps run compiled, small ones do not; a mean far from zero is shifted."""
    channels = shape[-1]
    x = activations(shape, mean=50.0 if far else 0.5)
    scale, offset = np.linspace(0.5, 2.0, channels), np.linspace(-1.0, 1.0, channels)
    shift = np.full(channels, 50.0 if far else 0.0, np.float32)
    a, b, c = (
        np.random.default_rng(i).standard_normal(s)
        for i, s in ((1, shape), (2, channels), (3, channels))
    )
    with tf.GradientTape() as tape:
        variable = tf.constant(x)
        tape.watch(variable)
        y, (sums, squares, count) = normalize(variable, scale=scale, offset=offset, shift=shift)
        value = tf.reduce_sum(a.astype(np.float32) * y) + tf.reduce_sum(
            b.astype(np.float32) * sums + c.astype(np.float32) * squares
        )
    d = x.astype(np.float64) - shift
    rest = tuple(range(len(shape) - 1))
    np.testing.assert_allclose(y, x * scale + offset, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums, d.sum(rest), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(squares, (d**2).sum(rest), rtol=1e-4)
    assert float(count) == x.size / channels
    np.testing.assert_allclose(
        tape.gradient(value, variable), a * scale + b + 2.0 * c * d, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("cap", [6.0, np.inf])
@pytest.mark.parametrize("far", [0.0, 20.0])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 64, 32, 6), (9, 7)])
def test_relu_and_sums_in_one_are_those_of_float64_numpy_forward_and_backward(shape, far, cap):
    rng = np.random.default_rng(3)
    x = (4.0 * rng.normal(size=shape) + 1.0).astype(np.float32)
    x.flat[:3] = 0.0, 6.0, -0.0  # at an edge the gradient is 0, as in TensorFlow
    shift = np.full(shape[-1], far, np.float32)
    weight = rng.normal(size=shape).astype(np.float32)
    by_sum, by_square = rng.normal(size=(2, shape[-1])).astype(np.float32)

    @tf.function
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, (total, squares, _) = relu_with_sums(x, shift=shift, cap=cap)
            value = tf.reduce_sum(weight * y)
            value += tf.reduce_sum(by_sum * total + by_square * squares)
        return y, total, squares, tape.gradient(value, x)

    y, total, squares, gradient = run(tf.constant(x))
    exact = x.astype(np.float64)
    d, axes = exact - far, tuple(range(len(shape) - 1))
    wanted = weight * ((exact > 0) & (exact < cap)) + by_sum + 2.0 * by_square * d
    np.testing.assert_array_equal(y, np.clip(x, 0.0, cap))
    np.testing.assert_allclose(total, d.sum(axes), rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(squares, (d**2).sum(axes), rtol=1e-5)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-4)


def test_relu_refuses_another_cap():
    with pytest.raises(ValueError, match="cap=4"):
        relu_with_sums(tf.zeros([1, 2]), shift=np.zeros(2, np.float32), cap=4.0)


def test_shift_is_left_out_only_where_no_channel_needs_it():
    near, far = np.float32([9.0, -9.0]), np.float32([0.0, 11.0])
    np.testing.assert_array_equal(safe_shift(near, variance=np.ones(2), epsilon=0.0), [0.0, 0.0])
    np.testing.assert_array_equal(safe_shift(far, variance=np.ones(2), epsilon=0.0), far)


def test_gradient_is_the_closed_form():
    """d mean / dx = 1/n and d M2 / dx = 2 (x - mean), from calculus, in float64."""
    x = activations((4, 6, 6, 3), mean=2.0)
    a, b = np.array([0.3, -1.0, 2.0]), np.array([1.0, 0.5, -0.2])
    with tf.GradientTape() as tape:
        variable = tf.constant(x)
        tape.watch(variable)
        got = channel_moments(variable, shift=np.full(3, 1.5, np.float32))
        value = tf.reduce_sum(a.astype(np.float32) * got.mean) + tf.reduce_sum(
            b.astype(np.float32) * got.m2
        )
    x64 = x.astype(np.float64)
    n = x64[..., 0].size
    np.testing.assert_allclose(
        tape.gradient(value, variable),
        a / n + 2.0 * b * (x64 - x64.mean((0, 1, 2))),
        rtol=1e-4,
        atol=1e-5,
    )


def test_gradient_equals_central_differences_of_float64_numpy():
    x = activations((3, 4, 2), mean=0.5)

    def value_of(array):
        n, mean, m2 = numpy_moments(array)
        return np.sum(mean**2) + np.sum(np.sqrt(m2 / n + 0.01))

    with tf.GradientTape() as tape:
        variable = tf.constant(x)
        tape.watch(variable)
        got = channel_moments(variable, shift=np.zeros(2, np.float32))
        value = tf.reduce_sum(got.mean**2) + tf.reduce_sum(tf.sqrt(got.variance + 0.01))
    gradient = tape.gradient(value, variable).numpy()
    x64, step = x.astype(np.float64), 1e-5
    for index in [(0, 0, 0), (1, 2, 1), (2, 3, 0)]:
        high, low = x64.copy(), x64.copy()
        high[index] += step
        low[index] -= step
        assert gradient[index] == pytest.approx(
            (value_of(high) - value_of(low)) / (2 * step), rel=1e-3, abs=1e-5
        )


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 5, 6, 2), -1), ((3, 2, 5, 6), 1), ((3, 7, 4), -1)]
)
def test_image_moments_are_those_of_each_image_alone(shape, axis):
    x = activations(shape, mean=1.0)
    mean, variance = image_moments(tf.constant(x), axis=axis)
    for i, image in enumerate(x):
        count, wanted, m2 = numpy_moments(image[None], axis)
        np.testing.assert_allclose(mean[i], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance[i], m2 / count, rtol=1e-5)


def test_image_moments_of_plain_vectors_have_no_variance():
    x = activations((3, 4))
    mean, variance = image_moments(tf.constant(x))
    np.testing.assert_array_equal(mean, x)
    assert not variance.numpy().any()
