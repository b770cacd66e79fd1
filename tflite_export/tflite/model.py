"""math: a float .tflite graph as plain data, run and differentiated in TensorFlow.

The converter has already folded BatchNorm into the weights and fused the activations, so what is
measured or optimized
here is what the integer file will hold. A file is converted at batch 1; here any batch runs, if
`proven` has shown that images stay apart; else each image runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from tflite_export.conversion.freeze import plain

_ACTIVATIONS = {
    1: "RELU",
    2: "RELU_N1_TO_1",
    3: "RELU6",
    4: "TANH",
}  # ActivationFunctionType of the schema
_DTYPES = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "INT32": np.int32,
    "INT64": np.int64,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
    "INT16": np.int16,
}


class Tensor(NamedTuple):
    """A tensor of the file; `dtype` is the schema's name, `value` None for activations."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    value: np.ndarray | None


class Operator(NamedTuple):
    """`kind` is the schema's name (CONV_2D); an input of -1 is absent; `options` are the schema's,
    by field name, and
    under "activation" the fused one ("NONE", "RELU", "RELU6", "RELU_N1_TO_1", "TANH").
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: dict[str, Any]


class Graph(NamedTuple):
    """The main graph: operators in order of execution; inputs and outputs are tensor indices, in
    the file's order. `batched`: whether many images run together; None before `proven` settles it.
    """

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    batched: bool | None = None


def _options(operator: Any) -> dict[str, Any]:
    given = dict(vars(operator.builtinOptions)) if operator.builtinOptions is not None else {}
    return {
        **given,
        "activation": _ACTIVATIONS.get(given.get("fusedActivationFunction", 0), "NONE"),
    }


def _value(model: Any, tensor: Any, dtype: str) -> np.ndarray | None:
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0:
        return None
    shape = tuple(tensor.shape) if tensor.shape is not None else ()
    return np.frombuffer(bytes(data), _DTYPES[dtype]).reshape(shape)


def read_graph(tflite: bytes) -> Graph:
    """Reads a float file, such as `to_float_tflite` makes.

    Raises:
      ValueError: not a TFLite model, or one with an operator `run` does not know, or with several
        subgraphs.
    """
    from ai_edge_litert import schema_py_generated as schema

    from tflite_export.tflite.integer_check import graph_io, operator_table

    table, io = operator_table(tflite), graph_io(tflite)
    unknown = sorted({row["operator"] for row in table} - set(_TABLE))
    if unknown or any(row["subgraph"] for row in table):
        what = f"operators {', '.join(unknown)}" if unknown else "several subgraphs (control flow)"
        raise ValueError(
            f"The model has {what}, which cannot be run outside LiteRT; expected only "
            f"{', '.join(sorted(_TABLE))}. "
            "Use --algorithm=minmax, which leaves the model to the converter."
        )
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite, 0))
    graph = model.subgraphs[0]
    types = {
        value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")
    }
    tensors = []
    for index, tensor in enumerate(graph.tensors):
        shape = tuple(map(int, tensor.shape)) if tensor.shape is not None else ()
        dtype = types[tensor.type]
        tensors.append(
            Tensor(index, (tensor.name or b"").decode(), shape, dtype, _value(model, tensor, dtype))
        )
    operators = tuple(
        Operator(
            row["operator"], tuple(map(int, o.inputs)), tuple(map(int, o.outputs)), _options(o)
        )
        for row, o in zip(table, graph.operators, strict=True)
    )
    return Graph(
        tuple(tensors),
        operators,
        tuple(map(int, graph.inputs)),
        tuple(map(int, graph.outputs)),
        tuple(row["name"] for row in io["inputs"]),
        tuple(row["name"] for row in io["outputs"]),
    )


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


def _activate(x, kind: str):
    import tensorflow as tf

    functions = {
        "NONE": tf.identity,
        "RELU": tf.nn.relu,
        "RELU6": tf.nn.relu6,
        "TANH": tf.tanh,
        "RELU_N1_TO_1": lambda v: tf.clip_by_value(v, -1.0, 1.0),
    }
    return functions[kind](x)


def _padding(o) -> str:
    return "VALID" if o["padding"] else "SAME"


def _conv(tf, x, o):
    strides, dilations = (o["strideH"], o["strideW"]), (o["dilationHFactor"], o["dilationWFactor"])
    filters = tf.transpose(x[1], (1, 2, 3, 0))  # from [out, height, width, in]
    y = tf.nn.conv2d(x[0], filters, strides, _padding(o), dilations=dilations)
    return y if x[2] is None else y + x[2]


def _depthwise(tf, x, o):
    channels, (height, width, outputs) = x[0].shape[-1], x[1].shape[1:]
    filters = tf.reshape(x[1], (height, width, channels, outputs // channels))
    strides, dilations = (
        (1, o["strideH"], o["strideW"], 1),
        (o["dilationHFactor"], o["dilationWFactor"]),
    )
    y = tf.nn.depthwise_conv2d(x[0], filters, strides, _padding(o), dilations=dilations)
    return y if x[2] is None else y + x[2]


def _dense(tf, x, o):
    y = tf.matmul(tf.reshape(x[0], (-1, x[1].shape[1])), x[1], transpose_b=True)
    y = y if len(x) < 3 or x[2] is None else y + x[2]
    return (
        tf.reshape(y, tf.concat([tf.shape(x[0])[:-1], [x[1].shape[0]]], 0))
        if o["keepNumDims"]
        else y
    )


def _transpose_conv(tf, x, o):
    shape = tf.concat([tf.shape(x[2])[:1], x[0][1:]], 0)  # the file's shape has batch 1
    y = tf.nn.conv2d_transpose(
        x[2], tf.transpose(x[1], (1, 2, 0, 3)), shape, (o["strideH"], o["strideW"]), _padding(o)
    )
    return y if len(x) < 4 or x[3] is None else y + x[3]


def _pool(function):
    return lambda tf, x, o: getattr(tf.nn, function)(
        x[0], (o["filterHeight"], o["filterWidth"]), (o["strideH"], o["strideW"]), _padding(o)
    )


def _concatenation(tf, x, o):
    batch = (
        tf.reduce_max([tf.shape(v)[0] for v in x])
        if o["axis"] not in (0, -len(x[0].shape))
        else None
    )
    same = [
        v if batch is None or v.shape[0] != 1 else tf.repeat(v, batch, axis=0) for v in x
    ]  # constants have batch 1
    return tf.concat(same, o["axis"])


def _strided_slice(tf, x, o):
    masks = {
        name: o[f"{name}Mask"] for name in ("begin", "end", "ellipsis", "newAxis", "shrinkAxis")
    }
    if masks["ellipsis"] or masks["newAxis"] or masks["shrinkAxis"] & 1:
        raise ValueError(
            "A STRIDED_SLICE adds or drops the batch axis, which runs at batch 1 "
            "only. Use --algorithm=minmax."
        )
    return tf.strided_slice(
        x[0],
        x[1],
        x[2],
        x[3],
        begin_mask=masks["begin"] | 1,
        end_mask=masks["end"] | 1,
        shrink_axis_mask=masks["shrinkAxis"],
    )


def _slice(tf, x, o):
    return tf.slice(x[0], x[1], np.concatenate([[-1], x[2][1:]]))


def _reshape(tf, x, o, shape):
    return tf.reshape(x[0], (-1, *shape[1:])) if shape else tf.reshape(x[0], ())


def _resize(function):
    return lambda tf, x, o: getattr(tf.raw_ops, function)(
        images=x[0],
        size=x[1],
        align_corners=o["alignCorners"],
        half_pixel_centers=o["halfPixelCenters"],
    )


def _mirror_pad(tf, x, o):
    return tf.pad(x[0], x[1], "SYMMETRIC" if o["mode"] else "REFLECT")


def _reduce(function):
    return lambda tf, x, o: getattr(tf, function)(x[0], np.atleast_1d(x[1]), keepdims=o["keepDims"])


def _unary(function):
    return lambda tf, x, o: function(tf, x[0])


def _binary(function):
    return lambda tf, x, o: getattr(tf, function)(x[0], x[1])


def _broadcast_to(tf, x, o):
    return tf.broadcast_to(x[0], tf.concat([tf.maximum(tf.shape(x[0])[:1], x[1][:1]), x[1][1:]], 0))


def _strided_slice_as_is(tf, x, o):
    return tf.strided_slice(
        x[0],
        x[1],
        x[2],
        x[3],
        begin_mask=o["beginMask"],
        end_mask=o["endMask"],
        ellipsis_mask=o["ellipsisMask"],
        new_axis_mask=o["newAxisMask"],
        shrink_axis_mask=o["shrinkAxisMask"],
    )


def _reshape_as_is(tf, x, o, shape):
    return tf.reshape(x[0], shape)


# operator -> function(tensorflow, inputs, options) -> output or list of outputs; the fused
# activation comes after
_TABLE: dict[str, Callable] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _dense,
    "TRANSPOSE_CONV": _transpose_conv,
    "BATCH_MATMUL": lambda tf, x, o: tf.matmul(
        x[0], x[1], transpose_a=o["adjX"], transpose_b=o["adjY"]
    ),
    "ADD": _binary("add"),
    "SUB": _binary("subtract"),
    "MUL": _binary("multiply"),
    "DIV": _binary("divide"),
    "MAXIMUM": _binary("maximum"),
    "MINIMUM": _binary("minimum"),
    "POW": _binary("pow"),
    "SQUARED_DIFFERENCE": lambda tf, x, o: tf.math.squared_difference(x[0], x[1]),
    "MEAN": _reduce("reduce_mean"),
    "SUM": _reduce("reduce_sum"),
    "REDUCE_MAX": _reduce("reduce_max"),
    "REDUCE_MIN": _reduce("reduce_min"),
    "AVERAGE_POOL_2D": _pool("avg_pool2d"),
    "MAX_POOL_2D": _pool("max_pool2d"),
    "PAD": lambda tf, x, o: tf.pad(x[0], x[1]),
    "MIRROR_PAD": _mirror_pad,
    "PADV2": lambda tf, x, o: tf.pad(x[0], x[1], constant_values=tf.reshape(x[2], ())),
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "TRANSPOSE": lambda tf, x, o: tf.transpose(x[0], x[1]),
    "TILE": lambda tf, x, o: tf.tile(x[0], x[1]),
    "BROADCAST_TO": _broadcast_to,
    "GATHER": lambda tf, x, o: tf.gather(x[0], x[1], axis=o["axis"], batch_dims=o["batchDims"]),
    "CONCATENATION": _concatenation,
    "SPLIT": lambda tf, x, o: tf.split(x[1], o["numSplits"], int(x[0])),
    "SPLIT_V": lambda tf, x, o: tf.split(x[0], x[1], int(x[2])),
    "STRIDED_SLICE": _strided_slice,
    "SLICE": _slice,
    "PACK": lambda tf, x, o: tf.stack(x, o["axis"]),
    "UNPACK": lambda tf, x, o: tf.unstack(x[0], o["num"], o["axis"]),
    "RESIZE_BILINEAR": _resize("ResizeBilinear"),
    "RESIZE_NEAREST_NEIGHBOR": _resize("ResizeNearestNeighbor"),
    "SOFTMAX": lambda tf, x, o: tf.nn.softmax(o["beta"] * x[0]),
    "LOGISTIC": _unary(lambda tf, v: tf.sigmoid(v)),
    "TANH": _unary(lambda tf, v: tf.tanh(v)),
    "EXP": _unary(lambda tf, v: tf.exp(v)),
    "LOG": _unary(lambda tf, v: tf.math.log(v)),
    "SQRT": _unary(lambda tf, v: tf.sqrt(v)),
    "RSQRT": _unary(lambda tf, v: tf.math.rsqrt(v)),
    "NEG": _unary(lambda tf, v: -v),
    "ABS": _unary(lambda tf, v: tf.abs(v)),
    "SQUARE": _unary(lambda tf, v: tf.square(v)),
    "RELU": _unary(lambda tf, v: tf.nn.relu(v)),
    "RELU6": _unary(lambda tf, v: tf.nn.relu6(v)),
    "RELU_N1_TO_1": _unary(lambda tf, v: tf.clip_by_value(v, -1.0, 1.0)),
    "LEAKY_RELU": lambda tf, x, o: tf.nn.leaky_relu(x[0], o["alpha"]),
    "PRELU": lambda tf, x, o: tf.nn.relu(x[0]) - x[1] * tf.nn.relu(-x[0]),
    "ELU": _unary(lambda tf, v: tf.nn.elu(v)),
    "GELU": lambda tf, x, o: tf.nn.gelu(x[0], approximate=o["approximate"]),
    "HARD_SWISH": _unary(lambda tf, v: v * tf.nn.relu6(v + 3.0) / 6.0),
    "L2_NORMALIZATION": _unary(lambda tf, v: tf.math.l2_normalize(v, -1)),
}
_SHAPED = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")  # these are told the file's shape of their output

# the same for one image alone, at exactly the file's shapes: no axis is taken for the batch
_ALONE = {
    "RESHAPE": _reshape_as_is,
    "SQUEEZE": _reshape_as_is,
    "EXPAND_DIMS": _reshape_as_is,
    "STRIDED_SLICE": _strided_slice_as_is,
    "SLICE": lambda tf, x, o: tf.slice(x[0], x[1], x[2]),
}


def _execute(graph: Graph, operator: Operator, inputs: list[Any], *, alone: bool) -> list[Any]:
    """An operator's outputs, its fused activation included."""
    import tensorflow as tf

    function = _ALONE.get(operator.kind) if alone else None
    function = function or _TABLE[operator.kind]
    more = (graph.tensors[operator.outputs[0]].shape,) if operator.kind in _SHAPED else ()
    results = function(tf, inputs, operator.options, *more)
    results = results if isinstance(results, (list, tuple)) else [results]
    return [_activate(result, operator.options["activation"]) for result in results]


def _one_by_one(
    graph: Graph, operator: Operator, inputs: list[Any], *, many: list[bool], images: Any
) -> list[Any]:
    """`_execute` for each of so many images alone, stacked. `many` tells which inputs hold images
    along their first axis; the others are constants.
    """
    import tensorflow as tf

    def alone(images: list[Any]) -> list[Any]:
        rest = iter(images)
        return _execute(
            graph,
            operator,
            [next(rest) if several else v for v, several in zip(inputs, many, strict=True)],
            alone=True,
        )

    stacked = [v for v, several in zip(inputs, many, strict=True) if several]
    if not stacked:
        return [tf.repeat(v[None], images, axis=0) for v in alone([])]
    count = stacked[0].shape[0]
    if count is None:  # in a traced function
        types = [tf.as_dtype(_DTYPES[graph.tensors[i].dtype]) for i in operator.outputs]
        return list(tf.map_fn(alone, stacked, fn_output_signature=types))
    made = [alone([v[k] for v in stacked]) for k in range(count)]
    return [tf.stack(parts) for parts in zip(*made, strict=True)]


def run(
    graph: Graph,
    feeds: Mapping[int, Any],
    *,
    constants: Mapping[int, Any] | None = None,
    observe: Callable[[int, Any], Any] | None = None,
    operators: range | None = None,
) -> dict[int, Any]:
    """Executes the graph, or a span of its operators, eagerly or inside a tf.function,
    differentiably.

    Where images cannot run together (`graph.batched` is False), each operator runs for every image
    alone, and every value but the graph's inputs has the shape [images, *the file's shape].

    Args:
      feeds: float32 [images, ...] by tensor index: the graph's inputs, or what the span reads from
        before it.
      constants: values to use instead of the file's, by tensor index (weights, biases), same shape.
      observe: called with (tensor index, value) for every graph input and every float activation an
        operator makes;
        the run goes on with the value it returns. The hook for recording and for fake quantization.
      operators: span of operators to run; None for all.
    Returns:
      By tensor index: the graph's outputs, and what operators outside the span read from it.
    Raises:
      ValueError: a fed tensor is missing.
    """
    import tensorflow as tf

    watch, span = (
        observe or (lambda _, value: value),
        range(len(graph.operators)) if operators is None else operators,
    )
    alone = graph.batched is False
    values: dict[int, Any] = {}
    for index, value in feeds.items():
        value = tf.convert_to_tensor(value, tf.float32)
        if index in graph.inputs:
            value = watch(index, value)
            value = tf.expand_dims(value, 1) if alone else value
        values[index] = value

    def read(index: int):
        if index < 0:
            return None
        if (
            index not in values
            and graph.tensors[index].value is None
            and index not in (constants or {})
        ):
            raise ValueError(
                f"Tensor {index} ({graph.tensors[index].name}) is read but not fed; feed it."
            )
        if index in values:
            return values[index]
        if constants is not None and index in constants:
            return tf.convert_to_tensor(constants[index])
        tensor = graph.tensors[index]
        return (
            tf.constant(tensor.value) if tensor.dtype.startswith("FLOAT") else tensor.value
        )  # axes and shapes

    made: set[int] = set()
    count = tf.shape(next(iter(values.values())))[0] if values else 1
    for position in span:
        operator = graph.operators[position]
        inputs = [read(i) for i in operator.inputs]
        if alone:
            many = [i in values for i in operator.inputs]
            results = _one_by_one(graph, operator, inputs, many=many, images=count)
        else:
            results = _execute(graph, operator, inputs, alone=False)
        for index, result in zip(operator.outputs, results, strict=True):
            values[index] = watch(index, result) if result.dtype == tf.float32 else result
            made.add(index)
    outside = {i for p, o in enumerate(graph.operators) if p not in span for i in o.inputs}
    return {i: values[i] for i in values if i in graph.outputs or (i in made and i in outside)}
