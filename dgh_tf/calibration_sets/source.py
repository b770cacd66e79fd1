"""The images of a finished run as what a calibration set is made of."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgh_tf.common import run_folder

_DAMAGED = "Generate the images again."


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of the model.

    Attributes:
      name: as the other tool calls it. images: [number, *shape], memory-mapped, model input units.
      low, high: bounds of valid values, [1] or [channels].
      channels_first: images are [number, channels, height, width].
    """

    name: str
    images: np.ndarray
    low: np.ndarray
    high: np.ndarray
    channels_first: bool


@dataclasses.dataclass(frozen=True)
class Source:
    """Images of every input, equally many of each, and the sha256 of the model they are for."""

    inputs: tuple[Input, ...]
    model_sha256: str

    @property
    def count(self) -> int:
        """Number of images of every input."""
        return len(self.inputs[0].images)


def load(folder: pathlib.Path, *, names: Sequence[str] = ()) -> Source:
    """Reads the folder that dgh_tf.generate left.

    Args:
      folder: of a finished run.
      names: other names for the inputs, in their order; empty keeps those of the Keras model.
    Raises: FileNotFoundError, or ValueError for a folder without a finished run or a damaged one,
      and for names that do not fit.

    Example: `load(pathlib.Path("images")).inputs[0].images.shape`
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--images={folder}: there is no such folder. Make it with python -m dgh_tf.generate."
        )
    manifest = run_folder.finished_manifest(folder)
    try:
        loaded = run_folder.load_images(folder)
        arrays = list(loaded.values()) if isinstance(loaded, Mapping) else [loaded]
        known = list(manifest.get("files") or {"input": "images.npy"})
        inputs = _inputs(manifest, arrays, _chosen(known, names))
        return Source(tuple(inputs), str(manifest["identity"]["model_sha256"]))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'manifest.json'} does not describe the images that a run writes "
            f"({type(error).__name__}: {error}). {_DAMAGED}"
        ) from error


def _chosen(known: list[str], names: Sequence[str]) -> list[str]:
    if not names:
        return known
    if len(names) != len(known) or len(set(names)) != len(names) or not all(names):
        raise ValueError(
            f"--input_names={','.join(names)}: expected {len(known)} different names, for "
            f"{', '.join(known)} in this order."
        )
    return list(names)


def _bounds(valid: dict[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        low, high = (np.asarray(valid[end], np.float64).reshape(-1) for end in ("low", "high"))
    except ValueError as error:
        raise LookupError(f"the input range of {name} holds no numbers") from error
    return low, high


def _inputs(manifest: dict[str, Any], arrays: list[np.ndarray], names: list[str]) -> list[Input]:
    ranges = manifest["input_range"]
    first = manifest.get("channels_first") or [False] * len(names)
    if not len(arrays) == len(names) == len(ranges) == len(first):
        raise LookupError("the numbers of files, ranges and layouts differ")
    found = []
    for name, images, valid, is_first in zip(names, arrays, ranges, first, strict=True):
        low, high = _bounds(valid, name)
        if low.shape != high.shape or not np.all(np.isfinite([low, high])) or np.any(low >= high):
            raise LookupError(f"the input range of {name} is not low < high")
        if images.dtype != np.float32 or images.ndim < 2 or len(images) != len(arrays[0]):
            raise LookupError(f"the images of {name} are {images.dtype} {list(images.shape)}")
        if not len(images) or not np.isfinite(images).all():
            raise ValueError(f"The images of {name} are none, or hold NaN or Inf. {_DAMAGED}")
        found.append(Input(name, images, low, high, bool(is_first)))
    return found
