"""Small models of every form the code must take, with fixed weights and running statistics moved
off (0, 1).

Each builder takes `keras`: the module to build with (Keras 3 by default, or tf_keras) and returns a
model.
"""

from __future__ import annotations

import keras as keras3
import numpy as np


def settle(model, *, seed: int = 0):
    """Gives all weights fixed values: He-scaled kernels, running means in -0.5 .. 0.5, variances in
    0.5 .. 2.
    """
    rng = np.random.default_rng(seed)
    values = []
    for variable in model.weights:
        path, shape = getattr(variable, "path", variable.name), tuple(variable.shape)
        if "variance" in path:
            values.append(rng.uniform(0.5, 2.0, shape))
        elif "gamma" in path:
            values.append(rng.uniform(0.7, 1.3, shape))
        elif len(shape) > 1:
            depthwise = "depthwise" in path
            fan_in = np.prod(shape[:2]) if depthwise else np.prod(shape[:-1])
            values.append(rng.normal(0.0, np.sqrt(2.0 / fan_in), shape))
        else:  # running means, betas, biases
            values.append(rng.uniform(-0.5, 0.5, shape))
    model.set_weights([v.astype(np.float32) for v in values])
    return model


def images(
    count: int = 32, *, shape=(16, 16, 3), low: float = -1.0, high: float = 1.0, seed: int = 1
) -> np.ndarray:
    """Smooth random images that fill [low, high]: float32 [count, *shape]."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(count, *shape))
    for axis in range(1, noise.ndim - 1):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    noise = np.clip(noise / (2.0 * noise.std()), -1.0, 1.0)
    return (low + (noise + 1.0) / 2.0 * (high - low)).astype(np.float32)


def _block(keras, x, filters, *, stride=1, depthwise=False, name=None):
    layers = keras.layers
    if depthwise:
        x = layers.ReLU(6.0)(
            layers.BatchNormalization()(
                layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
            )
        )
    x = layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False, name=name)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def conv_bn_relu(*, keras=keras3, shape=(16, 16, 3), classes=5, activation=None):
    """Three conv+BN+ReLU blocks, one of them depthwise, global pooling and a dense head (3
    + 1 BN).
    """
    x = inputs = keras.Input(shape, name="image")
    x = _block(keras, x, 8, stride=2)
    x = _block(keras, x, 12, depthwise=True)
    x = _block(keras, x, 16, stride=2)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(classes, activation=activation, name="logits")(x)
    return settle(keras.Model(inputs, x, name="conv_bn_relu"))


def softmax_head(*, keras=keras3):
    """conv_bn_relu whose dense head ends in softmax."""
    return conv_bn_relu(keras=keras, activation="softmax")


def grey_input(*, keras=keras3):
    """conv_bn_relu on one channel."""
    return conv_bn_relu(keras=keras, shape=(16, 16, 1))


def nested_backbone(*, keras=keras3):
    """A backbone model inside a model inside a model; both levels hold BN layers."""
    inner_in = keras.Input((16, 16, 3), name="inner_image")
    inner = keras.Model(inner_in, _block(keras, inner_in, 8, stride=2), name="inner")
    middle_in = keras.Input((16, 16, 3), name="middle_image")
    middle = keras.Model(middle_in, _block(keras, inner(middle_in), 12), name="backbone")
    inputs = keras.Input((16, 16, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D()(_block(keras, middle(inputs), 16))
    return settle(keras.Model(inputs, keras.layers.Dense(5)(x), name="nested"))


def two_heads(*, keras=keras3):
    """A detector's form: dict outputs 'classes' (sigmoid, [N, 8, 8, 3]), 'boxes' ([N, 8, 8, 4]);
    each head has a BN.
    """
    inputs = keras.Input((16, 16, 3), name="image")
    x = _block(keras, inputs, 8, stride=2)
    boxes = keras.layers.Conv2D(4, 1, name="boxes")(_block(keras, x, 8))
    classes = keras.layers.Conv2D(3, 1, activation="sigmoid", name="classes")(_block(keras, x, 12))
    return settle(keras.Model(inputs, {"classes": classes, "boxes": boxes}, name="two_heads"))


def one_dimensional(*, keras=keras3):
    """Conv1D + BN over a signal [64, 2]."""
    x = inputs = keras.Input((64, 2), name="signal")
    x = keras.layers.Conv1D(8, 5, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv1D(12, 3, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling1D()(x))
    return settle(keras.Model(inputs, x, name="one_dimensional"))


def two_inputs(*, keras=keras3):
    """Inputs 'left' [16, 16, 3] and 'right' [8, 8, 1], joined after one block each. The order is
    right, left.
    """
    left, right = keras.Input((16, 16, 3), name="left"), keras.Input((8, 8, 1), name="right")
    x = keras.layers.Concatenate()([_block(keras, left, 8, stride=2), _block(keras, right, 6)])
    x = keras.layers.GlobalAveragePooling2D()(_block(keras, x, 12))
    return settle(keras.Model([right, left], keras.layers.Dense(5)(x), name="two_inputs"))


def shared_bn(*, keras=keras3):
    """One conv + BN pair called twice on different tensors."""
    inputs = keras.Input((16, 16, 3), name="image")
    conv, bn = (
        keras.layers.Conv2D(8, 3, padding="same", use_bias=False),
        keras.layers.BatchNormalization(name="shared"),
    )
    x = keras.layers.Conv2D(8, 3, padding="same", strides=2)(inputs)
    first = keras.layers.ReLU()(bn(conv(x)))
    second = keras.layers.ReLU()(bn(conv(first)))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([first, second]))
    return settle(keras.Model(inputs, keras.layers.Dense(5)(x), name="shared_bn"))


def subclassed(*, keras=keras3):
    """A subclassed model, called once so that its weights exist."""

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(name="subclassed")
            self.conv1 = keras.layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)
            self.bn1 = keras.layers.BatchNormalization()
            self.conv2 = keras.layers.Conv2D(12, 3, padding="same", use_bias=False)
            self.bn2 = keras.layers.BatchNormalization()
            self.pool = keras.layers.GlobalAveragePooling2D()
            self.head = keras.layers.Dense(5)
            self.relu = keras.layers.ReLU()

        def call(self, x, training=False):
            x = self.relu(self.bn1(self.conv1(x), training=training))
            x = self.relu(self.bn2(self.conv2(x), training=training))
            return self.head(self.pool(x))

    model = Subclassed()
    model(np.zeros((1, 16, 16, 3), np.float32))
    return settle(model)


def silu_detector(*, keras=keras3):
    """A plain functional detector: SiLU throughout, three raw convolutional heads [8, 8], [4, 4],
    [2, 2] of 9 channels.
    """

    def block(x, filters, stride=2):
        x = keras.layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)(x)
        return keras.layers.Activation("silu")(keras.layers.BatchNormalization()(x))

    x = inputs = keras.Input((32, 32, 3), name="image")
    levels = []
    for filters in (8, 12, 16, 20):
        x = block(x, filters)
        levels.append(x)
    deep = keras.layers.UpSampling2D()(block(levels[3], 12, 1))
    levels[2] = keras.layers.Concatenate()([levels[2], deep])
    heads = [
        keras.layers.Conv2D(9, 1, name=f"head_{i}")(block(level, 8, 1))
        for i, level in enumerate(levels[1:])
    ]
    return settle(keras.Model(inputs, heads, name="silu_detector"))


def sliced_detector(*, keras=keras3):
    """KerasCV's form: per level [boxes 4 | sigmoid(scores 3)], reshaped, joined over levels, then
    sliced apart again.
    """
    x = inputs = keras.Input((16, 16, 3), name="image")
    levels = []
    for i in range(2):
        x = _block(keras, x, 8 + 4 * i, stride=2)
        boxes = keras.layers.Conv2D(4, 1, name=f"boxes_{i}")(_block(keras, x, 6))
        scores = keras.layers.Conv2D(3, 1, activation="sigmoid", name=f"scores_{i}")(
            _block(keras, x, 7)
        )
        levels.append(keras.layers.Reshape((-1, 7))(keras.layers.Concatenate()([boxes, scores])))
    joined = keras.layers.Concatenate(axis=1)(levels)
    return settle(
        keras.Model(
            inputs, {"boxes": joined[:, :, :4], "classes": joined[..., 4:]}, name="sliced_detector"
        )
    )


def batchnorm_variants(*, keras=keras3):
    """BN over axis 1, BN without scale, without centre, without both, frozen BN and synchronized
    BN.
    """
    x = inputs = keras.Input((16, 16, 3), name="image")
    options = [
        {"axis": 1},
        {"scale": False},
        {"center": False},
        {"scale": False, "center": False},
        {"trainable": False},
        {"synchronized": True},
    ]
    for option in options:
        x = keras.layers.Conv2D(6, 3, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(**option)(x))
    x = keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x))
    return settle(keras.Model(inputs, x, name="batchnorm_variants"))


def partly_normalized(*, keras=keras3):
    """Two branches, 'with_bn' and 'without_bn', each with a dense head; only the first has
    statistics.
    """
    inputs = keras.Input((16, 16, 3), name="image")
    first = _block(keras, inputs, 8, stride=2, name="with_bn")
    second = keras.layers.Conv2D(8, 3, strides=2, activation="relu", name="without_bn")(inputs)
    heads = {
        name: keras.layers.Dense(4, name=name)(keras.layers.GlobalAveragePooling2D()(x))
        for name, x in (("head_a", first), ("head_b", second))
    }
    return settle(keras.Model(inputs, heads, name="partly_normalized"))


def vector(*, keras=keras3):
    """A dense network over vectors [24]."""
    x = inputs = keras.Input((24,), name="features")
    for units in (32, 16):
        x = keras.layers.ReLU()(
            keras.layers.BatchNormalization()(keras.layers.Dense(units, use_bias=False)(x))
        )
    return settle(
        keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x), name="vector")
    )


def many_channels(*, keras=keras3):
    """conv_bn_relu on six channels, such as a satellite's bands."""
    return conv_bn_relu(keras=keras, shape=(16, 16, 6))


def channels_first_convolution():
    """Runs on GPUs, and on CPUs for which oneDNN brings the kernel."""
    first = keras3.layers.Conv2D(4, 3, data_format="channels_first")
    return settle(
        keras3.Sequential(
            [
                keras3.Input((3, 16, 16)),
                first,
                keras3.layers.BatchNormalization(axis=1),
                keras3.layers.Flatten(),
            ]
        )
    )


def channels_first(*, keras=keras3):
    """conv_bn_relu behind a Permute: the input is [3, 16, 20], as in models that came from other
    frameworks.
    """
    inputs = keras.Input((3, 16, 20), name="image")
    x = keras.layers.Permute((2, 3, 1))(inputs)
    x = keras.layers.GlobalAveragePooling2D()(_block(keras, _block(keras, x, 8, stride=2), 12))
    return settle(keras.Model(inputs, keras.layers.Dense(5)(x), name="channels_first"))


def single_output(*, keras=keras3):
    """A score: one dense output under a sigmoid."""
    return conv_bn_relu(keras=keras, classes=1, activation="sigmoid")


def spectrogram(*, keras=keras3):
    """conv_bn_relu on a narrow map [40, 12, 1], such as a spectrogram."""
    return conv_bn_relu(keras=keras, shape=(40, 12, 1))


def dynamic_size(*, keras=keras3):
    """conv_bn_relu whose height and width are open."""
    return conv_bn_relu(keras=keras, shape=(None, None, 3))


def segmentation(*, keras=keras3):
    """Per-pixel softmax over four classes at the input's size, through a transposed convolution."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = _block(keras, _block(keras, inputs, 8, stride=2), 12)
    x = keras.layers.Conv2DTranspose(8, 3, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return settle(
        keras.Model(inputs, keras.layers.Conv2D(4, 1, activation="softmax")(x), name="segmentation")
    )


def sequential(*, keras=keras3):
    """A Sequential model with an input layer."""
    layers = keras.layers
    return settle(
        keras.Sequential(
            [
                keras.Input((16, 16, 3)),
                layers.Conv2D(8, 3, strides=2, use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.Conv2D(12, 3, use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
                layers.GlobalAveragePooling2D(),
                layers.Dense(5),
            ],
            name="sequential",
        )
    )


def unet(*, keras=keras3):
    """A U-Net on [24, 24, 3] with skip connections, bytes scaled by operators and SiLU by name;
    per-pixel sigmoid.
    """
    inputs, skips = keras.Input((24, 24, 3), name="image"), []
    x = inputs / 127.5 - 1.0
    for filters in (6, 8):
        x = keras.layers.Activation("swish")(
            keras.layers.BatchNormalization()(keras.layers.Conv2D(filters, 3, padding="same")(x))
        )
        skips.append(x)
        x = keras.layers.MaxPooling2D()(x)
    x = _block(keras, x, 12)
    for filters, skip in ((8, skips[1]), (6, skips[0])):
        x = _block(
            keras, keras.layers.Concatenate()([keras.layers.UpSampling2D()(x), skip]), filters
        )
    return settle(
        keras.Model(inputs, keras.layers.Conv2D(1, 1, activation="sigmoid")(x), name="unet")
    )


def squeeze_excite(*, keras=keras3):
    """BN on the input itself, a pre-activation residual block, hard swish, squeeze and excitation,
    separable convolution.
    """
    layers = keras.layers
    inputs = keras.Input((16, 16, 4), name="bands")
    x = y = layers.Conv2D(8, 3, padding="same")(layers.BatchNormalization()(inputs))
    for _ in range(2):
        y = layers.Conv2D(8, 3, padding="same")(layers.ReLU()(layers.BatchNormalization()(y)))
    x = layers.Activation("hard_swish")(x + y)
    gate = layers.Dense(8, activation="hard_sigmoid")(
        layers.Dense(4, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    )
    x = layers.ReLU()(
        layers.BatchNormalization()(
            layers.SeparableConv2D(12, 3, strides=2, use_bias=False)(x * gate)
        )
    )
    return settle(
        keras.Model(
            inputs, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)), name="squeeze_excite"
        )
    )


def recurrent(*, keras=keras3):
    """Convolutions on a grey line of text, then an LSTM over its columns with one softmax each."""
    inputs = keras.Input((16, 32, 1), name="line")
    x = keras.layers.Permute((2, 1, 3))(
        _block(keras, _block(keras, inputs, 6, stride=2), 6, stride=2)
    )
    x = keras.layers.LSTM(6, return_sequences=True, unroll=True)(keras.layers.Reshape((8, 24))(x))
    return settle(
        keras.Model(inputs, keras.layers.Dense(5, activation="softmax")(x), name="recurrent")
    )


def mixed_inputs(*, keras=keras3):
    """A dict of a picture, a signal and plain numbers; nested outputs under a list and a dict."""
    layers = keras.layers
    inputs = {
        "picture": keras.Input((16, 16, 3), name="picture"),
        "signal": keras.Input((32, 2), name="signal"),
        "numbers": keras.Input((5,), name="numbers"),
    }
    x = _block(keras, inputs["picture"], 8, stride=2)
    y = layers.GlobalAveragePooling1D()(
        layers.ReLU()(layers.BatchNormalization()(layers.Conv1D(6, 3)(inputs["signal"])))
    )
    joined = layers.Concatenate()(
        [layers.GlobalAveragePooling2D()(x), y, layers.BatchNormalization()(inputs["numbers"])]
    )
    outputs = {
        "maps": [layers.Conv2D(3, 1)(x), layers.Conv2D(2, 1, activation="sigmoid")(x)],
        "state": {"kind": layers.Dense(4)(joined)},
    }
    return settle(keras.Model(inputs, outputs, name="mixed_inputs"))
