"""Finds, before long work, operators that the converter cannot make integer, and names the
layers they come from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgh_tf.models.tflite.model import TFLiteModel, read_model
from dgh_tf.models.tflite_model import float_file
from tflite_export.conversion.converter import ConversionError, to_tflite
from tflite_export.tflite.integer_check import IntegerError, check_integer
from tflite_export.tflite.schemes import find_scheme

_NAMED = re.compile(r"(?:for op: '|tfl\.|CUSTOM:|'tf\.|^\s+)([A-Za-z][A-Za-z0-9_]*)", re.MULTILINE)
_IN_GRAPH = re.compile(
    r'"(\w+):", "([^"@]+)@'
)  # a TensorFlow operator and its name, in an error of the MLIR converter

_TRIED = 2  # images that show whether a scheme takes a model


def culprits(text: str, *, float_tflite: bytes | TFLiteModel | None) -> list[str]:
    """'OPERATOR of TENSOR' for every operator of the float file (without one: of the TensorFlow
    graph) that a message names.
    """
    if float_tflite is None:
        return [
            f"{kind} of {name}"
            for kind, name in _IN_GRAPH.findall(text)
            if kind != "PartitionedCall"
        ]
    kinds = {name.upper() for name in _NAMED.findall(text)}
    return [
        f"{o.kind} of {o.output_tensors[0].name.split(';')[-1]}"
        for graph in read_model(float_tflite).subgraphs
        for o in graph.operators
        if o.kind.removeprefix("CUSTOM:").upper() in kinds and o.outputs
    ]


def explained(
    error: ValueError,
    *,
    float_tflite: bytes | TFLiteModel | None,
    scheme: str,
    model: Any = None,
    images: Mapping[str, np.ndarray] | None = None,
) -> ValueError:
    """The converter's error as one line that names the operators and their tensors, whose names
    hold the layers'.

    Args:
      error: as the converter raised it.
      float_tflite: None where even that could not be made: TFLite has no such operator at all.
      scheme: that was asked for.
      model: Keras model, to try another scheme with before it is advised; without it none is.
      images: float32 [images, ...] by input name, for the same trial.
    """
    named = culprits(str(error), float_tflite=float_tflite)
    if not named:
        return error
    named = list(dict.fromkeys(named))
    shown = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
    if float_tflite is None:
        return ConversionError(
            f"TFLite has no operator for {shown}. Replace that layer by one of other "
            "operators, or compute it outside "
            "the model."
        )
    other = "int8" if scheme == "int16x8" else "int16x8"
    advice = "Replace that layer by one of other operators, or compute it outside the model"
    if model is not None and images is not None and _works(model, images, scheme=other):
        advice += f"; or give --scheme={other}, which takes this model"
    return ConversionError(
        f"The model cannot be made integer with --scheme={scheme}: {shown} has no "
        f"integer form there. {advice}."
    )


def _works(model: Any, images: Mapping[str, np.ndarray], *, scheme: str) -> bool:
    """Whether the scheme gives a full-integer file, tried with a few images."""
    if float_file(model) is not None:
        return False
    try:
        few = {name: array[:_TRIED] for name, array in images.items()}
        check_integer(to_tflite(model, few, scheme=scheme), io_dtype=find_scheme(scheme).io_dtype)
    except ValueError:
        return False
    return True


def check_operators(
    model: Any,
    images: Mapping[str, np.ndarray],
    *,
    float_tflite: bytes | TFLiteModel,
    scheme: str,
    timeout: float | None = None,
) -> None:
    """Converts with a single image, which takes seconds, and raises ValueError naming what the
    converter cannot make integer.
    """
    if float_file(model) is not None:
        return  # such files are quantized from their own operators, and refused by those
    try:
        tflite = to_tflite(
            model,
            {name: array[:1] for name, array in images.items()},
            scheme="int8" if scheme == "mixed" else scheme,  # the operators are the same
            timeout=timeout,
        )
        check_integer(tflite, io_dtype=find_scheme(scheme).io_dtype)
    except (ConversionError, IntegerError) as error:
        raise explained(
            error, float_tflite=float_tflite, scheme=scheme, model=model, images=images
        ) from error
    except ValueError:  # one image alone may be constant, which says nothing of the operators
        return
