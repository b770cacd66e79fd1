"""In words, what to do about an operator that a target does not take: which layer of the
Keras model it comes from, and what to put in its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_SIMPLE = "ReLU or ReLU6"
_NORMALIZED = (
    "BatchNormalization, which folds into the layer before it, in place of layer or group "
    "normalization"
)
_HEAD = "nothing, if it is the last layer: --head=logits leaves it to the processor's own code"
# kind -> what to use instead; each changes the network, so train or fine-tune it again
REPLACEMENTS: dict[str, str] = {
    **dict.fromkeys(
        ("HARD_SWISH", "LEAKY_RELU", "ELU", "GELU", "PRELU", "EXP", "LOG", "POW", "SIN", "COS"),
        _SIMPLE,
    ),
    "TANH": f"{_SIMPLE}, or a hard tanh by ReLU6",
    "LOGISTIC": f"{_HEAD}; inside the network ReLU6(x + 3) / 6",
    "SOFTMAX": _HEAD,
    "LOG_SOFTMAX": _HEAD,
    **dict.fromkeys(("RSQRT", "SQRT", "SQUARED_DIFFERENCE", "SQUARE", "DIV"), _NORMALIZED),
    "SUM": "GlobalAveragePooling, whose MEAN differs by a factor",
    "MEAN": "an AveragePooling2D over the whole map",
    "RESIZE_BILINEAR": "UpSampling2D with interpolation nearest and a whole factor",
    "RESIZE_NEAREST_NEIGHBOR": "UpSampling2D with a whole factor",
    "TRANSPOSE_CONV": "UpSampling2D and a Conv2D",
    "TRANSPOSE": "one layout for the whole network (channels last), without Permute layers",
    "TILE": "Add or Multiply, which broadcast by themselves, or Concatenate",
    "BROADCAST_TO": "Add or Multiply, which broadcast by themselves",
    **dict.fromkeys(("GATHER", "GATHER_ND", "STRIDED_SLICE"), "Cropping2D, or slices of stride 1"),
    "BATCH_MATMUL": "convolutions in place of attention",
    **dict.fromkeys(
        ("WHILE", "IF", "CALL_ONCE", "UNIDIRECTIONAL_SEQUENCE_LSTM", "VAR_HANDLE"),
        "Conv1D layers, or the recurrent layer with unroll=True",
    ),
    "CAST": "inputs and constants of one type",
}
_NUMBERED = re.compile(r"_\d+$")


def layer_of(tensor: str, layers: Sequence[str]) -> str | None:
    """The Keras layer whose operator gave the tensor; None where the name does not tell.

    Args:
      tensor: its name in the file: paths of scopes, of several operators by ";" after fusion, with
        a number behind each scope.
      layers: the model's layer names, of nested models too.

    Example: `layer_of("net_1/act_3_1/Elu;net_1/conv_1/BiasAdd", ["conv", "act_3"])` is "act_3".
    """
    known = set(layers)
    for path in tensor.split(";"):
        scopes = path.split("/")
        for scope in reversed(scopes):
            # a trace numbers all scopes or none: behind "net_1", "conv_1" is of the layer "conv"
            names = (scope, _NUMBERED.sub("", scope))
            for name in reversed(names) if _NUMBERED.search(scopes[0]) else names:
                if name in known:
                    return name
    return None


def layer_names(model: Any) -> list[str]:
    """Names of a Keras model's layers, of nested models too."""
    names: list[str] = []
    for layer in getattr(model, "layers", ()):
        names += [layer.name, *layer_names(layer)]
    return names


def what_to_do(row: Mapping[str, Any], *, layer: str | None, target: str) -> str:
    """A sentence: where the operator comes from, and what helps.

    Args:
      row: of a verdict's "fallback": operator, tensor, why.
      layer: name of the Keras layer, None where no name tells it.
      target: a key of report.TARGETS.
    """
    where = f"layer {layer}" if layer else f"the operator behind {row['tensor'] or 'this tensor'}"
    if row["why"].startswith("behind "):
        first = row["why"].removeprefix("behind ")
        return f"Mend the {first} before it: {where} follows it to the processor."
    instead = REPLACEMENTS.get(row["operator"])
    if instead:
        return f"In {where} use {instead}."
    return (
        f"Rewrite {where} with operators that {target} takes, or move it to the end of the "
        "network, where the processor runs it once."
    )


def advised(
    verdict: Mapping[str, Any], *, layers: Sequence[str], target: str
) -> list[dict[str, Any]]:
    """The rows of a verdict's "fallback" with "layer" (or None) and "do", a sentence."""
    rows = []
    for row in verdict["fallback"]:
        layer = layer_of(row["tensor"], layers)
        rows.append({**row, "layer": layer, "do": what_to_do(row, layer=layer, target=target)})
    return rows
