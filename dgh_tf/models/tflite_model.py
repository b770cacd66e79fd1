"""A float .tflite file as a Keras model, so that whatever asks a model can ask a file.

The model computes what the file computes, by TensorFlow operations, so that its heads are found and
images are optimized through it as for any other. It keeps the file: what makes integer files starts
from that, not from Keras' view of it.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dgh_tf.models.tflite.float_file import float_weight_bytes, read_float_file
from dgh_tf.models.tflite.metadata import InputScaling, input_scalings
from dgh_tf.models.tflite.model import TFLiteModel, plain
from dgh_tf.models.tflite.run import Graph, read_graph, run

if TYPE_CHECKING:
    import keras

# of the noise images that tell whether the graph takes several at once: whatever the input's unit,
# their outputs differ
_SCALES = (1.0, 16.0, 256.0)
_CLOSE = 1e-3  # of an output's largest value: another order of sums, not another image


def load_tflite(path: pathlib.Path, *, signature: str) -> keras.Model:
    """A Keras functional model of a float .tflite file.

    Args:
      path: of the file.
      signature: the key of the one to take; empty where the file has only one.
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


def file_graph(model: Any) -> Graph | None:
    """The graph behind a model of `load_tflite`; None for any other model."""
    layer = _graph_layer(model)
    return None if layer is None else layer.graph


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
    """The file's graph, with `batched` as noise images tell it: whether several at once give the
    outputs that each gives alone.

    Outputs are all that a model is asked for. Inside, images may share an axis: transformers fold
    the batch into the tokens.
    """
    rng = np.random.default_rng(0)
    shapes = [file.tensors[i].shape[1:] for i in file.inputs]
    noise = [
        np.stack([scale * rng.standard_normal(shape, np.float32) for scale in _SCALES])
        for shape in shapes
    ]
    graph = read_graph(file)
    apart, together = (dataclasses.replace(graph, batched=several) for several in (False, True))
    wanted = _outputs(apart, noise)
    try:
        found = _outputs(together, noise)
    except (ValueError, _shape_error()):  # shapes that fit one image alone
        return apart
    pairs = zip(wanted, found, strict=True)
    same = all(np.allclose(w, f, rtol=0, atol=_CLOSE * np.abs(w).max()) for w, f in pairs)
    return together if same else apart


def _shape_error() -> type[Exception]:
    """What TensorFlow raises where shapes do not fit."""
    import tensorflow as tf

    return tf.errors.InvalidArgumentError


def _outputs(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """The graph's outputs [images, ...] for inputs [images, ...], in order."""
    import tensorflow as tf

    shapes = [graph.tensors[i].shape[1:] for i in graph.outputs]

    def at_once(batch: Sequence[Any]) -> list[Any]:
        made = run(graph, dict(zip(graph.inputs, batch, strict=True)), outputs=graph.outputs)
        flat = (made[i] for i in graph.outputs)
        return [tf.reshape(v, (-1, *shape)) for v, shape in zip(flat, shapes, strict=True)]

    if graph.batched:
        return at_once(inputs)
    # one loop over images; `run` would make one of every operator
    alone = tf.map_fn(
        lambda images: [v[0] for v in at_once([x[None] for x in images])],
        [tf.convert_to_tensor(x, tf.float32) for x in inputs],
        fn_output_signature=[tf.TensorSpec(shape, tf.float32) for shape in shapes],
    )
    return list(alone)


def _functional(graph: Graph, *, name: str) -> keras.Model:
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
def _layer_class() -> type[keras.layers.Layer]:
    """The layer's class; made at its first use, because importing Keras takes seconds."""
    import keras

    class TFLiteGraph(keras.layers.Layer):
        """The whole graph of a float .tflite file, from a list of inputs to a list of outputs."""

        def __init__(self, graph: Graph) -> None:
            super().__init__(name="tflite_graph", autocast=False, trainable=False)
            self.graph = graph
            # as other layers tell that images come with their channels first
            self.data_format = "channels_first" if _channels_first(graph) else "channels_last"

        def call(self, inputs: list[Any]) -> list[Any]:
            return _outputs(self.graph, inputs)

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
