"""Checkpoints of a run: whole or absent, checksummed, the last two kept.

A checkpoint is one file: the length of its JSON head, the head (identity, progress, dtypes and
shapes of the arrays), then the arrays of the carry and the records of all batches, one after the
other, so that a set of any size passes through a few megabytes of memory. Beside it, written last,
lies a .json with the file's sha256.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from dgh_tf.common.files import atomic_path, atomic_write, read_json, sha256_file
from dgh_tf.common.run_folder import require_same
from dgh_tf.generation.generator import Generator, State
from dgh_tf.generation.store import Record

KEPT = 2


def save(folder: pathlib.Path, generator: Generator, *, identity: dict) -> None:
    """Writes a run's state and records. Raises OSError on a full disk, with the earlier checkpoints
    as they were.
    """
    folder.mkdir(exist_ok=True)
    state, places = generator.state, range(len(generator.batches))
    scale, best, waited = state.plateau
    head = {
        "identity": identity,
        "visits": state.visits,
        "plateau": [scale, best if math.isfinite(best) else None, waited],
        "gap_start": state.gap_start,
        "carry": [[a.dtype.str, a.shape] for a in state.carry],
    }
    path, digest = folder / f"visit-{state.visits:012d}.bin", hashlib.sha256()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        text = json.dumps(head).encode()
        for data in (len(text).to_bytes(8, "little"), text, *(a.tobytes() for a in state.carry)):
            file.write(data)
            digest.update(data)
        for place in places:
            for array in generator.store.read(place).arrays():
                view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                file.write(view)
                digest.update(view)
    atomic_write(path.with_suffix(".json"), json.dumps({"sha256": digest.hexdigest()}))
    for old in sorted(folder.glob("visit-*.json"))[:-KEPT]:
        old.unlink()
        old.with_suffix(".bin").unlink(missing_ok=True)


def available(folder: pathlib.Path) -> list[int]:
    """Visits at which whole checkpoints were taken, newest first; damaged ones are passed over with
    a warning.
    """
    return [int(path.stem.removeprefix("visit-")) for path in _whole(folder)]


def restore(folder: pathlib.Path, generator: Generator, *, identity: dict, visits: int) -> None:
    """Puts the checkpoint taken at `visits` into the generator.

    Raises: ValueError when it belongs to another model, config or version, naming the difference.
    """
    with open(folder / f"visit-{visits:012d}.bin", "rb") as file:
        head = _head(file)
        require_same(head["identity"], identity, folder.parent)
        _require_size(file, head, generator)
        carry = [
            np.fromfile(file, np.dtype(kind), math.prod(shape)).reshape(shape)
            for kind, shape in head["carry"]
        ]
        for place in range(len(generator.batches)):
            shapes = [a.shape for a in generator.store.read(place).arrays()]
            arrays = [
                np.fromfile(file, np.float32, math.prod(shape)).reshape(shape) for shape in shapes
            ]
            generator.store.write(place, Record.of(arrays))
    scale, best, waited = head["plateau"]
    generator.state = State(
        head["visits"],
        (scale, math.inf if best is None else best, waited),
        head["gap_start"],
        carry,
    )


def _require_size(file: BinaryIO, head: dict[str, Any], generator: Generator) -> None:
    """Raises ValueError where the checkpoint's arrays are not those of this generator."""
    carry = sum(_bytes(np.dtype(kind), shape) for kind, shape in head["carry"])
    places = range(len(generator.batches))
    records = sum(
        array.nbytes for place in places for array in generator.store.read(place).arrays()
    )
    if os.fstat(file.fileno()).st_size != file.tell() + carry + records:
        raise ValueError(
            f"{file.name} has another size than this run's records take. Delete the folder of "
            "checkpoints, and the same command starts anew."
        )


def require_run(folder: pathlib.Path, *, identity: dict) -> None:
    """Raises ValueError when the newest whole checkpoint is of another run: asked before long work
    begins.
    """
    for path in _whole(folder):
        with open(path, "rb") as file:
            require_same(_head(file)["identity"], identity, folder.parent)
        return


def _whole(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    for record in sorted(folder.glob("visit-*.json"), reverse=True):
        path = record.with_suffix(".bin")
        try:
            if sha256_file(path) != read_json(record)["sha256"]:
                raise ValueError("its checksum differs")
            with open(path, "rb") as file:
                if _head(file)["visits"] != int(path.stem.removeprefix("visit-")):
                    raise ValueError("its name tells other visits than its head")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(
                f"Checkpoint {path.name} is damaged ({error}); going back to the one before.",
                stacklevel=3,
            )
            continue
        yield path


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _head(file: BinaryIO) -> dict[str, Any]:
    """The head of a checkpoint. Raises ValueError, KeyError or TypeError for one that `save` did
    not write, whatever its checksum says.
    """
    length = int.from_bytes(file.read(8), "little")
    if length > os.fstat(file.fileno()).st_size:
        raise ValueError("its head is longer than the file")
    try:
        head = json.loads(file.read(length))
    except RecursionError as error:
        raise ValueError("its head is nested too deep") from error
    scale, best, waited = head["plateau"]
    fine = (
        isinstance(head["identity"], dict)
        and isinstance(head["identity"].get("config", {}), dict)
        and isinstance(head["visits"], int)
        and all(map(_is_number, (scale, 0 if best is None else best, waited)))
        and all(map(_is_number, head["gap_start"].values()))
    )
    if not fine:
        raise ValueError("its head is not what a run writes")
    values = [_bytes(np.dtype(kind), shape) for kind, shape in head["carry"]]
    if file.tell() + sum(values) > os.fstat(file.fileno()).st_size:
        raise ValueError("it is shorter than its head tells")
    return head


def _bytes(kind: np.dtype, shape: list[int]) -> int:
    if kind.kind not in "fiub" or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError("its head tells of arrays that a run has not")
    return kind.itemsize * math.prod(shape)
