"""BatchNorm layers behind an activation, folded into the layers on both sides of it.

Behind a convolution they go into its weights; the converter does that. Behind ReLU they stay a
product and a sum per channel, and the tensors before them have one scale for channels that differ
by orders of magnitude: the weak ones keep a few levels, or none. So each channel's factor is taken
through the ReLU into the weights before it, which have a scale of their own for every channel.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tflite_export.conversion.graph_edit import GraphEdit

# Input of the weights, and the axis of their output channels. A depthwise kernel has two.
_LINEAR = {"Conv2D": (1, -1), "MatMul": (1, -1), "DepthwiseConv2dNative": (1, -2)}
_HOMOGENEOUS = ("Relu", "LeakyRelu")  # f(k x) = k f(x) for k > 0
# pass a factor of each channel on, too
_PASSING = (*_HOMOGENEOUS, "MaxPool", "AvgPool", "ExpandDims", "Squeeze", "Identity")
_SUMS = ("BiasAdd", "AddV2", "Add")


@dataclasses.dataclass(frozen=True)
class _Affine:
    """x * scale + offset of every channel, the last axis.

    Attributes:
      source: name of x.
      product, node: where it begins and ends; one node for FusedBatchNormV3.
      scale, offset: float64 [channels].
    """

    source: str
    product: Any
    node: Any
    scale: np.ndarray
    offset: np.ndarray


def fold_affine(graph: GraphEdit) -> bool:
    """Folds what can be folded exactly; whether anything was.

    The function stays the same but for rounding: factors are powers of two before the activation,
    and what is left of them (0.7 to 1.4) goes with the offset into the next layer, where that has
    no padding. Otherwise it becomes a depthwise convolution of one pixel, which has a scale for
    every channel; zeros of a padding stay zeros behind it.
    """
    changed = False
    for affine in _find(graph):
        before = _linear_before(graph, affine)
        if before is not None:
            _fold(graph, affine, before)
            changed = True
    return changed


def _find(graph: GraphEdit) -> list[_Affine]:
    found = []
    for node in graph.nodes("Mul"):
        affine = _from_product(graph, node)
        found += [affine] if affine else []
    for node in graph.nodes("FusedBatchNormV3", "FusedBatchNorm"):
        fixed = all(graph.is_constant(name) for name in node.input[1:5])
        if (
            fixed
            and not graph.attribute(node, "is_training").b
            and graph.attribute(node, "data_format").s == b"NHWC"
        ):
            gamma, beta, mean, variance = (
                graph.value(name).astype(np.float64) for name in node.input[1:5]
            )
            scale = gamma / np.sqrt(variance + graph.attribute(node, "epsilon").f)
            found.append(_Affine(node.input[0], node, node, scale, beta - mean * scale))
    return found


def _from_product(graph: GraphEdit, product: Any) -> _Affine | None:
    source, scale = _constant_side(graph, product)
    readers = graph.readers(product)
    if source is None or len(readers) != 1 or readers[0] is None or readers[0].op not in _SUMS:
        return None
    node, (_, offset) = readers[0], _constant_side(graph, readers[0])
    if scale is None or offset is None or scale.size != offset.size:
        return None
    return _Affine(source, product, node, scale, offset)


def _constant_side(graph: GraphEdit, node: Any) -> tuple[str | None, np.ndarray | None]:
    """The other side of a product or sum and its values per channel; None where it has none."""
    fixed = [graph.is_constant(name) for name in node.input[:2]]
    if sum(fixed) != 1:
        return None, None
    value = graph.value(node.input[fixed.index(True)])
    if value.ndim == 0 or value.size != value.shape[-1] or value.size < 2:
        return None, None
    return node.input[fixed.index(False)], value.ravel().astype(np.float64)


def _linear_before(graph: GraphEdit, affine: _Affine) -> list[Any] | None:
    """The nodes from the linear one to x, where only an activation and poolings lie between and
    nothing else takes what they give; None else.
    """
    path: list[Any] = []
    name, rectified = affine.source, False
    while True:
        node = graph.maker(name)
        if len(graph.readers(node)) != 1 or name.partition(":")[2].strip("0"):
            return None
        path.insert(0, node)
        if node.op in _LINEAR:
            break
        if node.op in _PASSING:
            rectified |= node.op in _HOMOGENEOUS
            name = node.input[0]
        elif node.op in _SUMS and rectified:  # one before the activation: the converter folds it
            other, _ = _constant_side(graph, node)
            if other is None:
                return None
            name = other
        else:
            return None
    weights = node.input[_LINEAR[node.op][0]]
    if not rectified or not graph.is_constant(weights) or not _channels_last(graph, path, affine):
        return None
    return path


def _channels_last(graph: GraphEdit, path: list[Any], affine: _Affine) -> bool:
    """Whether the last axis is the channels' all the way."""
    if (
        graph.attribute(path[0], "data_format").s == b"NCHW"
        or graph.attribute(path[0], "transpose_b").b
    ):
        return False
    shapes = [graph.shape(node) for node in path]
    return all(shape and shape[-1] == len(affine.scale) for shape in shapes)


def _fold(graph: GraphEdit, affine: _Affine, path: list[Any]) -> None:
    factor = np.zeros(len(affine.scale))  # a channel of factor 0 is its offset alone
    used = affine.scale != 0
    factor[used] = 2.0 ** np.round(np.log2(np.abs(affine.scale[used])))
    left = np.where(used, affine.scale / np.where(used, factor, 1.0), 1.0)
    for node in path:
        if node.op in _LINEAR:
            place, axis = _LINEAR[node.op]
            weights = graph.value(node.input[place]).astype(np.float64)
            scaled = weights * (factor.reshape(weights.shape[-2:]) if axis == -2 else factor)
            node.input[place] = graph.constant(f"{node.name}/scaled", scaled)
        elif node.op in _SUMS:
            place = [graph.is_constant(name) for name in node.input[:2]].index(True)
            bias = graph.value(node.input[place]).astype(np.float64)
            node.input[place] = graph.constant(f"{node.name}/scaled", bias * factor)
    if not _into_next(graph, affine, left):
        _as_depthwise(graph, affine, left)


def _into_next(graph: GraphEdit, affine: _Affine, scale: np.ndarray) -> bool:
    """Folds what is left into the layer behind, where it is alone and has no padding."""
    node, name = affine.node, affine.source
    behind = []  # of nodes between
    while True:
        readers = graph.readers(node)
        if len(readers) != 1 or readers[0] is None:
            return False
        following = readers[0]
        if following.op in _LINEAR:
            break
        if following.op not in ("ExpandDims", "Identity"):
            return False
        behind.append(following)
        node = following
    place, _ = _LINEAR[following.op]
    weights_name = following.input[place]
    if not graph.is_constant(weights_name) or graph.is_constant(following.input[0]):
        return False
    weights = graph.value(weights_name).astype(np.float64)
    if following.op == "MatMul":
        fits = (
            not graph.attribute(following, "transpose_a").b
            and not graph.attribute(following, "transpose_b").b
        )
    else:
        padding = graph.attribute(following, "padding").s
        fits = padding == b"VALID" or (padding == b"SAME" and weights.shape[:2] == (1, 1))
        fits &= graph.attribute(following, "data_format").s == b"NHWC"
        fits &= following.op != "DepthwiseConv2dNative"
    if not fits or weights.shape[-2] != len(scale):
        return False
    bias = np.tensordot(weights.reshape(-1, *weights.shape[-2:]).sum(0), affine.offset, (0, 0))
    following.input[place] = graph.constant(f"{following.name}/folded", weights * scale[:, None])
    first = behind[0] if behind else following
    first.input[0] = name
    graph.behind(following, "BiasAdd", graph.constant(f"{following.name}/offset", bias))
    return True


def _as_depthwise(graph: GraphEdit, affine: _Affine, scale: np.ndarray) -> None:
    rank = len(graph.shape(affine.node) or ())
    name = affine.node.name
    if rank not in (3, 4):
        scaled = graph.constant(f"{name}/scale", scale)
        offset = graph.constant(f"{name}/offset", affine.offset)
        product = graph.add("Mul", f"{name}/scaled", affine.source, scaled)
        graph.write(affine.node, "AddV2", product, offset)
        return
    x = affine.source
    if rank == 3:
        axis = graph.constant(f"{name}/axis", 1, dtype=np.int32)
        x = graph.add("ExpandDims", f"{name}/row", x, axis, Tdim=graph.type_of(np.int32))
    kernel = graph.constant(f"{name}/scale", scale.reshape(1, 1, -1, 1))
    bias = graph.constant(f"{name}/offset", affine.offset)
    scaled = graph.add(
        "DepthwiseConv2dNative",
        f"{name}/scaled",
        x,
        kernel,
        strides=graph.integers(1, 1, 1, 1),
        padding=graph.text("VALID"),
    )
    if rank == 4:
        graph.write(affine.node, "BiasAdd", scaled, bias)
        return
    moved = graph.add("BiasAdd", f"{name}/moved", scaled, bias)
    graph.write(affine.node, "Squeeze", moved, squeeze_dims=graph.integers(1))
