"""Stored pixel values to a model's input units. Images are [N, height, width, channels], the
result float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_NAMED = ("none", "unit", "symmetric", "imagenet", "caffe")
# keras.applications.imagenet_utils: mode 'torch' (RGB, unit range) and mode 'caffe' (BGR, 0..255).
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_CAFFE_MEAN = np.array([103.939, 116.779, 123.68], np.float32)


def preprocessing(text: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function from stored values to the model's input units, float32, that `text` names.

    Args:
      text: 'SCALE,OFFSET' for x * SCALE + OFFSET, or none, unit (x / 255), symmetric (x / 127.5 -
        1), imagenet (unit range, then ImageNet's mean and deviation), caffe (BGR, ImageNet's mean
        taken off).

    Raises:
      ValueError: `text` is neither, or images without three channels meet imagenet or caffe.
    """
    if text in _NAMED:
        return {
            "none": lambda x: np.asarray(x, np.float32),
            "unit": lambda x: np.asarray(x, np.float32) / np.float32(255.0),
            "symmetric": lambda x: np.asarray(x, np.float32) / np.float32(127.5) - np.float32(1.0),
            "imagenet": lambda x: (_rgb(x) / np.float32(255.0) - _MEAN) / _STD,
            "caffe": lambda x: _rgb(x)[..., ::-1] - _CAFFE_MEAN,
        }[text]
    try:
        scale, offset = (np.float32(part) for part in text.split(","))
        if not np.isfinite([scale, offset]).all():
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--preprocess={text} is not understood. Give SCALE,OFFSET (for example "
            "0.0078431373,-1 for "
            f"x * SCALE + OFFSET) or one of {', '.join(_NAMED)}."
        ) from None
    return lambda x: np.asarray(x, np.float32) * scale + offset


def _rgb(x: np.ndarray) -> np.ndarray:
    if x.shape[-1] != 3:
        raise ValueError(
            f"The preprocessing 'imagenet' and 'caffe' need three channels, these images have "
            f"{x.shape[-1]}. Give --preprocess=SCALE,OFFSET."
        )
    return np.asarray(x, np.float32)
