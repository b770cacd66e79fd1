"""The heads of a model, found in its traced graph by walking back from each output."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

# operations between an activation and the model's output that leave the values as they are
REARRANGING = {"Identity", "Reshape", "Cast", "Transpose", "Squeeze", "ExpandDims", "StopGradient"}
ACTIVATIONS = {"Softmax", "Sigmoid", "LogSoftmax"}
CHOICES = {"ArgMax", "ArgMin", "TopKV2"}  # what they choose from is the head
Window = tuple[int, int] | None  # channels [start, stop) of the last axis; None for all


@dataclasses.dataclass(frozen=True)
class Head:
    """One traced pre-activation output and the BN call nearest upstream (index into the calls, None
    without one).
    """

    name: str
    logits: tf.Tensor
    last_call: int | None


def find_heads(outputs: Any, normalized: list[tf.Tensor]) -> list[Head]:
    """Pre-activation heads of traced outputs.

    A concatenated output is several heads, one for each part: detectors join their levels (and
    boxes with scores) at the end, and each of these has a last BN layer and a value range of its
    own. A slice of a concatenation is the parts it holds.

    Args:
      outputs: a tensor, or any list, tuple or dict of such, as the model returned it.
      normalized: what each BN call gave, in call order.
    """
    calls = {tensor.ref(): i for i, tensor in enumerate(normalized)}
    heads = []
    for name, tensor in _named(outputs):
        parts = _pre_activation(tensor) or [tensor]
        heads += [
            Head(f"{name}_{i}" if len(parts) > 1 else name, part, _nearest(part, calls))
            for i, part in enumerate(parts)
        ]
    return heads


def upstream(tensors: Iterable[tf.Tensor]) -> set:
    """References of every tensor that one of `tensors` is computed from, themselves included."""
    found: set = set()
    todo = list(tensors)
    while todo:
        tensor = todo.pop()
        if tensor.ref() not in found:
            found.add(tensor.ref())
            todo.extend(tensor.op.inputs)
    return found


def _named(outputs: Any) -> list[tuple[str, tf.Tensor]]:
    """(name, tensor) of every output: 'output', 'output_<i>' of a list, the keys of a dict joined
    by dots.
    """
    if isinstance(outputs, Mapping):
        return [
            (f"{key}.{name}" if name != "output" else str(key), t)
            for key in sorted(outputs)
            for name, t in _named(outputs[key])
        ]
    if isinstance(outputs, list | tuple) and len(outputs) > 1:
        return [
            (f"output_{i}{name.removeprefix('output')}", t)
            for i, item in enumerate(outputs)
            for name, t in _named(item)
        ]
    return (
        _named(outputs[0])
        if isinstance(outputs, list | tuple)
        else [("output", tf.convert_to_tensor(outputs))]
    )


def _pre_activation(tensor: tf.Tensor, window: Window = None) -> list[tf.Tensor] | None:
    """What goes into the activation that `tensor` ends in, one tensor for each part of a
    concatenation; None where it ends in neither, so that rearranging alone does not count as a head
    of its own. `window`: the only channels asked for.
    """
    kind, sources = tensor.op.type, tensor.op.inputs
    if kind in CHOICES:
        return _pre_activation(sources[0]) or [sources[0]]
    if kind in ACTIVATIONS:
        return _pre_activation(sources[0], window) or [_cut(sources[0], window)]
    if kind == "ConcatV2":
        return [
            logits
            for part, inner in _parts(tensor, window)
            for logits in _pre_activation(part, inner) or [_cut(part, inner)]
        ]
    if kind == "IdentityN":  # a custom gradient, such as SiLU's: value i in, value i out
        return _pre_activation(sources[tensor.value_index], window)
    if kind == "StridedSlice":
        start, stop = _sliced_channels(tensor) or (0, 0)
        offset = window[0] if window else 0
        inner = (start + offset, start + window[1] if window else stop)
        return _pre_activation(sources[0], inner) if stop else None
    keeps_channels = kind != "Transpose" and sources and sources[0].shape[-1:] == tensor.shape[-1:]
    return (
        _pre_activation(sources[0], window)
        if kind in REARRANGING and (window is None or keeps_channels)
        else None
    )


def _parts(concatenated: tf.Tensor, window: Window) -> list[tuple[tf.Tensor, Window]]:
    """(part, its own window) of a concatenation, without the parts that lie outside the window."""
    *parts, axis = concatenated.op.inputs
    rank = concatenated.shape.rank
    if window is None or rank is None or int(tf.get_static_value(axis)) % rank != rank - 1:
        return [(part, window) for part in parts]
    found: list[tuple[tf.Tensor, Window]] = []
    offset = 0
    for part in parts:
        size = part.shape[-1]
        start, stop = max(window[0] - offset, 0), min(window[1] - offset, size)
        if start < stop:
            found.append((part, (start, stop)))
        offset += size
    return found


def _cut(tensor: tf.Tensor, window: Window) -> tf.Tensor:
    return tensor if window in (None, (0, tensor.shape[-1])) else tensor[..., window[0] : window[1]]


def _sliced_channels(tensor: tf.Tensor) -> Window:
    """[start, stop) of a StridedSlice that takes neighbouring channels of the last axis and all of
    the rest, else None.
    """
    source, *bounds = tensor.op.inputs
    begin, end, strides = (tf.get_static_value(bound) for bound in bounds)
    if begin is None or end is None or strides is None or not source.shape.rank:
        return None
    last, size = len(begin) - 1, source.shape[-1]

    def marked(mask: str, i: int) -> bool:
        return bool(tensor.op.get_attr(mask) >> i & 1)

    whole = all(
        marked("ellipsis_mask", i) or (marked("begin_mask", i) and marked("end_mask", i))
        for i in range(last)
    )
    reaches = last + 1 == source.shape.rank or tensor.op.get_attr("ellipsis_mask")
    odd = (
        strides[last] != 1
        or marked("ellipsis_mask", last)
        or marked("shrink_axis_mask", last)
        or tensor.op.get_attr("new_axis_mask")
    )
    if size is None or odd or not (whole and reaches):
        return None
    cut = slice(
        None if marked("begin_mask", last) else int(begin[last]),
        None if marked("end_mask", last) else int(end[last]),
    )
    start, stop, _ = cut.indices(size)
    return (start, stop) if start < stop else None


def _nearest(tensor: tf.Tensor, calls: dict) -> int | None:
    """Index of the BN call whose result is fewest operations upstream of `tensor`."""
    queue, seen = collections.deque([tensor]), set()
    while queue:
        current = queue.popleft()
        if current.ref() in calls:
            return calls[current.ref()]
        if current.ref() not in seen:
            seen.add(current.ref())
            queue.extend(current.op.inputs)
    return None
