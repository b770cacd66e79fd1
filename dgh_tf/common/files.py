"""Files that are either whole or absent, and their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_MOST_UNPACKED, _FREE_BYTES = 100, 16 * 2**20
_RECORDS = ("manifest.json", "attempt.json", "results.json", "ranges.json")  # of runs
_WINDOWS = os.name == "nt"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def sync_folder(folder: str | os.PathLike) -> None:
    """Makes a rename inside `folder` survive power loss (POSIX needs the folder itself synced)."""
    if _WINDOWS:  # which opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full_disk(error: Exception) -> bool:
    """Whether a file could not be written whole. TensorFlow has no error of its own for that."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return os.strerror(errno.ENOSPC) in str(error)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Puts `path` into an OSError of the block that names no file, as one of a full disk."""
    try:
        yield
    except OSError as error:
        # numpy's own, of a write that came back short, tells neither why nor where
        if error.errno is None and re.search(r"requested and \d+ written", str(error)):
            raise OSError(errno.ENOSPC, f"not written whole ({error})", str(path)) from error
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path`; on success it is synced and renamed onto `path`, on
    failure removed.
    """
    path = pathlib.Path(path)
    descriptor, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix
    )
    temporary = pathlib.Path(name)
    if _WINDOWS:  # which renames no open file
        os.close(descriptor)
    try:
        if not _WINDOWS:
            _hold(descriptor)
        with naming(path):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(
            0o666 & ~umask
        )  # mkstemp makes the file private; give it the mode any other new file has
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        if not _WINDOWS:
            os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _hold(descriptor: int) -> bool:
    """Locks a file until it is closed or this process ends; False where another has it, or where
    there are no such locks (Windows).
    """
    try:
        import fcntl
    except ImportError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or the file system has no locks
        return False
    return True


@contextlib.contextmanager
def in_turn(folder: str | os.PathLike) -> Iterator[None]:
    """Waits until no other process is in such a block on this folder: files that belong together
    are replaced together. Leaves no file behind; without effect where folders have no locks.
    """
    if _WINDOWS:
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_left(path: pathlib.Path) -> None:
    """Removes what processes that were killed while they wrote `path` left beside it."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}({re.escape(path.suffix)})?")
    for left in path.parent.iterdir():
        if not name.fullmatch(left.name) or left.is_symlink() or not left.is_file():
            continue
        with contextlib.suppress(OSError), open(left, "rb") as file:
            if _hold(file.fileno()):
                left.unlink()


def atomic_write(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes `data` so that `path` holds either the old content or all of the new. Raises OSError
    (full disk, no permission).
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(
            # a name that is no UTF-8 must not make hours of work fail at their end
            data.encode(errors="backslashreplace") if isinstance(data, str) else data
        )


def require_regular(path: str | os.PathLike) -> None:
    """Raises ValueError for a pipe, socket or device, of which reading may never end. A path where
    nothing is stays for the reader to refuse.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path} is no file but a pipe, socket or device. Give a plain file.")


def read_json(path: str | os.PathLike) -> Any:
    """The value in a JSON file. Raises OSError, and ValueError for whatever is no JSON, brackets a
    thousand deep included.
    """
    require_regular(path)
    try:
        return json.loads(pathlib.Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def with_checksum(data: Mapping[str, Any]) -> dict[str, Any]:
    """A record for a JSON file, and under "checksum" the sha256 of all else in it."""
    rest = {name: value for name, value in data.items() if name != "checksum"}
    text = json.dumps(json.loads(json.dumps(rest)), sort_keys=True)
    return {**rest, "checksum": hashlib.sha256(text.encode()).hexdigest()}


def require_checksum(data: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Raises ValueError for a record that was changed since `with_checksum`. One without checksum,
    of an earlier version, passes.
    """
    if "checksum" in data and data["checksum"] != with_checksum(data)["checksum"]:
        raise ValueError(f"{path} was changed since it was written: its checksum differs")


def read_npy(path: str | os.PathLike) -> np.ndarray:
    """The array in a .npy file, memory-mapped. Raises ValueError for whatever is no such file: a
    broken header provokes any kind of error.
    """
    require_regular(path)
    try:
        with np.errstate(over="ignore"):  # of a header's shape; what follows is refused
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive")
        return array
    except Exception as error:
        raise ValueError(f"{path} cannot be read as an array of numbers ({error}).") from error


def require_space(folder: pathlib.Path, needs: Mapping[str, int], *, advice: str) -> None:
    """Raises OSError where the disk has no room for what is about to be written.

    Args:
      folder: where it will be written.
      needs: bytes by what they are for.
      advice: what to do, for the message.

    Example: `require_space(folder, {"images": 2**30}, advice="Give another folder.")`
    """
    wanted, free = sum(needs.values()), shutil.disk_usage(folder).free
    if wanted > free:
        parts = ", ".join(f"{what} {size / 2**20:.1f}" for what, size in needs.items() if size)
        raise OSError(
            f"{folder} needs {wanted / 2**20:.1f} MiB ({parts}), but {free / 2**20:.1f} MiB are "
            f"free. {advice}"
        )


def require_writable(path: str | os.PathLike, *, flag: str) -> pathlib.Path:
    """Raises OSError unless a file can be written at `path`: asked before long work, by making and
    removing a file beside it. Clears what killed processes left there.

    Args:
      path: of the file to come.
      flag: the option that gave the path, for the message.
    """
    path = pathlib.Path(path)
    if path.name in _RECORDS and path.exists():
        raise FileExistsError(
            f"--{flag}={path}: {path} tells what the run in that folder is, and would be replaced. "
            "Give another name."
        )
    if path.is_dir():
        raise IsADirectoryError(
            f"--{flag}={path}: {path} is a folder. Give the path of a file in it."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"--{flag}={path}: the folder {path.parent} does not exist. Create it first."
        )
    try:
        remove_left(path)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(
            f"--{flag}={path}: nothing can be written there "
            f"({error.strerror or error}). Give another place."
        ) from error
    os.close(descriptor)
    os.unlink(name)
    return path


def make_folder(path: str | os.PathLike, *, flag: str) -> pathlib.Path:
    """Makes the folder where it is missing. Raises OSError, naming the option, where that cannot be
    or nothing can be written in it.
    """
    path = pathlib.Path(path)
    if (
        not str(path).strip()
        or (path.is_symlink() and not path.exists())
        or (path.exists() and not path.is_dir())
    ):
        raise NotADirectoryError(
            f"--{flag}={path} is a file or a link to nothing; expected a folder. Give another name."
        )
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"--{flag}={path}: the folder cannot be made ({error.strerror or error}). "
            "Give another place."
        ) from error
    try:
        require_writable(path / "file", flag=flag)
    except OSError:
        if made:
            path.rmdir()
        raise
    return path


def require_folder(path: str | os.PathLike, *, flag: str) -> None:
    """Raises what `make_folder` would raise; a folder that is missing stays so."""
    path = pathlib.Path(path)
    missing = [each for each in (path, *path.parents) if not each.exists()]
    make_folder(path, flag=flag)
    for each in missing:
        each.rmdir()


def require_new_folder(path: str | os.PathLike, *, flag: str) -> pathlib.Path:
    """Raises OSError or ValueError unless a folder can be made at `path`: asked before long work.
    It may exist if it is empty.

    Args:
      path: of the folder to come.
      flag: the option that gave the path, for the message.
    """
    path = pathlib.Path(path)
    if not path.name or path.is_symlink() or (path.exists() and not path.is_dir()):
        raise NotADirectoryError(
            f"--{flag}={path} is a file, a link or no name of a folder. Give another name."
        )
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(
            f"--{flag}={path} exists and is not empty; expected a new folder, so that no file of "
            "another run stays in it. Give another name, or remove it."
        )
    require_writable(path.with_name(f"{path.name}.new"), flag=flag)
    return path


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, *, flag: str) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside `path`; on success it is synced and renamed to `path`, on
    failure removed.

    Raises: OSError or ValueError as `require_new_folder`.
    """
    path = require_new_folder(path, flag=flag)
    temporary = pathlib.Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        with naming(path):
            yield temporary
            for item in sorted(temporary.rglob("*")):
                if item.is_dir():
                    sync_folder(item)
                else:
                    with open(item, "rb") as file:
                        os.fsync(file.fileno())
        sync_folder(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes it private
        if path.is_dir():
            path.rmdir()  # empty: Windows does not rename onto it
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_unused(folder: pathlib.Path, lock: pathlib.Path) -> None:
    """Removes a folder that holds nothing but this lock: what a run that was refused would leave
    behind.
    """
    if folder.is_dir() and set(folder.iterdir()) <= {lock}:
        lock.unlink(missing_ok=True)
        folder.rmdir()


def require_reasonable_zip(path: str | os.PathLike) -> None:
    """Raises ValueError for an archive that unpacks to far more than its size: reading it would
    fill the memory.

    Weights and images shrink a few times when they are packed, sparse ones some tens of times;
    zeros a thousand times.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return  # no archive: whoever reads it next says so
    packed = os.path.getsize(path)
    if unpacked > _MOST_UNPACKED * packed + _FREE_BYTES:
        raise ValueError(
            f"{path} unpacks from {packed / 2**20:.1f} to {unpacked / 2**20:.0f} MiB, "
            f"over {_MOST_UNPACKED} times its size, "
            "as an archive made to fill the memory does. Pass the file as it was saved."
        )


@contextlib.contextmanager
def locked_folder(path: str | os.PathLike, *, flag: str, worker: int = 0) -> Iterator[pathlib.Path]:
    """The folder of a run, made where it is missing and locked against a second process; a lock
    ends with its process.

    A folder made here for a run that then fails before it writes anything is removed again.

    Args:
      path: of the folder.
      flag: the option that gave the path, for messages.
      worker: number of this one of several that share the folder, each with a lock of its own.
    Raises: ValueError when another process holds it, OSError when it cannot be made or written to.
    """
    import filelock

    known = pathlib.Path(path).exists()
    folder = make_folder(path, flag=flag)
    lock = folder / (f".lock-{worker}" if worker else ".lock")
    held = filelock.FileLock(lock, timeout=0)
    try:
        try:
            held.acquire()
        except filelock.Timeout:
            raise ValueError(
                f"Another process is writing to {folder}. Wait for it, or give another --{flag}."
            ) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            raise ValueError(
                f"{lock} cannot be locked: its file system has no locks, so two processes could "
                f"write there at once. Give an --{flag} on a disk of this machine, and copy the "
                "folder afterwards."
            ) from error
        with held:
            yield folder
    except BaseException:
        if not known:
            _remove_unused(folder, lock)
        raise
    finally:
        held.release(force=True)


def sha256_file(path: str | os.PathLike) -> str:
    """Hex sha256 of a file, or of a folder's files in sorted order with their relative names."""
    path = pathlib.Path(path)
    require_regular(path)
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for item in sorted(p for p in path.rglob("*") if p.is_file()):
        name = os.fsencode(item.relative_to(path))
        digest.update(name + f"\n{sha256_file(item)}\n".encode())
    return digest.hexdigest()


def sha256_array(array: np.ndarray) -> str:
    """Hex sha256 of an array's bytes in C order (shape and dtype not included)."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
