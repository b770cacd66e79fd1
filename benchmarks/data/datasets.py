"""Images with their truth from files, folders, TensorFlow Datasets or the demo, in the
model's input units.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.data import coco
from benchmarks.data.choice import choice
from benchmarks.data.preprocessing import preprocessing
from dgh_tf.common.console import say
from dgh_tf.common.files import require_reasonable_zip
from dgh_tf.common.image_files import (
    SUFFIXES,
    eight_bits,
    fit,
    image_shape,
    is_image_file,
    read_image,
)

_INSTEAD = "Give the data as .npz with x and y."
Labeled = tuple[np.ndarray, np.ndarray]
Truth = np.ndarray | dict[str, np.ndarray] | None


def require_sets(*, preprocess: str, **sets: str) -> None:
    """Refuses what can be refused without a model: a mapping that none understands, and sets, by
    the flag that gives them, with nothing behind them. Raises as `load` does.
    """
    preprocessing(preprocess)
    for flag, spec in sets.items():
        _require_set(spec, flag=flag)


def _require_set(spec: str, *, flag: str) -> None:
    if spec != "demo" and not spec.startswith("tfds:") and not pathlib.Path(spec).exists():
        raise FileNotFoundError(
            f"--{flag}={spec}: no such file or folder. Give an .npz with x and y, a "
            "folder with one folder of images "
            "per class, a COCO set (a folder with annotations.json, or the .json "
            "file), tfds:NAME[/split], or demo."
        )


def load(
    spec: str,
    *,
    role: str,
    input_shape: Sequence[int | None],
    preprocess: str = "none",
    limit: int | None = None,
    data_dir: str | None = None,
    demo: str = "demo",
) -> tuple[np.ndarray, Truth]:
    """Loads a set.

    Args:
      spec: path of an .npz with x [N, ...] and y [N] (or one-hot [N, classes]), or x alone; a
        folder with one folder of images per class; a set in COCO's format (see
        `benchmarks.data.coco`); 'tfds:NAME[/split]'; or 'demo'.
      role: 'real' or 'evaluation': which half of the demo, and which split of a TFDS name without
        one.
      input_shape: the model's input without the batch. Image files of another size are cropped
        centrally to its aspect ratio and resized (bilinear), those with boxes are scaled and
        padded; arrays must fit as they are.
      preprocess: see `benchmarks.data.preprocessing`.
      limit: at most so many images: of files and arrays a fixed random choice, of TFDS the first
        ones.
      data_dir: where TFDS data lies; None is TFDS' own default (TFDS_DATA_DIR or
        ~/tensorflow_datasets).
      demo: the model; of an embedded one 'demo' means its own set.

    Returns:
      x float32 [N, *input_shape] in model input units, and the truth: class indices int64 [N];
      {"boxes": [N, K, 4] in input pixels (left, top, right, bottom), "classes": [N, K]} padded with
      -1; or None for images alone.

    Raises:
      FileNotFoundError: nothing at the path.
      ValueError: something is there, but not a set that fits the model.
    """
    to_input_units, path = preprocessing(preprocess), pathlib.Path(spec)
    _require_set(spec, flag=role)
    if spec == "demo":
        x, y = _demo(role, demo, limit)
    elif spec.startswith("tfds:"):
        x, y = _from_tfds(spec, role, input_shape, limit, data_dir)
    elif coco.is_coco(path):
        x, y = coco.load(path, input_shape=input_shape, limit=limit)
    elif path.is_dir():
        x, y = _from_folder(path, input_shape, limit)
    else:
        x, y = _choose(*read_npz(path), limit)
    return _checked(spec, to_input_units(x), y, tuple(input_shape))


def _demo(role: str, demo: str, limit: int | None) -> tuple[np.ndarray, Truth]:
    from dgh_tf.demo import data, detector_data, signal_data

    own: dict[str, Any] = {"demo_detector": detector_data, "demo_signal": signal_data}
    source = own.get(demo, data)
    x, y = source.real() if role == "real" else source.evaluation()
    return _choose(x, y, limit)


def _choose(x: np.ndarray, y: Truth, limit: int | None) -> tuple[np.ndarray, Truth]:
    chosen = choice(len(x), limit)
    if len(chosen) == len(x):
        return x, y
    return x[chosen], {name: array[chosen] for name, array in y.items()} if isinstance(
        y, dict
    ) else y if y is None else y[chosen]


def read_npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray | None]:
    """x [N, ...] and y [N] (None where the file has none) of an .npz file, as they are stored.

    Raises: ValueError for a file that holds no such arrays of numbers.
    """
    if not path.is_file():  # reading a pipe or a device may never end
        raise ValueError(f"{path} is no regular file. Give an .npz with x and y.")
    require_reasonable_zip(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("x", "y") if name in file.files}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("x or y is no array")
            names = ", ".join(sorted(file.files)) or "none"
    except (
        Exception
    ) as error:  # a broken archive provokes any kind of error, zlib's and zipfile's own among them
        raise ValueError(
            f"{path} cannot be read as an .npz of plain numbers "
            f"({' '.join(str(error).split())[:300]}). Save it with "
            "np.savez(path, x=x, y=y); object arrays are refused, because reading "
            "them could run code."
        ) from error
    if "x" not in arrays:
        raise ValueError(
            f"{path} holds the arrays {names}; it needs x (images) and, to count "
            "hits, y (class indices)."
        )
    x, y = arrays["x"], arrays.get("y", np.zeros(arrays["x"].shape[:1], np.int64))
    y = _class_indices(y)
    if (
        not x.ndim
        or y.shape != x.shape[:1]
        or x.dtype.kind not in "uif"
        or y.dtype.kind not in "ui"
    ):
        raise ValueError(
            f"{path}: x is {x.dtype} {x.shape} and y is {y.dtype} {y.shape}. Expected "
            "numbers [N, ...] "
            "and as many integer class indices [N], or one-hot rows [N, classes]."
        )
    return x, y if "y" in arrays else None


def _class_indices(y: np.ndarray) -> np.ndarray:
    """Class indices [N] of one-hot rows [N, classes] or of a column [N, 1]; anything else as it is,
    to be refused.
    """
    if y.ndim != 2 or y.dtype.kind not in "uifb":
        return y
    if y.shape[1] == 1:
        return y[:, 0]
    one_hot = ((y == 0) | (y == 1)).all() and (np.count_nonzero(y, axis=1) == 1).all()
    return y.argmax(axis=1) if one_hot else y


def _from_folder(
    folder: pathlib.Path, input_shape: Sequence[int | None], limit: int | None
) -> Labeled:
    classes = sorted(
        item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith(".")
    )
    # Integer names are the class indices themselves (a set may hold only some classes); other names
    # are numbered.
    numbered = bool(classes) and all(re.fullmatch(r"\d+", name) for name in classes)
    files = [
        (path, int(name) if numbered else index)
        for index, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if is_image_file(path)
    ]
    if not files:
        raise ValueError(
            f"{folder} has no images of the types {' '.join(sorted(SUFFIXES))} in "
            "folders by class. "
            f"Expected {folder.name}/CLASS/IMAGE, with CLASS a class index or name."
        )
    shape = image_shape(input_shape, instead=_INSTEAD)
    chosen = [files[index] for index in choice(len(files), limit)]
    images = [read_image(path, shape=shape) for path, _ in chosen]
    return _stacked(folder, images), np.array([label for _, label in chosen])


def _stacked(source: pathlib.Path | str, images: list[np.ndarray]) -> np.ndarray:
    """One array of images. Raises ValueError where a model with an open input size left them at
    different ones.
    """
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise ValueError(
            f"{source}: the model's input size is open, and the images have {len(shapes)} sizes "
            f"(such as {shapes[0]} and {shapes[1]}). Give images of one size."
        )
    return np.stack(images)


def _from_tfds(
    spec: str, role: str, input_shape: Sequence[int | None], limit: int | None, data_dir: str | None
) -> Labeled:
    """A config belongs to the name and then the split must follow: 'tfds:coco/2017/validation'."""
    import tensorflow_datasets as tfds
    from PIL import Image

    name, _, split = spec.removeprefix("tfds:").rpartition("/")
    if not name:
        name, split = split, ""
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.info.splits:
            say(f"tfds: {name} is not prepared in {builder.data_path}; downloading it")
            builder.download_and_prepare()
    except (
        Exception
    ) as error:  # TFDS raises some twenty kinds, from its own to requests' and AssertionError
        raise ValueError(
            f"{spec}: TensorFlow Datasets cannot give '{name}' ({_first_line(error)}). Check the "
            "name, and the folder it was prepared in (--data_dir or TFDS_DATA_DIR)."
        ) from error
    known = list(builder.info.splits)
    wanted = ["train"] if role == "real" else ["test", "validation"]
    split = split or next((item for item in wanted if item in known), "")
    if re.split(r"[\[+]", split)[0] not in known:
        raise ValueError(
            f"{spec}: '{name}' has the splits {', '.join(known)}, not "
            f"'{split or ' or '.join(wanted)}'. "
            f"Give tfds:{name}/SPLIT."
        )
    if not {"image", "label"} <= set(builder.info.features):
        raise ValueError(
            f"{spec}: its features are {', '.join(builder.info.features)}; "
            "classification needs image "
            "and label."
        )
    height, width, channels = image_shape(input_shape, instead=_INSTEAD)
    images, labels = [], []
    rows = builder.as_dataset(split=split, shuffle_files=False).take(limit or -1)
    for item in tfds.as_numpy(rows):
        array = item["image"]
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        images.append(fit(eight_bits(image, channels=channels), height=height, width=width))
        labels.append(int(item["label"]))
    return _stacked(spec, images), np.array(labels)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _checked(
    spec: str, x: np.ndarray, y: Truth, input_shape: tuple[int | None, ...]
) -> tuple[np.ndarray, Truth]:
    if not len(x):
        raise ValueError(f"{spec} holds no images.")
    if len(x.shape) - 1 != len(input_shape) or any(
        want not in (None, got) for want, got in zip(input_shape, x.shape[1:], strict=True)
    ):
        raise ValueError(
            f"{spec} holds images of shape {x.shape[1:]}, the model takes "
            f"{input_shape}. Resize them "
            "first."
        )
    if not np.isfinite(x).all():
        bad = int(np.sum(~np.isfinite(x).reshape(len(x), -1).all(axis=1)))
        raise ValueError(
            f"{spec}: {bad} of {len(x)} images hold NaN or infinite values. Remove them."
        )
    if y is None or isinstance(y, dict):
        return x, y
    if (np.asarray(y) < 0).any():
        raise ValueError(f"{spec}: y holds negative class indices; expected 0 .. classes - 1.")
    return x, np.asarray(y).astype(np.int64)
