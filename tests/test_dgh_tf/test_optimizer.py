"""RAdam against float64 numpy written from the paper; the cosine and plateau schedules against
hand-worked values.
"""

import math

import numpy as np
import pytest
import tensorflow as tf

from dgh_tf.config import GenerationConfig
from dgh_tf.ops.radam import adaptive_rate, cosine, plateau, radam

BETA1, BETA2 = GenerationConfig.beta1, GenerationConfig.beta2
BETAS = {"beta1": BETA1, "beta2": BETA2}


def numpy_radam(gradients, *, rate, beta1, beta2):
    """Liu et al. 2020, algorithm 2, in float64, but steps whose variance is intractable do not move
    (ours skips them).
    """
    m = v = theta = np.zeros_like(gradients[0], dtype=np.float64)
    longest = 2.0 / (1.0 - beta2) - 1.0
    path = []
    for t, g in enumerate(np.asarray(gradients, np.float64), start=1):
        m = beta1 * m + (1.0 - beta1) * g
        v = beta2 * v + (1.0 - beta2) * g * g
        corrected = m / (1.0 - beta1**t)
        rho = longest - 2.0 * t * beta2**t / (1.0 - beta2**t)
        if rho > 5.0:  # the paper says 4; every published implementation waits for 5
            length = np.sqrt((1.0 - beta2**t) / v)
            r = math.sqrt(
                (rho - 4.0) * (rho - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * rho)
            )
            theta = theta - rate * r * corrected * length
        path.append(theta)
    return np.array(path)


def run_radam(gradients, *, rate, betas=BETAS):
    theta = first = second = tf.zeros(gradients[0].shape)
    path = []
    for step, gradient in enumerate(gradients):
        change, first, second = radam(
            tf.constant(gradient, tf.float32),
            first,
            second,
            step=tf.constant(step),
            rate=tf.constant(rate),
            **betas,
        )
        theta += change
        path.append(theta.numpy())
    return np.array(path)


@pytest.mark.parametrize(("beta1", "beta2"), [(BETA1, BETA2), (0.8, 0.98), (0.5, 0.9)])
def test_path_of_forty_steps_equals_the_paper_in_float64(beta1, beta2):
    gradients = np.random.default_rng(0).standard_normal((40, 5)) * np.array(
        [1e-3, 0.1, 1.0, 10.0, 1e3]
    )
    wanted = numpy_radam(gradients, rate=0.1, beta1=beta1, beta2=beta2)
    assert np.abs(wanted[-1]).max() > 0.01
    np.testing.assert_allclose(
        run_radam(gradients, rate=0.1, betas={"beta1": beta1, "beta2": beta2}),
        wanted,
        rtol=2e-3,
        atol=1e-5,
    )


def test_steps_before_the_rectification_fill_the_slots_but_do_not_move():
    path = run_radam(np.full((8, 1), 2.0), rate=0.1)
    moved = np.flatnonzero(path[:, 0])
    longest = 2.0 / (1.0 - BETA2) - 1.0
    first = next(t for t in range(1, 20) if longest - 2.0 * t * BETA2**t / (1.0 - BETA2**t) > 5.0)
    assert moved[0] == first - 1 > 0
    _, slot, square = radam(
        tf.constant([2.0]),
        tf.zeros(1),
        tf.zeros(1),
        step=tf.constant(0),
        rate=tf.constant(0.1),
        **BETAS,
    )
    np.testing.assert_allclose(
        [slot[0], square[0]], [2.0 * (1 - BETA1), 4.0 * (1 - BETA2)], rtol=1e-5
    )


def test_path_does_not_depend_on_the_unit_of_the_gradient():
    gradients = np.random.default_rng(1).standard_normal((20, 4))
    np.testing.assert_allclose(
        run_radam(gradients * 1e-6, rate=0.1), run_radam(gradients, rate=0.1), rtol=1e-3, atol=1e-6
    )


def test_zero_gradient_stays_put_and_finite():
    np.testing.assert_array_equal(run_radam(np.zeros((12, 3)), rate=0.1), 0.0)


def test_rectification_tends_to_one():
    assert float(adaptive_rate(tf.constant(5000.0), **BETAS)) == pytest.approx(1.0, abs=1e-3)


def test_cosine_goes_from_one_over_a_half_to_almost_zero():
    share = [float(cosine(tf.constant(step), steps=100)) for step in range(101)]
    assert (
        share[0] == 1.0
        and share[50] == pytest.approx(0.5, abs=1e-6)
        and share[100] == pytest.approx(0.0, abs=1e-6)
    )
    assert share[25] == pytest.approx(0.5 + math.sqrt(2.0) / 4.0, rel=1e-5)
    assert all(a > b for a, b in zip(share, share[1:], strict=False))


def test_plateau_halves_after_patience_steps_without_a_better_loss():
    state, scales = (1.0, math.inf, 0), []
    for loss in [1.0, 0.9, 0.9, 0.95, 0.9, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]:
        state = plateau(state, loss, patience=2)
        scales.append(state[0])
    # best 0.9 at index 1; the third step without a better one is index 4; best 0.5 at 5; thirds are
    # 8 and 11
    assert scales == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]


def test_plateau_waits_as_long_as_pytorchs_reduce_lr_on_plateau():
    """PyTorch: 'patience = 2 ignores the first 2 steps with no improvement and halves after the
    3rd' (its documentation).
    """
    state = (1.0, 1.0, 0)
    for wanted in (1.0, 1.0, 0.5):
        state = plateau(state, 1.0, patience=2)
        assert state[0] == wanted


def test_plateau_does_not_take_noise_for_progress():
    assert plateau((1.0, 1.0, 0), 1.0 - 5e-5, patience=5) == (1.0, 1.0, 1)
    assert plateau((1.0, 1.0, 0), 1.0 - 5e-4, patience=5) == (1.0, 1.0 - 5e-4, 0)
