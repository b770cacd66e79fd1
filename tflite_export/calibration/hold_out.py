"""Images of a calibration set that take no part in calibration: they judge or compare the file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dgh_tf.common.subsets import spread
from tflite_export.calibration.check import Images

_MOST = 32  # images that are held out
_JUDGING_SHARE = 2  # of small sets: one of each kind for so many that calibrate, but two at least
_COMPARING_SHARE, _COMPARING_LEAST = 4, 4  # one image of 4 is held back, 4 at least


def held_out_count(num_images: int) -> int:
    """How many images of each of two kinds judge a file that `num_images` calibrate, as in
    benchmarks.verdict.
    """
    return min(_MOST, max(2, num_images // _JUDGING_SHARE))


def hold_out(images: Images, count: int) -> tuple[Images, Images]:
    """(images that calibrate, images that judge): `count` of them, spread evenly over the set, take
    no part in calibration.

    Raises: ValueError where no image is left to calibrate with, or none is asked for.

    Example:
      >>> rest, held = hold_out(np.arange(5.0), 2)
      >>> rest.tolist(), held.tolist()
      ([1.0, 2.0, 4.0], [0.0, 3.0])
    """
    if not isinstance(images, Mapping):
        rest, held = _parts({"": images}, count)
        return rest[""], held[""]
    return _parts(images, count)


def hold_back(
    images: Mapping[str, np.ndarray], *, smallest: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(images to calibrate with, images to compare with), by input name.

    The latter are spread evenly over the set. Of fewer images than `smallest` none is held back,
    and both are the whole set.
    """
    total = len(next(iter(images.values())))
    if total < smallest:
        return dict(images), dict(images)
    return _parts(images, min(_MOST, max(_COMPARING_LEAST, total // _COMPARING_SHARE)))


def _parts(
    images: Mapping[str, np.ndarray], count: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(the others, `count` images spread evenly over the set), by input name."""
    total = min(map(len, images.values()))
    if not 1 <= count < total:
        raise ValueError(
            f"held_out={count}: expected at least 1 and fewer than the {total} images, since the "
            "others calibrate the file."
        )
    held = spread(count, total=total)
    rest = np.setdiff1d(np.arange(total), held)
    return (
        {name: np.asarray(array[rest]) for name, array in images.items()},
        {name: np.asarray(array[held]) for name, array in images.items()},
    )
