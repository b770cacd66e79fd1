"""state: files that are either whole or absent, and their hashes."""
from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np


def sync_folder(folder: str | os.PathLike) -> None:
    """Makes a rename inside `folder` survive power loss (POSIX needs the folder itself synced)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed onto `path`, on failure removed."""
    path = pathlib.Path(path)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(descriptor)
    temporary = pathlib.Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes the file private; give it the mode any other new file has
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes `data` so that `path` holds either the old content or all of the new. Raises OSError (full disk, no permission)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def remove_unused(folder: str | os.PathLike) -> None:
    """Removes a folder that holds nothing but a lock: what a run that was refused would leave behind."""
    folder = pathlib.Path(folder)
    if folder.is_dir() and {item.name for item in folder.iterdir()} <= {".lock"}:
        (folder / ".lock").unlink(missing_ok=True)
        folder.rmdir()


def sha256_file(path: str | os.PathLike) -> str:
    """Hex sha256 of a file, or of a folder's files in sorted order with their relative names."""
    path = pathlib.Path(path)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for item in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{item.relative_to(path)}\n{sha256_file(item)}\n".encode())
    return digest.hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """Hex sha256 of an array's bytes in C order (shape and dtype not included)."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
