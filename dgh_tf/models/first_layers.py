"""What a model's first layers with weights make of its inputs, before any activation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from dgh_tf.models.batchnorm import batchnorm_layers
from dgh_tf.models.hooks import record_calls
from dgh_tf.models.network import Network, kernel_layers
from dgh_tf.models.tflite.run import Graph, run
from dgh_tf.models.tflite.spec import CHANNEL_AXIS
from dgh_tf.models.tflite_model import file_graph


def first_outputs(network: Network, inputs: list[tf.Tensor], *, most: int) -> list[tf.Tensor]:
    """Outputs of the first `most` convolutions, dense and BatchNorm layers, in order of execution,
    without the activations that these layers end with.

    Args:
      network: the model's.
      inputs: float32 [n, *input shape] each, channels last, in the model's order.
      most: how many layers.
    Returns: [n, positions, channels] each.
    """
    graph = file_graph(network.model)
    if graph is not None:
        return _of_file(graph, network.own_layout(inputs), most)
    found: list[tf.Tensor] = []
    layers = [*kernel_layers(network.model), *batchnorm_layers(network.model)]
    with record_calls(layers) as recorded:
        network.outputs(inputs)
    for layer, x, y in recorded[:most]:
        with _without_activation(layer) as changed:
            made = layer(x) if changed else y
        axis = _channel_axis(layer, tf.nest.flatten(made)[0].shape.rank)
        found.append(_by_channel(tf.nest.flatten(made)[0], axis=axis))
    return found


def _of_file(graph: Graph, inputs: list[tf.Tensor], most: int) -> list[tf.Tensor]:
    feeds = dict(zip(graph.inputs, inputs, strict=True))
    kernels = [p for p, o in enumerate(graph.operators) if o.kind in CHANNEL_AXIS][:most]
    found = []
    for place in kernels:
        operator = graph.operators[place]
        read = [i for i in operator.inputs if i >= 0 and not graph.tensors[i].constant]
        given = run(graph, feeds, operators=range(place), outputs=read)
        made = run(
            graph,
            given,
            operators=range(place, place + 1),
            outputs=operator.outputs,
            fused_activations=False,
        )
        y = made[operator.outputs[0]]
        found.append(_by_channel(y, axis=y.shape.rank - 1))
    return found


@contextlib.contextmanager
def _without_activation(layer: Any) -> Iterator[bool]:
    """Inside, the layer leaves out its own activation; whether it has one."""
    own = getattr(layer, "activation", None)
    if own is None or getattr(own, "__name__", "") == "linear":
        yield False
        return
    try:
        layer.activation = tf.identity
        yield True
    finally:
        layer.activation = own


def _channel_axis(layer: Any, rank: int) -> int:
    axis = getattr(layer, "axis", None)
    if isinstance(axis, int):
        return axis % rank
    return 1 if getattr(layer, "data_format", None) == "channels_first" else rank - 1


def _by_channel(x: tf.Tensor, *, axis: int) -> tf.Tensor:
    order = [*(i for i in range(x.shape.rank) if i != axis), axis]
    x = tf.cast(tf.transpose(x, order), tf.float32)
    return tf.reshape(x, [tf.shape(x)[0], -1, x.shape[-1]])
