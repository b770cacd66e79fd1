"""Mean average precision of a KerasCV detector from its raw heads, decoded outside the
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

_NEVER = 1 << 31  # BoxCOCOMetrics evaluates every so many updates; we ask for the result ourselves
_KEYS = ("boxes", "classes", "confidence")


def decode(
    detector: keras.Model, raw: Mapping[str, np.ndarray], images: np.ndarray
) -> dict[str, np.ndarray]:
    """Boxes after the detector's own decoding and non-maximum suppression.

    Args:
      detector: a KerasCV detector with `decode_predictions` (YOLOV8Detector, RetinaNet); its
        weights are not used.
      raw: the model's raw heads by output name, float32, of a float or of an integer run: {"boxes":
        [N, anchors, 64], "classes": [N, anchors, classes]} for YOLOV8Detector.
      images: [N, height, width, channels]; only the shape counts.

    Returns: {"boxes": float32 [N, M, 4] in the detector's box format, "classes": [N, M],
      "confidence": [N, M]}; unused rows hold -1. Raises ValueError where the model cannot decode or
      a head is missing.
    """
    if not hasattr(detector, "decode_predictions"):
        raise ValueError(
            f"Model '{detector.name}' has no decode_predictions, so its raw heads "
            "cannot become boxes. "
            "Pass a KerasCV YOLOV8Detector or RetinaNet."
        )
    missing = sorted(set(detector.output) - set(raw))
    if missing:
        raise ValueError(
            f"Raw outputs hold {sorted(raw)}, but '{detector.name}' also has {missing}. "
            "Pass every head under the key it has in the model's output."
        )
    boxes = detector.decode_predictions(
        {name: np.asarray(value, np.float32) for name, value in raw.items()}, images
    )
    return {name: np.asarray(boxes[name]) for name in _KEYS}


def mean_average_precision(
    detector: keras.Model,
    raw: Mapping[str, np.ndarray],
    images: np.ndarray,
    truth: dict[str, np.ndarray],
) -> float:
    """COCO mean average precision, averaged over IoU 0.50 to 0.95, by keras_cv's BoxCOCOMetrics
    (pycocotools).

    Args:
      detector: as for `decode`.
      raw: the model's raw heads by output name, as for `decode`.
      images: [N, height, width, channels]; only the shape counts.
      truth: {"boxes": [N, K, 4] in pixels (left, top, right, bottom), "classes": [N, K]}, padded
        with -1.

    Returns: 0 to 1; 0 where nothing is found (pycocotools says -1 there).
    """
    import contextlib
    import io

    import keras_cv

    found = decode(detector, raw, images)
    if detector.bounding_box_format != "xyxy":
        boxes = keras_cv.bounding_box.convert_format(
            found["boxes"], source=detector.bounding_box_format, target="xyxy", images=images
        )
        found["boxes"] = np.asarray(boxes)
    metrics = keras_cv.metrics.BoxCOCOMetrics(bounding_box_format="xyxy", evaluate_freq=_NEVER)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        metrics.update_state(
            {name: np.asarray(truth[name], np.float32) for name in ("boxes", "classes")}, found
        )
        return max(0.0, float(metrics.result(force=True)["MaP"]))
