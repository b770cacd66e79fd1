"""Calibration images by source: real, generated (whole method or minus a part), the start images
of generation, crops of public photographs, uniform and Gaussian noise.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.data.choice import require_some
from benchmarks.data.photographs import proxy_images, require_picture

if TYPE_CHECKING:
    from dgh_tf.config import GenerationConfig

# What each generated source changes in the method; everything else is the run's GenerationConfig.
GENERATED: dict[str, dict[str, Any]] = {
    "synthetic": {},
    "per_batch": {"pool_statistics": False},
    "no_augmentation": {"augment": False, "prior_weight": 0.0},
    "no_stretching": {"output_weight": 0.0},
    "no_statistics": {"use_statistics": False},
}
HINTED = {
    f"with_{count}_real": count for count in (1, 4, 8, 32)
}  # the whole method, and so many real images in the set
ABLATION = (
    *(source for source, changes in GENERATED.items() if changes),
    *HINTED,
    "start",
    "proxy",
)  # measured beside the main sources, at fewer sizes
SOURCES = ("real", *GENERATED, "start", "proxy", "noise", "gaussian", *HINTED)
SOURCES_HELP = (
    f"Some of {', '.join(SOURCES)}. start: the images that generation starts from; proxy: crops of "
    "two photographs that scikit-learn ships, for models of pictures of three channels."
)


def check_sources(names: list[str]) -> list[str]:
    """The names unchanged. Raises ValueError for an unknown, a repeated or no name."""
    return require_some(names, SOURCES, flag="sources")


def require_fitting(names: Iterable[str], *, shape: tuple[int, ...], kind: str) -> None:
    """Raises ValueError where a source cannot give the input of a model.

    shape: of the input, without batch. kind: what it is, see `dgh_tf.ops.kinds`.
    """
    if "proxy" in names:
        require_picture(shape, kind=kind)


def real_subset(real: np.ndarray, *, num_images: int, seed: int) -> np.ndarray:
    """`num_images` different real images, chosen by the seed. Raises ValueError where there are too
    few.
    """
    if num_images > len(real):
        raise ValueError(
            f"The real set holds {len(real)} images, fewer than "
            f"--num_images={num_images}. Give a larger "
            "set or lower --num_images, so that every source calibrates on equally many."
        )
    return real[np.random.default_rng(seed).permutation(len(real))[:num_images]]


def kept(
    path: pathlib.Path, make: Callable[[], tuple[np.ndarray, float | None]]
) -> tuple[np.ndarray, float | None]:
    """What `make` gives (images, and seconds or None), from the .npz file `path` where an earlier
    call left it there. Raises ValueError for a file that is damaged.
    """
    from dgh_tf.common.files import atomic_path

    if path.exists():
        try:
            with np.load(path) as file:
                return file["x"], float(file["seconds"]) if file["seconds"] >= 0 else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"{path} is damaged ({error}). Remove it: the same command makes it again."
            ) from error
    images, seconds = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        np.savez(temporary, x=images, seconds=-1.0 if seconds is None else seconds)
    return images, seconds


def calibration_images(
    source: str,
    *,
    model: Any,
    real: np.ndarray,
    config: GenerationConfig,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    noise_bounds: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, float | None]:
    """Calibration images of one source.

    Args:
      source: one of SOURCES.
      model: Keras model with one input.
      real: float32 [N, ...] in model input units.
      config: dgh_tf.GenerationConfig; its num_images and seed hold for every source.
      bounds: low and high of the valid input range, of a shape that broadcasts with an image; read
        by 'noise' and 'proxy' only.
      noise_bounds: the same, for 'noise' alone; None for `bounds`.

    Returns:
      float32 [config.num_images, ...] (and the real ones of HINTED) in model input units, and the
      seconds a generated source took (else None).
    """
    shape = (config.num_images, *real.shape[1:])
    if source == "real":
        return real_subset(real, num_images=config.num_images, seed=config.seed), None
    if source == "noise":
        ends = noise_bounds or bounds
        assert ends is not None  # for the type checker: every caller of 'noise' has them
        noise = np.random.default_rng(config.seed).uniform(*ends, size=shape)
        return noise.astype(np.float32), None
    if source == "proxy":
        assert bounds is not None
        crops = proxy_images(
            shape[1:], bounds=bounds, num_images=config.num_images, seed=config.seed
        )
        return crops, None
    if (
        source == "gaussian"
    ):  # mean 0, variance 1 in the model's own units, whatever its input range
        return np.random.default_rng(config.seed).standard_normal(shape, dtype=np.float32), None
    from dgh_tf import Generator, generate_images

    if source == "start":
        return Generator(model, config).start_images()[0], None
    hint = (
        real_subset(real, num_images=HINTED[source], seed=config.seed) if source in HINTED else None
    )
    start = time.perf_counter()
    images = generate_images(
        model,
        dataclasses.replace(config, **GENERATED.get(source, {})),
        real_hint=hint,
        verbose=0,
    )
    return np.asarray(images), time.perf_counter() - start
