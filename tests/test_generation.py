"""The loop: its table against float64 numpy, its gradient against plain autodiff, and runs that do not depend on the split."""
import numpy as np
import pytest
import tensorflow as tf
import tiny_models

from dgh_tf.config import GenerationConfig
from dgh_tf.files import sha256_array
from dgh_tf.generation import Generator, generate_images
from dgh_tf.replicas import batch_sizes
from dgh_tf.step import Carry

BASE = {"num_images": 7, "batch_size": 4, "steps": 2, "input_range": "-1,1"}


def make(model, strategy=None, **settings):
    return Generator(model, GenerationConfig(**{**BASE, **settings}), strategy=strategy or tf.distribute.OneDeviceStrategy("CPU:0"))


def started(model, strategy=None, **settings):
    generator = make(model, strategy, **settings)
    generator.start()
    return generator


def first_step(generator):
    """After one step RAdam does not move yet: canvases are those of the start and the first slot is (1 - beta1) * gradient."""
    generator.run(report=lambda progress: progress.step >= 1, due=lambda: (True, False))
    return generator


def slots(generator):
    """(canvases, first slots, rows of the table) of a model with one input, each a list by batch."""
    records = [generator.store.read(place) for place in range(len(generator.batches))]
    return tuple([record[i] for record in records] for i in (0, 1, 3))


def bn_inputs(model, images):
    """Input of every BN layer by a Keras functional submodel, float64."""
    import keras

    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    values = keras.Model(model.input, [layer.input for layer in layers])(images, training=False)
    return layers, [np.asarray(v, np.float64) for v in values]


def spread_of(model, images):
    """Largest minus smallest output of each image."""
    outputs = np.asarray(model(images))
    return outputs.max(1) - outputs.min(1)


def rows_of(images, sizes):
    return np.split(images, np.cumsum(sizes)[:-1])


# ---- the table ---------------------------------------------------------------------------------------------------------


def test_table_holds_float64_numpy_moments_of_every_uneven_batch(strategy):
    """A row is the batch's share of the set times the means of u and u^2, u = (x - running mean) / sqrt(variance + epsilon)."""
    model = tiny_models.conv_bn_relu()
    generator = started(model, strategy, augment=False, start="white")
    assert generator.sizes == [4, 3]
    for place in range(2):  # only what the step writes can be right
        *rest, row = generator.store.read(place)
        generator.store.write(place, [*rest, row + 7.0])
    before = slots(generator)[0]
    first_step(generator)
    canvases, _, rows = slots(generator)
    np.testing.assert_array_equal(np.concatenate(canvases), np.concatenate(before))
    for size, row, images in zip(generator.sizes, rows, rows_of(generator.all_images()[0], generator.sizes), strict=True):
        layers, inputs = bn_inputs(model, images)
        std = generator.ranges[0].prior_std
        scales = [*((np.asarray(b.moving_mean), np.sqrt(np.asarray(b.moving_variance) + b.epsilon)) for b in layers),
                  (np.zeros(3), np.sqrt(np.full(3, std**2 + 1e-3)))]
        units = [(x - mean) / scale for x, (mean, scale) in zip([*inputs, images.astype(np.float64)], scales, strict=True)]
        np.testing.assert_allclose(row[0], size / 7 * np.concatenate([u.mean((0, 1, 2)) for u in units]), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(row[1], size / 7 * np.concatenate([(u**2).mean((0, 1, 2)) for u in units]), rtol=1e-4)


def test_totals_stay_the_sum_of_all_rows_over_many_steps(strategy):
    generator = started(tiny_models.conv_bn_relu(), strategy, num_images=10, steps=30)
    generator.run()
    totals = Carry(*generator.state.carry).totals
    for own in totals:
        np.testing.assert_allclose(own, np.sum(slots(generator)[2], axis=0, dtype=np.float64), rtol=1e-6, atol=1e-6)


def test_reported_gap_is_that_of_all_images_together_by_float64_numpy():
    model = tiny_models.conv_bn_relu()
    generator = started(model)
    layers, inputs = bn_inputs(model, generator.all_images()[0])
    got = generator.layer_gaps()
    assert got == pytest.approx(generator.state.gap_start, rel=1e-6)
    for layer, x in zip(layers, inputs, strict=True):
        mean, variance = (np.asarray(w, np.float64) for w in (layer.moving_mean, layer.moving_variance))
        scale = np.sqrt(variance + layer.epsilon)
        gap = ((x.mean((0, 1, 2)) - mean) / scale) ** 2 + (np.sqrt(x.var((0, 1, 2)) + layer.epsilon) / scale - 1.0) ** 2
        assert got[layer.path] == pytest.approx(gap.mean(), rel=1e-3)


# ---- the gradient ------------------------------------------------------------------------------------------------------


def plain_gradient(model, images, *, output_weight, prior_std, limit):
    """Gradient, by autodiff of an objective written out here, of a set that fits into one batch (in canvas units = model units)."""
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
            return (tf.reduce_mean(((observed_mean - mean) / scale) ** 2, -1),
                    tf.reduce_mean((tf.sqrt(observed_variance + epsilon) / scale - 1.0) ** 2, -1))

        targets = [(tf.constant(la.moving_mean.numpy()), tf.constant(la.moving_variance.numpy()), la.epsilon) for la in layers]
        total = sum(sum(gap(a, *target)) for a, target in zip(activations, targets, strict=True)) / len(layers)
        total += sum(gap(x, tf.zeros(3), tf.fill([3], prior_std**2), 1e-3)) / len(layers)
        spread = tf.reduce_max(logits, 1) - tf.reduce_min(logits, 1)
        hinge = sum(tf.reduce_mean(tf.nn.relu(part - 0.5)) for part in gap(activations[-1], *targets[-1], axes=(1, 2)))
        value = count * (total + output_weight * (hinge - tf.reduce_mean(tf.math.log(tf.minimum(spread, limit)))))
    return tape.gradient(value, x).numpy()


@pytest.mark.parametrize("output_weight", [0.0, 0.5])
def test_gradient_of_one_batch_is_that_of_plain_autodiff(output_weight):
    """The limit lies at the median spread, so three images are stretched and three are not."""
    model = tiny_models.conv_bn_relu()
    generator = started(model, num_images=6, batch_size=6, steps=6, augment=False, start="white", output_weight=output_weight,
                        stretch_limit=1.0)
    images = np.clip(slots(generator)[0][0], -1, 1)  # the straight-through clip passes the gradient of the clipped image
    limit = np.median(spread_of(model, images))
    carry = Carry(*generator.state.carry)._replace(spreads=np.array([[limit]], np.float32))
    generator.state = generator.state._replace(visits=1, carry=list(carry))
    generator.run(due=lambda: (False, True))
    wanted = plain_gradient(model, images, output_weight=output_weight, prior_std=generator.ranges[0].prior_std, limit=np.float32(limit))
    np.testing.assert_allclose(slots(generator)[1][0] / (1 - generator.config.beta1), wanted, rtol=2e-3, atol=2e-4 * np.abs(wanted).max())


def test_real_images_share_the_objective_and_leave_an_images_gradient_its_size():
    """A set of six generated and three real images is one objective of nine, of which six move."""
    model, real = tiny_models.conv_bn_relu(), tiny_models.images(3)
    config = GenerationConfig(num_images=6, batch_size=6, steps=6, input_range="-1,1", augment=False, start="white", output_weight=0.0)
    generator = Generator(model, config, real_hint=real)
    generator.start()
    images = np.concatenate([np.clip(slots(generator)[0][0], -1, 1), real])
    generator.run(due=lambda: (False, True))
    wanted = plain_gradient(model, images, output_weight=0.0, prior_std=generator.ranges[0].prior_std, limit=np.float32(1))[:6]
    np.testing.assert_allclose(slots(generator)[1][0] / (1 - generator.config.beta1), wanted, rtol=2e-3, atol=2e-4 * np.abs(wanted).max())


def test_an_images_gradient_does_not_depend_on_how_many_batches_or_replicas_share_the_set(strategy):
    """The pooled objective is one function of all images: its gradient is the same in one batch of 8 and in two of 4."""
    model = tiny_models.conv_bn_relu()
    settings = {"num_images": 8, "augment": False, "start": "white", "output_weight": 0.0}
    whole = slots(first_step(started(model, batch_size=8, **settings)))[1]
    split = slots(first_step(started(model, strategy, batch_size=4, **settings)))[1]
    assert [len(part) for part in whole] == [8] and [len(part) for part in split] == [4, 4]
    gradient = whole[0]
    assert np.abs(gradient).max() > 1e-4
    np.testing.assert_allclose(np.concatenate(split), gradient, rtol=1e-3, atol=1e-4 * np.abs(gradient).max())


def test_first_rectified_step_moves_images_equally_in_batches_of_4_and_of_8():
    model = tiny_models.conv_bn_relu()
    moves = []
    for batch_size in (4, 8):
        generator = started(model, batch_size=batch_size, num_images=8, steps=6, augment=False, start="white")
        start = np.concatenate(slots(generator)[0])
        generator.run()
        moves.append(np.concatenate(slots(generator)[0]) - start)
    size = np.abs(moves[1]).mean()
    assert size > 1e-4
    assert np.abs(moves[0]).mean() == pytest.approx(size, rel=1e-2)
    assert np.corrcoef(moves[0].ravel(), moves[1].ravel())[0, 1] > 0.99


def test_two_replicas_run_as_one_device_with_both_batches_at_once():
    """Replicas move together on fresh rows, so twenty steps on two replicas of 4 images are those of one batch of 8."""
    model = tiny_models.conv_bn_relu()
    settings = {"num_images": 8, "steps": 20, "augment": False, "start": "white", "output_weight": 0.0}
    ends = [started(model, s, batch_size=b, **settings)
            for s, b in ((None, 8), (tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), 4))]
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
    """To 1e-5, relative to the running standard deviation: what float32 sums in another order leave."""
    model = tiny_models.conv_bn_relu()
    one, other = started(model, batch_size=8, num_images=8), started(model, strategy, batch_size=4, num_images=8)
    np.testing.assert_allclose(*(Carry(*g.state.carry).totals[0] for g in (other, one)), rtol=1e-5, atol=1e-5)


def test_without_pooling_a_batch_runs_as_if_it_were_alone():
    model = tiny_models.conv_bn_relu()
    settings = {"steps": 15, "augment": False, "start": "white", "output_weight": 0.0}
    both = generate_images(model, GenerationConfig(**{**BASE, **settings, "num_images": 8, "pool_statistics": False}))
    alone = generate_images(model, GenerationConfig(**{**BASE, **settings, "num_images": 4}))
    np.testing.assert_allclose(both[:4], alone, atol=2e-3)  # pooled, the first batch would see the second one's statistics


# ---- whole runs --------------------------------------------------------------------------------------------------------

FINISHED, FINISHED_CONFIG = {}, {**BASE, "num_images": 10, "steps": 60}


def finished(strategy):
    """(model, its weights before, progress, images) of one run with the defaults, made once for each kind of strategy."""
    key = type(strategy).__name__
    if key not in FINISHED:
        model, reports = tiny_models.conv_bn_relu(), []
        model.layers[1].trainable = False
        before = [w.numpy().copy() for w in model.weights]
        generator = Generator(model, GenerationConfig(**FINISHED_CONFIG), strategy=strategy)
        generator.start()
        generator.run(report=reports.append, due=lambda: (True, False))  # a report of every visit, however fast the machine is
        FINISHED[key] = model, before, reports, generator.all_images()[0]
    return FINISHED[key]


def test_run_lowers_the_gap_and_the_loss(strategy):
    _, _, reports, images = finished(strategy)
    assert images.shape == (10, 16, 16, 3) and images.dtype == np.float32 and np.abs(images).max() <= 1.0
    assert [r.step for r in reports][-1] == 60 and all(r.rate > 0 for r in reports)
    first, last = ({name: np.mean([r.losses[name] for r in part]) for name in ("bn", "loss")} for part in (reports[:3], reports[-3:]))
    assert last["bn"] < 0.9 * first["bn"] and last["loss"] < first["loss"]


def test_model_is_left_as_it_was(strategy):
    model, before, _, images = finished(strategy)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    assert [layer.trainable for layer in model.layers].count(False) == 1 and not model.layers[1].trainable
    for layer in model.layers:
        assert "call" not in vars(layer)
    np.testing.assert_array_equal(model(images).numpy(), tiny_models.conv_bn_relu()(images).numpy())


def test_same_seed_gives_the_same_bits(strategy):
    first = finished(strategy)[-1]
    again = generate_images(tiny_models.conv_bn_relu(), GenerationConfig(**FINISHED_CONFIG), strategy=strategy)
    assert sha256_array(first) == sha256_array(again)


def test_another_seed_starts_from_other_images():
    starts = [np.concatenate(slots(started(tiny_models.conv_bn_relu(), seed=seed))[0]) for seed in (0, 1)]
    assert np.abs(starts[0] - starts[1]).mean() > 0.1


def stopped_after(generator, visits):
    """Runs so many visits more; returns the figures of the last report."""
    until, asked, reports = generator.state.visits + visits, iter(range(visits)), []
    generator.run(report=reports.append, due=lambda: (False, next(asked) + 1 == visits))
    assert generator.state.visits == until
    return reports[-1].losses


@pytest.mark.parametrize("kind", ["float32", pytest.param("float16", marks=pytest.mark.slow), "plateau"])
def test_run_stopped_in_the_middle_of_a_step_and_gone_on_with_gives_the_same_bits(kind):
    """Another generator takes over the state and the records of the stopped one."""
    settings = {"steps": 12, **({"schedule": "plateau"} if kind == "plateau" else {"precision": kind})}
    model = tiny_models.conv_bn_relu()
    whole, half, resumed = (started(model, **settings) for _ in range(3))
    whole.run()
    stopped_after(half, 9)
    assert half.rounds == 2  # so nine visits end within the fifth step
    for place in range(2):
        resumed.store.write(place, half.store.read(place))
    resumed.state = half.state
    resumed.run()
    for place in range(2):
        for got, wanted in zip(resumed.store.read(place), whole.store.read(place), strict=True):
            np.testing.assert_array_equal(got, wanted)
    for a, b in zip(Carry(*resumed.state.carry)[:2], Carry(*whole.state.carry)[:2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_plateau_schedule_runs_and_lowers_the_gap():
    generator = started(tiny_models.conv_bn_relu(), steps=30, schedule="plateau")
    generator.run()
    scale, best, _ = generator.state.plateau
    assert generator.state.visits == 30 * generator.rounds and 0.0 < scale <= 1.0 and np.isfinite(best)
    assert np.mean(list(generator.layer_gaps().values())) < np.mean(list(generator.state.gap_start.values()))


@pytest.mark.parametrize("strategy_name", ["one", pytest.param("mirrored", marks=pytest.mark.slow)])
def test_records_streamed_through_a_file_give_the_bits_of_those_in_memory(tmp_path, strategy_name):
    strategy = None if strategy_name == "one" else tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    settings = {"num_images": 11, "batch_size": 2, "steps": 15}
    images = []
    for file in (None, tmp_path / "records"):
        generator = Generator(tiny_models.conv_bn_relu(), GenerationConfig(**{**BASE, **settings}), store_file=file,
                              strategy=strategy or tf.distribute.OneDeviceStrategy("CPU:0"))
        assert generator.streamed == (file is not None)
        generator.start()
        generator.run()
        images.append(generator.all_images()[0])
        generator.store.close()
    assert len(images[0]) == 11 and sha256_array(images[0]) == sha256_array(images[1])
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_matches_the_statistics_as_float32_does(precision):
    """The network computes in another type, so images differ; the gap that float32 sees at the end must not."""
    gaps = {}
    for kind in ("float32", precision):
        generator = started(tiny_models.conv_bn_relu(), steps=60, precision=kind, num_images=8)
        generator.run()
        own = started(tiny_models.conv_bn_relu(), num_images=8)
        for place in range(len(own.batches)):
            own.store.write(place, generator.store.read(place))
        gaps[kind] = np.mean(list(own.layer_gaps().values()))
        start = np.mean(list(own.state.gap_start.values()))
    assert gaps["float32"] < 0.9 * start
    assert gaps[precision] == pytest.approx(gaps["float32"], rel=0.05)


def test_half_precision_puts_the_layers_policies_back():
    model = tiny_models.conv_bn_relu()
    before = [layer.dtype_policy.name for layer in model.layers]
    x = tf.constant(tiny_models.images(2))
    wanted = model(x).numpy()
    stopped_after(started(model, precision="bfloat16"), 1)
    assert [layer.dtype_policy.name for layer in model.layers] == before
    np.testing.assert_array_equal(model(x), wanted)


# ---- output stretching -------------------------------------------------------------------------------------------------


def test_stretching_widens_the_logits_under_a_softmax_up_to_the_limit():
    """The spreads reported are those of the same model without its softmax: probabilities would stay below 1."""
    settings = {**BASE, "num_images": 6, "batch_size": 6, "steps": 40, "augment": False, "start": "white"}
    logits, spreads = tiny_models.conv_bn_relu(), {}
    for weight, limit in ((0.0, 2.25), (1.0, 2.25), (1.0, 1.2)):
        generator = make(tiny_models.softmax_head(), **settings, output_weight=weight, stretch_limit=limit)
        generator.start()
        first = spread_of(logits, generator.all_images()[0]).mean()
        figures = stopped_after(generator, 1)
        generator.run()
        spreads[weight, limit] = spread_of(logits, generator.all_images()[0]).mean()
        assert figures["spread/output"] == pytest.approx(first, rel=1e-3)
    assert spreads[1.0, 2.25] > 1.3 * spreads[0.0, 2.25]
    assert spreads[1.0, 1.2] < 0.9 * spreads[1.0, 2.25]


def test_spread_to_stretch_from_is_that_of_the_images_however_short_the_run():
    """Logits in a unit a thousand times smaller give a spread a thousand times smaller."""
    spreads = []
    for unit in (1.0, 1e-3):
        model = tiny_models.conv_bn_relu()
        *rest, kernel, bias = model.get_weights()
        model.set_weights([*rest, kernel * unit, bias * unit])
        spreads.append(first_step(started(model, steps=3)).spreads()[0])
    assert spreads[1] == pytest.approx(1e-3 * spreads[0], rel=1e-3)


# ---- every form of model -----------------------------------------------------------------------------------------------


@pytest.mark.slow  # test_conformance has the same of more kinds
@pytest.mark.parametrize("build", [tiny_models.two_heads, tiny_models.one_dimensional, tiny_models.shared_bn, tiny_models.nested_backbone,
                                   tiny_models.subclassed], ids=lambda build: build.__name__)
def test_every_form_of_model_moves_towards_its_statistics(build):
    generator = make(build(), steps=20, num_images=5, batch_size=3, output_weight=0.0, start="white")
    generator.start()
    generator.run()
    for array, shape in zip(generator.all_images(), generator.network.input_shapes, strict=True):
        assert array.shape == (5, *shape) and np.isfinite(array).all()
    gaps = [np.mean(list(gaps.values())) for gaps in (generator.state.gap_start, generator.layer_gaps())]
    assert gaps[1] < gaps[0]


def test_several_inputs_come_back_by_name_in_their_own_shapes_and_each_moves():
    settings = {**BASE, "steps": 20, "start": "white"}
    images = generate_images(tiny_models.two_inputs(), GenerationConfig(**settings))
    assert {name: array.shape for name, array in images.items()} == {"right": (7, 8, 8, 1), "left": (7, 16, 16, 3)}
    generator = started(tiny_models.two_inputs(), **settings)
    starts = dict(zip(generator.network.input_names, generator.all_images(), strict=True))
    assert all(np.abs(images[name] - starts[name]).max() > 0.05 for name in images)


# ---- limits ------------------------------------------------------------------------------------------------------------


def test_batches_are_equal_up_to_one_image_and_divide_among_replicas():
    def sizes(images, batch, replicas):
        return batch_sizes(GenerationConfig(num_images=images, batch_size=batch), replicas)

    assert sizes(64, 32, 1) == [32, 32] and sizes(7, 4, 1) == [4, 3] and sizes(1, 32, 1) == [1]
    assert sizes(10, 4, 2) == [3, 3, 2, 2] and sizes(2, 32, 2) == [1, 1]
    for images in range(2, 40):
        for replicas in (1, 2):
            got = sizes(images, 5, replicas)
            assert sum(got) == images and max(got) <= 5 and max(got) - min(got) <= 1 and len(got) % replicas == 0
    with pytest.raises(ValueError, match="3 replicas"):
        sizes(2, 4, 3)


def test_run_that_becomes_non_finite_stops_and_says_what_to_do():
    model = tiny_models.conv_bn_relu()
    generator = started(model)
    weights = model.get_weights()
    weights[0][0, 0, 0, 0] = np.nan  # after the model was checked: stands for a value that overflows on the way
    model.set_weights(weights)
    before = slots(generator)[0]
    with pytest.raises(FloatingPointError, match="layer 'batch_normalization.*step 0, batch [01].*learning_rate"):
        generator.run()
    np.testing.assert_array_equal(np.concatenate(slots(generator)[0]), np.concatenate(before))
