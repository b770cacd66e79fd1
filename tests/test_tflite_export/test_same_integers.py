"""The integer file made from a Keras model and the one made from its float .tflite file, with the
same images: LiteRT's outputs of both, image by image.
"""

import keras
import numpy as np
import pytest
import tflite_sources
import tiny_models

from benchmarks.zoo.networks import vit
from dgh_tf import load_model
from tflite_export.quantization import quantize


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
    model = build()
    (tmp_path / "m.tflite").write_bytes(tflite_sources.converted(model))
    file = load_model(str(tmp_path / "m.tflite"))
    images, others = tiny_models.images(24), tiny_models.images(60, seed=5)
    made = [quantize(m, images, algorithm=algorithm).tflite for m in (model, file)]
    one, two = (integer_outputs(tflite, others) for tflite in made)
    assert one.std() > 5  # outputs that differ from image to image
    assert np.abs(one - two).max() <= 1
