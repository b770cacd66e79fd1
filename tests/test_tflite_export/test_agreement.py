"""The agreement to expect, by hand and against simulated files."""

import numpy as np
import pytest

from tflite_export.quality import agreement
from tflite_export.quality.agreement import (
    PLAIN,
    RULES,
    Features,
    Rule,
    capped,
    features_of,
    predict,
)

RULE = Rule(1.0, -2.0, 0.5, -0.25, 0.1, 0.2, 0.3, 0.4)


def test_features_by_hand():
    """Errors (1, -1, 0) of logits (0, 0, 3) and half of that of another image: standard deviations
    0.816 of 1.414. The second keeps its class, the first does not.
    """
    logits = np.array([[0.0, 0.0, 3.0], [0.0, 0.0, 3.0], [0.0, 0.0, 3.0]])
    error = np.array([[4.0, -4.0, 0.0], [0.5, -0.5, 0.0], [1.0, -1.0, 0.0]])
    found = features_of(logits, logits + error)
    assert found.noise == pytest.approx((2 / 3) ** 0.5 / 2**0.5)  # the median image's
    assert (found.kept, found.images) == (2, 3)
    assert found.spread == pytest.approx(2**0.5)
    assert features_of(logits, logits).noise == 0.0


def test_rule_by_hand():
    features = Features(noise=0.097, spread=3.0, kept=30, images=32)
    for statistics, without in ((True, 0.0), (False, 0.25)):
        odds = RULE.odds(features, statistics=statistics)
        assert odds == pytest.approx(1.0 - 2.0 * np.log(0.1) + 0.5 * np.log(3.0) - without)
    low, high = RULE.band(2.0, statistics=True)
    assert np.log([low / (1 - low), high / (1 - high)]) == pytest.approx([1.9, 2.2])
    low, high = RULE.band(2.0, statistics=False)
    assert np.log([low / (1 - low), high / (1 - high)]) == pytest.approx([1.7, 2.4])


def test_plain_images_alone_decide_and_seeds_are_pooled(monkeypatch):
    monkeypatch.setitem(agreement.RULES, PLAIN, RULE)
    first, second = Features(0.1, 2.0, 30, 32), Features(0.3, 4.0, 20, 32)
    stretched = Features(0.9, 9.0, 32, 32)  # as sure as a model is of these
    told = predict(
        {"stretched": stretched, "unstretched, seed 1": first, "unstretched, seed 2": second},
        statistics=True,
    )
    wanted = RULE.odds(Features(0.2, 3.0, 50, 64), statistics=True)
    assert told.agreement == pytest.approx(1 / (1 + np.exp(-wanted)))
    assert told.low < told.agreement < told.high


@pytest.mark.parametrize("kind", RULES)
def test_fitted_rules_are_of_the_right_sign(kind):
    """More noise and narrower logits never raise the agreement; the band is no narrower without
    statistics, and narrow where little is lost.
    """
    rule = RULES[kind]
    assert rule.noise < 0 < rule.spread
    assert rule.below <= rule.below_without and rule.above <= rule.above_without
    told = [
        predict({kind: Features(noise, 3.0, 32, 32)}, statistics=True) for noise in (0.01, 0.1, 0.5)
    ]
    assert told[0].agreement > told[1].agreement > told[2].agreement
    assert told[0].high - told[0].low < 0.05 < told[2].high - told[2].low


def test_no_noise_is_told_as_nearly_certain():
    exact = Features(0.0, 3.0, 32, 32)
    assert predict({PLAIN: exact}, statistics=True).low > 0.97


@pytest.mark.parametrize(
    ("kept", "told"), [(30, 0.97), (29, 0.97), (28, 28.5 / 33), (10, 10.5 / 33)]
)
def test_only_a_significant_count_lowers_the_prediction(kept, told):
    """Two flips of 32 where 0.97 is expected are chance, four are not: against scipy's binomial."""
    from scipy.stats import binom

    odds = capped(np.log(0.97 / 0.03), Features(0.1, 9.0, kept, 32))
    assert 1 / (1 + np.exp(-odds)) == pytest.approx(told)
    assert (binom.cdf(kept, 32, 0.97) >= 0.05) == (told == 0.97)


def test_logits_cut_off_at_the_top_are_told_by_counting_where_they_are_widest():
    """By hand: of 100 classes the three highest logits are cut to one value. The noise stays below
    a third, and the class is lost on stretched images, where argmax takes the first of equal ones.
    """
    rows = np.tile(np.linspace(-1.0, 1.0, 100), (32, 1))
    rows[:, -3:] = [[3.0, 4.0, 5.0]]
    wide, plain = features_of(rows, np.minimum(rows, 3.0)), features_of(rows / 4, rows / 4.1)
    assert wide.noise < 1 / 3 and wide.kept == 0
    assert predict({PLAIN: plain}, statistics=True).agreement > 0.9
    told = predict({"stretched": wide, PLAIN: plain}, statistics=True)
    assert told.agreement < 0.05 and told.high < 0.1
