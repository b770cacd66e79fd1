"""A float .tflite file as a Keras model, so that whatever asks a model can ask a file.

The model computes what the file computes, by TensorFlow operations, so that its heads are found and
images are optimized through it as for any other. It keeps the file: what makes integer files starts
from that, not from Keras' view of it.
"""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import numpy as np

from dgh_tf.models.tflite.batch import proven
from dgh_tf.models.tflite.float_file import float_weight_bytes, read_float_file
from dgh_tf.models.tflite.metadata import InputScaling, input_scalings
from dgh_tf.models.tflite.model import TFLiteModel, plain
from dgh_tf.models.tflite.run import Graph, read_graph, run

_TRIED = 3  # noise images that tell whether the graph takes several at once


def load_tflite(path: pathlib.Path, *, signature: str):
    """A Keras functional model of a float .tflite file.

    Args: signature: the key of the one to take; empty where the file has only one.
    Returns: a Keras 3 model whose inputs and outputs have the file's names and order, with batch
      axis; a dict by name for several outputs.
    Raises: ValueError for files that are no float models, see `read_float_file`.
    """
    try:
        file = read_float_file(path.read_bytes(), signature=signature)
        return _functional(_proven(file), name=path.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def float_file(model: Any) -> bytes | None:
    """The float .tflite file behind a model of `load_tflite`; None for any other model."""
    layer = _graph_layer(model)
    return None if layer is None else layer.graph.model.data


def scalings(model: Any) -> list[InputScaling | None] | None:
    """For every input of a model of `load_tflite` what its file says of its unit; None for any
    other model.
    """
    layer = _graph_layer(model)
    return None if layer is None else input_scalings(layer.graph.model)


def weight_bytes(model: Any) -> int:
    """Bytes of a model's weights as float32."""
    layer = _graph_layer(model)
    if layer is None:
        return 4 * int(model.count_params())
    return float_weight_bytes(layer.graph.model)


def _graph_layer(model: Any) -> Any:
    layers = getattr(model, "layers", [])
    return next((layer for layer in layers if type(layer).__name__ == "TFLiteGraph"), None)


def _proven(file: TFLiteModel) -> Graph:
    """The file's graph, with what noise images tell of running several at once."""
    graph, rng = read_graph(file), np.random.default_rng(0)
    noise = {
        name: rng.standard_normal((_TRIED, *file.tensors[i].shape[1:]), np.float32)
        for name, i in zip(file.input_names, file.inputs, strict=True)
    }
    return proven(graph, noise if len(noise) > 1 else next(iter(noise.values())))


def _functional(graph: Graph, *, name: str):
    import keras

    file = graph.model
    inputs = [
        keras.Input(file.tensors[i].shape[1:], name=plain(public))
        for public, i in zip(file.input_names, file.inputs, strict=True)
    ]
    made = _layer_class()(graph)(inputs)
    outputs = dict(zip(file.output_names, made, strict=True))
    one_in, one_out = len(inputs) == 1, len(outputs) == 1
    return keras.Model(
        inputs[0] if one_in else inputs,
        made[0] if one_out else outputs,
        name=plain(name),
    )


@functools.cache
def _layer_class():
    """The layer's class; made at its first use, because importing Keras takes seconds."""
    import keras
    import tensorflow as tf

    class TFLiteGraph(keras.layers.Layer):
        """The whole graph of a float .tflite file, from a list of inputs to a list of outputs."""

        def __init__(self, graph: Graph):
            super().__init__(name="tflite_graph", autocast=False, trainable=False)
            self.graph = graph
            # as other layers tell that images come with their channels first
            self.data_format = "channels_first" if _channels_first(graph) else "channels_last"

        def call(self, inputs: list[Any]) -> list[Any]:
            graph = self.graph
            made = run(graph, dict(zip(graph.inputs, inputs, strict=True)), outputs=graph.outputs)
            shapes = [graph.tensors[i].shape[1:] for i in graph.outputs]
            values = [made[i] for i in graph.outputs]
            return [tf.reshape(v, (-1, *s)) for v, s in zip(values, shapes, strict=True)]

        def compute_output_spec(self, inputs: list[Any]) -> list[Any]:
            batch = inputs[0].shape[0]
            shapes = [(batch, *self.graph.tensors[i].shape[1:]) for i in self.graph.outputs]
            return [keras.KerasTensor(shape, "float32") for shape in shapes]

        def get_config(self) -> dict[str, Any]:
            raise ValueError(
                "A model of a .tflite file is not saved as Keras model. Keep the .tflite file."
            )

    return TFLiteGraph


def _channels_first(graph: Graph) -> bool:
    """Whether an input's first reader moves its channels to the end, as files from PyTorch do."""
    orders = [
        operator.input_tensors[1]
        for operator in graph.operators
        if operator.kind == "TRANSPOSE" and operator.inputs[0] in graph.inputs
    ]
    return any(
        order is not None and order.value is not None and np.array_equal(order.value, (0, 2, 3, 1))
        for order in orders
    )
