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


def pack(parts: Any) -> TFLiteModel:
    """The file that the parts make."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
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
    """The file that the parts make, without the constants that nothing names any more."""
    used = {tensor.buffer for graph in parts.subgraphs for tensor in graph.tensors}
    used |= {entry.buffer for entry in parts.metadata or []}
    for index, buffer in enumerate(parts.buffers):
        if index not in used:
            buffer.data = None
    return pack(parts)
