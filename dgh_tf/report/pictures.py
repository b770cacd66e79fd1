"""Images, spectrograms, sequences and vectors as pictures: preview.png, and those of the page.

What an input is, `dgh_tf.ops.kinds` tells. A photograph is drawn as it is, all else as a map: time
to the right, value as colour.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import pathlib

import numpy as np

from dgh_tf.common.files import atomic_path
from dgh_tf.ops.kinds import as_signal, kind_of_shape

GRID = 8  # images a side at most
CELL = 96  # pixels a side at least, so that small inputs can be seen
LARGEST = 256  # pixels a side at most of a picture that is no photograph
ROWS = 32  # vectors shown at most, one a row
_MAP = "viridis"
_OPEN = ("image", "spectrogram")  # kinds that one shape can be


@dataclasses.dataclass(frozen=True)
class Picture:
    """One input as a data URI. pixelated: small, shown with its pixels enlarged."""

    uri: str
    label: str
    pixelated: bool


@dataclasses.dataclass(frozen=True)
class Gallery:
    """What the page shows of one input. kind: images, spectrograms, sequences or vectors.

    scale: the colours from the lowest to the highest value, None for photographs. low, high: what
    its ends stand for. across, up: what the axes of a picture are.
    """

    kind: str
    pictures: tuple[Picture, ...]
    total: int
    across: str = ""
    up: str = ""
    scale: Picture | None = None
    low: str = ""
    high: str = ""


def kind_told(told: str, shape: tuple[int, ...]) -> str:
    """The kind of an input of `shape` (channels last, no batch axis), one of `KINDS`: as a
    manifest's `input_kind` has it where the input may be a picture or a spectrogram, else by shape.
    """
    return told if told in _OPEN and len(shape) == 3 else kind_of_shape(shape)


def _unit(images: np.ndarray, *, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Values from 0 (lowest valid) to 1 (highest valid); what lies outside is clipped."""
    scaled = (np.asarray(images, np.float64) - low) / np.maximum(high - low, 1e-30)
    return np.clip(np.nan_to_num(scaled), 0.0, 1.0)


def _maps(images: np.ndarray, *, low: np.ndarray, high: np.ndarray, kind: str) -> np.ndarray:
    """Values of 0..1 [pictures, rows, columns]: time to the right, bands or sensors upwards.
    Further channels of a spectrogram count with their mean; vectors are one picture, one a row.
    """
    unit = _unit(images, low=low, high=high)
    if kind == "vector":
        maps = unit.reshape(len(unit), -1)[None, :ROWS]
    else:
        signal = as_signal(images.shape[1:], kind)
        sides = (signal.length, signal.columns)
        values = unit.reshape(len(unit), *(sides[::-1] if signal.turned else sides), -1).mean(-1)
        maps = (values if signal.turned else values.transpose(0, 2, 1))[:, ::-1]
    return _at_most(_at_most(maps, axis=1), axis=2)


def _at_most(maps: np.ndarray, *, axis: int) -> np.ndarray:
    """Means of neighbours along the axis, so that it has at most LARGEST."""
    length = maps.shape[axis]
    if length <= LARGEST:
        return maps
    starts = np.linspace(0, length, LARGEST, endpoint=False).astype(int)
    counts = np.diff([*starts, length])
    shape = [1] * maps.ndim
    shape[axis] = LARGEST
    return np.add.reduceat(maps, starts, axis=axis) / counts.reshape(shape)


def _coloured(maps: np.ndarray) -> np.ndarray:
    """Values of 0..1 as uint8 [..., 3]."""
    from matplotlib import colormaps

    return (colormaps[_MAP](maps)[..., :3] * 255).round().astype(np.uint8)


def _photographs(images: np.ndarray, *, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3]. Images of four channels show their mean."""
    shown = np.empty((*images.shape[:3], 3), np.uint8)
    for image, place in zip(images, shown, strict=True):  # one by one: float64 takes memory
        unit = _unit(image, low=low, high=high)
        if unit.shape[-1] not in (1, 3):
            unit = unit.mean(axis=-1, keepdims=True)
        place[:] = np.rint(unit * 255)
    return shown


def pixels(images: np.ndarray, *, low: object, high: object, kind: str | None = None) -> np.ndarray:
    """Inputs as uint8 pictures [pictures, rows, columns, 3], small ones enlarged.

    Args:
      images: [N, ...] in model input units, channels last.
      low: lower end of the valid range, a number or one per channel.
      high: upper end, in the same form.
      kind: one of `KINDS`; None tells it from the shape.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    kind = kind or kind_of_shape(images.shape[1:])
    if kind == "image":
        shown = _photographs(images, low=low, high=high)
        zoom = max(1, CELL // max(shown.shape[1:3]))
        return shown.repeat(zoom, axis=1).repeat(zoom, axis=2)
    shown = _coloured(_maps(images, low=low, high=high, kind=kind))
    return shown.repeat(_zoom(shown.shape[1]), axis=1).repeat(_zoom(shown.shape[2]), axis=2)


def _zoom(side: int) -> int:
    return max(1, CELL // side)


def preview_grid(
    images: np.ndarray, *, low: object, high: object, kind: str | None = None
) -> np.ndarray:
    """uint8 [rows, columns, 3] picture of up to 64 inputs. images: [N, H, W, C], [N, T, C] or [N,
    D] in [low, high].

    Example:
      preview_grid(np.zeros((4, 32, 32, 3)), low=0.0, high=1.0).shape  # (204, 204, 3)
    """
    shown = pixels(np.asarray(images[: GRID * GRID]), low=low, high=high, kind=kind)
    columns = math.ceil(math.sqrt(len(shown)))
    rows = math.ceil(len(shown) / columns)
    height, width = shown.shape[1] + 4, shown.shape[2] + 4  # a border of 4 pixels between images
    grid = np.full((rows * height + 4, columns * width + 4, 3), 255, np.uint8)
    for i, image in enumerate(shown):
        y, x = 4 + i // columns * height, 4 + i % columns * width
        grid[y : y + image.shape[0], x : x + image.shape[1]] = image
    return grid


def write_preview(
    folder: pathlib.Path,
    images: np.ndarray,
    *,
    low: object,
    high: object,
    kind: str | None = None,
) -> None:
    """Writes preview.png; the arguments are those of `preview_grid`."""
    from PIL import Image

    with atomic_path(folder / "preview.png") as temporary:
        Image.fromarray(preview_grid(images, low=low, high=high, kind=kind)).save(temporary)


def encoded(picture: np.ndarray, *, label: str) -> Picture:
    """A uint8 [rows, columns, 3] array as a data URI: PNG where it is small, else JPEG."""
    from PIL import Image

    small, data = max(picture.shape[:2]) < 2 * CELL, io.BytesIO()
    options = {"format": "PNG", "optimize": True} if small else {"format": "JPEG", "quality": 88}
    Image.fromarray(picture).save(data, **options)
    text = base64.b64encode(data.getvalue()).decode()
    return Picture(f"data:image/{'png' if small else 'jpeg'};base64,{text}", label, small)


def gallery(
    images: np.ndarray,
    *,
    low: object,
    high: object,
    ends: tuple[str, str],
    kind: str | None = None,
) -> Gallery:
    """The first 64 inputs as the page shows them. ends: the ends of the valid range in words. kind:
    one of `KINDS`; None tells it from the shape.
    """
    kind, shown = kind or kind_of_shape(images.shape[1:]), np.asarray(images[: GRID * GRID])
    drawn = pixels(shown, low=low, high=high, kind=kind)
    if kind == "vector":
        labels = [f"generated vectors, the first {min(len(shown), ROWS)} of {len(images)}"]
    else:
        labels = [f"generated {kind} {i + 1}" for i in range(len(drawn))]
    pictures = tuple(
        encoded(picture, label=label) for picture, label in zip(drawn, labels, strict=True)
    )
    if kind == "image":
        return Gallery("images", pictures, len(images))
    ramp = _coloured(np.linspace(0.0, 1.0, 128)[None].repeat(8, axis=0))
    across, up = {
        "spectrogram": ("time", "frequency"),
        "sequence": ("time", "channel"),
        "vector": ("position in the vector", "one vector a row"),
    }[kind]
    scale = encoded(ramp, label=f"colours from {ends[0]} to {ends[1]}")
    return Gallery(f"{kind}s", pictures, len(images), across, up, scale, *ends)
