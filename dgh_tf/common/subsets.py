"""Some of a set's images, where every other one may be of another kind.

Without statistics every other generated image is plain and the others are stretched; an even stride
through such a set takes one kind alone.
"""

from __future__ import annotations

import numpy as np


def spread(count: int, *, total: int) -> np.ndarray:
    """Places of `count` of `total` images, evenly spread and in order; of all where there are no
    more.

    An even `count` takes as many images from even as from odd places: the last of an odd set is
    left out, so that the places mirror each other around the middle, each at an even place with one
    at an odd place. An odd `count` takes at least a quarter of each.

    Returns: int [min(count, total)].

    Example:
      >>> spread(4, total=9).tolist()
      [0, 2, 5, 7]
    """
    if count >= total:
        return np.arange(total)
    return np.linspace(0, total - 1 - total % 2, count).round().astype(int)


def halves(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of two halves of `count` images: of each four the outer and the inner ones, so that
    both halves have images from even and from odd places.

    Example:
      >>> [half.tolist() for half in halves(6)]
      [[0, 3, 4], [1, 2, 5]]
    """
    places = np.arange(count)
    inner = np.isin(places % 4, (1, 2))
    return places[~inner], places[inner]
