"""Calibration images from files: a generate folder, .npy, .npz or a folder of image files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgh_tf.common.convergence import Convergence, judge_convergence
from dgh_tf.common.files import read_json, require_reasonable_zip, sha256_array, sha256_file
from dgh_tf.common.image_files import SUFFIXES, image_shape, list_image_files, read_image
from dgh_tf.common.text import in_one_line
from tflite_export.calibration.check import Images, Range
from tflite_export.conversion.freeze import plain


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration images and where they came from.

    Attributes:
      images: array [number, ...input shape], memory-mapped where the file allows it, or a dict of
        such by input name.
      value_range: (low, high) in the model's input units, or a dict by input name; None when the
        source does not say.
      sha256: hex digest over names, shapes, dtypes and values of the images.
      model_sha256: of the model the images were generated for; None for other sources.
      convergence: how near generated images came to their model's statistics; None for other
        sources.
    """

    images: Images
    value_range: Range | Mapping[str, Range] | None
    sha256: str
    model_sha256: str | None = None
    convergence: Convergence | None = None


def digest(images: Images) -> str:
    """Hex sha256 over names, shapes, dtypes and values of images."""
    arrays = images if isinstance(images, Mapping) else {"": images}
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        if array.dtype.hasobject:
            raise ValueError(
                f"The calibration data holds Python objects ({array.dtype}); expected numbers."
            )
        digest.update(f"{name} {array.dtype.str} {array.shape} {sha256_array(array)}\n".encode())
    return digest.hexdigest()


def _load_npy(path: pathlib.Path) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # of a header's shape; what follows is refused
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # a broken header provokes any kind of error
        raise ValueError(
            f"{path} cannot be read as an array of numbers: {in_one_line(error, most=300)}. "
            "Expected a .npy file without Python objects; "
            "save it with numpy.save from a float32 array."
        ) from error


def _load_npz(path: pathlib.Path) -> Images:
    """Key x or images, a single array, or one array per input name; y and labels are passed
    over.
    """
    require_reasonable_zip(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = [key for key in file.files if key not in ("y", "labels")]
            keys = [key for key in ("x", "images") if key in keys][:1] or keys
            arrays = {key: file[key] for key in keys}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it holds files that are no arrays")
    except (
        Exception
    ) as error:  # a broken archive provokes any kind of error, zlib's and zipfile's own among them
        raise ValueError(
            f"{path} cannot be read as arrays of numbers: {in_one_line(error, most=300)}. "
            "Expected a .npz file without Python objects."
        ) from error
    if not arrays:
        raise ValueError(
            f"{path} holds no images; expected the key x or images, or one array per input name."
        )
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def _matches(path: pathlib.Path, array: np.ndarray, want: str) -> bool:
    """Whether `want` is the sha256 of the file or of the array's bytes."""
    return want in (sha256_file(path), sha256_array(array))


def _limits(entry: Any, names: list[str]) -> Any:
    """(low, high) from a manifest's [low, high] or {"low", "high"}; a dict of such for a dict or
    list over inputs.
    """
    if entry is None:
        return None
    if isinstance(entry, (list, tuple)) and not entry:
        raise ValueError("an empty range")
    if isinstance(entry, dict) and "low" in entry:
        return entry["low"], entry["high"]
    if isinstance(entry, dict):
        return {name: _limits(value, []) for name, value in entry.items()}
    if isinstance(entry[0], dict):  # one per input, in the model's order
        ranges = [_limits(value, []) for value in entry]
        return ranges[0] if len(ranges) == 1 else dict(zip(names, ranges, strict=True))
    return entry[0], entry[1]


def _files(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The file of every input; one named "" where there is one input."""
    wanted = manifest["images_sha256"]
    named = (
        {name: f"images_{name}.npy" for name in wanted}
        if isinstance(wanted, dict)
        else {"": "images.npy"}
    )
    return manifest.get("files") or named


def _convergence(manifest: Mapping[str, Any]) -> Convergence | None:
    """Judged anew from the gaps, so that folders of earlier versions are judged, too. None where
    the model has no statistics to reach.
    """
    gaps, evidence = manifest.get("gap_end"), manifest.get("evidence") or {}
    if evidence.get("statistics") == "none":
        return None
    return judge_convergence({name: float(gap) for name, gap in gaps.items()}) if gaps else None


def _manifest(path: pathlib.Path) -> tuple[dict[str, Any], Any]:
    """What manifest.json says, and its input range. Raises ValueError for a file that generate did
    not write like that.
    """
    try:
        manifest = read_json(path)
        sha256 = manifest.get("images_sha256")
        if not isinstance(sha256, (str, dict, type(None))) or not isinstance(
            manifest.get("files", {}), (dict, type(None))
        ):
            raise ValueError("images_sha256 or files of another form")
        if not isinstance(manifest.get("model_sha256"), (str, type(None))):
            raise ValueError("model_sha256 is no text")
        _convergence(manifest)
        names = list(_files(manifest)) if sha256 else []
        limits = _limits(manifest.get("input_range"), names)
        for low, high in (
            limits.values() if isinstance(limits, dict) else [limits] if limits else []
        ):
            if not (np.isfinite(np.asarray([low, high], np.float64)).all()):
                raise ValueError("an input range that is not finite")
    except OSError:
        raise
    except Exception as error:  # any JSON may stand there
        raise ValueError(
            f"{path} is damaged: {in_one_line(error, most=300)}. Generate the images again."
        ) from error
    return manifest, limits


def _load_generated(folder: pathlib.Path) -> Calibration:
    """A folder left by dgh_tf.generate; its manifest names the files' sha256 and the input range.

    images_sha256 is one value, or a dict by input name for several inputs; files names each input's
    file. Images come by the names that the inputs have in a .tflite file.
    """
    manifest, limits = _manifest(folder / "manifest.json")
    wanted = manifest.get("images_sha256")
    if wanted is None:
        raise ValueError(
            f"{folder / 'manifest.json'} has no images_sha256; expected a finished "
            "run. Generate again."
        )
    several = isinstance(wanted, dict)
    files = _files(manifest)
    if several and set(files) - set(wanted):
        raise ValueError(
            f"{folder / 'manifest.json'} is damaged: files and images_sha256 name "
            "other inputs. Generate the images again."
        )
    arrays = {}
    for name, file in files.items():
        path = folder / pathlib.PurePath(file).name  # a manifest names files of its own folder only
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing, though the manifest lists it. Generate the images again."
            )
        arrays[name] = _load_npy(path)
        if not _matches(path, arrays[name], wanted[name] if several else wanted):
            raise ValueError(
                f"{path} is not what its manifest describes: the sha256 differs. The "
                "file was changed or cut off; "
                "generate the images again, or pass the .npy file itself to use it as it is."
            )
    images = (
        {plain(name): array for name, array in arrays.items()}
        if several
        else next(iter(arrays.values()))
    )
    if several and isinstance(limits, dict):
        limits = {plain(name): valid for name, valid in limits.items()}
    return Calibration(
        images, limits, digest(images), manifest.get("model_sha256"), _convergence(manifest)
    )


def _load_pictures(
    folder: pathlib.Path, shape: Sequence[int | None] | None, scale: float, offset: float
) -> np.ndarray:
    files = list_image_files(folder)
    if not files:
        raise ValueError(
            f"{folder} has no manifest.json and no image files "
            f"({', '.join(sorted(SUFFIXES))}); expected a "
            "finished generate folder or a folder of images. If generation was "
            "stopped, run it again to finish it."
        )
    instead = (
        "A folder of images needs a fixed height and width and 1 or 3 channels. Prepare the images "
        "yourself and pass a .npy file."
    )
    height, width, channels = image_shape(shape or (), instead=instead)
    if height is None or width is None:
        raise ValueError(f"The model's input is {(height, width, channels)}. {instead}")
    images = np.empty((len(files), height, width, channels), np.float32)
    for image, file in zip(images, files, strict=True):
        image[...] = read_image(file, shape=(height, width, channels))
        image *= np.float32(scale)
        image += np.float32(offset)
    return images


def load_calibration(
    source: str | os.PathLike,
    *,
    image_shape: Sequence[int | None] | None = None,
    scale: float = 1.0,
    offset: float = 0.0,
) -> Calibration:
    """Loads calibration images. Nothing is ever unpickled.

    Args:
      source: a folder left by dgh_tf.generate (the sha256 of its images is checked), a .npy file, a
        .npz file (key x or images, or one array per input name), or a folder of image files,
        searched in depth, in sorted order.
      image_shape: [height, width, channels] of the model's input; needed for a folder of image
        files only.
      scale: model input = stored value * scale + offset; pixels of image files are stored as 0 ..
        255. The images of a generate folder are in model units and stay as they are.
      offset: see scale.
    Raises:
      FileNotFoundError: no such source, or a file of a generate folder is missing.
      ValueError: not readable, Python objects inside, changed since generation, or no images in it.
    """
    path = pathlib.Path(source)
    if not str(source).strip() or not path.exists():
        raise FileNotFoundError(
            f"There is no calibration data at {path}; expected a generate folder, "
            ".npy, .npz or a folder of images. "
            "Make it with python -m dgh_tf.generate, or correct the path."
        )
    if path.is_dir() and (path / "manifest.json").exists():
        return _load_generated(path)
    if path.is_dir():
        images: Images = _load_pictures(path, image_shape, scale, offset)
    elif not path.is_file():  # reading a pipe or a device may never end
        raise ValueError(
            f"{path} is no regular file; expected a .npy or .npz file, or a folder. "
            "Copy the data into a file."
        )
    elif path.suffix == ".npy":
        images = _load_npy(path)
    elif path.suffix == ".npz":
        images = _load_npz(path)
    else:
        raise ValueError(
            f"{path} is no known calibration data; expected a folder, or a .npy or .npz file."
        )
    if not path.is_dir() and (scale, offset) != (1.0, 0.0):
        images = _mapped(path, images, scale, offset)
    return Calibration(images, None, digest(images))


def _mapped(path: pathlib.Path, images: Images, scale: float, offset: float) -> np.ndarray:
    if isinstance(images, Mapping):
        raise ValueError(
            f"{path} holds arrays for the inputs {', '.join(images)}, which SCALE,OFFSET would map "
            "alike. Prepare each in the model's units and leave the mapping out."
        )
    if images.dtype.kind not in "uif":
        return images  # the check of the data says what is wrong
    return np.asarray(images, np.float32) * np.float32(scale) + np.float32(offset)
