"""Integer kernels that LiteRT has and TensorFlow's converter does not use."""

from __future__ import annotations

import collections

import numpy as np

from dgh_tf.models.tflite.model import Operator, TFLiteModel, read_model
from dgh_tf.models.tflite.parts import pack, unpack

# Functions of one int8 value, which LiteRT and TFLite Micro look up in a table of 256
_BY_TABLE = ("ELU",)


def with_table_kernels(tflite: bytes | TFLiteModel) -> TFLiteModel:
    """The int8 file with DEQUANTIZE, ELU, QUANTIZE as one ELU on integers.

    The converter leaves such a function in floats between two conversions, with the scales that it
    found for both ends; the kernel takes them as they are. One with another type stays.
    """
    model = read_model(tflite)
    makers = {i: place for place, o in enumerate(model.operators) for i in o.outputs}
    readers: dict[int, list[int]] = collections.defaultdict(list)
    for place, operator in enumerate(model.operators):
        for i in operator.inputs:
            readers[i].append(place)
    found = {}
    for place, operator in enumerate(model.operators):
        if operator.kind in _BY_TABLE and operator.outputs[0] not in model.outputs:
            before, behind = makers.get(operator.inputs[0]), readers[operator.outputs[0]]
            if before is not None and len(behind) == 1:
                ends = _integer_ends(model.operators[before], model.operators[behind[0]])
                found.update({place: ends} if ends else {})
    if not found:
        return model
    dropped = set()
    for place in found:
        operator = model.operators[place]
        dropped.add(readers[operator.outputs[0]][0])
        before = makers[operator.inputs[0]]  # stays where something else takes it, too
        if all(reader in found for reader in readers[model.operators[before].outputs[0]]):
            dropped.add(before)
    return _without(model, ends=found, dropped=dropped)


def _integer_ends(before: Operator, behind: Operator) -> tuple[int, int] | None:
    """The int8 tensors that go in and come out, where both operators only convert between types."""
    if before.kind != "DEQUANTIZE" or behind.kind != "QUANTIZE":
        return None
    source, result = before.input_tensors[0], behind.output_tensors[0]
    if source is None or source.dtype != "INT8" or result.dtype != "INT8":
        return None
    return source.index, result.index


def _without(
    model: TFLiteModel, *, ends: dict[int, tuple[int, int]], dropped: set[int]
) -> TFLiteModel:
    """The file with other inputs and outputs of some operators, less others and what only they
    made.
    """
    parts = unpack(model)
    graph = parts.subgraphs[0]
    for place, (source, result) in ends.items():
        graph.operators[place].inputs = np.asarray([source], np.int32)
        graph.operators[place].outputs = np.asarray([result], np.int32)
    graph.operators = [o for place, o in enumerate(graph.operators) if place not in dropped]
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
    return pack(parts)
