"""The agreement to expect, by hand and against simulated files."""

import math

import numpy as np
import pytest

from tflite_export.quality.agreement import (
    BOTH,
    PLAIN,
    REAL,
    RULES,
    STRETCHED,
    SURE,
    Features,
    Rule,
    capped,
    common_logits,
    differ,
    expected,
    features_of,
    logit_correlations,
    lost_beyond_noise,
    normal_agreement,
    of_kinds,
    predict,
)

RULE = Rule(1.0, 2.0, 0.1, 0.2, 0.05)


def shown(noise=0.1, *, margin=0.5, spread=3.0, lost=0, classes=10, across=0.3):
    return Features(noise, margin, spread, classes, lost, 32, across)


def test_features_by_hand():
    """Logits (0, 0, 3) with the errors (4, -4, 0), (0.5, -0.5, 0) and (1, -1, 0): across the
    logits' own direction they are 4, 0.5 and 1 times sqrt(2), along it the file keeps sqrt(6). The
    first loses its class to noise. One more is flat, and has no part in anything.
    """
    logits = np.tile([0.0, 0.0, 3.0], (3, 1))
    error = np.array([[4.0, -4.0, 0.0], [0.5, -0.5, 0.0], [1.0, -1.0, 0.0]])
    for flat in (logits[:0], 1e-3 * logits[:1]):
        found = features_of(
            np.concatenate([logits, flat]),
            np.concatenate([logits + error, flat + error[: len(flat)]]),
        )
        angles = np.arctan(np.array([4, 0.5, 1]) / 3**0.5)
        assert found.noise == pytest.approx(np.tan(np.mean(angles)))
        assert (found.spread, found.margin) == pytest.approx((2**0.5, 3 / 2**0.5))
        assert (found.lost, found.images, found.classes) == (0, 3, 3)
        # the squares 2 * (16 + 0.25 + 1) over three images and classes
        assert found.across == pytest.approx((34.5 / 9) ** 0.5)
    assert features_of(logits, logits).noise == pytest.approx(0.01)  # the least that is told apart


def test_the_noise_of_two_classes_is_seen_across_the_images():
    """Over two classes any two rows correlate to 1 or -1. By theory (Sheppard 1899) normal values
    with half their noise keep their sign with 1 - arctan(1 / 2) / pi.
    """
    rng = np.random.default_rng(0)
    logits, error = rng.normal(size=(2, 4000, 2))
    found = features_of(logits, logits + 0.5 * error)
    assert found.noise == pytest.approx(0.5, abs=0.03)
    # each of the two classes has half of the difference's error
    assert found.across == pytest.approx(0.5 / 2**0.5, abs=0.02)
    assert found.width == pytest.approx(1.0, abs=0.05)
    assert expected({REAL: found}) == pytest.approx(1 - math.atan(0.5) / math.pi, abs=0.01)
    assert predict({PLAIN: found}).agreement < SURE


def test_few_ruined_images_are_no_small_noise():
    """Three of ten images give another class, all others are exact. The mean of the logarithms of
    such noise would be that of a fine file.
    """
    logits = np.eye(4)[np.arange(10) % 4]
    found = np.concatenate([logits[:7], np.roll(logits[7:], 1, axis=1)])
    for kind in (PLAIN, STRETCHED):
        assert predict({kind: features_of(logits, found)}).agreement < 0.93


@pytest.mark.parametrize("classes", [3, 10, 300])
def test_normal_logits_keep_their_class_as_often_as_is_expected(classes):
    """Against drawing them: margins as they come, and all of them twice as wide."""
    rng = np.random.default_rng(1)
    logits, error = rng.normal(size=(2, 3000, classes))
    found = features_of(logits, logits + 0.3 * error)
    kept = np.mean(logits.argmax(axis=1) == (logits + 0.3 * error).argmax(axis=1))
    assert found.width == pytest.approx(1.0, abs=0.1)
    assert expected({REAL: found}) == pytest.approx(kept, abs=0.03)
    wide = normal_agreement(0.3, width=2.0, classes=classes)
    assert wide == normal_agreement(0.15, width=1.0, classes=classes) > kept


def test_real_inputs_lie_between_plain_and_stretched_images():
    """By hand: noises of 0.2 and 0.05 are 0.1, margins of 1 and 4 times the usual are 2. Where a
    kind is missing, the usual margin stands for it; real images have their own.
    """
    usual = shown(classes=1000).margin / shown(classes=1000).width
    plain = shown(0.2, margin=usual, classes=1000)
    wide = shown(0.05, margin=4 * usual, classes=1000)

    def told(noise, width):  # of so many classes, the noise that is found is the noise
        return pytest.approx(normal_agreement(noise, width=width, classes=1000), abs=1e-3)

    assert expected({PLAIN: plain, STRETCHED: wide}) == told(0.1, 2.0)
    assert expected({STRETCHED: wide}) == told(0.05, 2.0)
    assert expected({PLAIN: plain}) == told(0.2, 1.0)
    assert expected({REAL: wide}) == told(0.05, 4.0)


@pytest.mark.parametrize(
    ("across", "counted"),
    [
        (0.2, 0.08),  # less than plain images have: as it is
        (0.3, 0.08),  # the same steps of rounding
        (1.2, 0.02),  # four times as much: values are cut off that plain images do not have
    ],
)
def test_stretched_images_count_with_no_more_noise_across_than_plain_ones_have(across, counted):
    usual = shown(classes=1000).margin / shown(classes=1000).width
    found = {
        PLAIN: shown(0.1, margin=usual, classes=1000, across=0.3),
        STRETCHED: shown(0.08, margin=usual, classes=1000, across=across),
    }
    want = normal_agreement((0.1 * counted) ** 0.5, width=1.0, classes=1000)
    assert expected(found) == pytest.approx(want, abs=1e-3)
    alone = normal_agreement(0.08, width=1.0, classes=1000)  # without plain images, as it is
    assert expected({STRETCHED: found[STRETCHED]}) == pytest.approx(alone, abs=1e-3)


def test_a_range_that_stretched_images_alone_exceed_counts_for_little():
    """The same noise on plain logits and on such that are four times as wide, whose highest are cut
    at 5: about as good a file for real inputs as one that cuts nothing.
    """
    rng = np.random.default_rng(4)
    logits, error = rng.normal(size=(2, 64, 10))
    error *= 0.05
    plain = features_of(logits, logits + error)
    whole = features_of(4 * logits, 4 * logits + error)
    cut = features_of(4 * logits, np.clip(4 * logits, -5.0, 5.0) + error)
    assert cut.noise > 5 * whole.noise
    told = [expected({PLAIN: plain, STRETCHED: each}) for each in (whole, cut)]
    assert told[0] - told[1] < 0.005
    assert expected({STRETCHED: whole}) - expected({STRETCHED: cut}) > 0.04


def test_seeds_are_pooled_and_other_images_are_taken_for_stretched_ones():
    found = of_kinds(
        {
            "unstretched, seed 1": shown(0.1, margin=0.2, lost=1),
            "given, DIR": shown(0.3),
            "unstretched, seed 2": shown(0.4, margin=0.8, lost=2),
        }
    )
    assert found[STRETCHED].noise == pytest.approx(0.3) and set(found) == {PLAIN, STRETCHED}
    pooled = found[PLAIN]
    assert (pooled.noise, pooled.margin) == pytest.approx((0.2, 0.4))
    assert (pooled.lost, pooled.images) == (3, 64)
    assert set(of_kinds({"calibration": shown()})) == {STRETCHED}
    assert set(of_kinds({"real": shown()})) == {REAL}


def test_images_differ_by_what_is_left_of_the_mean_image():
    """By hand: logits (1, -1) and (1 + d, -1 - d) vary by d / 2 around the mean image and by about
    1 over the classes: 1.2 % of it is something, 0.8 % is not. A shift of all logits is no
    difference.
    """
    for step, known in ((0.024, True), (0.016, False), (0.0, False)):
        logits = np.array([[1.0, -1.0], [1.0 + step, -1.0 - step]])
        assert differ(logits) == differ(logits + [[0.0], [7.0]]) == known
    assert differ(np.array([[1.0, -1.0]])) and not differ(np.zeros((4, 3)))


def test_rule_by_hand():
    assert RULE.odds(0.9) == pytest.approx(1.0 + 2.0 * np.log(9.0))
    assert RULE.odds(1.0) == RULE.odds(0.99)  # more is told by no 32 images
    low, high = RULE.band(0.5)  # arcsin of the root of 1/2 is 45 degrees
    assert (low, high) == pytest.approx(
        (np.sin(np.pi / 4 - 0.1) ** 2, np.sin(np.pi / 4 + 0.2) ** 2)
    )
    low, high = RULE.band(0.96)
    assert (low, high) == pytest.approx((np.sin(np.arcsin(0.96**0.5) - 0.05) ** 2, 1.0))
    assert RULE.band(0.0)[0] == 0.0 and RULE.band(0.001)[0] == 0.0


def test_nothing_bounds_models_without_statistics_above():
    kinds = {PLAIN: shown(0.5), STRETCHED: shown(0.5)}
    with_them, without = (predict(kinds, statistics=known) for known in (True, False))
    assert with_them.agreement == without.agreement < SURE and with_them.low == without.low
    assert with_them.high < without.high == 1.0


@pytest.mark.parametrize(
    ("kinds", "rule"),
    [
        ({PLAIN, STRETCHED}, BOTH),
        ({PLAIN}, PLAIN),
        ({STRETCHED}, STRETCHED),
        ({"calibration"}, STRETCHED),
        ({REAL}, REAL),
    ],
)
def test_every_set_of_kinds_has_a_fitted_rule_of_its_own(kinds, rule):
    rows = [{kind: shown(noise) for kind in kinds} for noise in (0.01, 0.1, 0.5)]
    told = [predict(row) for row in rows]
    for row, each in zip(rows, told, strict=True):
        odds = RULES[rule].odds(expected(of_kinds(row)))
        assert each.agreement == pytest.approx(1 / (1 + math.exp(-odds)))
        assert each.low < each.agreement < each.high
    assert told[0].agreement > SURE and told[0].high - told[0].low < 0.11
    assert told[0].agreement > told[1].agreement > told[2].agreement
    assert RULES[rule].slope > 0
    assert 0 < RULES[rule].below_sure < RULES[rule].below  # little is lost: little is missed


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


def test_counts_of_many_images_are_no_trouble():
    """A binomial coefficient of 4000 is more than a float holds."""
    assert capped(3.0, Features(0.1, 0.5, 3.0, 10, 1000, 4000, 0.3)) == pytest.approx(
        math.log(3.0), abs=0.1
    )


@pytest.mark.parametrize("kept", [32, 31, 30, 28, 10, 0])
def test_a_prediction_is_no_more_than_a_count_allows(kept):
    """Against the bound of Clopper and Pearson: the share that leaves so few once in ten times."""
    from scipy.stats import beta

    bound = beta.ppf(1 - 0.1, kept + 1, 32 - kept) if kept < 32 else 1.0
    for told in (0.97, 0.2):
        odds = capped(np.log(told / (1 - told)), shown(lost=32 - kept))
        assert 1 / (1 + np.exp(-odds)) == pytest.approx(min(told, bound), abs=1e-4)


def test_logits_cut_off_at_the_top_are_told_by_counting_where_they_are_widest():
    """By hand: of 100 classes the three highest logits are cut to one value. They still correlate
    to 0.93, and the class is lost on stretched images, where argmax takes the first of equal ones.
    """
    row = np.linspace(-1.0, 1.0, 100)
    row[-3:] = [3.0, 4.0, 5.0]
    rows = np.stack([np.roll(row, 3 * place) for place in range(32)])
    wide, plain = features_of(rows, np.minimum(rows, 3.0)), features_of(rows / 4, rows / 4)
    assert wide.noise < 0.5 and wide.lost == 32
    assert predict({PLAIN: plain}).agreement > 0.9
    assert predict({STRETCHED: wide, PLAIN: plain}).agreement < 0.1


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
    assert predict(kinds).agreement > SURE


def test_logits_that_all_images_share_tell_nothing_of_what_differs():
    """Two classes stand high on every image; which of them is higher is all that differs, and half
    of it is noise. The whole logits still correlate to 0.99.
    """
    rng = np.random.default_rng(2)
    logits = np.array([5.0, 5.0, 0.0, -2.0, -7.0]) + 0.4 * rng.normal(size=(64, 5))
    found = logits + 0.4 * rng.normal(size=logits.shape)
    assert np.mean(logit_correlations(logits, found)) > 0.98
    kept = np.mean(logits.argmax(axis=1) == found.argmax(axis=1))
    told = predict({PLAIN: features_of(logits, found)})
    assert kept < 0.85 and told.agreement < 0.85
    # one class high on every image: no more is told of it, for no real input need be like these
    logits[:, 0] += 20.0
    found[:, 0] += 20.0
    shared = features_of(logits, found)
    assert shared.width == pytest.approx(1.0) and shared.spread < 1.0
    assert predict({PLAIN: shared}).agreement < 0.85
    # of logits that differ, or of too few to know, nothing is taken off
    for each in (rng.normal(size=(64, 5)), logits[:3]):
        assert not common_logits(each).any()
