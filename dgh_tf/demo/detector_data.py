"""Scenes of handwritten digits on textures for the demo detector, with boxes; training side
and held-out side.

Images are float32 [N, 96, 96, 3] in the detector's input units, [0, 255]. Boxes are float32 [N,
MAX_DIGITS, 4], absolute pixels "xyxy" (left, top, right, bottom); classes are float32 [N,
MAX_DIGITS]. Unused rows of both hold
-1, as KerasCV pads. Held-out scenes use held-out scans, so no digit of a test scene was seen in
training.
"""

from __future__ import annotations

import numpy as np

from dgh_tf.demo.data import digits, paint, textures, upsampling

SIZE = 96
LOW, HIGH = 0.0, 255.0
MAX_DIGITS = 5
_EDGES = (20, 44)  # pixels: smallest and largest square a scan is enlarged to, upper end excluded
_ATTEMPTS = 20  # places tried for a digit before it is left out
_INK = 0.3  # a pixel at least this dark belongs to the digit's box


def _ink_box(mask: np.ndarray) -> np.ndarray:
    """Tight box of a digit's mask [edge, edge]: float32 [4], xyxy."""
    rows, columns = (
        np.flatnonzero((mask > _INK).any(axis=1)),
        np.flatnonzero((mask > _INK).any(axis=0)),
    )
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _overlaps(box: np.ndarray, others: np.ndarray) -> bool:
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    return bool((high > low).all(axis=1).any())


def _place(
    ink: np.ndarray, labels: np.ndarray, *, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One scene's digits, not overlapping: mask [SIZE, SIZE], boxes [MAX_DIGITS, 4], classes
    [MAX_DIGITS].
    """
    mask = np.zeros((SIZE, SIZE), np.float32)
    boxes, classes = (
        np.full((MAX_DIGITS, 4), -1.0, np.float32),
        np.full(MAX_DIGITS, -1.0, np.float32),
    )
    placed = 0
    for chosen in rng.integers(len(ink), size=rng.integers(1, MAX_DIGITS + 1)):
        edge = int(rng.integers(*_EDGES))
        matrix = upsampling(edge, ink.shape[1])
        digit = matrix @ ink[chosen] @ matrix.T
        tight = _ink_box(digit)
        for left, top in rng.integers(0, SIZE - edge + 1, (_ATTEMPTS, 2)):
            box = tight + np.array([left, top, left, top], np.float32)
            if not _overlaps(box, boxes[:placed]):
                area = mask[top : top + edge, left : left + edge]
                np.maximum(area, digit, out=area)
                boxes[placed], classes[placed] = box, labels[chosen]
                placed += 1
                break
    return mask, boxes, classes


def scenes(
    ink: np.ndarray, labels: np.ndarray, count: int, *, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`count` scenes of one to MAX_DIGITS digits from `ink` [M, 8, 8] in [0, 1]: images, {"boxes",
    "classes"}.
    """
    masks, boxes, classes = zip(*(_place(ink, labels, rng=rng) for _ in range(count)), strict=True)
    unit = paint(textures(count, size=SIZE, rng=rng), np.stack(masks), rng=rng)
    images = (LOW + (HIGH - LOW) * unit).astype(np.float32)
    return images, {"boxes": np.stack(boxes), "classes": np.stack(classes)}


def real(*, count: int = 256) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scenes of training-side digits, for calibration with real data."""
    return scenes(*digits(held_out=False), count, rng=np.random.default_rng(1))


def evaluation(*, count: int = 1000) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scenes of held-out digits, to measure mean average precision on."""
    return scenes(*digits(held_out=True), count, rng=np.random.default_rng(2))
