"""Nearest-neighbour distances by hand; a leak must be seen, and unseen images must not be one."""

import numpy as np
import pytest

from benchmarks import privacy

RNG = np.random.default_rng(0)


def test_nearest_is_the_least_root_mean_square_by_hand():
    a, b = RNG.normal(size=(70, 5, 3)), RNG.normal(size=(90, 5, 3))
    differences = a[:, None] - b[None]
    expected = np.sqrt(np.mean(differences**2, axis=(2, 3))).min(axis=1)
    np.testing.assert_allclose(privacy.nearest(a, b), expected, atol=1e-9)


def test_brightness_and_contrast_hide_no_copy():
    images = RNG.uniform(0, 255, (6, 16, 16, 3))
    assert (
        privacy.nearest(privacy.normalized(images * 0.3 + 40), privacy.normalized(images)).max()
        < 1e-6
    )


def test_shifts_and_mirrors_hide_no_copy():
    images = RNG.uniform(0, 255, (6, 20, 20, 3))
    moved = np.roll(images, (2, -1), axis=(1, 2))[:, :, ::-1]
    plain = privacy.nearest(privacy.normalized(moved), privacy.normalized(images))
    assert privacy.shifted_nearest(moved, images).max() < 1e-6 < 1.0 < plain.min()


def test_a_leak_is_seen_and_fresh_images_are_not_one():
    training, unseen, fresh = (RNG.normal(size=(n, 16, 16, 1)) for n in (60, 40, 40))
    leak = training[:10] + RNG.normal(scale=0.1, size=(10, 16, 16, 1))
    others = {"unseen": unseen, "generated": fresh, "leak": leak}
    rows = privacy.compare(training, others)
    share = {(row["space"], row["kind"]): row["closer_than_unseen"] for row in rows}
    assert {space for space, _ in share} == set(privacy.SPACES)
    for space in privacy.SPACES:
        assert (
            share[space, "leak"] == 1.0
            and share[space, "generated"] < 0.2
            and share[space, "unseen"] == 0.0
        )
    # two independent standard normal images are sqrt(2) apart, the nearest of 60 a little less
    assert next(row["median"] for row in rows if row["kind"] == "unseen") == pytest.approx(
        2**0.5, rel=0.1
    )
    assert "100%" in privacy.table_of(rows)
