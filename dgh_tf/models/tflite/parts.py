"""The parts of a .tflite file as the schema's objects, which can be changed, and back.

Everything that makes a new file from an old one goes through here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dgh_tf.models.tflite.model import TFLiteModel, damaged, read_model


def unpack(model: TFLiteModel) -> Any:
    """The schema's objects, which can be changed; tensors and operators stand where the model has
    them.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        parts = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model.data, 0))
    except Exception as error:  # a damaged part that `read_model` has no use for
        raise damaged(type(error).__name__) from error
    if any(buffer.offset > 1 for buffer in parts.buffers):
        raise ValueError(
            "The TFLite model keeps its constants behind the model (files above 2 GiB do), where "
            "they cannot be changed. Use a smaller model."
        )
    return parts


def pack(parts: Any, *, share_lists: bool = False) -> TFLiteModel:
    """The file that the parts make. share_lists: equal lists of numbers are stored once, which no
    reader can tell.

    Every channel has two zero points of 8 bytes, all zero: a tenth of a small network's int8 file.
    Constants keep bytes of their own.
    """
    import flatbuffers

    class SharingBuilder(flatbuffers.Builder):
        """Writes a list of numbers that it wrote before as a reference to that."""

        def __init__(self, size: int) -> None:
            super().__init__(size)
            self._written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802, the parent's name
            if x.dtype == np.uint8:  # the bytes of a constant
                return super().CreateNumpyVector(x)
            key = (x.dtype.str, x.tobytes())
            if key not in self._written:
                self._written[key] = super().CreateNumpyVector(x)
            return self._written[key]

    builder = (SharingBuilder if share_lists else flatbuffers.Builder)(1024)
    builder.Finish(parts.Pack(builder), b"TFL3")
    return read_model(bytes(builder.Output()))


def fill(parts: Any, tensor: Any, data: bytes) -> None:
    """Gives the tensor a buffer of its own: the converter may share one among equal constants."""
    from ai_edge_litert import schema_py_generated as schema

    buffer = schema.BufferT()
    buffer.data = np.frombuffer(data, np.uint8)
    tensor.buffer = len(parts.buffers)
    parts.buffers.append(buffer)


def pack_used(parts: Any) -> TFLiteModel:
    """As `pack`, without the constants that nothing names any more."""
    used = {user.buffer for user in _users(parts)}
    for index, buffer in enumerate(parts.buffers):
        if index not in used:
            buffer.data = None
    return pack(parts)


def pack_small(parts: Any) -> TFLiteModel:
    """As `pack_used` in fewer bytes: equal lists of numbers are stored once, and what is left out
    leaves no empty entry.
    """
    used = sorted({0, *(user.buffer for user in _users(parts))})  # 0 is that of no constant
    places = {index: place for place, index in enumerate(used)}
    for user in _users(parts):
        user.buffer = places[user.buffer]
    parts.buffers, parts.metadataBuffer = [parts.buffers[index] for index in used], None
    return pack(parts, share_lists=True)


def _users(parts: Any) -> list[Any]:
    """Everything that names a buffer."""
    tensors = [tensor for graph in parts.subgraphs for tensor in graph.tensors]
    return [*tensors, *(parts.metadata or [])]
