"""Which items of a large set take part."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

PARTS = ("all", "even", "odd")
PART_HELP = (
    "Evaluation images by their place in the set: choose settings on even ones and report on odd "
    "ones, so that a choice does not flatter its own figure."
)


def choice(total: int, limit: int | None) -> np.ndarray:
    """Indices of at most `limit` of `total` items, sorted: a fixed random choice; of all where
    `limit` is None.
    """
    if limit is None or limit >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).choice(total, size=limit, replace=False))


def require_some(names: list[str], known: Iterable[str], *, flag: str) -> list[str]:
    """The names unchanged. Raises ValueError for an unknown, a repeated or no name.

    Example:
      >>> require_some(["real"], ["real", "noise"], flag="sources")
      ['real']
    """
    known = list(known)
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        raise ValueError(
            f"--{flag}={','.join(names)}: expected some of {', '.join(known)}, each at most once"
            + (f"; unknown: {', '.join(unknown)}." if unknown else ".")
        )
    return names


def part_of(x: np.ndarray, truth: Any, *, part: str) -> tuple[np.ndarray, Any]:
    """The images, and their classes or boxes, of one of PARTS: the places 0, 2, ... are even.

    Raises: ValueError where no image is left.

    Example:
      >>> part_of(np.arange(5.0), np.arange(5), part="odd")[1].tolist()
      [1, 3]
    """
    if part == "all":
        return x, truth
    kept = slice(PARTS.index(part) - 1, None, 2)
    if not len(x[kept]):
        raise ValueError(f"--part={part} of {len(x)} evaluation images leaves none. Give more.")
    if isinstance(truth, dict):
        return x[kept], {name: values[kept] for name, values in truth.items()}
    return x[kept], None if truth is None else truth[kept]
