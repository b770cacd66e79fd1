"""The agreement to expect, by hand and against simulated files."""

import math

import numpy as np
import pytest

from tflite_export.quality import agreement
from tflite_export.quality.agreement import (
    PLAIN,
    RULES,
    STRETCHED,
    SURE,
    Features,
    Rule,
    agreement_of_correlation,
    capped,
    features_of,
    lost_beyond_noise,
    predict,
)

RULE = Rule(1.0, 2.0, 0.5, -0.25, 0.1, 0.2, 0.05)


def shown(expected=0.9, *, margin=1.6, spread=3.0, lost=0):
    return Features(expected, 0.1, margin, spread, lost, 32)


def test_features_by_hand():
    """Logits (0, 0, 3) with the errors (4, -4, 0), (0.5, -0.5, 0) and (1, -1, 0): standard
    deviations 0.816 of 1.414 for the median one. The first loses its class to noise. One more is
    flat, and has no part in what is expected.
    """
    logits = np.tile([0.0, 0.0, 3.0], (3, 1))
    error = np.array([[4.0, -4.0, 0.0], [0.5, -0.5, 0.0], [1.0, -1.0, 0.0]])
    found = features_of(logits, logits + error)
    assert found.noise == pytest.approx((2 / 3) ** 0.5 / 2**0.5)
    assert (found.lost, found.images) == (0, 3)
    assert (found.spread, found.margin) == pytest.approx((2**0.5, 3 / 2**0.5))
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(logits, logits + error, strict=True)]
    wanted = agreement_of_correlation(np.array(alike), classes=3).mean()
    assert found.expected == pytest.approx(wanted)
    flat = np.concatenate([logits, 1e-3 * logits[:1]])
    noisy = features_of(flat, flat + np.concatenate([error, error[:1]]))
    assert noisy.expected == pytest.approx(wanted) and noisy.images == 3
    assert features_of(logits, logits).expected == 1.0


def test_rule_by_hand():
    line = shown(0.9)
    for statistics, without in ((True, 0.0), (False, 0.25)):
        odds = RULE.odds(line, margin=2.0, statistics=statistics)
        assert odds == pytest.approx(1.0 + 2.0 * np.log(9.0) + 0.5 * np.log(2.0) - without)
    low, high = RULE.band(0.5)  # arcsin of the root of 1/2 is 45 degrees
    assert (low, high) == pytest.approx(
        (np.sin(np.pi / 4 - 0.1) ** 2, np.sin(np.pi / 4 + 0.2) ** 2)
    )
    low, high = RULE.band(0.96)
    assert (low, high) == pytest.approx((np.sin(np.arcsin(0.96**0.5) - 0.05) ** 2, 1.0))
    assert RULE.band(0.0)[0] == 0.0 and RULE.band(0.001)[0] == 0.0


def test_plain_images_give_the_line_stretched_ones_the_margin_and_seeds_are_pooled(monkeypatch):
    monkeypatch.setitem(agreement.RULES, PLAIN, RULE)
    told = predict(
        {
            "stretched": shown(0.99, margin=2.0, spread=9.0),
            "unstretched, seed 1": shown(0.7, margin=0.1),
            "unstretched, seed 2": shown(0.8, margin=0.1),
        },
        statistics=True,
    )
    wanted = RULE.odds(shown(0.75), margin=2.0, statistics=True)
    assert told.agreement == pytest.approx(1 / (1 + math.exp(-wanted)))
    assert told.low < told.agreement < told.high


@pytest.mark.parametrize("kind", ["stretched", "calibration"])
def test_images_that_flatter_have_a_rule_of_their_own(monkeypatch, kind):
    monkeypatch.setitem(agreement.RULES, STRETCHED, RULE)
    told = predict({kind: shown(0.7, margin=2.0)}, statistics=True).agreement
    wanted = RULE.odds(shown(0.7), margin=2.0, statistics=True)
    assert told == pytest.approx(1 / (1 + math.exp(-wanted)))
    assert predict({"given": shown(0.7)}, statistics=True).agreement != pytest.approx(told)


@pytest.mark.parametrize("kind", RULES)
def test_fitted_rules_are_of_the_right_sign(kind):
    rule = RULES[kind]
    assert rule.expected > 0 and rule.margin > 0 and rule.without <= 0
    assert 0 < rule.below_sure < rule.below  # little is lost: little is missed
    told = [predict({kind: shown(expected)}, statistics=True) for expected in (0.99, 0.9, 0.6)]
    assert told[0].agreement > told[1].agreement > told[2].agreement
    assert told[0].agreement > SURE and told[0].high - told[0].low < 0.1
    assert predict({kind: shown(1.0)}, statistics=True).low > 0.95


def test_a_class_is_lost_beyond_noise_where_its_margin_is_wider_than_the_others_noise():
    """By hand: the other logits' errors are -0.1 and 0.1, so differences of two have a noise of
    0.1 * sqrt(2). A margin of 0.4 is turned by that noise, one of 0.5 is not.
    """
    reference = np.array([[0.0, 0.0, 3.0]] * 4)
    error = np.array([[-0.1, 0.1, 0.0]] * 4)
    reference[:2, 1] = [2.6, 2.5]
    error[:3, 2] = [-0.4, -0.5, -4.0]
    lost = lost_beyond_noise(reference, reference + error)
    assert lost.tolist() == [False, True, True, False]


def test_noise_alone_loses_next_to_no_class_beyond_it():
    """Normal errors as large as the logits turn many of 4000 images; those that lose a class by
    three deviations of their own noise are few, however many classes there are.
    """
    rng = np.random.default_rng(0)
    for classes in (4, 10, 100):
        logits, error = rng.normal(size=(2, 4000, classes))
        turned = np.mean(logits.argmax(axis=1) != (logits + error).argmax(axis=1))
        assert turned > 0.4 and lost_beyond_noise(logits, logits + error).mean() < 0.03


@pytest.mark.parametrize(
    ("kept", "told"), [(30, 0.97), (29, 0.97), (28, 28.5 / 33), (10, 10.5 / 33)]
)
def test_only_a_significant_count_lowers_the_prediction(kept, told):
    """Two flips of 32 where 0.97 is expected are chance, four are not: against scipy's binomial."""
    from scipy.stats import binom

    odds = capped(np.log(0.97 / 0.03), shown(lost=32 - kept))
    assert 1 / (1 + np.exp(-odds)) == pytest.approx(told)
    assert (binom.cdf(kept, 32, 0.97) >= 0.05) == (told == 0.97)


def test_logits_cut_off_at_the_top_are_told_by_counting_where_they_are_widest():
    """By hand: of 100 classes the three highest logits are cut to one value. They still correlate
    to 0.93, and the class is lost on stretched images, where argmax takes the first of equal ones.
    """
    row = np.linspace(-1.0, 1.0, 100)
    row[-3:] = [3.0, 4.0, 5.0]
    rows = np.stack([np.roll(row, 3 * place) for place in range(32)])
    wide, plain = features_of(rows, np.minimum(rows, 3.0)), features_of(rows / 4, rows / 4)
    assert wide.expected > 0.75 and wide.lost == 32
    assert predict({PLAIN: plain}, statistics=True).agreement > 0.9
    assert predict({"stretched": wide, PLAIN: plain}, statistics=True).agreement < 0.05


def test_images_in_doubt_that_noise_turns_cap_nothing():
    """Stretched logits of which four of 32 are near ties, on an otherwise good file."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(32, 10))
    logits[np.arange(32), np.arange(32) % 10] = 6.0
    logits[:4, 9] = 5.99
    noisy = logits + 0.05 * rng.normal(size=logits.shape)
    noisy[:4, 9] += 0.1
    wide = features_of(logits, noisy)
    assert (logits.argmax(axis=1) != noisy.argmax(axis=1)).sum() >= 3 and wide.lost == 0
    kinds = {PLAIN: features_of(logits / 4, noisy / 4), STRETCHED: wide}
    assert predict(kinds, statistics=True).agreement > SURE


def test_logits_that_all_images_share_tell_nothing_of_what_differs():
    """Two classes stand high on every image; which of them is higher is all that differs, and half
    of it is noise. The whole logits still correlate to 0.99.
    """
    rng = np.random.default_rng(2)
    logits = np.array([5.0, 5.0, 0.0, -2.0, -7.0]) + 0.4 * rng.normal(size=(64, 5))
    found = logits + 0.4 * rng.normal(size=logits.shape)
    assert np.mean(agreement.logit_correlations(logits, found)) > 0.98
    kept = np.mean(logits.argmax(axis=1) == found.argmax(axis=1))
    told = predict({PLAIN: features_of(logits, found)}, statistics=True)
    assert kept < 0.85 and told.agreement < 0.85
    # of logits that differ, or of too few to know, nothing is taken off
    for each in (rng.normal(size=(64, 5)), logits[:3]):
        assert not agreement.common_logits(each).any()
