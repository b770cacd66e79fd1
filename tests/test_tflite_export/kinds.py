"""Tiny trained models of the kinds on which an algorithm can fall behind min/max ranges, and their
images.
"""

from __future__ import annotations

import keras
import numpy as np

L = keras.layers
CLASSES = 6
SIDE = 24


def pictures(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [count, 24, 24, 3] in 0..255 and classes: direction of stripes and colour, with much
    noise and changing light.
    """
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, count)
    angle = classes % 3 * np.pi / 3 + rng.normal(0, 0.12, count)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    phase = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    turned = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    waves = np.sin(2 * np.pi * 3 * turned + phase)
    colour = np.where(classes[:, None] < 3, [1.0, 0.6, 0.2], [0.2, 0.6, 1.0])
    light = rng.uniform(0.4, 1.0, (count, 1, 1, 1))
    noise = rng.normal(0, 0.35, (count, SIDE, SIDE, 3))
    images = 127.5 + 80 * light * (waves[..., None] * colour[:, None, None] + noise)
    return np.float32(np.clip(images, 0, 255)), classes


def walks(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [count, 16, 4] in about -2..2 and classes: the frequency of one of four channels."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, CLASSES, count)
    time = np.arange(16)[None, :, None] * (0.3 + 0.15 * classes[:, None, None])
    signal = np.sin(time + rng.uniform(0, 6, (count, 1, 4))) * rng.uniform(0.3, 1.5, (count, 1, 4))
    return np.float32(signal + rng.normal(0, 0.2, signal.shape)), classes


def _norm_relu(x):
    return L.ReLU()(L.BatchNormalization()(x))


def resnet_v2(x):
    x = L.Conv2D(16, 3, padding="same", use_bias=False)(x)
    for stride in (1, 2, 2):
        y = _norm_relu(x)
        short = L.MaxPooling2D(1, stride)(x) if stride > 1 else x
        y = _norm_relu(L.Conv2D(16, 3, stride, padding="same", use_bias=False)(y))
        x = L.Add()([short, L.Conv2D(16, 3, padding="same")(y)])
    return _norm_relu(x)


def densenet(x):
    x = L.Conv2D(12, 3, 2, padding="same", use_bias=False)(x)
    for _ in range(2):
        for _ in range(3):
            y = L.Conv2D(16, 1, use_bias=False)(_norm_relu(x))
            y = L.Conv2D(8, 3, padding="same", use_bias=False)(_norm_relu(y))
            x = L.Concatenate()([x, y])
        x = L.AveragePooling2D(2)(L.Conv2D(16, 1, use_bias=False)(_norm_relu(x)))
    return _norm_relu(x)


def xception(x):
    x = _norm_relu(L.Conv2D(12, 3, 2, padding="same", use_bias=False)(x))
    for filters in (16, 24):
        short = L.BatchNormalization()(L.Conv2D(filters, 1, 2, use_bias=False)(x))
        y = L.SeparableConv2D(filters, 3, padding="same", use_bias=False)(x)
        y = L.SeparableConv2D(filters, 3, padding="same", use_bias=False)(_norm_relu(y))
        y = L.MaxPooling2D(3, 2, padding="same")(L.BatchNormalization()(y))
        x = L.ReLU()(L.Add()([short, y]))
    return x


def conv_pool_norm(x):
    for _ in range(3):
        x = L.Conv2D(16, 3, padding="same", use_bias=False, activation="relu")(x)
        x = L.BatchNormalization()(L.MaxPooling2D()(x))
    return x


def gru(x):
    return L.GRU(8)(_norm_relu(L.Conv1D(8, 3, padding="same", use_bias=False)(x)))


KINDS = {
    "resnet_v2": resnet_v2,
    "densenet": densenet,
    "xception": xception,
    "conv_pool_norm": conv_pool_norm,
    "gru": gru,
}


def trained(kind: str, *, seed: int = 0, epochs: int = 6):
    """(model, images of a seed): a model of one kind, trained to its task; its output is logits."""
    keras.utils.set_random_seed(seed)
    source = walks if kind == "gru" else pictures
    x, y = source(768, seed=100 + seed)
    inputs = keras.Input(x.shape[1:], name="image")
    z = inputs if kind == "gru" else L.Rescaling(1 / 127.5, -1.0)(inputs)
    z = KINDS[kind](z)
    z = z if len(z.shape) == 2 else L.GlobalAveragePooling2D()(z)
    model = keras.Model(inputs, L.Dense(CLASSES)(z), name=kind)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss=loss)
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return model, source
