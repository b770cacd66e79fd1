"""Some images of a set, and halves of it: from sets where every other image is of another kind."""

import numpy as np
import pytest

from dgh_tf.common import subsets
from tflite_export.calibration import check
from tflite_export.calibration.hold_out import hold_back, hold_out
from tflite_export.quality import accuracy_estimate


def test_an_even_number_of_places_takes_as_many_even_ones_as_odd_ones():
    for total in range(2, 300):
        for count in range(1, total + 2):
            places = subsets.spread(count, total=total)
            assert len(places) == min(count, total) and (np.diff(places) > 0).all()
            assert places[0] == 0 and places[-1] < total
            odd = (places % 2).sum()
            if count < total and count % 2 == 0:
                assert odd == count / 2, (count, total)
            elif count > 1:
                assert len(places) / 4 <= odd <= 3 * len(places) / 4, (count, total)


def test_places_are_evenly_spread():
    for count, total in ((128, 256), (64, 1000), (32, 187), (7, 10)):
        places = subsets.spread(count, total=total)
        steps = np.diff([*places, total])
        assert steps.max() - min(steps[:-1]) <= 2


@pytest.mark.parametrize("count", range(2, 40))
def test_halves_part_a_set_and_share_even_and_odd_places(count):
    one, two = subsets.halves(count)
    assert sorted([*one, *two]) == list(range(count)) and abs(len(one) - len(two)) <= 1
    for half in (one, two):
        if count >= 4:
            assert 0 < (half % 2).sum() < len(half)


@pytest.mark.parametrize("count", [64, 128, 187, 250, 256, 512])
def test_what_takes_some_images_of_a_set_takes_both_kinds(count):
    """Every other image is 1, the others are 0. Even strides took one kind alone, or nearly: 127
    zeros of 256 images.
    """
    images = (np.arange(count) % 2).astype(np.float32)[:, None]
    few = check.few_images({"x": images})["x"]
    rest, held = hold_back({"x": images}, smallest=16)
    calibrating, judging = hold_out(images[: count - 1], 32)
    for part in (few, rest["x"], held["x"], calibrating, judging):
        assert part.mean() == pytest.approx(0.5, abs=0.02)


def test_the_ranges_of_halves_do_not_tell_two_kinds_apart():
    """Every other image reaches ten times as far. Even and odd ones as halves differed by 0.9, so
    that --num_images=auto grew such sets to the end.
    """
    high = np.array([1.0, 10.0] * 8)[:, None]
    assert accuracy_estimate.range_change(0 * high, high).tolist() == [0.0]
