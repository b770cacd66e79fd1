"""The integer file made from a Keras model and the one made from its float .tflite file, with the
same images: LiteRT's outputs of both, image by image.
"""

import keras
import numpy as np
import pytest
import tflite_sources
import tiny_models

from benchmarks.data.datasets import load
from benchmarks.zoo.networks import vit
from dgh_tf import load_model
from tflite_export.quantization import quantize

IMAGENET = ("imagenet_real", "imagenet_evaluation")


def residual():
    """Two branches, one with a convolution of its own, that are added behind BatchNorm layers."""
    layers = keras.layers
    inputs = keras.Input((16, 16, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(inputs)))
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, 2, padding="same")(x)))
    y = layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same")(y))
    x = layers.ReLU()(layers.Add()([layers.Conv2D(16, 1, 2)(x), y]))
    x = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    return tiny_models.settle(keras.Model(inputs, x))


def depthwise():
    layers = keras.layers
    inputs = keras.Input((16, 16, 3))
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, 2)(inputs)))
    for width in (16, 16):
        x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(width, 1)(x)))
    x = layers.Dense(5)(layers.GlobalAveragePooling2D()(x))
    return tiny_models.settle(keras.Model(inputs, x))


def transformer():
    """Dense layers on a sequence, LayerNormalization, GELU and attention."""
    return tiny_models.settle(vit((16, 16, 3), 5))


def integer_outputs(tflite, images):
    """What LiteRT gives of the file, one image at a time, int [n, classes]."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=tflite)
    interpreter.allocate_tensors()
    (into,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = into["quantization"]
    found = []
    for image in images:
        codes = np.clip(np.round(image / np.float32(scale)) + zero_point, -128, 127)
        interpreter.set_tensor(into["index"], np.int8(codes)[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(out["index"])[0].astype(int))
    return np.stack(found)


def largest_difference(model, images, others, *, algorithm, folder):
    """Of the outputs' integers, which must differ from image to image."""
    (folder / "m.tflite").write_bytes(tflite_sources.converted(model))
    file = load_model(str(folder / "m.tflite"))
    made = [quantize(m, images, algorithm=algorithm).tflite for m in (model, file)]
    one, two = (integer_outputs(tflite, others) for tflite in made)
    assert len(np.unique(one, axis=0)) > 5
    return np.abs(one - two).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "algorithm"),
    [
        (tiny_models.conv_bn_relu, "minmax"),
        (depthwise, "minmax"),
        (tiny_models.conv_bn_relu, "bias_correction"),
        (depthwise, "bias_correction"),
        (residual, "minmax"),
        (transformer, "minmax"),
        (residual, "bias_correction"),
    ],
)
def test_the_way_over_a_float_file_changes_no_integer_by_more_than_one(build, algorithm, tmp_path):
    images, others = tiny_models.images(24), tiny_models.images(60, seed=5)
    model = build()
    options = {"algorithm": algorithm, "folder": tmp_path}
    assert largest_difference(model, images, others, **options) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["minmax", "bias_correction"])
@pytest.mark.parametrize(
    ("file", "data", "preprocess"),
    [
        ("resnet8_cifar10.keras", ("cifar10_real.npz", "cifar10_evaluation.npz"), "none"),
        ("kws_dscnn.keras", ("kws_real.npz", "kws_evaluation.npz"), "none"),
        ("mobilenet_v1_025_224.keras", IMAGENET, "symmetric"),
        ("efficientnet_lite0_imagenet.keras", IMAGENET, "symmetric"),
    ],
)
def test_real_networks_give_the_same_integers(
    shared_data, tmp_path, algorithm, *, file, data, preprocess
):
    model = load_model(str(shared_data / file))
    images, others = (
        load(
            str(shared_data / name),
            role=role,
            input_shape=model.inputs[0].shape[1:],
            preprocess=preprocess,
            limit=limit,
        )[0]
        for name, role, limit in zip(data, ("real", "evaluation"), (32, 100), strict=True)
    )
    options = {"algorithm": algorithm, "folder": tmp_path}
    assert largest_difference(model, images, others, **options) <= 1


def test_chosen_weights_reach_an_operator_that_the_quantizer_names_anew():
    """A transposed convolution without a bias, whose output it gives another number."""
    from tflite_export import Runner

    inputs = keras.Input((6, 6, 4))
    x = keras.layers.Conv2DTranspose(4, 3, 2, padding="same", use_bias=False)(inputs)
    model = tiny_models.settle(keras.Model(inputs, keras.layers.Conv2D(2, 1)(x)))
    images = np.random.default_rng(0).normal(size=(24, 6, 6, 4)).astype(np.float32)
    made = quantize(model, images, algorithm="mse", scheme="w4a8").tflite
    wanted = model.predict(images, verbose=0)
    error = Runner(made).predict(images) - wanted
    assert np.mean(wanted**2) > 10.0 * np.mean(error**2)


def test_four_bits_of_the_converter_reach_an_operator_that_it_names_anew():
    """Two convolutions of one shape, whose outputs the integer file numbers one on: by name alone
    the first took the weights of the second, and the second stayed at 8 bits.
    """
    from dgh_tf.models.tflite.parts import pack_small, unpack
    from tflite_export import to_float_tflite, to_tflite
    from tflite_export.conversion.converter import _four_bit
    from tflite_export.tflite.edit import float_weights, read_model, weighted_operators, weights_of

    inputs = keras.Input((6, 6, 4))
    x = keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(x))
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 4)).astype(np.float32)

    def renamed(tflite, *names):
        """The file with other names of its convolutions' outputs."""
        read = read_model(tflite)
        parts = unpack(read)
        for name, operator in zip(names, weighted_operators(read).values(), strict=True):
            parts.subgraphs[0].tensors[operator.outputs[0]].name = name.encode()
        return pack_small(parts).data

    source = renamed(to_float_tflite(model), "x1", "x11")
    made = read_model(_four_bit(renamed(to_tflite(model, images), "x11", "x111"), source))
    found = [weights_of(operator) for operator in weighted_operators(made).values()]
    assert [tensor.dtype for tensor in found] == ["INT4", "INT4"]
    for tensor, (_, wanted) in zip(found, float_weights(source).values(), strict=True):
        steps = np.float64(wanted) / np.float64(tensor.scales)[:, None, None, None]
        np.testing.assert_array_equal(tensor.value, np.clip(np.rint(steps), -7, 7))
