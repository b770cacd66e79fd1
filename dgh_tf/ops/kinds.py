"""What a model input is, told by its shape: a picture, a spectrogram, a sequence or a vector."""

from __future__ import annotations

import dataclasses

import numpy as np

KINDS = ("image", "spectrogram", "sequence", "vector")
LEAST_IMAGE_SIDE = 16  # pixels: below it a crop would throw away too much of the image
_PICTURE_RATIOS = (1.0, 4 / 3)  # sides of pictures of one channel; spectrograms have others
# Numbers of bands that filter banks, cepstra and Fourier transforms usually have
_BANDS = {10, 12, 13, 20, 21, 23, 24, 26, 32, 39, 40, 60, 64, 80, 96, 128, 129, 201, 257, 513}


@dataclasses.dataclass(frozen=True)
class Signal:
    """One input that is no picture, as a matrix of time by columns.

    Attributes:
      kind: spectrogram, sequence or vector.
      shape: of the input, without batch.
      length: of the time axis; 1 for a vector.
      columns: bands of a spectrogram, sensors of a sequence, entries of a vector.
      turned: whether the input holds its columns before the time.
    """

    kind: str
    shape: tuple[int, ...]
    length: int
    columns: int
    turned: bool = False

    def to_input(self, values: np.ndarray) -> np.ndarray:
        """[n, length, columns] as the input has it, [n, *shape]. Further channels of a spectrogram
        all get the same values.
        """
        values = np.swapaxes(values, 1, 2) if self.turned else values
        copies = int(np.prod(self.shape)) // (self.length * self.columns)
        return np.repeat(values[..., None], copies, axis=-1).reshape(len(values), *self.shape)


def kind_of_shape(shape: tuple[int, ...]) -> str:
    """The kind of an input of `shape` (channels last, no batch axis).

    One channel does not tell a picture from a spectrogram, so the sides do: square or 4 to 3 is a
    picture.

    Example: `kind_of_shape((98, 40, 1)) == "spectrogram"`, `kind_of_shape((96, 96, 1)) == "image"`.
    """
    if len(shape) == 2:
        return "sequence"
    if len(shape) != 3:
        return "vector"
    height, width, channels = shape
    if min(height, width) == 1:
        return "sequence" if max(height, width) > 1 else "vector"
    ratio = max(height, width) / min(height, width)
    pictured = any(abs(ratio - usual) < 0.02 for usual in _PICTURE_RATIOS)
    if pictured or (channels in (3, 4) and min(height, width) >= LEAST_IMAGE_SIDE):
        return "image"
    return "spectrogram"


def as_signal(shape: tuple[int, ...], kind: str, *, view: tuple[int, ...] | None = None) -> Signal:
    """The matrix behind an input of `shape`.

    view: the shape that the model's first layers see it in, of as many values; None for `shape`.
    Of the two sides of a spectrogram the one that is a usual number of bands holds the bands; where
    both are or none is, the shorter one.
    """
    size, seen = int(np.prod(shape)), view or shape
    if int(np.prod(seen)) != size:
        seen = shape
    if kind == "sequence" and len(seen) == 1:
        return Signal(kind, shape, size, 1)
    if kind == "sequence":
        return Signal(kind, shape, size // seen[-1], seen[-1])
    if kind == "spectrogram" and len(seen) >= 2:
        first, second = seen[0], seen[1]
        usual = (first in _BANDS, second in _BANDS)
        turned = usual[0] if usual[0] != usual[1] else first < second
        length, columns = (second, first) if turned else (first, second)
        return Signal(kind, shape, length, columns, turned)
    return Signal("vector", shape, 1, size)
