"""Image files as pixels. Every command that takes a folder of images reads them here.

One rule for all: EXIF orientation is applied, 16-bit values keep their high bits, transparency is
dropped (as Keras' load_img and TensorFlow's decode_image do), and another size than the model's
input is cropped centrally to its aspect ratio, then resized (bilinear). Stretching would change the
shapes that the network was trained on.
"""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"})
# The decoders that may run. Pillow has others that start programs (EPS calls Ghostscript), and it
# chooses by content, whatever the suffix says.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
_SIXTEEN_BITS, _EIGHT_BITS = 65535, 255


def is_image_file(path: pathlib.Path) -> bool:
    """Whether the name is that of an image file; hidden files (.name) are none."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def list_image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The image files of a folder and the folders in it, sorted.

    Example: `list_image_files(pathlib.Path("photos"))`.
    """
    return sorted(path for path in folder.rglob("*") if is_image_file(path) and not path.is_dir())


def image_shape(shape: Sequence[int | None], *, instead: str) -> tuple[int | None, int | None, int]:
    """(height, width, channels) of a model input that image files fit; height, width may be open.

    Args:
      shape: of the model input, without batch; None for an open side.
      instead: what to do where they do not fit, for the message.
    Raises: ValueError for an input that is not [height, width, 1 or 3].
    """
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise ValueError(
            "Image files fit a model input [height, width, 1 or 3]; this model's is "
            f"{tuple(shape)}. {instead}"
        )
    height, width, channels = shape
    assert channels is not None  # for the type checker: it is 1 or 3
    return height, width, channels


def open_image(path: pathlib.Path, *, channels: int, turn: bool = True) -> Image.Image:
    """The image of a file as a PIL image of mode L (channels 1) or RGB (channels 3), 8 bits.

    Args:
      path: of the image file.
      channels: 1 or 3.
      turn: whether to apply the EXIF orientation.
    Raises: ValueError for whatever is no image that can be read, in one line that names the file.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():  # reading a pipe or a device may never end
        raise ValueError(
            f"{path} cannot be read as an image (it is no regular file). Remove or replace it."
        )
    try:
        with warnings.catch_warnings():
            # between Pillow's limit and twice that it warns, and beyond it raises
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as opened:
                opened.load()
                image = ImageOps.exif_transpose(opened) if turn else opened
                return eight_bits(image, channels=channels)
    except UnidentifiedImageError:
        why = "its content is no image of a known kind"
    except Image.DecompressionBombError as error:
        why = f"{str(error).split(',')[0]}: too large to be an image, and reading it takes memory"
    except Exception as error:  # a damaged file provokes any kind of error in the decoders
        why = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    raise ValueError(f"{path} cannot be read as an image ({why}). Remove or replace it.")


def eight_bits(image: Image.Image, *, channels: int) -> Image.Image:
    """A PIL image of any mode as mode L (channels 1) or RGB (channels 3).

    16-bit values are divided by 257, which maps 0..65535 to 0..255. Pillow's own conversion cuts
    off at 255 instead and leaves white. Raises ValueError for values that are not 8 or 16 bits.
    """
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        if values.dtype.kind not in "ui" or values.min() < 0 or values.max() > _SIXTEEN_BITS:
            raise ValueError(
                f"values of mode {image.mode} from {values.min():g} to {values.max():g}, expected "
                "8 or 16 bits"
            )
        scaled = np.rint(values * (_EIGHT_BITS / _SIXTEEN_BITS))
        image = Image.fromarray(scaled.astype(np.uint8))
    if image.mode not in ("1", "L", "LA", "RGB"):
        image = image.convert("RGB")  # palettes, transparency, CMYK
    return image.convert("L" if channels == 1 else "RGB")


def fit(image: Image.Image, *, height: int | None, width: int | None) -> np.ndarray:
    """uint8 [height, width, channels] of a PIL image of mode L or RGB: cropped centrally to the
    aspect ratio, then resized. None keeps the image's own height or width.
    """
    from PIL import Image, ImageOps

    size = (width or image.width, height or image.height)
    if image.size != size:
        image = ImageOps.fit(image, size, method=Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(size[1], size[0], -1)


def read_image(path: pathlib.Path, *, shape: Sequence[int | None]) -> np.ndarray:
    """The pixels of an image file at a model's input size.

    Args:
      path: of the image file.
      shape: (height, width, channels) of the input; None for a side keeps the image's own.
    Returns: uint8 [height, width, 1 or 3], red first.
    Raises: ValueError for a file that is no image, and for a shape that images do not fit.

    Example: `read_image(pathlib.Path("cat.jpg"), shape=(224, 224, 3))`.
    """
    height, width, channels = image_shape(shape, instead="Give the data as arrays.")
    return fit(open_image(path, channels=channels), height=height, width=width)
