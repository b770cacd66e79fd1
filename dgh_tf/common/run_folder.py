"""state: the folder that a run leaves behind, and its images as a representative dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from dgh_tf import __version__
from dgh_tf.common.files import atomic_path, atomic_write, sha256_array, sha256_file
from dgh_tf.config import GenerationConfig

Images = np.ndarray | Mapping[str, np.ndarray]


def run_identity(
    model_sha256: str, config: GenerationConfig, *, replicas: int, real_hint: str | None = None
) -> dict:
    """What must be equal for two runs to be the same run: model, every setting, version, number of
    replicas, real images.

    Raises: FileNotFoundError where there is nothing at `real_hint`.
    """
    if real_hint and not pathlib.Path(real_hint).exists():
        raise FileNotFoundError(f"--real_hint={real_hint}: no such file or folder.")
    real = {"real_hint": sha256_file(real_hint)} if real_hint else {}
    return {
        "model_sha256": model_sha256,
        "config": dataclasses.asdict(config),
        "version": __version__,
        "replicas": replicas,
        **real,
    }


def image_files(names: list[str]) -> dict[str, str]:
    """File of every input's images by its name: images.npy of a single one; else its name in plain
    letters, all different.
    """
    if len(names) == 1:
        return {names[0]: "images.npy"}
    files: dict[str, str] = {}
    for i, name in enumerate(names):
        plain = "".join(c if c.isascii() and c.isalnum() or c in "-_" else "_" for c in name)
        file = f"images_{plain}.npy"
        files[name] = (
            file
            if file.lower() not in map(str.lower, files.values())
            else f"images_{plain}_{i}.npy"
        )
    return files


def write_images(
    folder: pathlib.Path, parts: Iterable[list[np.ndarray]], names: list[str], *, count: int
) -> dict:
    """Writes images.npy (or one file per input) as the parts come, so that the set need not fit
    into memory.

    Args: parts: for every input some of the images, in order, float32 [n, *input shape]. count:
      images in all.
    Returns: the manifest's part: files, shapes and sha256 of the values.
    """
    files, digests, shapes = image_files(names), [hashlib.sha256() for _ in names], {}
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(open(stack.enter_context(atomic_path(folder / files[name])), "wb"))
            for name in names
        ]
        for part in parts:
            for name, file, digest, array in zip(names, opened, digests, part, strict=True):
                if name not in shapes:
                    shapes[name] = [count, *array.shape[1:]]
                    header = {"descr": "<f4", "fortran_order": False, "shape": tuple(shapes[name])}
                    np.lib.format.write_array_header_1_0(file, header)
                data = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8).data
                file.write(data)
                digest.update(data)
    hashes = [digest.hexdigest() for digest in digests]
    return {
        "images_sha256": hashes[0] if len(names) == 1 else dict(zip(names, hashes, strict=True)),
        "files": files,
        "shapes": shapes,
        "dtype": "float32",
    }


def read_manifest(folder: pathlib.Path) -> dict | None:
    """The manifest of a finished run, None where there is none. Raises ValueError for a damaged
    one.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
        manifest["identity"], manifest["images_sha256"]
        return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}). Delete the folder, or give another --output_dir."
        ) from error


def finished_manifest(folder: pathlib.Path) -> dict:
    """The manifest of a finished run. Raises ValueError where there is none, or a damaged one."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(
            f"{folder} holds no finished run (no manifest.json). Run python -m "
            "dgh_tf.generate with this folder."
        )
    return manifest


def write_manifest(folder: pathlib.Path, manifest: dict) -> None:
    """Written last: a folder with a manifest is a finished run."""
    atomic_write(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=False) + "\n")


def load_images(folder: pathlib.Path) -> Images:
    """The images of a finished run, memory-mapped; a dict by input name for several inputs. Checks
    their sha256.

    Raises: ValueError when the folder holds no finished run or its images were changed.
    """
    manifest = finished_manifest(folder)
    wanted = manifest["images_sha256"]
    arrays = {}
    for name, file in manifest.get(
        "files", {"": "images.npy"}
    ).items():  # the first versions named no files
        path, sha256 = folder / file, wanted[name] if isinstance(wanted, dict) else wanted
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read ({error}). Delete the folder and generate again."
            ) from error
        if sha256_array(arrays[name]) != sha256:
            raise ValueError(
                f"{path} is not what its manifest describes: the sha256 differs. "
                "Delete the folder and generate again."
            )
    return arrays if isinstance(wanted, dict) else next(iter(arrays.values()))


def representative_dataset(source: Images | str | pathlib.Path) -> Callable[[], Iterator]:
    """What tf.lite.TFLiteConverter.representative_dataset takes: batches of one image.

    Args: source: images as generate_images returns them, or the folder of a finished run.

    Example:
      >>> import numpy as np
      >>> batches = representative_dataset(np.zeros([2, 8, 8, 3], np.float32))
      >>> [batch[0].shape for batch in batches()]
      [(1, 8, 8, 3), (1, 8, 8, 3)]
    """
    images = load_images(pathlib.Path(source)) if isinstance(source, str | pathlib.Path) else source

    def batches() -> Iterator:
        if isinstance(images, Mapping):
            for i in range(len(next(iter(images.values())))):
                yield {
                    name: np.asarray(array[i : i + 1], np.float32) for name, array in images.items()
                }
        else:
            for image in images:
                yield [np.asarray(image[None], np.float32)]

    return batches
