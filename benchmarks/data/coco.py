"""Images with boxes in COCO's format (annotations.json and image files), at a detector's
input size.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.data.choice import choice
from dgh_tf.common.files import read_json
from dgh_tf.common.image_files import image_shape, open_image

ANNOTATIONS = "annotations.json"
_FARTHEST = 1e9  # pixels; float32 holds them
_INSTEAD = "Boxes belong to image files, so give a model that takes those."


def is_coco(path: pathlib.Path) -> bool:
    """Whether a path names a set in this format: a .json file, or a folder with
    annotations.json.
    """
    return path.suffix == ".json" or (path / ANNOTATIONS).exists()


def load(
    path: pathlib.Path, *, input_shape: Sequence[int | None], limit: int | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images and boxes of a set in COCO's format.

    Args:
      path: the .json file, or a folder with annotations.json. Files are looked for beside it and in
        images/ beside it.
      input_shape: (height, width, channels), all known. An image is scaled to fit and padded with
        black on the right and below, as KerasCV's Resizing does with pad_to_aspect_ratio; boxes are
        scaled with it.
      limit: at most so many images, a fixed random choice.

    Returns:
      uint8 [N, height, width, channels], and {"boxes": float32 [N, K, 4] (left, top, right, bottom
      in input pixels), "classes": float32 [N, K]}, unused rows -1. A class is the place of its
      category among the sorted category ids; crowd annotations are left out.

    Raises: ValueError for a damaged file or one without images, for images that cannot be read or
      are not of the size that the annotations state, for an open input size.
    """
    file = path / ANNOTATIONS if path.is_dir() else path
    height, width, channels = image_shape(input_shape, instead=_INSTEAD)
    if height is None or width is None:
        raise ValueError(
            f"{file}: boxes need a model input of fixed height and width; this model's is "
            f"{tuple(input_shape)}. Rebuild the model with a fixed size."
        )
    every, annotations, classes = _read(file)
    images = [every[index] for index in choice(len(every), limit)]
    boxes: dict[Any, list[list[float]]] = {image["id"]: [] for image in images}
    for each in annotations:
        if each["image_id"] in boxes and not each.get("iscrowd"):
            left, top, across, down = map(float, each["bbox"])
            boxes[each["image_id"]].append(
                [left, top, left + across, top + down, classes[each["category_id"]]]
            )
    truth = np.full((len(images), max(1, *map(len, boxes.values())), 5), -1.0, np.float32)
    x = np.zeros((len(images), height, width, channels), np.uint8)
    for index, image in enumerate(images):
        x[index], scale = _letterboxed(file.parent, image, x.shape[1:])
        if boxes[image["id"]]:
            found = np.array(boxes[image["id"]], np.float32)
            truth[index, : len(found), :4] = found[:, :4] * np.array(scale, np.float32)
            truth[index, : len(found), 4] = found[:, 4]
    return x, {"boxes": truth[..., :4], "classes": truth[..., 4]}


def _read(file: pathlib.Path) -> tuple[list[dict], list[dict], dict[Any, int]]:
    """Images, annotations, and the class index of every category id.

    pycocotools' reader does not do the same: it refuses annotations without an id, merges those
    that share one, and does not look at the boxes.
    """
    try:
        content = read_json(file)
        images, annotations = content["images"], content["annotations"]
        _require(content["categories"], ids=("id",))
        _require(images, ids=("id",), texts=("file_name",))
        _require(annotations, ids=("image_id", "category_id"))
        numbers = sorted(_different(content["categories"], "categories"))
        classes = {number: index for index, number in enumerate(numbers)}
        _different(images, "images")
        for each in annotations:
            if each["category_id"] not in classes:
                raise KeyError(each["category_id"])
            _require_box(each["bbox"])
    except FileNotFoundError:
        raise
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{file} is not in COCO's format ({error!r}). Expected images with id and "
            "file_name, categories with id, and "
            "annotations with image_id, category_id and bbox [left, top, width, height]."
        ) from error
    if not images:
        raise ValueError(f"{file} lists no images.")
    return images, annotations, classes


def _require(entries: Any, *, ids: tuple[str, ...], texts: tuple[str, ...] = ()) -> None:
    """Raises KeyError or TypeError unless these are objects with such entries."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TypeError("images, annotations and categories are lists of objects")
    for entry in entries:
        for field in ids:
            if type(entry[field]) not in (int, str):
                raise TypeError(f"{field} {entry[field]!r}")
        for field in texts:
            if not isinstance(entry[field], str):
                raise TypeError(f"{field} {entry[field]!r}")


def _different(entries: list[dict], what: str) -> list[Any]:
    """The ids of these entries. Raises ValueError where two share one."""
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{what} share an id")
    return ids


def _require_box(box: Any) -> None:
    numbers = isinstance(box, list) and all(type(value) in (int, float) for value in box)
    if not numbers or len(box) != 4 or not all(abs(value) < _FARTHEST for value in box):
        raise ValueError(f"bbox {box}")
    if min(box[2:]) < 0:
        raise ValueError(f"bbox {box} has a negative size")


def _found(folder: pathlib.Path, name: str) -> pathlib.Path:
    for path in (folder / name, folder / "images" / name):
        if path.exists():
            return path
    raise ValueError(
        f"{folder / name} is missing, though the annotations list it. Put the image "
        "files beside the .json file or in "
        "images/ beside it."
    )


def _letterboxed(
    folder: pathlib.Path, entry: dict[str, Any], shape: tuple[int, ...]
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The image in the top left corner of a black one, and the factors of a box's four sides."""
    from PIL import Image

    height, width, channels = shape
    path = _found(folder, entry["file_name"])
    image = open_image(path, channels=channels)
    stated = (entry.get("width", image.width), entry.get("height", image.height))
    if image.size != stated:  # boxes may have been drawn on the picture before it was turned
        image = open_image(path, channels=channels, turn=False)
    if image.size != stated:
        raise ValueError(
            f"{path} has {image.width} x {image.height} pixels, but the annotations state "
            f"{stated[0]} x {stated[1]}, so the boxes would lie elsewhere. Use the images that "
            "the boxes were drawn on."
        )
    factor = min(height / image.height, width / image.width)
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    across, down = size[0] / image.width, size[1] / image.height
    if image.size != size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    padded = np.zeros(shape, np.uint8)
    padded[: size[1], : size[0]] = np.asarray(image).reshape(size[1], size[0], channels)
    return padded, (across, down, across, down)
