"""TensorFlow functions that Keras 2 wrote into models as layers (TFOpLambda), such as what
preprocess_input does, in Keras 3.

Only functions of the list below are taken. They compute; none of them runs code that a file brings.
"""

from __future__ import annotations

import functools
from typing import Any

OPERATORS = {"__operators__.add": "add", "__operators__.getitem": ""}
FUNCTIONS = {
    "abs",
    "cast",
    "clip_by_value",
    "concat",
    "exp",
    "expand_dims",
    "identity",
    "maximum",
    "minimum",
    "pad",
    "reshape",
    "reverse",
    "split",
    "squeeze",
    "stack",
    "tanh",
    "tile",
    "transpose",
    "unstack",
    "compat.v1.transpose",
    "image.resize",
    "math.abs",
    "math.add",
    "math.divide",
    "math.exp",
    "math.log",
    "math.maximum",
    "math.minimum",
    "math.multiply",
    "math.negative",
    "math.pow",
    "math.reduce_max",
    "math.reduce_mean",
    "math.reduce_min",
    "math.reduce_std",
    "math.reduce_sum",
    "math.rsqrt",
    "math.sigmoid",
    "math.softplus",
    "math.sqrt",
    "math.square",
    "math.subtract",
    "math.tanh",
    "math.truediv",
    "nn.avg_pool2d",
    "nn.bias_add",
    "nn.depth_to_space",
    "nn.elu",
    "nn.gelu",
    "nn.leaky_relu",
    "nn.max_pool2d",
    "nn.relu",
    "nn.relu6",
    "nn.sigmoid",
    "nn.silu",
    "nn.softmax",
    "nn.space_to_depth",
    "nn.swish",
    "nn.tanh",
}


def as_function_layer(layer: dict) -> dict:
    """The config of a Keras 2 TFOpLambda or SlicingOpLambda as one of `function_layer`: a changed
    copy.

    Keras 2 holds tensors among the arguments; Keras 3 takes them from the inbound nodes alone. So
    every tensor becomes an inbound node and leaves its place there in the arguments: {"tensor":
    position}.
    Raises: ValueError for a function that is not on the list.
    """
    function = layer["config"].get("function", "__operators__.getitem")
    if function not in FUNCTIONS and function not in OPERATORS:
        raise ValueError(f"TFOpLambda of tf.{function}")
    tensors: list[list] = []

    def held(value: Any) -> Any:
        if (
            isinstance(value, list)
            and len(value) >= 3
            and isinstance(value[0], str)
            and isinstance(value[1], int)
        ):
            if value[0] == "_CONSTANT_VALUE":
                return value[2]
            tensors.append([*value[:3], {}])
            return {"tensor": len(tensors) - 1}
        return [held(item) for item in value] if isinstance(value, list) else value

    node = layer["inbound_nodes"][0]
    several = isinstance(node[0], list)
    arguments = (node[0] if several else node)[3] if len(node[0] if several else node) > 3 else {}
    first = held(node)
    config = {
        "name": layer["config"]["name"],
        "function": function,
        "first": first,
        "arguments": {key: held(value) for key, value in arguments.items() if key != "name"},
    }
    return {**layer, "class_name": "TFOpLambda", "config": config, "inbound_nodes": [tensors]}


def function_layer() -> type:
    """The Keras 3 layer class that computes a function of the list (a class made here: importing
    Keras takes seconds).
    """
    import keras
    import tensorflow as tf

    class TFOpLambda(keras.layers.Layer):
        """`first`, `arguments`: what the function is called with, tensors as {"tensor": position
        among the inputs}.
        """

        def __init__(self, *, function: str, first: Any, arguments: dict, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.function, self.first, self.arguments = function, first, arguments

        def call(self, inputs: Any) -> Any:
            tensors = inputs if isinstance(inputs, list | tuple) else [inputs]

            def value(item: Any) -> Any:
                if isinstance(item, dict) and "tensor" in item:
                    return tensors[item["tensor"]]
                return [value(part) for part in item] if isinstance(item, list | tuple) else item

            arguments = {key: value(item) for key, item in self.arguments.items()}
            if self.function == "__operators__.getitem":
                return value(self.first)[tuple(map(_slice, arguments["slice_spec"]))]
            name = OPERATORS.get(self.function, self.function)
            return functools.reduce(getattr, name.split("."), tf)(value(self.first), **arguments)

        def get_config(self) -> dict:
            return {
                **super().get_config(),
                "function": self.function,
                "first": self.first,
                "arguments": self.arguments,
            }

    return TFOpLambda


def _slice(item: Any) -> Any:
    """One index of a Keras 2 slice: a dict of start, stop and step, an ellipsis, a new axis (None)
    or a number.
    """
    if isinstance(item, dict) and "start" in item:
        return slice(item["start"], item["stop"], item["step"])
    return Ellipsis if isinstance(item, dict) else item
