"""Integer kernels that LiteRT has and TensorFlow's converter leaves unused."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgh_tf.models.tflite.model import Operator, Tensor, TFLiteModel, read_model
from dgh_tf.models.tflite.parts import pack, unpack

# Functions of one int8 value, which LiteRT and TFLite Micro look up in a table of 256
_BY_TABLE = {"ELU": 1}
# Hand values on as they are, so that all ends have one scale. Where ranges are given, TensorFlow
# quantizes them in most runs and leaves one in floats in others
_PASSING = {"SPLIT": 2, "SPLIT_V": 2}
_VERSIONS = _BY_TABLE | _PASSING  # of the int8 kernel


def with_integer_kernels(tflite: bytes | TFLiteModel) -> TFLiteModel:
    """The int8 file with DEQUANTIZE, ELU, QUANTIZE as one ELU on integers; SPLIT likewise.

    The converter leaves such an operator in floats between conversions, with the scales that it
    found for both ends; the kernel takes them as they are. One with another type stays.
    """
    model = read_model(tflite)
    around = _Neighbours.of(model)
    ends = {}
    for place, operator in enumerate(model.operators):
        found = _integer_ends(operator, around) if operator.kind in _VERSIONS else None
        if found and not set(operator.outputs) & set(model.outputs):
            ends[place] = found
    return _replaced(model, ends, around) if ends else model


@dataclasses.dataclass(frozen=True)
class _Neighbours:
    """Places of the operators that make and that take each tensor, by its index."""

    maker: Mapping[int, int]
    readers: Mapping[int, list[int]]
    operators: Sequence[Operator]

    @classmethod
    def of(cls, model: TFLiteModel) -> _Neighbours:
        maker = {i: place for place, o in enumerate(model.operators) for i in o.outputs}
        readers: dict[int, list[int]] = collections.defaultdict(list)
        for place, operator in enumerate(model.operators):
            for i in operator.inputs:
                readers[i].append(place)
        return cls(maker, readers, model.operators)

    def before(self, index: int) -> Tensor | None:
        """The int8 tensor that a DEQUANTIZE turns into this one."""
        operator = self.operators[self.maker[index]] if index in self.maker else None
        if operator is None or operator.kind != "DEQUANTIZE":
            return None
        (source,) = operator.input_tensors
        return source if source is not None and source.dtype == "INT8" else None

    def behind(self, index: int) -> Tensor | None:
        """The int8 tensor that a QUANTIZE makes of this one, which nothing else takes."""
        readers = self.readers.get(index, [])
        operator = self.operators[readers[0]] if len(readers) == 1 else None
        if operator is None or operator.kind != "QUANTIZE":
            return None
        (result,) = operator.output_tensors
        return result if result.dtype == "INT8" else None


def _integer_ends(operator: Operator, around: _Neighbours) -> dict[int, Tensor] | None:
    """By index of the operator's float tensors the int8 ones before and behind them; None where one
    has none. An output that nothing takes gets those of the input.
    """
    floats = [t for t in operator.input_tensors if t is not None and t.dtype == "FLOAT32"]
    source = around.before(floats[0].index) if len(floats) == 1 else None
    if source is None:
        return None
    ends = {floats[0].index: source}
    for i in operator.outputs:
        result = around.behind(i) if around.readers.get(i) else source
        if result is None or (operator.kind in _PASSING and not _alike(result, source)):
            return None
        ends[i] = result
    return ends


def _alike(a: Tensor, b: Tensor) -> bool:
    return (a.scales, a.zero_points) == (b.scales, b.zero_points)


def _replaced(
    model: TFLiteModel, ends: Mapping[int, Mapping[int, Tensor]], around: _Neighbours
) -> TFLiteModel:
    """The file with the operators at these places on integers, less the conversions around them."""
    parts = unpack(model)
    graph = parts.subgraphs[0]
    dropped = set()
    for place, found in ends.items():
        operator = graph.operators[place]
        code = parts.operatorCodes[operator.opcodeIndex]
        code.version = max(code.version, _VERSIONS[model.operators[place].kind])
        unread = {i for i in found if not around.readers.get(i)}
        for i in unread:  # stays where it is, as an integer
            alike = graph.tensors[found[i].index]
            graph.tensors[i].type, graph.tensors[i].quantization = alike.type, alike.quantization
        for side in ("inputs", "outputs"):
            moved = [
                i if i in unread or i not in found else found[i].index
                for i in getattr(operator, side)
            ]
            setattr(operator, side, np.asarray(moved, np.int32))
        dropped |= {
            reader for i in model.operators[place].outputs for reader in around.readers.get(i, [])
        }
        (before,) = {around.maker[i] for i in found if i in around.maker} - {place}
        (float_input,) = model.operators[before].outputs
        taken_elsewhere = float_input in model.outputs or any(
            reader not in ends for reader in around.readers[float_input]
        )
        dropped |= set() if taken_elsewhere else {before}
    graph.operators = [o for place, o in enumerate(graph.operators) if place not in dropped]
    _drop_unused_tensors(parts)
    return pack(parts)


def _drop_unused_tensors(parts: Any) -> None:
    graph = parts.subgraphs[0]
    used = {int(i) for o in graph.operators for i in [*o.inputs, *o.outputs]}
    used |= {int(i) for i in [*graph.inputs, *graph.outputs]}
    kept = [i for i in range(len(graph.tensors)) if i in used]
    new_place = {-1: -1, **{old: new for new, old in enumerate(kept)}}

    def moved(indices: np.ndarray) -> np.ndarray:
        return np.asarray([new_place[int(i)] for i in indices], np.int32)

    graph.tensors = [graph.tensors[i] for i in kept]
    for operator in graph.operators:
        operator.inputs, operator.outputs = moved(operator.inputs), moved(operator.outputs)
        if operator.intermediates is not None:
            operator.intermediates = moved(operator.intermediates)
    graph.inputs, graph.outputs = moved(graph.inputs), moved(graph.outputs)
    for signature in parts.signatureDefs or []:
        for entry in [*signature.inputs, *signature.outputs]:
            entry.tensorIndex = new_place[entry.tensorIndex]
