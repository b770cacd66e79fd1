"""keras: the same calibration images for ai-edge-quantizer, Google's quantizer of .tflite files, an
optional extra.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgh_tf.common.quiet import held_stderr

# its static recipes, by scheme; it has no 4-bit depthwise layers, so w4a8 is left to the other
# algorithms
RECIPES = {"int8": "static_wi8_ai8", "int16x8": "static_wi8_ai16"}


def require_installed() -> None:
    """Raises ValueError naming the extra where the package is missing."""
    if importlib.util.find_spec("ai_edge_quantizer") is None:
        raise ValueError(
            "Algorithm ai_edge needs ai-edge-quantizer, which is not installed. Install it with "
            "pip install 'dgh-tf[ai-edge]', or use another algorithm."
        )


def quantize_with_ai_edge(
    float_tflite: bytes, images: Mapping[str, np.ndarray], *, scheme: str
) -> bytes:
    """Quantizes a float .tflite file by the static recipe of `scheme`: min/max ranges, weights per
    channel.

    Args:
      float_tflite: of `to_float_tflite`. images: float32 [number, ...] by input name, in the
        model's units.
    Returns: the full-integer file's bytes, int8 or int16 at both ends.
    Raises: ValueError: the package is missing, or has no recipe for the scheme.
    """
    require_installed()
    if scheme not in RECIPES:
        raise ValueError(
            f"ai-edge-quantizer has no static recipe for scheme {scheme}; expected "
            f"one of {', '.join(RECIPES)}."
        )
    from ai_edge_quantizer import quantizer, recipe

    count = len(next(iter(images.values())))
    samples = [
        {name: np.asarray(array[i : i + 1], np.float32) for name, array in images.items()}
        for i in range(count)
    ]
    made: Any = quantizer.Quantizer(float_tflite)
    made.load_quantization_recipe(getattr(recipe, RECIPES[scheme])())
    with (
        held_stderr(),
        contextlib.redirect_stdout(io.StringIO()),
    ):  # LiteRT announces its delegate, a bar runs, sizes are printed
        return bytes(made.quantize(made.calibrate({"serving_default": samples})).quantized_model)
