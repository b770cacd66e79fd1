"""What a .tflite file says of the unit of its inputs: by a first scaling, or by its metadata.

The metadata is TensorFlow Lite Support's ModelMetadata (metadata_schema.fbs), read here by its
field numbers: its own reader is no longer published.
"""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import numpy as np

from dgh_tf.models.tflite.model import Tensor, TFLiteModel

_METADATA = "TFLITE_METADATA"
# field numbers of metadata_schema.fbs
_SUBGRAPHS, _INPUTS, _UNITS, _OPTIONS_TYPE, _OPTIONS, _MEAN, _STD = 3, 2, 4, 0, 1, 0, 1
_NORMALIZATION = 1  # of the union ProcessUnitOptions


@dataclasses.dataclass(frozen=True)
class InputScaling:
    """What a file does with an input before its network, or says that its caller does.

    Attributes:
      scale, offset: float64 [] or [channels].
      inside: True: the file computes input * scale + offset. False: its metadata says that the
        input already is pixel * scale + offset, of pixels 0..255.
      source: for people.
    """

    scale: np.ndarray
    offset: np.ndarray
    inside: bool
    source: str


def input_scalings(model: TFLiteModel) -> list[InputScaling | None]:
    """For every input of the main graph what the file says of its unit; None where it says
    nothing.
    """
    told = _told_by_metadata(model)
    return [_first_scaling(model, i) or told.get(k) for k, i in enumerate(model.inputs)]


def _first_scaling(model: TFLiteModel, index: int) -> InputScaling | None:
    """The products, sums and quotients with constants that an input alone goes through first."""
    scale: Any = np.float64(1.0)
    offset: Any = np.float64(0.0)
    names: list[str] = []
    while True:
        readers = [o for o in model.operators if index in o.inputs]
        if len(readers) != 1 or readers[0].options.get("activation", "NONE") != "NONE":
            break
        operator = readers[0]
        constant = _constant_beside(operator.input_tensors, index)
        if constant is None or (operator.inputs[0] != index and operator.kind in ("SUB", "DIV")):
            break
        if operator.kind == "MUL":
            scale, offset = scale * constant, offset * constant
        elif operator.kind == "DIV" and constant.all():
            scale, offset = scale / constant, offset / constant
        elif operator.kind in ("ADD", "SUB"):
            offset = offset + (constant if operator.kind == "ADD" else -constant)
        else:
            break
        names.append(operator.kind)
        index = operator.outputs[0]
    if not names or not np.all(scale > 0):
        return None
    return InputScaling(np.asarray(scale), np.asarray(offset), True, f"first {' and '.join(names)}")


def _constant_beside(tensors: tuple[Tensor | None, ...], index: int) -> np.ndarray | None:
    """The other operand as float64 [] or [channels]; None where it is no such constant."""
    if len(tensors) != 2:
        return None
    other = tensors[1] if tensors[0] is not None and tensors[0].index == index else tensors[0]
    if other is None or not other.constant or other.dtype != "FLOAT32" or other.value is None:
        return None
    value = np.asarray(other.value, np.float64)
    if value.size == 1:
        return value.reshape(())
    # along the last axis, or the axis behind the batch of images with their channels first
    wide = [side for side in value.shape if side > 1]
    return value.reshape(-1) if len(wide) == 1 and wide[0] <= 4 else None


def _told_by_metadata(model: TFLiteModel) -> dict[int, InputScaling]:
    """NormalizationOptions of the metadata, by number of the input; empty where there are none, or
    where the metadata is damaged: it is only a hint.
    """
    try:
        data = _metadata(model.data)
        return {} if data is None else _normalizations(data)
    except (struct.error, IndexError, TypeError, ValueError, OverflowError):
        return {}


def _metadata(tflite: bytes) -> bytes | None:
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(tflite, 0)
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        if (entry.Name() or b"").decode() == _METADATA:
            return bytes(model.Buffers(entry.Buffer()).DataAsNumpy())
    return None


def _normalizations(data: bytes) -> dict[int, InputScaling]:
    found: dict[int, InputScaling] = {}
    graphs = _tables(_root(data), _SUBGRAPHS)
    for number, tensor in enumerate(_tables(graphs[0], _INPUTS) if graphs else []):
        for unit in _tables(tensor, _UNITS):
            if _union_type(unit) != _NORMALIZATION:
                continue
            options = _table(unit, _OPTIONS)
            mean, std = _floats(options, _MEAN), _floats(options, _STD)
            if mean.size and std.size and np.isfinite(mean).all() and (std > 0).all():
                mean, std = (v.reshape(()) if v.size == 1 else v for v in (mean, std))
                found[number] = InputScaling(1 / std, -mean / std, False, "the file's metadata")
    return found


# ---- a flatbuffer by field numbers


def _root(data: bytes) -> Any:
    import flatbuffers

    (at,) = struct.unpack_from("<I", data, 0)
    return flatbuffers.table.Table(bytearray(data), at)


def _place(table: Any, field: int) -> int:
    """Where a field stands; 0 where the table does not have it."""
    offset = table.Offset(4 + 2 * field)
    return table.Pos + offset if offset else 0


def _tables(table: Any, field: int) -> list[Any]:
    import flatbuffers

    if not _place(table, field):
        return []
    start, count = table.Vector(table.Offset(4 + 2 * field)), 0
    count = table.VectorLen(table.Offset(4 + 2 * field))
    if count > len(table.Bytes):
        raise ValueError("a vector longer than the file")
    return [
        flatbuffers.table.Table(table.Bytes, table.Indirect(start + 4 * i)) for i in range(count)
    ]


def _table(table: Any, field: int) -> Any:
    import flatbuffers

    place = _place(table, field)
    if not place:
        raise ValueError("a union without its value")
    return flatbuffers.table.Table(table.Bytes, table.Indirect(place))


def _union_type(table: Any) -> int:
    place = _place(table, _OPTIONS_TYPE)
    return table.Bytes[place] if place else 0


def _floats(table: Any, field: int) -> np.ndarray:
    if not _place(table, field):
        return np.zeros(0)
    offset = table.Offset(4 + 2 * field)
    start, count = table.Vector(offset), table.VectorLen(offset)
    return np.frombuffer(bytes(table.Bytes[start : start + 4 * count]), "<f4").astype(np.float64)
