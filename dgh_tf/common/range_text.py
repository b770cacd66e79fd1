"""Input ranges as people write them: LOW,HIGH, the name of a convention, or such by input name.

A text is read here without a model, so that a mistyped one is refused before TensorFlow starts.
"""

from __future__ import annotations

import numpy as np

from dgh_tf.common.value_range import parse_pairs

_IMAGENET_MEAN, _IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_CAFFE_MEAN = np.array([103.939, 116.779, 123.68])  # blue, green, red
CONVENTIONS = {
    "byte": (0.0, 255.0),
    "unit": (0.0, 1.0),
    "symmetric": (-1.0, 1.0),
    "half": (-0.5, 0.5),  # unit less one half, or less the training set's mean
    "signed": (-128.0, 127.0),  # byte less 128, or less the training set's mean
    "standard": (-2.7, 2.7),  # less the training set's mean, then divided by its standard deviation
    "imagenet": (-_IMAGENET_MEAN / _IMAGENET_STD, (1.0 - _IMAGENET_MEAN) / _IMAGENET_STD),
    "caffe": (-_CAFFE_MEAN, 255.0 - _CAFFE_MEAN),
}
# Of signals: sensors have rare large peaks, so a range holds far more deviations than of pictures
SIGNAL_CONVENTIONS = {
    "unit": (0.0, 1.0),
    "symmetric": (-1.0, 1.0),
    "standard": (-8.0, 8.0),  # real tails reach 6 to 8 deviations
    "int16": (-32768.0, 32767.0),
    "decibels": (-80.0, 0.0),  # below the loudest value
}


def by_input(text: str) -> list[tuple[str, str]]:
    """(name, range) of every input that a text names, NAME:RANGE;NAME:RANGE, where a range may
    itself be pairs joined by semicolons. A range that stands before every name has name "".

    Example:
      >>> by_input("left:0,1;2,3;right:byte")
      [('left', '0,1;2,3'), ('right', 'byte')]
    """
    parts: list[tuple[str, list[str]]] = []
    for part in filter(None, map(str.strip, text.split(";"))):
        name, colon, valid = part.rpartition(":")
        if colon or not parts:
            parts.append((name.strip(), []))
        parts[-1][1].append(valid.strip())
    return [(name, ";".join(pairs)) for name, pairs in parts]


def check_range_text(text: str) -> None:
    """Raises ValueError, naming input_range, for a text that is no range of any model."""
    for _, valid in by_input(text):
        if valid not in {*CONVENTIONS, *SIGNAL_CONVENTIONS}:
            pairs_of(valid, names=[*CONVENTIONS, *SIGNAL_CONVENTIONS])


def pairs_of(text: str, *, names: list[str]) -> list[tuple[float, float]]:
    """The pairs of one range. Raises ValueError, naming input_range, for any other text. names: of
    the conventions that would do.
    """
    pairs = parse_pairs(text)
    if pairs is None:
        raise ValueError(
            f"input_range={text}: expected LOW,HIGH (two finite numbers, the smaller first), such "
            "a pair for every channel joined by semicolons, or one of "
            f"{', '.join(dict.fromkeys(names))}."
        )
    return pairs
