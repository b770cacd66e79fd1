"""A ViT, a ConvNeXt-like and a GroupNorm network, small enough to train on two cores.

None of them keeps a statistic of its training set, so they show what generated images are worth
where no BatchNorm layer leads them. Each builder takes the input's shape (height, width, channels)
and the number of classes. Inputs are stored values 0..255, which a Rescaling layer brings to
-1..1; the output is a softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Shape = tuple[int, int, int]


def _pixels(shape: Shape) -> tuple[Any, Any]:
    """The input of stored values, and the same from -1 to 1."""
    import keras

    inputs = keras.Input(shape, name="image")
    return inputs, keras.layers.Rescaling(1.0 / 127.5, offset=-1.0)(inputs)


def vit(shape: Shape, classes: int) -> Any:
    """A vision transformer (arXiv 2010.11929): 8 x 8 patches, 4 pre-norm blocks of width 64 with 4
    heads, LayerNormalization and GELU; the mean over tokens is classified.
    """
    import keras
    from keras import layers

    width, heads, side = 64, 4, 8
    patch = (shape[0] // side, shape[1] // side)
    inputs, x = _pixels(shape)
    x = layers.Reshape((-1, width))(layers.Conv2D(width, patch, strides=patch)(x))
    # a bias for every token and feature is the learned position embedding
    x = layers.EinsumDense("btw,wv->btv", (side * side, width), bias_axes="tv")(x)
    for _ in range(4):
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(heads, width // heads)(y, y)])
        y = layers.LayerNormalization(epsilon=1e-6)(x)
        y = layers.Dense(2 * width, activation="gelu")(y)
        x = layers.Add()([x, layers.Dense(width)(y)])
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(epsilon=1e-6)(x))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x), name="vit")


def convnext(shape: Shape, classes: int) -> Any:
    """ConvNeXt in small (arXiv 2201.03545): a patch stem, depthwise 7 x 7, LayerNormalization over
    channels, an inverted bottleneck with GELU, two stages.
    """
    import keras
    from keras import layers

    inputs, x = _pixels(shape)
    stem = max(2, shape[0] // 16)  # 16 x 16 positions in the first stage
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(32, stem, strides=stem)(x))
    for width, blocks in ((32, 2), (64, 2)):
        if width > 32:
            x = layers.Conv2D(width, 2, strides=2)(layers.LayerNormalization(epsilon=1e-6)(x))
        for _ in range(blocks):
            y = layers.DepthwiseConv2D(7, padding="same")(x)
            y = layers.LayerNormalization(epsilon=1e-6)(y)
            y = layers.Dense(4 * width, activation="gelu")(y)
            x = layers.Add()([x, layers.Dense(width)(y)])
    x = layers.LayerNormalization(epsilon=1e-6)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x), name="convnext")


def groupnorm(shape: Shape, classes: int) -> Any:
    """A residual network with GroupNormalization (arXiv 1803.08494) of 4 groups, three stages."""
    import keras
    from keras import layers

    def normalized(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.GroupNormalization(4)(x)

    inputs, x = _pixels(shape)
    x = layers.Conv2D(16, 3, strides=max(1, shape[0] // 32), padding="same")(x)
    x = layers.ReLU()(normalized(x))
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        y = layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False)(x)
        y = layers.ReLU()(normalized(y))
        y = normalized(layers.Conv2D(width, 3, padding="same", use_bias=False)(y))
        if stride > 1:
            x = layers.Conv2D(width, 1, strides=stride)(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(classes, activation="softmax")(x), name="groupnorm")


NETWORKS: dict[str, Callable[[Shape, int], Any]] = {
    "vit": vit,
    "convnext": convnext,
    "groupnorm": groupnorm,
}
