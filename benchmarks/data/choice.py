"""Which items of a large set take part."""

from __future__ import annotations

import numpy as np


def choice(total: int, limit: int | None) -> np.ndarray:
    """Indices of at most `limit` of `total` items, sorted: a fixed random choice; of all where
    `limit` is None.
    """
    if limit is None or limit >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).choice(total, size=limit, replace=False))
