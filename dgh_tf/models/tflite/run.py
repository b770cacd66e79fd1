"""A float .tflite file run and differentiated in TensorFlow.

The converter has already folded BatchNorm into the weights and fused the activations, so what is
measured or optimized here is what the integer file will hold. A file is converted at batch 1; here
any batch runs, if `proven` has shown that images stay apart; else each image runs alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dgh_tf.models.tflite.model import Operator, Tensor, TFLiteModel, plain, read_model
from dgh_tf.models.tflite.operators import KERNELS, compute

Observe = Callable[[int, Any], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A float file that `run` can execute.

    Attributes:
      model: the file.
      batched: whether many images run together; None before `proven` settles it.
    """

    model: TFLiteModel
    batched: bool | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Of the file, by index."""
        return self.model.tensors

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Of the file, in order of execution."""
        return self.model.operators

    @property
    def inputs(self) -> tuple[int, ...]:
        """Tensor indices, in the file's order."""
        return self.model.inputs

    @property
    def outputs(self) -> tuple[int, ...]:
        """Tensor indices, in the file's order."""
        return self.model.outputs

    @property
    def input_names(self) -> tuple[str, ...]:
        """Public names of `inputs`."""
        return self.model.input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Public names of `outputs`."""
        return self.model.output_names


def read_graph(tflite: bytes | TFLiteModel) -> Graph:
    """Reads a float file, such as `to_float_tflite` makes.

    Raises:
      ValueError: not a TFLite model, a damaged one, or one with an operator `run` does not know, or
        with several subgraphs.

    Example:
      [operator.kind for operator in read_graph(to_float_tflite(model)).operators]
    """
    model = read_model(tflite)
    unknown = sorted({o.kind for graph in model.subgraphs for o in graph.operators} - set(KERNELS))
    if unknown or any(graph.operators for graph in model.subgraphs[1:]):
        what = f"operators {', '.join(unknown)}" if unknown else "several subgraphs (control flow)"
        raise ValueError(
            f"The model has {what}, which cannot be run outside LiteRT; expected only "
            f"{', '.join(sorted(KERNELS))}. "
            "Use --algorithm=minmax, which leaves the model to the converter."
        )
    return Graph(model)


def feeds_of(graph: Graph, images: np.ndarray | Mapping[str, np.ndarray]) -> dict[int, np.ndarray]:
    """Images, or a dict of them by input name, by tensor index. Raises ValueError when names do not
    fit the graph.
    """
    given = (
        {plain(k): v for k, v in images.items()}
        if isinstance(images, Mapping)
        else {graph.input_names[0]: images}
    )
    if set(given) != set(graph.input_names):
        raise ValueError(
            f"Got inputs {', '.join(given)}; the model takes {', '.join(graph.input_names)}."
        )
    return {index: given[name] for name, index in zip(graph.input_names, graph.inputs, strict=True)}


def _one_by_one(
    operator: Operator, inputs: list[Any], *, many: list[bool], images: Any, fused_activation: bool
) -> list[Any]:
    """`compute` for each of so many images alone, stacked. `many` tells which inputs hold images
    along their first axis; the others are constants.
    """
    import tensorflow as tf

    def alone(images: list[Any]) -> list[Any]:
        rest = iter(images)
        given = [next(rest) if several else v for v, several in zip(inputs, many, strict=True)]
        return compute(operator, given, alone=True, fused_activation=fused_activation)

    stacked = [v for v, several in zip(inputs, many, strict=True) if several]
    if not stacked:
        return [tf.repeat(v[None], images, axis=0) for v in alone([])]
    count = stacked[0].shape[0]
    if count is None:  # in a traced function
        types = [tf.as_dtype(tensor.dtype.lower()) for tensor in operator.output_tensors]
        return list(tf.map_fn(alone, stacked, fn_output_signature=types))
    made = [alone([v[k] for v in stacked]) for k in range(count)]
    return [tf.stack(parts) for parts in zip(*made, strict=True)]


def run(
    graph: Graph,
    feeds: Mapping[int, Any],
    *,
    constants: Mapping[int, Any] | None = None,
    observe: Observe | None = None,
    operators: range | None = None,
    outputs: Sequence[int] | None = None,
    fused_activations: bool = True,
) -> dict[int, Any]:
    """Executes the graph, or a span of its operators, eagerly or inside a tf.function,
    differentiably.

    Where images cannot run together (`graph.batched` is False), each operator runs for every image
    alone, and every value but the graph's inputs has the shape [images, *the file's shape].

    Args:
      graph: from `read_graph`.
      feeds: float32 [images, ...] by tensor index: the graph's inputs, or what the span reads from
        before it.
      constants: values to use instead of the file's, by tensor index (weights, biases), same shape.
      observe: called with (tensor index, value) for every graph input and every float activation an
        operator makes; the run goes on with the value it returns. The hook for recording and for
        fake quantization.
      operators: span of operators to run; None for all.
      outputs: tensor indices to give; None for the graph's outputs and what operators outside the
        span read from it.
      fused_activations: False leaves out the activations that are fused into operators.
    Returns:
      Tensors by tensor index.
    Raises:
      ValueError: a fed tensor is missing, or an operator's inputs do not fit it.

    Example:
      graph = read_graph(to_float_tflite(model))
      run(graph, feeds_of(graph, images))[graph.outputs[0]]
    """
    import tensorflow as tf

    span = range(len(graph.operators)) if operators is None else operators
    alone, replaced = graph.batched is False, constants or {}
    values: dict[int, Any] = {}
    for index, value in feeds.items():
        value = tf.convert_to_tensor(value, tf.float32)
        if index in graph.inputs:
            value = observe(index, value) if observe else value
            value = tf.expand_dims(value, 1) if alone else value
        values[index] = value

    made: set[int] = set()
    count = tf.shape(next(iter(values.values())))[0] if values else 1
    for position in span:
        operator = graph.operators[position]
        inputs = [_value_of(tensor, values, replaced) for tensor in operator.input_tensors]
        if alone:
            results = _one_by_one(
                operator,
                inputs,
                many=[i in values for i in operator.inputs],
                images=count,
                fused_activation=fused_activations,
            )
        else:
            results = compute(operator, inputs, alone=False, fused_activation=fused_activations)
        for index, result in zip(operator.outputs, results, strict=True):
            floating = result.dtype == tf.float32
            values[index] = observe(index, result) if observe and floating else result
            made.add(index)
    if outputs is not None:
        return {i: values[i] for i in outputs}
    outside = {i for p, o in enumerate(graph.operators) if p not in span for i in o.inputs}
    return {i: values[i] for i in values if i in graph.outputs or (i in made and i in outside)}


def _value_of(tensor: Tensor | None, values: Mapping[int, Any], replaced: Mapping[int, Any]) -> Any:
    """What an operator reads: a value made before, a replaced constant, or the file's."""
    import tensorflow as tf

    if tensor is None:
        return None
    if tensor.index in values:
        return values[tensor.index]
    if tensor.index in replaced:
        return tf.convert_to_tensor(replaced[tensor.index])
    if tensor.value is None:
        raise ValueError(f"Tensor {tensor.index} ({tensor.name}) is read but not fed; feed it.")
    # others are axes and shapes, which TensorFlow wants as they are
    return tf.constant(tensor.value) if tensor.dtype.startswith("FLOAT") else tensor.value
