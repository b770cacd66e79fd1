"""Where canvases, optimizer slots and rows of the table live: in memory, or in a file
streamed through a few buffers.

A batch's record is all that the run knows of it: its canvases, RAdam's slots and its row of the
table. Whatever the number of images, a device holds the batches it works on.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import math
import os
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from dgh_tf.common.files import naming, require_space


@dataclasses.dataclass(frozen=True)
class Record:
    """A batch's record as arrays.

    Attributes:
      canvases, first, second: of every input the canvases and RAdam's two slots, float32 [batch,
        *canvas shape].
      row: of the table, float32 [2, channels of all layers].
    """

    canvases: list[np.ndarray]
    first: list[np.ndarray]
    second: list[np.ndarray]
    row: np.ndarray

    def arrays(self) -> list[np.ndarray]:
        """All arrays in the order in which stores and checkpoints keep them."""
        return [*self.canvases, *self.first, *self.second, self.row]

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray]) -> Record:
        """The record whose `arrays` these are."""
        *slots, row = arrays
        inputs = len(slots) // 3
        return cls(
            list(slots[:inputs]), list(slots[inputs : 2 * inputs]), list(slots[2 * inputs :]), row
        )


class Slots(NamedTuple):
    """A batch's record as variables, which steps change in place."""

    canvases: list[tf.Variable]
    first: list[tf.Variable]
    second: list[tf.Variable]
    row: tf.Variable

    def flat(self) -> list[tf.Variable]:
        return [*self.canvases, *self.first, *self.second, self.row]


class Store(Protocol):
    """Records by number of batch; `take` gives one to work on (`upcoming`: the next one, to be
    fetched ahead), `put` returns it. `canvases` and `write_row` reach a part of one.
    """

    def take(self, batch: int, *, upcoming: int | None) -> Slots: ...

    def put(self, batch: int, slots: Slots) -> None: ...

    def read(self, batch: int) -> Record: ...

    def write(self, batch: int, record: Record) -> None: ...

    def canvases(self, batch: int) -> list[np.ndarray]: ...

    def write_row(self, batch: int, row: np.ndarray) -> None: ...

    def close(self) -> None: ...


def record_shapes(
    canvas_shapes: Sequence[tuple[int, ...]], size: int, *, channels: int
) -> list[tuple[int, ...]]:
    """Shapes of the arrays of a record of `size` images. channels: of all layers together."""
    return [(size, *shape) for _ in range(3) for shape in canvas_shapes] + [(2, channels)]


def record_bytes(canvas_shapes: Sequence[tuple[int, ...]], size: int, *, channels: int) -> int:
    """Bytes of a record of `size` images."""
    return 4 * sum(map(math.prod, record_shapes(canvas_shapes, size, channels=channels)))


def _variables(
    canvas_shapes: Sequence[tuple[int, ...]], size: int, channels: int, device: str, *, fixed: bool
) -> Slots:
    """Zeros for `size` images. fixed: no other size will be assigned; else all have one type, so
    that steps are traced once.
    """

    def zeros(shape: tuple[int, ...]) -> tf.Variable:
        return tf.Variable(
            tf.zeros([size, *shape]), shape=[size if fixed else None, *shape], trainable=False
        )

    with tf.device(device):
        canvases, first, second = ([zeros(shape) for shape in canvas_shapes] for _ in range(3))
        row = tf.Variable(tf.zeros([2, channels]), trainable=False)
        return Slots(canvases, first, second, row)


class MemoryStore:
    """Every batch's record in memory, on the device of the replica that works on it."""

    def __init__(
        self,
        canvas_shapes: Sequence[tuple[int, ...]],
        sizes: Sequence[int],
        *,
        channels: int,
        devices: Sequence[str],
    ) -> None:
        """sizes: images of every batch. devices: of the replicas, which take batches in turn."""
        fixed = len(set(sizes)) == 1
        self._slots = [
            _variables(canvas_shapes, size, channels, devices[k % len(devices)], fixed=fixed)
            for k, size in enumerate(sizes)
        ]

    def take(self, batch: int, *, upcoming: int | None) -> Slots:
        del upcoming
        return self._slots[batch]

    def put(self, batch: int, slots: Slots) -> None:
        """Steps changed the record in place."""

    def read(self, batch: int) -> Record:
        return Record.of([variable.numpy() for variable in self._slots[batch].flat()])

    def write(self, batch: int, record: Record) -> None:
        for variable, value in zip(self._slots[batch].flat(), record.arrays(), strict=True):
            variable.assign(value)

    def canvases(self, batch: int) -> list[np.ndarray]:
        return [variable.numpy() for variable in self._slots[batch].canvases]

    def write_row(self, batch: int, row: np.ndarray) -> None:
        self._slots[batch].row.assign(row)

    def close(self) -> None:
        """Nothing is held open."""


class FileStore:
    """Records in one file; one thread reads the next record and writes the last one while a step
    runs.

    Plain reads and writes rather than a memory map: mapped pages would count as the process's
    memory. The file is a working copy that a kill may leave in any state; checkpoints are what
    survives.
    """

    _BUFFERS = 3  # for each replica: one in work, one being read ahead, one being written back

    def __init__(
        self,
        path: pathlib.Path,
        canvas_shapes: Sequence[tuple[int, ...]],
        sizes: Sequence[int],
        *,
        channels: int,
        devices: Sequence[str],
    ) -> None:
        """As MemoryStore. Raises OSError where the disk has no room for the file: it is laid out in
        full at once.
        """
        self._path = path
        self._shapes = [record_shapes(canvas_shapes, size, channels=channels) for size in sizes]
        self._stride = max(record_bytes(canvas_shapes, size, channels=channels) for size in sizes)
        size = self._stride * len(sizes)
        require_space(
            path.parent,
            {"the streamed set": size},
            advice="Free some space, give another --output_dir, fewer --num_images, or a larger "
            "--memory_mib.",
        )
        self._file = _laid_out(path, size)
        self._turn = threading.Lock()  # the file has one place to read and write at
        fixed = len(set(sizes)) == 1
        self._buffers = [
            [
                _variables(canvas_shapes, sizes[0], channels, device, fixed=fixed)
                for _ in range(self._BUFFERS)
            ]
            for device in devices
        ]
        self._turns = [0] * len(devices)
        self._ahead: dict[int, concurrent.futures.Future] = {}
        self._writes: list[concurrent.futures.Future] = []
        self._thread = concurrent.futures.ThreadPoolExecutor(
            1
        )  # one: reads and writes keep their order

    def take(self, batch: int, *, upcoming: int | None) -> Slots:
        fetched = self._ahead.pop(batch, None) or self._fetch(batch)
        if upcoming is not None and upcoming != batch:
            self._ahead[upcoming] = self._fetch(upcoming)
        return fetched.result()

    def _fetch(self, batch: int) -> concurrent.futures.Future:
        replica = batch % len(self._buffers)
        slots = self._buffers[replica][self._turns[replica] % self._BUFFERS]
        self._turns[replica] += 1

        def read() -> Slots:
            for variable, value in zip(slots.flat(), self._read(batch), strict=True):
                variable.assign(value)
            return slots

        return self._thread.submit(read)

    def put(self, batch: int, slots: Slots) -> None:
        self._writes = [
            w for w in self._writes if not w.done() or w.result()
        ]  # raises what a write raised
        self._writes.append(
            self._thread.submit(
                lambda: self._write(batch, [variable.numpy() for variable in slots.flat()])
            )
        )

    def read(self, batch: int) -> Record:
        self._settle()
        return Record.of(self._read(batch))

    def write(self, batch: int, record: Record) -> None:
        self._settle()
        self._ahead.clear()
        self._write(batch, record.arrays())

    def canvases(self, batch: int) -> list[np.ndarray]:
        self._settle()
        return self._read(batch, arrays=len(self._shapes[batch]) // 3)

    def write_row(self, batch: int, row: np.ndarray) -> None:
        self._settle()
        self._ahead.clear()
        others = self._shapes[batch][:-1]
        self._write(batch, [row], offset=4 * sum(map(math.prod, others)))

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _settle(self) -> None:
        for write in self._writes:
            write.result()
        self._writes.clear()

    def _read(self, batch: int, *, arrays: int | None = None) -> list[np.ndarray]:
        """The first arrays of a record; None: all."""
        found = [np.empty(shape, np.float32) for shape in self._shapes[batch][:arrays]]
        self._pass(self._file.readinto, batch, found)
        return found

    def _write(self, batch: int, arrays: Sequence[np.ndarray], *, offset: int = 0) -> None:
        values = [np.ascontiguousarray(a, np.float32) for a in arrays]
        self._pass(self._file.write, batch, values, offset=offset)

    def _pass(
        self,
        call: Callable[[memoryview], int | None],
        batch: int,
        arrays: Sequence[np.ndarray],
        *,
        offset: int = 0,
    ) -> None:
        """One call moves 2 GiB at most, and may move less. offset: of the first array within the
        record, in bytes.
        """
        with self._turn, naming(self._path):
            self._file.seek(batch * self._stride + offset)
            for array in arrays:
                rest = array.reshape(-1).data.cast("B")
                while rest:
                    moved = call(rest)
                    if not moved:
                        raise OSError(
                            f"{self._path} is shorter than it was laid out. The same "
                            "command goes on from the last checkpoint."
                        )
                    rest = rest[moved:]


def _laid_out(path: pathlib.Path, size: int) -> io.FileIO:
    """A new file with room for `size` bytes. Raises OSError, and leaves none, where that is not
    there.
    """
    path.unlink(missing_ok=True)
    file = open(path, "x+b", buffering=0)  # noqa: SIM115 - closed by the store
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS and Windows: the space was asked for, but not set aside
            file.truncate(size)
    except OSError as error:
        file.close()
        path.unlink()
        raise OSError(
            error.errno, f"{error.strerror}; {size} bytes are needed", str(path)
        ) from error
    return file
