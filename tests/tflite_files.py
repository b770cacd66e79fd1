"""Changes .tflite files by hand, past all checks of the product."""

import flatbuffers


def changed(tflite, change):
    """The file after `change` has worked on the schema's objects (a ModelT)."""
    from ai_edge_litert import schema_py_generated as schema

    parts = schema.ModelT.InitFromObj(schema.Model.GetRootAs(tflite, 0))
    change(parts)
    builder = flatbuffers.Builder(1024)
    builder.Finish(parts.Pack(builder), b"TFL3")
    return bytes(builder.Output())
