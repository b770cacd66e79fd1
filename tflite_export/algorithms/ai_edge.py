"""The same calibration images for Google's quantizer of .tflite files, an optional extra.

It is litert-quantizer, which up to 0.10 was called ai-edge-quantizer: the same interface under
another name. Either serves; the new one is preferred.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgh_tf.common.quiet import held_stderr

# its static recipes, by scheme; it has no 4-bit depthwise layers, so w4a8 is left to the other
# algorithms
RECIPES = {"int8": "static_wi8_ai8", "int16x8": "static_wi8_ai16"}


PACKAGES = {"litert_quantizer": "litert-quantizer", "ai_edge_quantizer": "ai-edge-quantizer"}


def installed() -> str:
    """The module of the package that serves, the newer where both do.

    Raises: ValueError naming the extra where neither is installed.

    Example: `installed()` is "litert_quantizer".
    """
    for module in PACKAGES:
        if importlib.util.find_spec(module) is not None:
            return module
    raise ValueError(
        "Algorithm ai_edge needs litert-quantizer, which is not installed. Install it with "
        "pip install 'dgh-tf[litert-quantizer]', or use another algorithm."
    )


def quantize_with_ai_edge(
    float_tflite: bytes, images: Mapping[str, np.ndarray], *, scheme: str
) -> tuple[bytes, str]:
    """Quantizes a float .tflite file by the static recipe of `scheme`: min/max ranges, weights per
    channel.

    Args:
      float_tflite: of `to_float_tflite`.
      images: float32 [number, ...] by input name, in the model's units.
      scheme: a key of RECIPES.
    Returns: the full-integer file's bytes, int8 or int16 at both ends; the package and its version.
    Raises: ValueError: the package is missing, or has no recipe for the scheme.
    """
    module = installed()
    if scheme not in RECIPES:
        raise ValueError(
            f"{PACKAGES[module]} has no static recipe for scheme {scheme}; expected "
            f"one of {', '.join(RECIPES)}."
        )
    quantizer = importlib.import_module(f"{module}.quantizer")
    recipe = importlib.import_module(f"{module}.recipe")
    tool = f"{PACKAGES[module]} {importlib.metadata.version(PACKAGES[module])}"

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
        result = made.quantize(made.calibrate({"serving_default": samples}))
    return bytes(result.quantized_model), tool
