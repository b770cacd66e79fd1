"""The loop: its table against float64 numpy, its gradient against plain autodiff, and runs that do
not depend on the split.
"""

import numpy as np
import pytest
import tensorflow as tf
import tiny_models
from loops import BASE, first_step, slots, spread_of, started

from dgh_tf.config import GenerationConfig
from dgh_tf.generation.distribution import batch_sizes
from dgh_tf.generation.generator import Generator
from dgh_tf.generation.images import generate_images
from dgh_tf.generation.prepared import Prepared
from dgh_tf.generation.update import Carry


def bn_inputs(model, images):
    """Input of every BN layer by a Keras functional submodel, float64."""
    import keras

    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    values = keras.Model(model.input, [layer.input for layer in layers])(images, training=False)
    return layers, [np.asarray(v, np.float64) for v in values]


def rows_of(images, sizes):
    return np.split(images, np.cumsum(sizes)[:-1])


# ---- the table
# ------------------------------------------------------------


def test_table_holds_float64_numpy_moments_of_every_uneven_batch(strategy):
    """A row is the batch's share of the set times the means of u and u^2, u = (x - running mean) /
    sqrt(variance + epsilon).
    """
    model = tiny_models.conv_bn_relu()
    generator = started(model, strategy, augment=False, start="white")
    assert generator.sizes == [4, 3]
    for place in range(2):  # only what the step writes can be right
        generator.store.write_row(place, generator.store.read(place).row + 7.0)
    before = slots(generator)[0]
    first_step(generator)
    canvases, _, rows = slots(generator)
    np.testing.assert_array_equal(np.concatenate(canvases), np.concatenate(before))
    for size, row, images in zip(
        generator.sizes, rows, rows_of(generator.all_images()[0], generator.sizes), strict=True
    ):
        layers, inputs = bn_inputs(model, images)
        std = generator.ranges[0].prior_std
        scales = [
            *(
                (np.asarray(b.moving_mean), np.sqrt(np.asarray(b.moving_variance) + b.epsilon))
                for b in layers
            ),
            (np.zeros(3), np.sqrt(np.full(3, std**2 + 1e-3))),
        ]
        units = [
            (x - mean) / scale
            for x, (mean, scale) in zip([*inputs, images.astype(np.float64)], scales, strict=True)
        ]
        np.testing.assert_allclose(
            row[0],
            size / 7 * np.concatenate([u.mean((0, 1, 2)) for u in units]),
            rtol=1e-4,
            atol=1e-5,
        )
        np.testing.assert_allclose(
            row[1], size / 7 * np.concatenate([(u**2).mean((0, 1, 2)) for u in units]), rtol=1e-4
        )


def test_totals_stay_the_sum_of_all_rows_over_many_steps(strategy):
    generator = started(tiny_models.conv_bn_relu(), strategy, num_images=10, steps=30)
    generator.run()
    totals = Carry(*generator.state.carry).totals
    for own in totals:
        np.testing.assert_allclose(
            own, np.sum(slots(generator)[2], axis=0, dtype=np.float64), rtol=1e-6, atol=1e-6
        )


def test_reported_gap_is_that_of_all_images_together_by_float64_numpy():
    model = tiny_models.conv_bn_relu()
    generator = started(model)
    layers, inputs = bn_inputs(model, generator.all_images()[0])
    got = generator.layer_gaps()
    assert got == pytest.approx(generator.state.gap_start, rel=1e-6)
    for layer, x in zip(layers, inputs, strict=True):
        mean, variance = (
            np.asarray(w, np.float64) for w in (layer.moving_mean, layer.moving_variance)
        )
        scale = np.sqrt(variance + layer.epsilon)
        gap = ((x.mean((0, 1, 2)) - mean) / scale) ** 2 + (
            np.sqrt(x.var((0, 1, 2)) + layer.epsilon) / scale - 1.0
        ) ** 2
        assert got[layer.path] == pytest.approx(gap.mean(), rel=1e-3)


@pytest.mark.parametrize("build", [tiny_models.spectrogram, tiny_models.vector])
def test_inputs_that_are_no_images_have_no_gap_to_report(build):
    """It once made up most of the mean gap that the command prints, though nothing pulls on it."""
    model = build()
    generator = started(model)
    layers, _ = bn_inputs(model, generator.all_images()[0])
    assert list(generator.layer_gaps()) == [layer.path for layer in layers]


# ---- the gradient
# ------------------------------------------------------------


def plain_gradient(model, images, *, output_weight, prior_std, limit):
    """Gradient, by autodiff of an objective written out here, of a set that fits into one batch (in
    canvas units = model units).
    """
    import keras

    layers, _ = bn_inputs(model, images)
    network = keras.Model(model.input, [*[layer.input for layer in layers], model.output])
    count = len(images)
    with tf.GradientTape() as tape:
        x = tf.constant(images)
        tape.watch(x)
        *activations, logits = network(x, training=False)

        def gap(a, mean, variance, epsilon, axes=(0, 1, 2)):
            observed_mean, observed_variance = tf.nn.moments(a, axes)
            scale = tf.sqrt(variance + epsilon)
            return (
                tf.reduce_mean(((observed_mean - mean) / scale) ** 2, -1),
                tf.reduce_mean((tf.sqrt(observed_variance + epsilon) / scale - 1.0) ** 2, -1),
            )

        targets = [
            (
                tf.constant(la.moving_mean.numpy()),
                tf.constant(la.moving_variance.numpy()),
                la.epsilon,
            )
            for la in layers
        ]
        total = sum(
            sum(gap(a, *target)) for a, target in zip(activations, targets, strict=True)
        ) / len(layers)
        total += sum(gap(x, tf.zeros(3), tf.fill([3], prior_std**2), 1e-3)) / len(layers)
        spread = tf.reduce_max(logits, 1) - tf.reduce_min(logits, 1)
        hinge = sum(
            tf.reduce_mean(tf.nn.relu(part - 0.5))
            for part in gap(activations[-1], *targets[-1], axes=(1, 2))
        )
        value = count * (
            total + output_weight * (hinge - tf.reduce_mean(tf.math.log(tf.minimum(spread, limit))))
        )
    return tape.gradient(value, x).numpy()


@pytest.mark.parametrize("output_weight", [0.0, 0.5])
def test_gradient_of_one_batch_is_that_of_plain_autodiff(output_weight):
    """The limit lies at the median spread, so three images are stretched and three are not."""
    model = tiny_models.conv_bn_relu()
    generator = started(
        model,
        num_images=6,
        batch_size=6,
        steps=6,
        augment=False,
        start="white",
        output_weight=output_weight,
        stretch_limit=1.0,
    )
    images = np.clip(
        slots(generator)[0][0], -1, 1
    )  # the straight-through clip passes the gradient of the clipped image
    limit = np.median(spread_of(model, images))
    carry = Carry(*generator.state.carry)._replace(spreads=np.array([[limit]], np.float32))
    generator.state = generator.state._replace(visits=1, carry=list(carry))
    generator.run(due=lambda: (False, True))
    wanted = plain_gradient(
        model,
        images,
        output_weight=output_weight,
        prior_std=generator.ranges[0].prior_std,
        limit=np.float32(limit),
    )
    np.testing.assert_allclose(
        slots(generator)[1][0] / (1 - generator.config.beta1),
        wanted,
        rtol=2e-3,
        atol=2e-4 * np.abs(wanted).max(),
    )


def test_real_images_share_the_objective_and_leave_an_images_gradient_its_size():
    """A set of six generated and three real images is one objective of nine, of which six move."""
    model, real = tiny_models.conv_bn_relu(), tiny_models.images(3)
    config = GenerationConfig(
        num_images=6,
        batch_size=6,
        steps=6,
        input_range="-1,1",
        augment=False,
        start="white",
        output_weight=0.0,
    )
    generator = Generator(model, config, real_hint=real)
    generator.start()
    images = np.concatenate([np.clip(slots(generator)[0][0], -1, 1), real])
    generator.run(due=lambda: (False, True))
    wanted = plain_gradient(
        model,
        images,
        output_weight=0.0,
        prior_std=generator.ranges[0].prior_std,
        limit=np.float32(1),
    )[:6]
    np.testing.assert_allclose(
        slots(generator)[1][0] / (1 - generator.config.beta1),
        wanted,
        rtol=2e-3,
        atol=2e-4 * np.abs(wanted).max(),
    )


def test_an_images_gradient_does_not_depend_on_how_many_batches_or_replicas_share_the_set(strategy):
    """The pooled objective is one function of all images: its gradient is the same in one batch of
    8 and in two of 4.
    """
    model = tiny_models.conv_bn_relu()
    settings = {"num_images": 8, "augment": False, "start": "white", "output_weight": 0.0}
    whole = slots(first_step(started(model, batch_size=8, **settings)))[1]
    split = slots(first_step(started(model, strategy, batch_size=4, **settings)))[1]
    assert [len(part) for part in whole] == [8] and [len(part) for part in split] == [4, 4]
    gradient = whole[0]
    assert np.abs(gradient).max() > 1e-4
    np.testing.assert_allclose(
        np.concatenate(split), gradient, rtol=1e-3, atol=1e-4 * np.abs(gradient).max()
    )


def test_first_rectified_step_moves_images_equally_in_batches_of_4_and_of_8():
    model = tiny_models.conv_bn_relu()
    moves = []
    for batch_size in (4, 8):
        generator = started(
            model, batch_size=batch_size, num_images=8, steps=6, augment=False, start="white"
        )
        start = np.concatenate(slots(generator)[0])
        generator.run()
        moves.append(np.concatenate(slots(generator)[0]) - start)
    size = np.abs(moves[1]).mean()
    assert size > 1e-4
    assert np.abs(moves[0]).mean() == pytest.approx(size, rel=1e-2)
    assert np.corrcoef(moves[0].ravel(), moves[1].ravel())[0, 1] > 0.99


def test_two_replicas_run_as_one_device_with_both_batches_at_once():
    """Replicas move together on fresh rows, so twenty steps on two replicas of 4 images are those
    of one batch of 8.
    """
    model = tiny_models.conv_bn_relu()
    settings = {
        "num_images": 8,
        "steps": 20,
        "augment": False,
        "start": "white",
        "output_weight": 0.0,
    }
    ends = [
        started(model, s, batch_size=b, **settings)
        for s, b in ((None, 8), (tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), 4))
    ]
    for generator in ends:
        generator.run()
    gaps = [generator.layer_gaps() for generator in ends]
    assert gaps[0] != ends[0].state.gap_start
    for name, gap in gaps[0].items():
        assert gaps[1][name] == pytest.approx(gap, rel=1e-3, abs=1e-5)
    totals = [Carry(*generator.state.carry).totals for generator in ends]
    np.testing.assert_array_equal(totals[1][0], totals[1][1])  # both replicas hold the same
    np.testing.assert_allclose(totals[1][0], totals[0][0], rtol=1e-4, atol=1e-4)


def test_pooled_statistics_of_the_start_do_not_depend_on_the_replicas(strategy):
    """To 1e-5, relative to the running standard deviation: what float32 sums in another order
    leave.
    """
    model = tiny_models.conv_bn_relu()
    one, other = (
        started(model, batch_size=8, num_images=8),
        started(model, strategy, batch_size=4, num_images=8),
    )
    np.testing.assert_allclose(
        *(Carry(*g.state.carry).totals[0] for g in (other, one)), rtol=1e-5, atol=1e-5
    )


def test_without_pooling_a_batch_runs_as_if_it_were_alone():
    model = tiny_models.conv_bn_relu()
    settings = {"steps": 15, "augment": False, "start": "white", "output_weight": 0.0}
    both = generate_images(
        model, GenerationConfig(**{**BASE, **settings, "num_images": 8, "pool_statistics": False})
    )
    alone = generate_images(model, GenerationConfig(**{**BASE, **settings, "num_images": 4}))
    np.testing.assert_allclose(
        both[:4], alone, atol=2e-3
    )  # pooled, the first batch would see the second one's statistics


def test_a_prepared_model_is_traced_once_and_gives_the_same_images():
    """Also where the first run stretches outputs and the second does not, or the other way."""
    model = tiny_models.conv_bn_relu()
    shared = Prepared(model)
    settings = [
        {"num_images": 8, "steps": 6},
        {"num_images": 4, "steps": 9, "seed": 7, "output_weight": 0.0},
        {"num_images": 12, "steps": 12, "seed": 3},
    ]
    for each in settings:
        config = GenerationConfig(**{**BASE, **each})
        together = Generator(shared, config)
        together.start()
        together.run()
        alone = generate_images(model, config)
        np.testing.assert_array_equal(together.all_images()[0], alone)
    assert together._step.visit.experimental_get_tracing_count() == 1
    assert together._step.fill.experimental_get_tracing_count() == 1


def test_a_prepared_model_shares_nothing_that_another_setting_changes():
    """Each of these settings is part of the compiled step."""
    model = tiny_models.conv_bn_relu()
    shared = Prepared(model)
    for change in ({}, {"bn_weight": 2.0}, {"input_range": "0,4"}, {"use_statistics": False}):
        config = GenerationConfig(**{**BASE, "num_images": 4, "steps": 5, **change})
        np.testing.assert_array_equal(
            generate_images(shared, config), generate_images(model, config)
        )


def test_batches_are_equal_up_to_one_image_and_divide_among_replicas():
    def sizes(images, batch, replicas):
        return batch_sizes(GenerationConfig(num_images=images, batch_size=batch), replicas)

    assert sizes(64, 32, 1) == [32, 32] and sizes(7, 4, 1) == [4, 3] and sizes(1, 32, 1) == [1]
    assert sizes(10, 4, 2) == [3, 3, 2, 2] and sizes(2, 32, 2) == [1, 1]
    for images in range(2, 40):
        for replicas in (1, 2):
            got = sizes(images, 5, replicas)
            assert (
                sum(got) == images
                and max(got) <= 5
                and max(got) - min(got) <= 1
                and len(got) % replicas == 0
            )
    with pytest.raises(ValueError, match="3 replicas"):
        sizes(2, 4, 3)
