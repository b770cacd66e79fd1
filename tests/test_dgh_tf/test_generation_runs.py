"""Whole runs: the same bits however they are stopped, streamed or split; half precision;
stretching; every form of model.
"""

import os

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_models
from loops import BASE, first_step, make, slots, spread_of, started, stopped_after

from dgh_tf.common.files import sha256_array
from dgh_tf.config import GenerationConfig
from dgh_tf.generation.generator import Generator
from dgh_tf.generation.images import generate_images
from dgh_tf.generation.store import FileStore, MemoryStore, Record, record_shapes
from dgh_tf.generation.update import Carry
from dgh_tf.run.finish import unmoved

FINISHED, FINISHED_CONFIG = {}, {**BASE, "num_images": 10, "steps": 60}


def finished(strategy):
    """(model, its weights before, progress, images) of one run with the defaults, made once for
    each kind of strategy.
    """
    key = type(strategy).__name__
    if key not in FINISHED:
        model, reports = tiny_models.conv_bn_relu(), []
        model.layers[1].trainable = False
        before = [w.numpy().copy() for w in model.weights]
        generator = Generator(model, GenerationConfig(**FINISHED_CONFIG), strategy=strategy)
        generator.start()
        generator.run(
            report=reports.append, due=lambda: (True, False)
        )  # a report of every visit, however fast the machine is
        FINISHED[key] = model, before, reports, generator.all_images()[0]
    return FINISHED[key]


def test_run_lowers_the_gap_and_the_loss(strategy):
    _, _, reports, images = finished(strategy)
    assert (
        images.shape == (10, 16, 16, 3)
        and images.dtype == np.float32
        and np.abs(images).max() <= 1.0
    )
    assert [r.step for r in reports][-1] == 60 and all(r.rate > 0 for r in reports)
    first, last = (
        {name: np.mean([r.losses[name] for r in part]) for name in ("bn", "loss")}
        for part in (reports[:3], reports[-3:])
    )
    assert last["bn"] < 0.9 * first["bn"] and last["loss"] < first["loss"]


def test_model_is_left_as_it_was(strategy):
    model, before, _, images = finished(strategy)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
    assert [layer.trainable for layer in model.layers].count(False) == 1 and not model.layers[
        1
    ].trainable
    for layer in model.layers:
        assert "call" not in vars(layer)
    np.testing.assert_array_equal(model(images).numpy(), tiny_models.conv_bn_relu()(images).numpy())


def test_same_seed_gives_the_same_bits(strategy):
    first = finished(strategy)[-1]
    again = generate_images(
        tiny_models.conv_bn_relu(), GenerationConfig(**FINISHED_CONFIG), strategy=strategy
    )
    assert sha256_array(first) == sha256_array(again)


def test_another_seed_starts_from_other_images():
    starts = [
        np.concatenate(slots(started(tiny_models.conv_bn_relu(), seed=seed))[0]) for seed in (0, 1)
    ]
    assert np.abs(starts[0] - starts[1]).mean() > 0.1


@pytest.mark.parametrize(
    "kind", ["float32", pytest.param("float16", marks=pytest.mark.slow), "plateau"]
)
def test_run_stopped_in_the_middle_of_a_step_and_gone_on_with_gives_the_same_bits(kind):
    """Another generator takes over the state and the records of the stopped one."""
    settings = {
        "steps": 12,
        **({"schedule": "plateau"} if kind == "plateau" else {"precision": kind}),
    }
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
        for got, wanted in zip(
            resumed.store.read(place).arrays(), whole.store.read(place).arrays(), strict=True
        ):
            np.testing.assert_array_equal(got, wanted)
    for a, b in zip(Carry(*resumed.state.carry)[:2], Carry(*whole.state.carry)[:2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_plateau_schedule_runs_and_lowers_the_gap():
    generator = started(tiny_models.conv_bn_relu(), steps=30, schedule="plateau")
    generator.run()
    scale, best, _ = generator.state.plateau
    assert (
        generator.state.visits == 30 * generator.rounds and 0.0 < scale <= 1.0 and np.isfinite(best)
    )
    assert np.mean(list(generator.layer_gaps().values())) < np.mean(
        list(generator.state.gap_start.values())
    )


@pytest.mark.parametrize("strategy_name", ["one", pytest.param("mirrored", marks=pytest.mark.slow)])
def test_records_streamed_through_a_file_give_the_bits_of_those_in_memory(tmp_path, strategy_name):
    strategy = (
        None if strategy_name == "one" else tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    )
    settings = {"num_images": 11, "batch_size": 2, "steps": 15}
    images = []
    for file in (None, tmp_path / "records"):
        generator = Generator(
            tiny_models.conv_bn_relu(),
            GenerationConfig(**{**BASE, **settings}),
            store_file=file,
            strategy=strategy or tf.distribute.OneDeviceStrategy("CPU:0"),
        )
        assert generator.streamed == (file is not None)
        generator.start()
        generator.run()
        images.append(generator.all_images()[0])
        generator.store.close()
    assert len(images[0]) == 11 and sha256_array(images[0]) == sha256_array(images[1])
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize("steps", [5, 6])
def test_a_run_says_so_where_it_moved_no_image(steps):
    generator = started(tiny_models.conv_bn_relu(), num_images=2, steps=steps)
    before = generator.all_images()[0]
    generator.run()
    told = unmoved(generator.config)
    assert np.array_equal(generator.all_images()[0], before) == bool(told) == (steps == 5)


def test_a_streamed_set_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    """Not even at the start: the records of a large set are larger than any memory."""
    monkeypatch.setattr("dgh_tf.generation.generator.MemoryStore", None)  # a call would fail
    generator = Generator(
        tiny_models.conv_bn_relu(), GenerationConfig(**BASE), store_file=tmp_path / "records"
    )
    assert generator.streamed and isinstance(generator.store, FileStore)
    generator.store.close()


def test_records_that_take_several_system_calls_are_whole(tmp_path, monkeypatch):
    """Linux moves 2 GiB a call at most; here a call moves 100 bytes, as any system may."""
    for name in ("preadv", "pwritev"):
        whole = getattr(os, name)
        monkeypatch.setattr(
            os,
            name,
            lambda file, buffers, place, whole=whole: whole(file, [buffers[0][:100]], place),
        )
    store = FileStore(tmp_path / "records", [(4, 4, 3)], [2, 1], channels=5, devices=["CPU:0"])
    records = [
        [
            np.random.default_rng(size).normal(size=shape).astype(np.float32)
            for shape in record_shapes([(4, 4, 3)], size, channels=5)
        ]
        for size in (2, 1)
    ]
    for place, record in enumerate(records):
        store.write(place, Record.of(record))
    for place, record in enumerate(records):
        for got, expected in zip(store.read(place).arrays(), record, strict=True):
            np.testing.assert_array_equal(got, expected)
    store.close()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_row_is_written_and_canvases_are_read_without_the_rest_of_the_record(tmp_path, streamed):
    shapes, sizes = [(4, 4, 3), (5,)], [2, 1]
    options = {"channels": 5, "devices": ["CPU:0"]}
    store = (
        FileStore(tmp_path / "records", shapes, sizes, **options)
        if streamed
        else MemoryStore(shapes, sizes, **options)
    )
    rng = np.random.default_rng(0)
    records = []
    for place, size in enumerate(sizes):
        parts = record_shapes(shapes, size, channels=5)
        records.append([rng.normal(size=part).astype(np.float32) for part in parts])
        store.write(place, Record.of(records[place]))
    row = np.full((2, 5), 7.0, np.float32)
    store.write_row(0, row)
    for place, (*others, own) in enumerate(records):
        *found, found_row = store.read(place).arrays()
        for got, expected in zip(found, others, strict=True):
            np.testing.assert_array_equal(got, expected)
        np.testing.assert_array_equal(found_row, own if place else row)
        for got, expected in zip(store.canvases(place), others[:2], strict=True):
            np.testing.assert_array_equal(got, expected)
    store.close()


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_half_precision_matches_the_statistics_as_float32_does(precision):
    """The network computes in another type, so images differ; the gap that float32 sees at the end
    must not.
    """
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


def test_half_precision_measures_the_first_table_and_the_gaps_in_float32():
    """Real images among them: the same numbers as without it."""
    model, gaps, totals = tiny_models.conv_bn_relu(), [], []
    for precision in ("float32", "bfloat16"):
        config = GenerationConfig(**BASE, precision=precision)
        generator = Generator(model, config, real_hint=tiny_models.images(3))
        generator.start()
        gaps += [generator.state.gap_start, generator.layer_gaps()]
        totals.append(Carry(*generator.state.carry).totals)
    assert gaps[0] == gaps[1] == gaps[2] == gaps[3]
    np.testing.assert_array_equal(*totals)


def test_half_precision_puts_the_layers_policies_back():
    model = tiny_models.conv_bn_relu()
    before = [layer.dtype_policy.name for layer in model.layers]
    x = tf.constant(tiny_models.images(2))
    wanted = model(x).numpy()
    stopped_after(started(model, precision="bfloat16"), 1)
    assert [layer.dtype_policy.name for layer in model.layers] == before
    np.testing.assert_array_equal(model(x), wanted)


# ---- output stretching
# ------------------------------------------------------------


def test_stretching_widens_the_logits_under_a_softmax_up_to_the_limit():
    """The spreads reported are those of the same model without its softmax: probabilities would
    stay below 1.
    """
    settings = {
        **BASE,
        "num_images": 6,
        "batch_size": 6,
        "steps": 40,
        "augment": False,
        "start": "white",
    }
    logits, spreads = tiny_models.conv_bn_relu(), {}
    for weight, limit in ((0.0, 2.25), (1.0, 2.25), (1.0, 1.2)):
        generator = make(
            tiny_models.softmax_head(), **settings, output_weight=weight, stretch_limit=limit
        )
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


# ---- every form of model
# ------------------------------------------------------------


@pytest.mark.slow  # test_conformance has the same of more kinds
@pytest.mark.parametrize(
    "build",
    [
        tiny_models.two_heads,
        tiny_models.one_dimensional,
        tiny_models.shared_bn,
        tiny_models.nested_backbone,
        tiny_models.subclassed,
    ],
    ids=lambda build: build.__name__,
)
def test_every_form_of_model_moves_towards_its_statistics(build):
    generator = make(
        build(), steps=20, num_images=5, batch_size=3, output_weight=0.0, start="white"
    )
    generator.start()
    generator.run()
    for array, shape in zip(generator.all_images(), generator.network.input_shapes, strict=True):
        assert array.shape == (5, *shape) and np.isfinite(array).all()
    gaps = [
        np.mean(list(gaps.values())) for gaps in (generator.state.gap_start, generator.layer_gaps())
    ]
    assert gaps[1] < gaps[0]


def test_several_inputs_come_back_by_name_in_their_own_shapes_and_each_moves():
    settings = {**BASE, "steps": 20, "start": "white"}
    images = generate_images(tiny_models.two_inputs(), GenerationConfig(**settings))
    assert {name: array.shape for name, array in images.items()} == {
        "right": (7, 8, 8, 1),
        "left": (7, 16, 16, 3),
    }
    generator = started(tiny_models.two_inputs(), **settings)
    starts = dict(zip(generator.network.input_names, generator.all_images(), strict=True))
    assert all(np.abs(images[name] - starts[name]).max() > 0.05 for name in images)


def test_run_that_becomes_non_finite_stops_and_says_what_to_do():
    inputs = keras.Input((16, 16, 3))
    # with an activation of its own no BN layer is folded into it, so its weights are read each step
    x = keras.layers.Conv2D(4, 3, activation="tanh")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(x))
    model = tiny_models.settle(keras.Model(inputs, x))
    generator = started(model)
    weights = model.get_weights()
    # after the model was checked: stands for a value that overflows on the way
    weights[0][0, 0, 0, 0] = np.nan
    model.set_weights(weights)
    before = slots(generator)[0]
    with pytest.raises(
        FloatingPointError, match="layer 'batch_normalization.*step 0, batch [01].*learning_rate"
    ):
        generator.run()
    np.testing.assert_array_equal(np.concatenate(slots(generator)[0]), np.concatenate(before))
