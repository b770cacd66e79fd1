"""Scikit-learn's handwritten digits painted on coloured textures, the demo's real and
held-out images.

All images are float32 [N, 64, 64, 3] in the demo model's input units, [-1, 1]; each function
depends on its seed alone. The digits are real scans (1797 of 8x8 pixels, the test set of UCI's
"Optical Recognition of Handwritten Digits") that ship with scikit-learn, so nothing is downloaded.
The textures have the mix of frequencies of photographs.
"""

from __future__ import annotations

import numpy as np

SIZE = 64
LOW, HIGH = -1.0, 1.0
CLASSES = 10
_HELD_OUT = 597  # of 1797; 1200 are left to train and to calibrate with
_SPLIT_SEED = 20250101


def digits(*, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ink of one side of the split, float32 [N, 8, 8] in [0, 1], and labels, int64 [N].

    Raises ImportError where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "The demo's images come with scikit-learn, which is not installed. "
            "Run: pip install scikit-learn"
        ) from error
    source = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(source.target))
    chosen = order[:_HELD_OUT] if held_out else order[_HELD_OUT:]
    return (source.images[chosen] / 16.0).astype(np.float32), source.target[chosen].astype(np.int64)


def upsampling(size: int, points: int) -> np.ndarray:
    """Matrix float32 [size, points] that interpolates `points` samples linearly at `size` places,
    ends held.
    """
    places = np.clip((np.arange(size) + 0.5) * points / size - 0.5, 0, points - 1)
    return np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(points)[None])).astype(
        np.float32
    )


def textures(count: int, *, size: int, rng: np.random.Generator) -> np.ndarray:
    """Coloured value noise, float32 [count, size, size, 3] in [0, 1].

    Sums octaves whose amplitude falls as the frequency rises, about as in photographs (1/f).
    """
    brightness, chroma = (
        rng.uniform(0.1, 0.5, (count, 1, 1, 1)),
        rng.uniform(-0.1, 0.1, (count, 1, 1, 3)),
    )
    base = (brightness + chroma).astype(np.float32)
    contrast = rng.uniform(0.02, 0.1, (count, 1, 1, 1)).astype(np.float32)
    noise = np.zeros((count, size, size, 3), np.float32)
    for points, amplitude in ((3, 1.0), (6, 0.5), (12, 0.25), (24, 0.12)):
        matrix = upsampling(size, points)
        grid = rng.standard_normal((count, points, points, 3)).astype(np.float32)
        noise += amplitude * np.einsum("yi,nijc,xj->nyxc", matrix, grid, matrix, optimize=True)
    return np.clip(base + contrast * noise, 0.0, 1.0)


def paint(background: np.ndarray, mask: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Blends one random ink colour per image over `background` where `mask` is 1; all in [0, 1].

    Args:
      background: float32 [N, height, width, 3].
      mask: float32 [N, height, width], 1 where the ink covers the background.
      rng: source of the ink colours, all near white.
    """
    ink = 1.0 - rng.uniform(0.0, 0.2, (len(mask), 1, 1, 3)).astype(np.float32)
    return background + mask[..., None] * (ink - background)


def compose(ink: np.ndarray, *, rng: np.random.Generator, size: int = SIZE) -> np.ndarray:
    """Digits [N, 8, 8] in [0, 1], enlarged to fill the image and painted on textures: float32 [N,
    size, size, 3].
    """
    matrix = upsampling(size, ink.shape[1])
    mask = np.einsum("yi,nij,xj->nyx", matrix, ink, matrix, optimize=True)
    unit = paint(textures(len(ink), size=size, rng=rng), mask, rng=rng)
    return (LOW + (HIGH - LOW) * unit).astype(np.float32)


def real() -> tuple[np.ndarray, np.ndarray]:
    """The 1200 images on the training side, for calibration with real data, and their labels, int64
    [1200].
    """
    ink, labels = digits(held_out=False)
    return compose(ink, rng=np.random.default_rng(1)), labels


def evaluation() -> tuple[np.ndarray, np.ndarray]:
    """The 597 held-out images, on textures of their own: x float32 [597, 64, 64, 3] in [-1, 1], y
    int64 [597].
    """
    ink, labels = digits(held_out=True)
    return compose(ink, rng=np.random.default_rng(2)), labels
