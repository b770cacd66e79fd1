"""The largest output of every BatchNorm layer has a target in models of signals, and none in those
of pictures; heads over the places of a signal are not stretched.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_models

import dgh_tf
from dgh_tf.generation.inputs import largest_reach
from dgh_tf.generation.objective import LARGEST_REACH, ranged_layers, reach
from dgh_tf.generation.update import Carry
from dgh_tf.input_range.conventions import InputRange
from dgh_tf.input_range.find import KnownInput
from dgh_tf.models.network import Network
from dgh_tf.ops.kinds import as_signal
from dgh_tf.ops.losses import reaching
from dgh_tf.ops.signals import natural_spectrum


def reaches(model, images: np.ndarray) -> np.ndarray:
    """The largest output of every BN layer on each image, [layers, images], by Keras."""
    norms = [each for each in model.layers if isinstance(each, keras.layers.BatchNormalization)]
    outputs = keras.Model(model.inputs, [norm.output for norm in norms])([images])
    return np.array([np.max(y, axis=(1, 2, 3)) for y in outputs])


def test_the_reach_is_the_largest_output_of_the_layer_on_each_image():
    x = np.array([[[1.0, -4], [2, 0]], [[0.0, 9], [-3, 5]]], np.float32)
    scale, offset = np.float32([2, -1]), np.float32([1, -20])
    # by hand: 2 * 2 + 1, and of the second image 2 * 0 + 1; the second channel stays below 0
    np.testing.assert_array_equal(reach(tf.constant(x), scale=scale, offset=offset), [5, 1])
    below = reach(tf.constant(x - 9), scale=scale, offset=offset)
    assert np.all(below.numpy() > 0)  # its logarithm is taken


@pytest.mark.parametrize(("largest", "target", "slope"), [(2.0, 6.0, -0.5), (8.0, 2.0, 0.125)])
def test_a_value_is_pulled_to_its_target_from_both_sides(largest, target, slope):
    value = tf.Variable(largest)
    with tf.GradientTape() as tape:
        loss = reaching(value, target=tf.constant(target))
    assert float(loss) == pytest.approx(abs(np.log(largest / target)), rel=1e-6)
    assert float(tape.gradient(loss, value)) == pytest.approx(slope)
    assert np.isfinite(float(reaching(value, target=tf.constant(0.0))))  # before it is known


def test_the_affine_of_ranged_layers_is_what_they_compute():
    model = tiny_models.spectrogram()
    images = tiny_models.images(3, shape=(40, 12, 1))
    network = Network(model)
    ranged = ranged_layers(network.layers)
    assert list(ranged) == list(range(len(network.layers)))

    @tf.function
    def found(x):
        calls = dict(network.forward([x]).calls)
        return [reach(calls[i], scale=s, offset=o) for i, (s, o) in ranged.items()]

    wanted = np.maximum(reaches(model, images), 1e-3)
    np.testing.assert_allclose(found(tf.constant(images)), wanted, rtol=1e-4)


def test_the_largest_outputs_of_a_set_come_to_the_target():
    away = {}
    for weight in (0.0, 0.03):
        config = dgh_tf.GenerationConfig(
            num_images=8, batch_size=8, steps=60, input_range=(-2, 2), output_weight=weight
        )
        generator = dgh_tf.Generator(tiny_models.spectrogram(), config)
        generator.start()
        generator.run()
        largest = reaches(generator.network.model, generator.all_images()[0]).max(axis=1)
        target = largest_reach(generator.known)
        assert 1.5 < target < LARGEST_REACH
        typical = Carry(*generator.state.carry).spreads[0][1:]  # behind that of the head
        away[weight] = np.abs(np.log(largest / (target * typical)))
    # of the deeper layers; in the first ones of this small network, strides leave little to choose
    assert np.all(away[0.03][2:] < 0.1), away
    assert np.all(away[0.03][2:] < 0.5 * away[0.0][2:]), away


@pytest.mark.parametrize(
    ("low", "high", "mean", "std", "wanted"),
    [
        ((-1,), (2,), [0, 0], [0.3, 0.3], 0.32 * 2 / 0.3),  # 6.67 deviations on the wider side
        ((0,), (1,), [0.4, 0.4], [0.25, 0.25], 1.6),  # 2.4 deviations
        ((-8,), (8,), [0, 0], [1, 1], LARGEST_REACH),  # 8 deviations
        # both columns in ranges of their own hold six deviations, whatever their units
        ((-6, -1200), (6, 1200), [0, 0], [1, 200], 0.32 * 6),
    ],
)
def test_a_range_that_holds_few_deviations_leaves_little_room_for_larger_signals(
    low, high, mean, std, wanted
):
    signal = as_signal((2,), "vector")
    spectrum = natural_spectrum(signal, mean=np.array(mean), std=np.array(std))
    valid = InputRange(low, high, "given")
    assert largest_reach([KnownInput(valid, signal, spectrum)]) == pytest.approx(wanted, rel=1e-6)
    guessed = dataclasses.replace(valid, fitted=True)
    assert largest_reach([KnownInput(guessed, signal, spectrum)]) == LARGEST_REACH


@pytest.mark.parametrize(("std", "wanted"), [(0.2, None), (1 / 8, None), (1 / 10, LARGEST_REACH)])
def test_sequences_whose_range_holds_few_deviations_are_not_led_to_larger_outputs(std, wanted):
    signal = as_signal((64, 1), "sequence")
    spectrum = natural_spectrum(signal, mean=0.0, std=std)
    known = KnownInput(InputRange((-1.0,), (1.0,), "given"), signal, spectrum)
    assert largest_reach([known]) == (wanted and pytest.approx(wanted, rel=1e-6))
    assert largest_reach([KnownInput(known.valid)]) is None  # a picture


@pytest.mark.parametrize(
    ("build", "count"), [(tiny_models.conv_bn_relu, 0), (tiny_models.spectrogram, 4)]
)
def test_layers_of_pictures_have_no_target(build, count):
    config = dgh_tf.GenerationConfig(num_images=2, steps=1, input_range=(-3, 3), stretch_limit=0)
    generator = dgh_tf.Generator(build(), config)
    assert len(generator._step.problem.ranged) == count
    generator.start()
    generator.run()
    assert generator.spreads().shape == (1,)  # of the head alone


@pytest.mark.parametrize(("dense", "matched"), [(False, True), (True, True), (True, False)])
def test_heads_over_the_places_of_a_signal_are_not_stretched(dense, matched):
    """How far to stretch makes no difference to them, where there are statistics to match."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 2))
    norm = keras.layers.BatchNormalization()
    x = keras.layers.ReLU()(norm(keras.layers.Conv1D(4, 5, padding="same")(inputs)))
    x = x if dense else keras.layers.GlobalAveragePooling1D()(x)
    model = keras.Model(inputs, keras.layers.Dense(2, activation="sigmoid")(x))
    mean, variance = norm.weights[2:]
    mean.assign([0.1, -0.2, 0.3, 0.2])
    variance.assign([0.5, 1.0, 2.0, 0.7])
    sets = []
    for limit in (0.5, 6.0):
        config = dgh_tf.GenerationConfig(
            num_images=4,
            steps=8,
            input_range=(-8, 8),
            stretch_limit=limit,
            use_statistics=matched,
        )
        sets.append(dgh_tf.generate_images(model, config, verbose=0))
    assert np.array_equal(*sets) == (dense and matched)
