"""From canvas to model input: smoothing against scipy, real crops and flips, the straight-through
clip, start images, ranges.
"""

import tracemalloc

import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

from dgh_tf.ops.canvas import (
    SMOOTHING_SIGMA,
    Layout,
    augment,
    choose_layout,
    finish,
    first_discs,
    smooth,
    start_canvas,
    to_model,
)

LAYOUT = choose_layout((24, 32, 3))


def noise(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gaussian_kernel(sigma=SMOOTHING_SIGMA):
    """The 3x3 Gaussian of the references, float64, normalized."""
    taps = np.exp(-0.5 * (np.arange(-1, 2) / sigma) ** 2)
    return np.outer(taps, taps) / taps.sum() ** 2


# ---- layouts
# ------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "padding", "flip"),
    [
        ((224, 224, 3), 16, True),
        ((96, 96, 1), 6, False),
        ((32, 32, 3), 2, True),
        ((16, 640, 3), 2, True),
    ],
)
def test_photographs_get_a_larger_canvas_and_only_coloured_ones_are_mirrored(shape, padding, flip):
    layout = choose_layout(shape)
    assert (layout.shape, layout.padding, layout.flip) == (shape, padding, flip)
    assert layout.smoothing == pytest.approx(
        1.25 * min(1.0, min(shape[:2]) / 96)
    )  # as the references from 96 pixels on
    assert layout.canvas_shape == (
        shape[0] + padding + 2,
        shape[1] + padding + 2,
        shape[2],
    )  # a ring that only smoothing reads


@pytest.mark.parametrize(
    "shape", [(10,), (64, 2), (49, 10, 1), (8, 8, 3), (32, 32, 12), (4, 32, 32, 3)]
)
def test_what_is_no_image_is_drawn_as_it_is(shape):
    layout = choose_layout(shape)
    assert (layout.padding, layout.smoothing, layout.flip, layout.canvas_shape) == (
        0,
        0.0,
        False,
        shape,
    )
    canvas = tf.constant(noise((2, *shape)) * 0.2)
    np.testing.assert_array_equal(augment(canvas, layout, seed=tf.constant([0, 1])), canvas)
    np.testing.assert_array_equal(finish(canvas, layout), canvas)


def test_augment_off_and_flip_say_what_they_do():
    assert choose_layout((32, 32, 3), augment=False) == Layout((32, 32, 3), 0, 0.0, False)
    assert choose_layout((32, 32, 3), flip="off").flip is False
    assert choose_layout((32, 32, 1), flip="on").flip is True


def test_small_images_are_smoothed_more_where_no_statistics_hold_them():
    found = [choose_layout((32, 32, 3), statistics=known).smoothing for known in (True, False)]
    np.testing.assert_allclose(found, [1.25 * 32 / 96, 1.25 * 32 / 64])
    large = [choose_layout((224, 224, 3), statistics=known).smoothing for known in (True, False)]
    assert large == [1.25, 1.25]


# ---- smoothing
# ------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.25, 0.4])
def test_smoothing_equals_scipys_convolution_without_its_outer_ring(sigma):
    images = noise((2, 9, 12, 3))
    wanted = scipy.ndimage.convolve(
        images.astype(np.float64), gaussian_kernel(sigma)[None, :, :, None]
    )[:, 1:-1, 1:-1]
    np.testing.assert_allclose(smooth(tf.constant(images), sigma=sigma), wanted, atol=1e-6)


def test_one_bright_pixel_spreads_into_the_symmetric_kernel():
    image = np.zeros((1, 7, 7, 1), np.float32)
    image[0, 3, 3] = 1.0
    spread = smooth(tf.constant(image), sigma=SMOOTHING_SIGMA).numpy()[0, 1:4, 1:4, 0]
    np.testing.assert_allclose(spread, gaussian_kernel(), atol=1e-7)
    np.testing.assert_allclose(
        spread, spread[::-1, ::-1], atol=1e-8
    )  # a lopsided kernel shifts images step by step


def test_smoothing_keeps_a_flat_image():
    np.testing.assert_allclose(
        smooth(tf.fill([1, 8, 8, 3], 0.7), sigma=SMOOTHING_SIGMA), 0.7, rtol=1e-6
    )


# ---- gradient and clip
# ------------------------------------------------------------


@pytest.mark.parametrize(
    "layout",
    [
        Layout((16, 20, 3), 4, 1.25, True),
        Layout((16, 16, 1), 2, 0.0, False),
        Layout((16, 18, 3), 0, 0.8, False),
        Layout((7,), 0, 0.0, False),
    ],
    ids=str,
)
def test_gradient_of_the_augmentation_is_its_transpose(layout):
    """<A x, y> = <x, A' y> for the linear part A, in float64; several seeds, so crops and flips are
    covered.
    """
    x, y = (
        0.1 * noise((2, *layout.canvas_shape), 1),
        noise((2, *layout.shape), 2),
    )  # small, so that nothing is clipped
    for step in range(6):
        with tf.GradientTape() as tape:
            canvas = tf.constant(x)
            tape.watch(canvas)
            drawn = augment(canvas, layout, seed=tf.constant([5, step]))
            value = tf.reduce_sum(drawn * y)
        back = tape.gradient(value, canvas).numpy()
        assert np.sum(drawn.numpy().astype(np.float64) * y) == pytest.approx(
            np.sum(x.astype(np.float64) * back), rel=1e-4, abs=1e-4
        )


def test_clip_bounds_the_values_but_lets_the_gradient_of_saturated_pixels_through():
    with tf.GradientTape() as tape:
        x = tf.constant([[-3.0, -0.5, 0.5, 3.0]])
        tape.watch(x)
        clipped = augment(x, Layout((4,), 0, 0.0, False), seed=tf.constant([0, 0]))
        loss = tf.reduce_sum(clipped * [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(clipped, [[-1.0, -0.5, 0.5, 1.0]])
    np.testing.assert_array_equal(tape.gradient(loss, x), [[1.0, 2.0, 3.0, 4.0]])


# ---- augmentation
# ------------------------------------------------------------


def crops_of(canvas, layout):
    """Every (top, left, mirrored) crop, by slicing."""
    height, width = layout.shape[:2]
    for top in range(layout.padding + 1):
        for left in range(layout.padding + 1):
            crop = canvas[:, top : top + height, left : left + width]
            yield (top, left, False), crop
            yield (top, left, True), crop[:, :, ::-1]


def find_crop(result, canvas, layout):
    return [place for place, crop in crops_of(canvas, layout) if np.array_equal(result, crop)]


def test_every_augmented_batch_is_one_real_crop_flipped_or_not_and_all_of_them_occur():
    layout = Layout((16, 20, 3), 2, 0.0, True)
    canvas = np.clip(noise((2, *layout.canvas_shape)) * 0.3, -1, 1)
    seen = set()
    for step in range(150):
        places = find_crop(
            augment(tf.constant(canvas), layout, seed=tf.constant([3, step])).numpy(),
            canvas,
            layout,
        )
        assert len(places) == 1
        seen |= set(places)
    assert {p[:2] for p in seen} == {(y, x) for y in range(3) for x in range(3)}
    share = np.mean([place[2] for place in seen])
    assert 0.2 < share < 0.8


def test_mirroring_happens_about_every_second_time():
    """Fair coin: 400 draws fall within 0.4 to 0.6 with a chance above 0.9999."""
    layout = Layout((16, 16, 3), 2, 0.0, True)
    canvas = np.zeros((1, *layout.canvas_shape), np.float32)
    canvas[...] = np.linspace(-1, 1, layout.canvas_shape[1])[:, None]
    results = [
        augment(tf.constant(canvas), layout, seed=tf.constant([0, step])).numpy()
        for step in range(400)
    ]
    mirrored = np.mean([r[0, 0, 0, 0] > r[0, 0, -1, 0] for r in results])
    assert 0.4 < mirrored < 0.6, mirrored


def test_mirroring_does_not_depend_on_where_the_crop_lies():
    layout = Layout((16, 16, 3), 2, 0.0, False)
    canvas = np.clip(noise((1, *layout.canvas_shape)) * 0.3, -1, 1)
    for step in range(30):
        places = find_crop(
            augment(tf.constant(canvas), layout, seed=tf.constant([1, step])).numpy(),
            canvas,
            layout,
        )
        assert not places[0][2]  # flip off


def test_augmentation_follows_from_the_seed_alone():
    canvas = tf.constant(noise((2, *LAYOUT.canvas_shape)))
    first, second = (augment(canvas, LAYOUT, seed=tf.constant([5, 7])).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)
    others = [
        augment(canvas, LAYOUT, seed=tf.constant(seed)).numpy()
        for seed in ([5, 8], [6, 7], [5, 9], [7, 7])
    ]
    assert any(not np.array_equal(first, other) for other in others)


def test_augmented_values_stay_in_range_and_every_canvas_pixel_gets_gradient_in_time():
    reached = np.zeros(LAYOUT.canvas_shape, bool)
    for step in range(60):
        with tf.GradientTape() as tape:
            canvas = tf.constant(3.0 * noise((1, *LAYOUT.canvas_shape)))
            tape.watch(canvas)
            result = augment(canvas, LAYOUT, seed=tf.constant([0, step]))
            total = tf.reduce_sum(result)
        assert result.shape == (1, 24, 32, 3) and float(tf.reduce_max(tf.abs(result))) <= 1.0
        reached |= tape.gradient(total, canvas).numpy()[0] != 0.0
    assert reached.all()


# ---- the finished image
# ------------------------------------------------------------


def test_finished_image_is_the_clipped_centre_of_the_smoothed_canvas():
    canvas = 2.0 * noise((2, *LAYOUT.canvas_shape))
    smoothed = scipy.ndimage.convolve(
        canvas.astype(np.float64),
        gaussian_kernel(LAYOUT.smoothing)[None, :, :, None],
        mode="mirror",
    )
    edge = LAYOUT.padding // 2
    wanted = np.clip(smoothed[:, 1 + edge : 25 + edge, 1 + edge : 33 + edge], -1.0, 1.0)
    np.testing.assert_allclose(finish(tf.constant(canvas), LAYOUT), wanted, atol=1e-5)


# ---- start images
# ------------------------------------------------------------


@pytest.mark.parametrize("start", ["leaves", "noise", "white"])
def test_start_canvas_follows_from_seed_and_index_alone(start):
    def draw(index, seed):
        return start_canvas((24, 32, 3), index=index, seed=seed, std=0.5, start=start)

    np.testing.assert_array_equal(draw(3, 1), draw(3, 1))
    assert draw(3, 1).dtype == np.float32 and draw(3, 1).shape == (24, 32, 3)
    assert not np.array_equal(draw(3, 1), draw(4, 1)) and not np.array_equal(draw(3, 1), draw(3, 2))


@pytest.mark.parametrize(
    ("shape", "start"),
    [
        ((64, 64, 3), "leaves"),
        ((64, 64, 3), "noise"),
        ((64, 64, 3), "white"),
        ((64, 64, 1), "noise"),
        ((512, 4), "leaves"),
    ],
)
@pytest.mark.parametrize("std", [0.5, 0.3])
def test_start_canvases_have_the_given_deviation_and_mean_zero(shape, start, std):
    canvases = np.stack(
        [start_canvas(shape, index=i, seed=0, std=std, start=start) for i in range(48)]
    )
    assert canvases.std() == pytest.approx(std, rel=0.15)
    assert abs(canvases.mean()) < 0.3 * std


def low_to_high(canvases):
    """Power of low over that of high spatial frequencies."""
    power = np.abs(np.fft.fft2(canvases, axes=(1, 2))) ** 2
    return power[:, 1:4, 1:4].mean() / power[:, 24:32, 24:32].mean()


@pytest.mark.parametrize(
    ("start", "natural"), [("leaves", True), ("noise", True), ("white", False)]
)
def test_natural_starts_have_most_power_in_low_frequencies_and_in_grey_and_white_has_neither(
    start, natural
):
    canvases = np.stack(
        [start_canvas((64, 64, 3), index=i, seed=0, std=0.5, start=start) for i in range(8)]
    )
    correlation = np.corrcoef(canvases[..., 0].ravel(), canvases[..., 1].ravel())[0, 1]
    if natural:
        assert low_to_high(canvases) > 30 and correlation > 0.6
    else:
        assert 0.5 < low_to_high(canvases) < 2.0 and abs(correlation) < 0.05


@pytest.mark.parametrize("shape", [(24, 31), (9, 60)])
def test_the_first_disc_of_a_pixel_is_that_of_a_painter_who_goes_from_the_last_to_the_first(shape):
    """Discs painted one over the other, by distances in float64."""
    generator = np.random.default_rng(3)
    ys, xs = generator.uniform(0, shape[0], 40), generator.uniform(0, shape[1], 40)
    radii = np.concatenate([generator.uniform(0.2, 3.0, 36), generator.uniform(6.0, 14.0, 4)])
    painted = np.full(shape, 40)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for disc in reversed(range(40)):
        distances = np.hypot(rows - ys[disc], columns - xs[disc])
        assert np.abs(distances - radii[disc]).min() > 1e-5  # none lies on an edge
        painted[distances <= radii[disc]] = disc
    assert len(np.unique(painted)) > 10
    np.testing.assert_array_equal(first_discs(shape, ys=ys, xs=xs, radii=radii), painted)


def test_a_disc_wider_than_its_image_takes_no_more_memory_than_the_image():
    """A square around it would hold 144 million pixels."""
    y, x, radius = np.array([0.5]), np.array([9000.0]), np.array([6000.5])
    tracemalloc.start()
    first = first_discs((1, 20_000), ys=y, xs=x, radii=radius)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(np.flatnonzero(first[0] == 0), np.arange(3000, 15_001))
    assert peak < 4e6


def test_leaves_are_flat_with_sharp_edges():
    """Most neighbours are equal and some differ a lot: in Gaussian noise of any spectrum none are
    equal.
    """
    leaves = np.stack(
        [start_canvas((64, 64, 3), index=i, seed=0, std=0.5, start="leaves") for i in range(8)]
    )
    steps = np.abs(np.diff(leaves, axis=2))
    assert np.mean(steps == 0.0) > 0.5 and np.mean(steps > 0.5) > 0.02
    noise_steps = np.diff(
        start_canvas((64, 64, 3), index=0, seed=0, std=0.5, start="noise"), axis=1
    )
    assert np.mean(noise_steps == 0.0) < 0.01


# ---- units
# ------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 255.0), (-1.0, 1.0), ((-2.1, -2.0, -1.8), (2.2, 2.4, 2.6)), ((0.0,), (1.0,))],
)
def test_canvas_units_map_linearly_onto_the_valid_range_and_back(low, high):
    images = np.clip(noise((2, 4, 4, 3)), -1.0, 1.0)
    got = to_model(tf.constant(images), low=low, high=high).numpy()
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    np.testing.assert_allclose((got - low) / (high - low) * 2.0 - 1.0, images, atol=1e-5)
    for corner, bound in ((-1.0, low), (0.0, (low + high) / 2), (1.0, high)):
        np.testing.assert_allclose(
            to_model(tf.fill([1, 1, 1, 3], corner), low=low, high=high).numpy()[0, 0, 0],
            np.broadcast_to(bound, 3),
            atol=1e-4,
        )


def test_start_images_differ_in_brightness_colour_and_contrast_as_photographs_do():
    """Four sets of photographs: 0.22 to 0.30 of the variance of pixels lies between the images'
    means, and the logarithm of an image's contrast spreads by 0.29 to 0.35. Dead leaves alone: 0.03
    and 0.1.
    """
    images = np.stack(
        [start_canvas((48, 48, 3), index=i, seed=3, std=0.5, start="leaves") for i in range(256)]
    ).astype(np.float64)
    means = images.mean(axis=(1, 2))
    share = means.var(axis=0).mean() / images.var(axis=(0, 1, 2)).mean()
    assert 0.19 < share < 0.31
    contrasts = images.mean(axis=3).std(axis=(1, 2))
    assert 0.25 < np.log(contrasts).std() < 0.42
    casts = (means - means.mean(axis=1, keepdims=True)).std(axis=0)
    np.testing.assert_allclose(casts, 0.5 * 0.2 * np.sqrt(2 / 3), rtol=0.2)
