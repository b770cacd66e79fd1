"""Views of pictures that learned roundings see beside the pictures themselves."""

import numpy as np
import pytest
import tiny_models

from dgh_tf.models.tflite.run import read_graph
from tflite_export import to_float_tflite
from tflite_export.algorithms.block_reconstruction import reconstruct
from tflite_export.algorithms.blocks import advance, find_blocks, outside
from tflite_export.algorithms.views import first_with_views, other_views, views_of
from tflite_export.simulation.fake_quant import predict, quantized_constants
from tflite_export.simulation.ranges import collect_ranges


@pytest.fixture(scope="module")
def pictures():
    """The graph of a network on pictures of 32 pixels."""
    return read_graph(to_float_tflite(tiny_models.conv_bn_relu(shape=(32, 32, 3))))


def test_a_view_of_a_ramp_is_a_ramp_over_a_part_of_it():
    """Bilinear interpolation keeps a ramp: its ends and its slope tell the part, worked by hand."""
    size, count = 33, 40
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    image = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.float32(0.5)), -1)
    made = other_views({4: np.repeat(image[None], count, 0)}, views=3, seed=0)[4]
    assert made.shape == (2 * count, size, size, 3) and made.dtype == np.float32
    down, right = made[:, :, 0, 0], made[:, 0, :, 1]
    sides = []
    for lines, both_ways in ((down, False), (right, True)):
        steps = np.diff(lines, axis=1) * (size - 1)
        np.testing.assert_allclose(steps, steps[:, :1] * np.ones(size - 1), atol=1e-3)
        assert lines.min() >= 0 and lines.max() <= 1 + 1e-6
        sides.append(np.abs(steps[:, 0]))
        mirrored = np.mean(steps[:, 0] < 0)
        assert 0.3 < mirrored < 0.7 if both_ways else mirrored == 0
    np.testing.assert_allclose(sides[0], sides[1], atol=1e-4)
    area = sides[0] * sides[1]
    assert 0.5 <= area.min() < 0.55 and 0.95 < area.max() <= 1
    np.testing.assert_allclose(made[..., 2], 0.5, atol=1e-6)


def test_the_seed_alone_tells_the_views():
    images = {0: tiny_models.images(4)}
    first, again, other = (other_views(images, views=2, seed=seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_only_pictures_have_views(pictures):
    assert views_of(pictures, count=64) == 8
    assert views_of(pictures, count=2**14) == 2  # 2^27 values of 32 x 32 x 3
    assert views_of(pictures, count=2**20) == 1
    for model in (
        tiny_models.conv_bn_relu(),  # 16 pixels
        tiny_models.spectrogram(),
        tiny_models.many_channels(),
        tiny_models.two_inputs(),
        tiny_models.vector(),
    ):
        assert views_of(read_graph(to_float_tflite(model)), count=64) == 1


def test_views_join_where_all_that_is_left_to_read_fits(pictures):
    spans = find_blocks(pictures)
    read = [
        sum(np.prod(pictures.tensors[i].shape) for i in outside(pictures, span)[0])
        for span in spans
    ]
    for images in (1, 2**11, 2**13, 2**15, 2**25):
        fits = [images * values <= 2**25 for values in read]
        wanted = min((k for k in range(len(spans) + 1) if all(fits[k:])), default=len(spans))
        assert first_with_views(pictures, spans, images=images) == wanted


def test_views_reach_a_later_block_as_they_would_from_the_start(pictures):
    """`advance` over all spans before it at once, against one after the other."""
    spans = find_blocks(pictures)
    given = {pictures.inputs[0]: tiny_models.images(3, shape=(32, 32, 3))}
    images = other_views(given, views=2, seed=0)
    step = dict(images)
    for span in spans[:-1]:
        step = advance(pictures, span, step, {}, None)
    once = advance(pictures, range(spans[-1].start), images, {}, None)
    assert set(step) == set(once)
    for i, value in step.items():
        np.testing.assert_allclose(once[i], value, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_views_help_on_images_that_were_not_seen(pictures):
    """Few images, many weights: against the float outputs on others, mean over three seeds."""
    errors = {1: 0.0, 8: 0.0}
    unseen = tiny_models.images(64, shape=(32, 32, 3), seed=9)
    reference = predict(pictures, unseen)
    for seed in range(3):
        images = tiny_models.images(6, shape=(32, 32, 3), seed=seed)
        ranges = collect_ranges(pictures, images, rule="mse")
        for views in errors:
            found = reconstruct(
                pictures, images, ranges=ranges, weight_bits=4, views=views, seed=seed
            )
            constants = quantized_constants(pictures, constants=found.biases, weights=found.weights)
            made = predict(pictures, unseen, ranges=ranges, constants=constants)
            errors[views] += float(np.mean(np.square(made - reference)))
    assert errors[8] < errors[1]
