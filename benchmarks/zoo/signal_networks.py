"""Small networks of the kinds that run beside sensors. Each builder takes the input's shape and the
number of classes and returns a Keras model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Shape = tuple[int, ...]
_MOMENTUM = 0.95  # hundreds of steps are too few for Keras' 0.99: variances would keep part of 1


def motion_cnn(shape: Shape, classes: int) -> Any:
    """Convolution, BatchNorm, ReLU three times; the mean over time is classified."""
    import keras
    from keras import layers

    inputs = x = keras.Input(shape, name="motion")
    for width in (16, 32, 48):
        x = layers.Conv1D(width, 5, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=_MOMENTUM)(x))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x), name="motion_cnn")


def motion_gru(shape: Shape, classes: int) -> Any:
    """A convolution with BatchNorm in front of a GRU of 24 units."""
    import keras
    from keras import layers

    inputs = keras.Input(shape, name="motion")
    x = layers.Conv1D(24, 5, strides=4, padding="same", use_bias=False)(inputs)
    x = layers.GRU(24)(layers.ReLU()(layers.BatchNormalization(momentum=_MOMENTUM)(x)))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x), name="motion_gru")


def speech_elu(shape: Shape, classes: int) -> Any:
    """Convolutions with BatchNorm and ELU."""
    import keras
    from keras import layers

    inputs = x = keras.Input(shape, name="cepstra")
    for width in (32, 48):
        x = layers.Conv1D(width, 3, padding="same", use_bias=False)(x)
        x = layers.MaxPooling1D(2)(layers.ELU()(layers.BatchNormalization(momentum=_MOMENTUM)(x)))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x), name="speech_elu")


def _current(shape: Shape, classes: int, *, late: bool, name: str) -> Any:
    """2-D convolutions over a spectrogram with BatchNorm in front of ReLU, or `late`, behind it."""
    import keras
    from keras import layers

    inputs = x = keras.Input(shape, name="spectrogram")
    for width in (12, 24, 32):
        activation = "relu" if late else None
        x = layers.Conv2D(width, 3, padding="same", activation=activation, use_bias=late)(x)
        x = layers.BatchNormalization(momentum=_MOMENTUM)(x)
        x = layers.MaxPooling2D(2)(x if late else layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x), name=name)


def current_cnn(shape: Shape, classes: int) -> Any:
    """2-D convolutions over a spectrogram, BatchNorm in front of ReLU."""
    return _current(shape, classes, late=False, name="current_cnn")


def current_late(shape: Shape, classes: int) -> Any:
    """The same with BatchNorm behind ReLU."""
    return _current(shape, classes, late=True, name="current_late")


def _unet(shape: Shape, classes: int, *, name: str) -> Any:
    """A U-Net of one dimension that marks beats: a sigmoid for every sample."""
    import keras
    from keras import layers

    def block(x: Any, width: int) -> Any:
        x = layers.Conv1D(width, 7, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=_MOMENTUM)(x))

    inputs = keras.Input(shape, name="wave")
    first = block(inputs, 8)
    second = block(layers.MaxPooling1D(4)(first), 16)
    x = block(layers.MaxPooling1D(4)(second), 24)
    x = block(layers.Concatenate()([layers.UpSampling1D(4)(x), second]), 16)
    x = block(layers.Concatenate()([layers.UpSampling1D(4)(x), first]), 8)
    outputs = layers.Conv1D(classes, 1, activation="sigmoid", name="beats")(x)
    return keras.Model(inputs, outputs, name=name)


def pulse_unet(shape: Shape, classes: int) -> Any:
    """A U-Net over pulse waves."""
    return _unet(shape, classes, name="pulse_unet")


def peak_unet(shape: Shape, classes: int) -> Any:
    """The same U-Net over an electrocardiogram."""
    return _unet(shape, classes, name="peak_unet")


def beat_cnn(shape: Shape, classes: int) -> Any:
    """Convolution, BatchNorm, ReLU, pooling three times over an electrocardiogram; the largest
    values over time are classified.
    """
    import keras
    from keras import layers

    inputs = x = keras.Input(shape, name="ecg")
    for width in (12, 24, 32):
        x = layers.Conv1D(width, 7, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=_MOMENTUM)(x))
        x = layers.MaxPooling1D(2)(x)
    x = layers.Dense(24, activation="relu")(layers.GlobalMaxPooling1D()(x))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x), name="beat_cnn")


def rhythm_heads(shape: Shape, classes: int) -> Any:
    """Residual blocks over a pulse wave with two heads: the kind of rhythm, and the rate."""
    import keras
    from keras import layers

    def block(x: Any, width: int, stride: int) -> Any:
        x = layers.Conv1D(width, 7, strides=stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=_MOMENTUM)(x)

    inputs = keras.Input(shape, name="pulse")
    x = layers.ReLU()(block(inputs, 12, 2))
    for width in (16, 24, 32):
        y = block(layers.ReLU()(block(x, width, 2)), width, 1)
        x = layers.ReLU()(layers.Add()([block(x, width, 2), y]))
    x = layers.GlobalAveragePooling1D()(x)
    heads = {
        "rhythm": layers.Dense(classes, activation="softmax", name="rhythm")(x),
        "rate": layers.Dense(1, name="rate")(layers.Dense(16, activation="relu")(x)),
    }
    return keras.Model(inputs, heads, name="rhythm_heads")


NETWORKS: dict[str, tuple[str, Callable[[Shape, int], Any]]] = {
    "motion_cnn": ("motion", motion_cnn),
    "motion_gru": ("motion", motion_gru),
    "speech_elu": ("speech", speech_elu),
    "current_cnn": ("current", current_cnn),
    "current_late": ("current", current_late),
    "pulse_unet": ("pulse", pulse_unet),
    "peak_unet": ("peaks", peak_unet),
    "beat_cnn": ("beats", beat_cnn),
    "rhythm_heads": ("rhythm", rhythm_heads),
}
