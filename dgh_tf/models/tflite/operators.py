"""What each TFLite operator computes, in TensorFlow, for float tensors at any batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dgh_tf.models.tflite.model import Operator

if TYPE_CHECKING:
    import tensorflow as tf

# Tensors, integer arrays for axes and shapes, None for an input that is left out
_Inputs: TypeAlias = Sequence[Any]
# The operator's own, by the names of the schema
_Options: TypeAlias = Mapping[str, Any]
# From TensorFlow, inputs and options to the output or outputs
_Kernel: TypeAlias = Callable[[ModuleType, _Inputs, _Options], Any]


def activate(x: tf.Tensor, kind: str) -> tf.Tensor:
    """A fused activation: NONE, RELU, RELU6, RELU_N1_TO_1 or TANH. Shape and dtype of x."""
    import tensorflow as tf

    functions = {
        "NONE": tf.identity,
        "RELU": tf.nn.relu,
        "RELU6": tf.nn.relu6,
        "TANH": tf.tanh,
        "RELU_N1_TO_1": lambda v: tf.clip_by_value(v, -1.0, 1.0),
    }
    return functions[kind](x)


def _padding(o: _Options) -> str:
    return "VALID" if o["padding"] else "SAME"


def _conv(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
    strides, dilations = (o["strideH"], o["strideW"]), (o["dilationHFactor"], o["dilationWFactor"])
    filters = tf.transpose(x[1], (1, 2, 3, 0))  # from [out, height, width, in]
    y = tf.nn.conv2d(x[0], filters, strides, _padding(o), dilations=dilations)
    return y if x[2] is None else y + x[2]


def _depthwise(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
    channels, (height, width, outputs) = x[0].shape[-1], x[1].shape[1:]
    filters = tf.reshape(x[1], (height, width, channels, outputs // channels))
    strides, dilations = (
        (1, o["strideH"], o["strideW"], 1),
        (o["dilationHFactor"], o["dilationWFactor"]),
    )
    y = tf.nn.depthwise_conv2d(x[0], filters, strides, _padding(o), dilations=dilations)
    return y if x[2] is None else y + x[2]


def _dense(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
    y = tf.matmul(tf.reshape(x[0], (-1, x[1].shape[1])), x[1], transpose_b=True)
    y = y if len(x) < 3 or x[2] is None else y + x[2]
    return (
        tf.reshape(y, tf.concat([tf.shape(x[0])[:-1], [x[1].shape[0]]], 0))
        if o["keepNumDims"]
        else y
    )


def _transpose_conv(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
    shape = tf.concat([tf.shape(x[2])[:1], x[0][1:]], 0)  # the file's shape has batch 1
    y = tf.nn.conv2d_transpose(
        x[2], tf.transpose(x[1], (1, 2, 0, 3)), shape, (o["strideH"], o["strideW"]), _padding(o)
    )
    return y if len(x) < 4 or x[3] is None else y + x[3]


def _pool(function: str) -> _Kernel:
    return lambda tf, x, o: getattr(tf.nn, function)(
        x[0], (o["filterHeight"], o["filterWidth"]), (o["strideH"], o["strideW"]), _padding(o)
    )


def _concatenation(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
    batch = (
        tf.reduce_max([tf.shape(v)[0] for v in x])
        if o["axis"] not in (0, -len(x[0].shape))
        else None
    )
    same = [
        v if batch is None or v.shape[0] != 1 else tf.repeat(v, batch, axis=0) for v in x
    ]  # constants have batch 1
    return tf.concat(same, o["axis"])


def _strided_slice(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
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


def _slice(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
    return tf.slice(x[0], x[1], np.concatenate([[-1], x[2][1:]]))


def _reshape(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
    shape = o["output_shape"]  # the file's, with batch 1
    return tf.reshape(x[0], (-1, *shape[1:])) if shape else tf.reshape(x[0], ())


def _resize(function: str) -> _Kernel:
    return lambda tf, x, o: getattr(tf.raw_ops, function)(
        images=x[0],
        size=x[1],
        align_corners=o["alignCorners"],
        half_pixel_centers=o["halfPixelCenters"],
    )


def _mirror_pad(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
    return tf.pad(x[0], x[1], "SYMMETRIC" if o["mode"] else "REFLECT")


def _reduce(function: str) -> _Kernel:
    return lambda tf, x, o: getattr(tf, function)(x[0], np.atleast_1d(x[1]), keepdims=o["keepDims"])


def _unary(function: Callable[[ModuleType, tf.Tensor], tf.Tensor]) -> _Kernel:
    return lambda tf, x, o: function(tf, x[0])


def _binary(function: str) -> _Kernel:
    return lambda tf, x, o: getattr(tf, function)(x[0], x[1])


def _broadcast_to(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
    return tf.broadcast_to(x[0], tf.concat([tf.maximum(tf.shape(x[0])[:1], x[1][:1]), x[1][1:]], 0))


def _strided_slice_as_is(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
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


def _reshape_as_is(tf: ModuleType, x: _Inputs, o: _Options) -> tf.Tensor:
    return tf.reshape(x[0], o["output_shape"])


# operator -> function(tensorflow, inputs, options) -> output or list of outputs; the fused
# activation comes after. To add an operator, add a line.
KERNELS: dict[str, _Kernel] = {
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


# the same for one image alone, at exactly the file's shapes: no axis is taken for the batch
_ALONE: dict[str, _Kernel] = {
    "RESHAPE": _reshape_as_is,
    "SQUEEZE": _reshape_as_is,
    "EXPAND_DIMS": _reshape_as_is,
    "STRIDED_SLICE": _strided_slice_as_is,
    "SLICE": lambda tf, x, o: tf.slice(x[0], x[1], x[2]),
}


def compute(
    operator: Operator, inputs: Sequence[Any], *, alone: bool, fused_activation: bool
) -> list[Any]:
    """The operator's outputs. Raises ValueError where its inputs or options do not fit it.

    Args:
      operator: of a kind in KERNELS.
      inputs: a tensor, or an integer array (axes, shapes), for each input; None for an absent one.
      alone: the inputs have exactly the file's shapes; else their first axis is a batch of any
        size.
      fused_activation: False leaves out the activation that is fused into the operator.
    """
    import tensorflow as tf

    options = {**operator.options, "output_shape": operator.output_tensors[0].shape}
    function = (_ALONE if alone else {}).get(operator.kind) or KERNELS[operator.kind]
    try:
        results = function(tf, inputs, options)
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{operator.kind} of {operator.output_tensors[0].name} cannot be computed "
            f"({type(error).__name__}: {str(error)[:200]}). Use --algorithm=minmax, which leaves "
            "the model to the converter."
        ) from error
    results = list(results) if isinstance(results, (list, tuple)) else [results]
    if not fused_activation:
        return results
    return [activate(result, operator.options["activation"]) for result in results]
