"""Metrics against values worked by hand and against scikit-learn."""

import math

import numpy as np
import pytest
import sklearn.metrics

from benchmarks.measure import metrics

RNG = np.random.default_rng(3)
REFERENCE = RNG.normal(size=(200, 7)).astype(np.float32)
OUTPUTS = REFERENCE + RNG.normal(scale=0.7, size=REFERENCE.shape).astype(np.float32)
LABELS = RNG.integers(0, 7, size=200)


def test_top1_equals_scikit_learns():
    assert metrics.top1(OUTPUTS, LABELS) == pytest.approx(
        sklearn.metrics.top_k_accuracy_score(LABELS, OUTPUTS, k=1)
    )


def test_agreement_equals_scikit_learns_accuracy_of_the_choices():
    expected = sklearn.metrics.accuracy_score(REFERENCE.argmax(1), OUTPUTS.argmax(1))
    assert 0.1 < expected < 0.95
    assert metrics.agreement(REFERENCE, OUTPUTS) == pytest.approx(expected)


def test_mse_equals_scikit_learns():
    expected = sklearn.metrics.mean_squared_error(
        REFERENCE.astype(np.float64), OUTPUTS.astype(np.float64)
    )
    assert metrics.mse(REFERENCE, OUTPUTS) == pytest.approx(expected, rel=1e-12)


def test_mse_is_summed_in_float64():
    # By hand: every error is 1e-3 beside values of 4096; 4096 + 1e-3 in float32 is off by 5 %, so
    # give float64 outputs.
    reference = np.full((1000, 1000), 4096.0, np.float32)
    assert metrics.mse(reference, reference.astype(np.float64) + 1e-3) == pytest.approx(
        1e-6, rel=1e-6
    )


def test_sqnr_by_hand():
    # Signal 3^2 + 4^2 = 25, noise 0.5^2 = 0.25: 10 log10(100) = 20 dB.
    assert metrics.sqnr_db([[3.0, 4.0]], [[3.5, 4.0]]) == pytest.approx(20.0)
    assert metrics.sqnr_db([[3.0, 4.0]], [[3.0, 4.0]]) == math.inf
    assert metrics.sqnr_db([[0.0, 0.0]], [[0.0, 1.0]]) == -math.inf


def test_sqnr_of_uniform_rounding_is_the_textbook_value():
    # Uniform signal over b bits: 6.02 b dB (Bennett 1948). 8 bits: 48.16 dB.
    signal = RNG.uniform(-1, 1, size=(1000, 100))
    step = 2.0 / 256
    assert metrics.sqnr_db(signal, (np.floor(signal / step) + 0.5) * step) == pytest.approx(
        48.16, abs=0.05
    )


def test_spread_by_hand():
    assert metrics.spread([[1.0, 4.0, 2.0], [-1.0, 0.0, 0.0]]) == pytest.approx((3.0 + 1.0) / 2)


def test_range_coverage_and_ratio_by_hand():
    real = [[0.0, 4.0], [-1.0, 1.0], [0.0, 1.0], [2.0, 2.0], [2.0, 2.0]]
    other = [[0.0, 2.0], [-4.0, 4.0], [2.0, 3.0], [0.0, 5.0], [3.0, 5.0]]
    np.testing.assert_allclose(metrics.range_coverage(real, other), [0.5, 1.0, 0.0, 1.0, 0.0])
    np.testing.assert_allclose(metrics.range_ratio(real, other), [0.5, 4.0, 1.0, np.nan, np.nan])


@pytest.mark.parametrize("metric", [metrics.agreement, metrics.mse, metrics.sqnr_db])
def test_outputs_of_another_shape_are_refused_and_not_broadcast(metric):
    with pytest.raises(ValueError, match="same, non-empty set"):
        metric(np.zeros((4, 3)), np.zeros((1, 3)))


def test_top1_refuses_as_many_labels_as_it_has_no_scores_for():
    with pytest.raises(ValueError, match="as many labels"):
        metrics.top1(np.zeros((4, 3)), np.zeros(3, int))


def test_ranges_upside_down_are_refused():
    with pytest.raises(ValueError, match="low <= high"):
        metrics.range_ratio([[0.0, 1.0]], [[1.0, 0.0]])
