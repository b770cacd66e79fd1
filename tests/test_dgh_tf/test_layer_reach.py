"""The largest output of every BatchNorm layer has a target in models of signals, and none in those
of pictures.
"""

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
        assert 1.25 < target < LARGEST_REACH
        typical = Carry(*generator.state.carry).spreads[0][1:]  # behind that of the head
        away[weight] = np.abs(np.log(largest / (target * typical)))
    # of the deeper layers; in the first ones of this small network, strides leave little to choose
    assert np.all(away[0.03][2:] < 0.1), away
    assert np.all(away[0.03][2:] < 0.5 * away[0.0][2:]), away


@pytest.mark.parametrize(
    ("low", "high", "mean", "std", "wanted"),
    [
        ((0,), (1,), [0.4, 0.4], [0.25, 0.25], 0.8 * 2.4),  # 0.6 above the mean: 2.4 deviations
        ((-8,), (8,), [0, 0], [1, 1], LARGEST_REACH),  # 8 deviations
        ((-1,), (1,), [0, 0], [0.9, 0.9], 1.25),
        # both columns in ranges of their own hold three deviations, whatever their units
        ((-3, -600), (3, 600), [0, 0], [1, 200], 0.8 * 3),
    ],
)
def test_a_range_that_holds_few_deviations_leaves_little_room_for_larger_signals(
    low, high, mean, std, wanted
):
    signal = as_signal((64, 2), "sequence")
    spectrum = natural_spectrum(signal, mean=np.array(mean), std=np.array(std))
    known = KnownInput(InputRange(low, high, "given"), signal, spectrum)
    assert largest_reach([known]) == pytest.approx(wanted, rel=1e-6)


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
