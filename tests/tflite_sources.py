"""Float .tflite files as other programs leave them: open batch, float16 weights, several
signatures, channels first, metadata, and files that are no float models.
"""

import flatbuffers
import numpy as np
import tensorflow as tf
import tiny_models
from ai_edge_litert import schema_py_generated as schema


def converted(model, *, half=False, dynamic_range=False, images=None):
    """As `tf.lite.TFLiteConverter.from_keras_model` makes them: the batch is open."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if half or dynamic_range or images is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if half:
        converter.target_spec.supported_types = [tf.float16]
    if images is not None:
        converter.representative_dataset = lambda: ([image[None]] for image in images)
    return converter.convert()


def two_signatures():
    """'double' and 'plain' of one dense layer."""

    class Both(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4))

        @tf.function(input_signature=[tf.TensorSpec((1, 6), name="x")])
        def plain(self, x):
            return {"y": tf.matmul(x, self.kernel)}

        @tf.function(input_signature=[tf.TensorSpec((1, 6), name="x")])
        def double(self, x):
            return {"y": tf.matmul(2.0 * x, self.kernel)}

    module = Both()
    functions = [module.double.get_concrete_function(), module.plain.get_concrete_function()]
    signatures = dict(zip(("double", "plain"), functions, strict=True))
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=signatures)
        return tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["double", "plain"]
        ).convert()


def of_function(function, *shapes):
    """A file of one function of float32 inputs of these shapes, batch included."""
    specs = [tf.TensorSpec(shape, name=f"x{i}") for i, shape in enumerate(shapes)]
    concrete = tf.function(function).get_concrete_function(*specs)
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()


def changed(data, change):
    """The file after `change` of its schema objects."""
    parts = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    change(parts)
    builder = flatbuffers.Builder(1024)
    builder.Finish(parts.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def without_signature(data):
    def change(parts):
        parts.signatureDefs = []

    return changed(data, change)


def with_metadata(data, *, mean, std):
    """The file with TensorFlow Lite Support's NormalizationOptions for its first input, written
    field by field as metadata_schema.fbs has them.
    """
    b = flatbuffers.Builder(256)

    def floats(values):
        return b.CreateNumpyVector(np.asarray(values, np.float32))

    def table(count, fields):
        b.StartObject(count)
        for place, (kind, value) in fields.items():
            if kind == "u":
                b.PrependUOffsetTRelativeSlot(place, value, 0)
            else:
                b.PrependUint8Slot(place, value, 0)
        return b.EndObject()

    def vector(items):
        b.StartVector(4, len(items), 4)
        for item in reversed(items):
            b.PrependUOffsetTRelative(item)
        return b.EndVector()

    means, stds = floats(mean), floats(std)
    options = table(2, {0: ("u", means), 1: ("u", stds)})
    unit = table(2, {0: ("b", 1), 1: ("u", options)})
    units = vector([unit])
    tensor = table(7, {4: ("u", units)})
    tensors = vector([tensor])
    graph = table(9, {2: ("u", tensors)})
    graphs = vector([graph])
    b.Finish(table(8, {3: ("u", graphs)}), b"M001")

    return with_entry(data, b"TFLITE_METADATA", bytes(b.Output()))


def with_entry(data, name, value):
    """The file with one more entry of metadata."""

    def change(parts):
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(value, np.uint8)
        entry.name, entry.buffer = name, len(parts.buffers)
        parts.buffers.append(buffer)
        parts.metadata = [*(parts.metadata or []), entry]

    return changed(data, change)


def rescaled(scale, offset):
    """A classifier behind a first product and sum, as Keras' Rescaling leaves them."""
    import keras

    inner = tiny_models.conv_bn_relu()
    inputs = keras.Input((16, 16, 3), name="image")
    scaled = keras.layers.Rescaling(scale, offset=offset)(inputs)
    return converted(keras.Model(inputs, inner(scaled)))
