"""The folder that a run leaves behind, and its images as a representative dataset."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from dgh_tf import __version__
from dgh_tf.common.files import (
    atomic_path,
    atomic_write,
    read_json,
    read_npy,
    require_regular,
    sha256_array,
    sha256_file,
)
from dgh_tf.config import GenerationConfig

Images = np.ndarray | Mapping[str, np.ndarray]


def run_identity(
    model_sha256: str, config: GenerationConfig, *, real_hint: str | None = None
) -> dict[str, Any]:
    """What must be equal for two runs to be the same run: model, every setting, version, real
    images; the number of replicas joins it when it is known.

    Raises: FileNotFoundError where there is nothing at `real_hint`.
    """
    if real_hint and not pathlib.Path(real_hint).exists():
        raise FileNotFoundError(f"--real_hint={real_hint}: no such file or folder.")
    real = {"real_hint": sha256_file(real_hint)} if real_hint else {}
    return {
        "model_sha256": model_sha256,
        "config": dataclasses.asdict(config),
        "version": __version__,
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

    Args:
      folder: to write to.
      parts: for every input some of the images, in order, float32 [n, *input shape].
      names: of the inputs, in the order of the parts.
      count: images in all.
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


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(kind, value))


def _dict_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(kind, value.values()))


def _is_identity(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("config", {}), dict)


def _is_hash(value: Any) -> bool:
    return _is_text(value) or _dict_of(_is_text)(value)


def _is_name(value: Any) -> bool:
    """Whether this is the name of a file of the folder itself, not a way out of it."""
    return _is_text(value) and value not in ("", ".", "..") and not set("/\\\0") & set(value)


# what readers of a manifest take for granted; the first two must be there
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "identity": _is_identity,
    "images_sha256": _is_hash,
    "model": _is_text,
    "files": lambda value: bool(value) and _dict_of(_is_name)(value),
    "shapes": _dict_of(_list_of(_is_number)),
    "input_range": _list_of(lambda value: isinstance(value, dict)),
    "augmentation": _list_of(_is_text),
    "lambda": _dict_of(_is_number),
    "final_losses": _dict_of(_is_number),
    "gap_start": _dict_of(_is_number),
    "gap_end": _dict_of(_is_number),
    "seconds": _is_number,
    "unmatched_layers": _list_of(_is_text),
    "real_images": _is_number,
    "versions": _dict_of(_is_text),
    "auto": _dict_of(lambda value: True),
}


def read_manifest(folder: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a finished run, None where there is none. Raises ValueError for a damaged
    one: an entry of another form than a run writes.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return None
    advice = "Delete the folder and generate the images again, or give another --output_dir."
    try:
        manifest = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}. {advice}") from error
    if not isinstance(manifest, dict) or not {"identity", "images_sha256"} <= set(manifest):
        raise ValueError(f"{path} is damaged: no identity or no images_sha256. {advice}")
    for name, is_right in _ENTRIES.items():
        if name in manifest and not is_right(manifest[name]):
            raise ValueError(f"{path} is damaged: {name} is not what a run writes. {advice}")
    wanted = manifest["images_sha256"]
    if isinstance(wanted, dict) and set(manifest.get("files", wanted)) - set(wanted):
        raise ValueError(f"{path} is damaged: files and images_sha256 name other inputs. {advice}")
    return manifest


def read_metrics(folder: pathlib.Path, *, unfinished: bool = False) -> list[dict[str, float]]:
    """The rows of metrics.jsonl; [] where there is no such file.

    Args:
      folder: of the run.
      unfinished: the run may have been killed while it wrote a row: nothing from the first row that
        is not whole on. Else that raises ValueError.
    """
    path = folder / "metrics.jsonl"
    require_regular(path)
    rows: list[dict[str, float]] = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not _dict_of(_is_number)(row) or not isinstance(row.get("step"), int):
            if unfinished:
                return rows
            raise ValueError(
                f"{path} is damaged: line {number} is not what a run writes. "
                "Generate the images again."
            )
        rows.append(row)
    return rows


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(entry, there, now) of every entry in which two identities of runs differ."""
    first, second = ({**i, **i.get("config", {})} for i in (saved, wanted))
    keys = sorted((first.keys() | second.keys()) - {"config"})
    return [(k, first.get(k), second.get(k)) for k in keys if first.get(k) != second.get(k)]


class OtherRunError(ValueError):
    """A folder holds another run than the one asked for. text: what differs, without advice."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text} Give the same settings to go on with it, or another --output_dir."
        )
        self.text = text


def require_same(saved: Mapping[str, Any], wanted: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Raises OtherRunError naming every entry in which two identities of runs differ."""
    different = [
        f"{name}: {there!r} there, {now!r} now" for name, there, now in differences(saved, wanted)
    ]
    if different:
        raise OtherRunError(f"{folder} holds a run with other settings ({'; '.join(different)}).")


def clean(folder: pathlib.Path, *, worker: int, finished: bool) -> None:
    """Removes what killed runs left in the folder, which this process must have locked.

    Args:
      folder: of the run.
      worker: only files of this one.
      finished: the run is, so that its checkpoints go too.
    """
    checkpoints = checkpoint_folder(folder, worker)
    left = [folder / store_name(worker), *checkpoints.glob(".visit-*")]
    if not worker:
        names = ("images*.npy", "preview.png", "report.html", "manifest.json", "metrics.jsonl")
        # as `atomic_path` and `make_folder` name files until they are whole
        left += [path for name in (*names, "attempt.json") for path in folder.glob(f".{name}.*")]
        left += folder.glob(".file.*")
    for path in left:
        path.unlink(missing_ok=True)
    if finished:
        shutil.rmtree(checkpoints, ignore_errors=True)
        if not worker:
            shutil.rmtree(folder / "attempts", ignore_errors=True)


def checkpoint_folder(folder: pathlib.Path, worker: int) -> pathlib.Path:
    """Where a process of a run keeps its checkpoints."""
    return folder / (f"checkpoint-{worker}" if worker else "checkpoint")


def store_name(worker: int) -> str:
    """Name of the file through which a process of a run streams its records."""
    return f".store-{worker}"


def finished_manifest(folder: pathlib.Path) -> dict[str, Any]:
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
            arrays[name] = read_npy(path)
        except ValueError as error:
            raise ValueError(f"{error} Delete the folder and generate again.") from error
        if sha256_array(arrays[name]) != sha256:
            raise ValueError(
                f"{path} is not what its manifest describes: the sha256 differs. "
                "Delete the folder and generate again."
            )
    return arrays if isinstance(wanted, dict) else next(iter(arrays.values()))


def representative_dataset(source: Images | str | pathlib.Path) -> Callable[[], Iterator]:
    """What tf.lite.TFLiteConverter.representative_dataset takes: batches of one image.

    Args:
      source: images as generate_images returns them, or the folder of a finished run.

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
