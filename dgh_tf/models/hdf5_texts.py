"""How much memory the texts of an HDF5 file take, asked before the HDF5 library reads any.

A text of variable length lies in a global heap, and a list holds its length, its heap's place and
its number there. Many entries may be one and the same text, and each takes its memory when read;
h5py tells neither lengths nor places, so the entries are looked for in the file's bytes.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

_HEAP = b"GCOL\x01\0\0\0"  # with the heap's version and three zeros; its size follows, 8 bytes
_HEAP_HEAD, _TEXT_HEAD = 16, 16
_MOST_SEARCHED = 2**36  # bytes looked through, heaps times the file's size: half a minute


def text_bytes(content: bytes | mmap.mmap) -> int:
    """Bytes that all entries of lists, and single texts, take when they are read.

    Args:
      content: of the HDF5 file.
    Raises: ValueError for a file of more heaps than can be looked for.

    Example:
      >>> text_bytes(b"no heap")
      0
    """
    heaps = list(_found(content, _HEAP))
    if len(heaps) * len(content) > _MOST_SEARCHED:
        raise ValueError(
            f"it keeps its texts in {len(heaps):,} places. Save the model again with model.save"
        )
    total = 0
    for heap in heaps:
        sizes = _sizes(content, heap)
        for place in _found(content, heap.to_bytes(8, "little")):
            if place < 4:
                continue
            length = int.from_bytes(content[place - 4 : place], "little")
            size = sizes.get(int.from_bytes(content[place + 8 : place + 12], "little"))
            # a length that is not the text's own takes its memory too, before HDF5 refuses it
            if size is not None and (length == size or not _is_end_of_address(content, place)):
                total += length
    return total


def _is_end_of_address(content: bytes | mmap.mmap, place: int) -> bool:
    """Whether the 8 bytes at `place` are the upper bytes of a place in the file, such as that of an
    array, and not one themselves.
    """
    starts = range(max(0, place - 7), place)
    return any(int.from_bytes(content[i : i + 8], "little") < len(content) for i in starts)


def _found(content: bytes | mmap.mmap, wanted: bytes) -> Iterator[int]:
    """Every place where `wanted` begins."""
    place = content.find(wanted)
    while place >= 0:
        yield place
        place = content.find(wanted, place + 1)


def _sizes(content: bytes | mmap.mmap, heap: int) -> dict[int, int]:
    """Bytes by number of the texts in the heap that begins at `heap`."""
    end = heap + int.from_bytes(content[heap + 8 : heap + _HEAP_HEAD], "little")
    sizes, place = {}, heap + _HEAP_HEAD
    while place + _TEXT_HEAD <= min(end, len(content)):
        number = int.from_bytes(content[place : place + 2], "little")
        size = int.from_bytes(content[place + 8 : place + _TEXT_HEAD], "little")
        if not number:  # free space, which ends the heap
            break
        sizes[number] = size
        place += _TEXT_HEAD + -(-size // 8) * 8
    return sizes
