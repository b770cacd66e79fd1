"""Spans of a float .tflite graph's operators that learned rounding takes one after the other, and
what goes through them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dgh_tf.models.tflite.run import Graph, run
from dgh_tf.models.tflite.spec import CHANNEL_AXIS
from tflite_export.simulation.fake_quant import channel_axes

_CHUNK = 32  # images at once

Values = dict[int, np.ndarray]


def find_blocks(graph: Graph, *, max_layers: int = 4) -> list[range]:
    """Spans of operators to reconstruct one after the other, each with weights; together all
    operators up to the last weights.

    A graph is cut where a single tensor passes, so a residual branch stays whole. A depthwise layer
    goes with the next span, operators without weights too. A span of more than `max_layers` layers
    with weights is cut further.
    """
    weighted = [
        o.kind in CHANNEL_AXIS and o.inputs[1] in channel_axes(graph) for o in graph.operators
    ]
    last_use = {
        i: place
        for place, o in enumerate(graph.operators)
        for i in o.inputs
        if graph.tensors[i].value is None
    }
    last_use |= dict.fromkeys(graph.outputs, len(graph.operators))
    made, blocks, start = set(graph.inputs), [], 0
    for place, operator in enumerate(graph.operators):
        made |= set(operator.outputs)
        alive = [i for i in made if last_use.get(i, -1) > place]
        layers = sum(weighted[start : place + 1])
        single = len(alive) <= 1 and not (operator.kind == "DEPTHWISE_CONV_2D" and layers == 1)
        if layers and (single or (layers >= max_layers and weighted[place])):
            blocks.append(range(start, place + 1))
            start = place + 1
    rest = sum(weighted[start:])
    return [*blocks, range(start, len(graph.operators))] if rest else blocks


def outside(graph: Graph, span: range) -> tuple[list[int], list[int]]:
    """Activations a span reads from before it, and makes for after it (or for the graph's
    outputs).
    """
    made = {i for p in span for i in graph.operators[p].outputs}
    read = {
        i
        for p in span
        for i in graph.operators[p].inputs
        if i >= 0 and graph.tensors[i].value is None
    } - made
    later = {i for p, o in enumerate(graph.operators) if p >= span.stop for i in o.inputs} | set(
        graph.outputs
    )
    return sorted(read), sorted(made & later)


def advance(
    graph: Graph,
    span: range,
    values: Values,
    constants: Mapping[int, Any],
    observe: Callable | None,
) -> Values:
    """`values` with what the span makes of them, over all images; what is not read any more is
    dropped.
    """
    import tensorflow as tf

    read, made = outside(graph, span)

    def forward(*tensors: tf.Tensor) -> list[tf.Tensor]:
        outputs = run(
            graph,
            dict(zip(read, tensors, strict=True)),
            constants=constants,
            observe=observe,
            operators=span,
        )
        return [outputs[i] for i in made]

    specs = [tf.TensorSpec((None, *values[i].shape[1:]), tf.float32) for i in read]
    traced, count = (
        tf.function(forward, autograph=False).get_concrete_function(*specs),
        len(next(iter(values.values()))),
    )
    parts = [
        traced(*(tf.constant(values[i][k : k + _CHUNK]) for i in read))
        for k in range(0, count, _CHUNK)
    ]
    later = {i for o in graph.operators[span.stop :] for i in o.inputs}
    kept = {i: v for i, v in values.items() if i in later}
    return kept | {
        i: np.concatenate([part[k].numpy() for part in parts]) for k, i in enumerate(made)
    }
