"""A .tflite file is read as LiteRT reads it, and a damaged one gives one error, never a crash."""

import time

import numpy as np
import pytest
import tiny_models
from tflite_files import changed

from dgh_tf.models.tflite.model import read_model
from dgh_tf.models.tflite.spec import OPERATORS, fixed_range
from tflite_export import check_integer, operator_table, to_float_tflite, to_tflite
from tflite_export.graph import read_graph
from tflite_export.simulation.ranges import share_scales
from tflite_export.tflite.interpreter import LiteRTInterpreter, Runner
from tflite_export.tflite.schemes import SCHEMES, find_scheme


@pytest.fixture(scope="module")
def files():
    """(float, int8) files of one small classifier."""
    model = tiny_models.softmax_head()
    return to_float_tflite(model), to_tflite(model, tiny_models.images(8))


@pytest.mark.parametrize("which", [0, 1])
def test_tensors_are_those_of_the_interpreter(files, which):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    model = read_model(files[which])
    interpreter = Interpreter(
        model_content=files[which],
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    constants = 0
    for tensor in model.tensors:
        detail = details[tensor.index]
        parameters = detail["quantization_parameters"]
        assert tensor.name == detail["name"] and list(tensor.shape) == detail["shape"].tolist()
        assert np.dtype(detail["dtype"]).name.upper() == tensor.dtype
        np.testing.assert_array_equal(np.float32(tensor.scales), parameters["scales"])
        np.testing.assert_array_equal(tensor.zero_points, parameters["zero_points"])
        if tensor.constant:
            constants += 1
            np.testing.assert_array_equal(tensor.value, interpreter.get_tensor(tensor.index))
    assert constants > 5
    assert [d["index"] for d in interpreter.get_input_details()] == list(model.inputs)
    assert [d["index"] for d in interpreter.get_output_details()] == list(model.outputs)
    assert model.input_names == tuple(Runner(files[which]).inputs)


def test_a_script_written_for_0_1_reads_kinds_and_inputs(files):
    graph = read_graph(files[0])
    assert [operator.kind for operator in graph.operators][0] == "CONV_2D"
    assert graph.tensors[graph.operators[0].inputs[0]].name.startswith("serving_default")


def test_a_cut_file_gives_one_error(files):
    """The flatbuffer's root and its parts lie all over the file, so no cut leaves a whole one."""
    for share in np.linspace(0.0, 0.99, 60):
        with pytest.raises(ValueError, match="not a TFLite model|damaged TFLite model"):
            operator_table(files[1][: int(share * len(files[1]))])


def test_damage_anywhere_gives_the_file_or_one_error(files):
    """Words of the file replaced at random, by small and by huge numbers: offsets, lengths, types.

    Only ValueError may come out. What is still read must not need a second look: every value can be
    taken, the table listed.
    """
    rng, errors = np.random.default_rng(0), 0
    start = time.perf_counter()
    for _ in range(1500):
        data = bytearray(files[int(rng.integers(2))])
        place = 8 + 4 * int(rng.integers((len(data) - 8) // 4))
        if rng.integers(2):  # the parts that are not weights stand at both ends
            place = 8 + 4 * int(rng.integers(256))
        value = int(rng.choice([0, 1, 3, 2**16, 2**31 - 1, 2**32 - 1, rng.integers(2**32)]))
        data[place : place + 4] = value.to_bytes(4, "little")
        try:
            model = read_model(bytes(data))
            operator_table(model)
            [tensor.value for tensor in model.tensors]
            check_integer(model, io_dtype="int8")
        except ValueError:
            errors += 1
    assert errors > 500 and time.perf_counter() - start < 120


def test_lists_that_name_the_same_parts_again_and_again_are_refused_at_once(files):
    """A short file whose many subgraphs are all one: read naively, it takes for ever."""
    import struct

    def many(parts):
        parts.subgraphs = [parts.subgraphs[0]] * 60
        parts.description = b"x" * 4 * 30_000

    data = bytearray(changed(files[0], many))
    from ai_edge_litert import schema_py_generated as schema

    root = schema.Model.GetRootAs(bytes(data), 0)
    first = root.Subgraphs(0)._tab.Pos
    room = data.index(b"x" * 400)  # a list of offsets in place of the description's text
    room += -room % 4
    data[room : room + 4] = struct.pack("<I", 29_000)
    for i in range(29_000):
        at = room + 4 + 4 * i
        data[at : at + 4] = struct.pack("<I", (first - at) % 2**32)
    field = root._tab.Offset(8) + root._tab.Pos
    data[field : field + 4] = struct.pack("<I", (room - field) % 2**32)
    start = time.perf_counter()
    with pytest.raises(ValueError, match="damaged TFLite model"):
        read_model(bytes(data))
    assert time.perf_counter() - start < 20


def bad_index(parts):
    parts.subgraphs[0].operators[0].inputs = np.int32([0, 10_000, -1])


def bad_type(parts):
    parts.subgraphs[0].tensors[0].type = 99


def bad_shape(parts):
    parts.subgraphs[0].tensors[0].shape = np.int32([1, -8, 8, 3])


def too_few_values(parts):
    graph = parts.subgraphs[0]
    weights = graph.tensors[graph.operators[0].inputs[1]]
    parts.buffers[weights.buffer].data = parts.buffers[weights.buffer].data[:-4]


def circle(parts):
    """The first operator reads what the last one makes."""
    graph = parts.subgraphs[0]
    inputs = graph.operators[0].inputs
    graph.operators[0].inputs = np.int32([graph.operators[-1].outputs[0], *inputs[1:]])


def no_weights(parts):
    parts.subgraphs[0].operators[0].inputs = np.int32([0])


def no_graph(parts):
    parts.subgraphs = []


def odd_scales(parts):
    graph = parts.subgraphs[0]
    graph.tensors[graph.operators[0].inputs[1]].quantization.scale = np.float32([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    "change",
    [bad_index, bad_type, bad_shape, too_few_values, circle, no_weights, no_graph, odd_scales],
)
def test_parts_that_do_not_fit_are_refused(files, change):
    with pytest.raises(ValueError, match="damaged TFLite model.*Convert the model again"):
        read_model(changed(files[1], change))


def test_an_operator_that_litert_does_not_run_is_told(files):
    def custom(parts):
        parts.operatorCodes[0].builtinCode = 32
        parts.operatorCodes[0].deprecatedBuiltinCode = 32
        parts.operatorCodes[0].customCode = b"NoSuchOperator"

    with pytest.raises(ValueError, match="LiteRT cannot run.*NoSuchOperator"):
        LiteRTInterpreter(changed(files[0], custom))


def test_schemes_have_one_name_each():
    assert {
        name: (s.name, s.weight_bits, s.activation_bits, s.io_dtype) for name, s in SCHEMES.items()
    } == {
        "int8": ("int8", 8, 8, "int8"),
        "int16x8": ("int16x8", 8, 16, "int16"),
        "w4a8": ("w4a8", 4, 8, "int8"),
        "mixed": ("mixed", 4, 8, "int8"),
    }
    with pytest.raises(ValueError, match="Unknown scheme 'int4'.*int8, int16x8, w4a8"):
        find_scheme("int4")


def test_fixed_ranges_are_the_specifications():
    """TFLite's 8-bit specification: softmax and logistic have scale 1/256 and zero point -128, tanh
    and L2 normalization 1/128 and 0.
    """
    for kind, scale, zero_point in [
        ("SOFTMAX", 1 / 256, -128),
        ("LOGISTIC", 1 / 256, -128),
        ("TANH", 1 / 128, 0),
        ("L2_NORMALIZATION", 1 / 128, 0),
    ]:
        low, high = fixed_range(kind, bits=8)
        assert (low, high) == ((-128 - zero_point) * scale, (127 - zero_point) * scale)
    assert fixed_range("CONV_2D", bits=8) is None


def test_the_table_of_channel_axes_is_the_converters():
    """Weights in a converted file have as many scales as the table's axis has channels."""
    model = tiny_models.many_channels()
    images = tiny_models.images(8, shape=model.inputs[0].shape[1:])
    seen = set()
    for operator in read_model(to_tflite(model, images)).operators:
        axis = OPERATORS[operator.kind].channel_axis if operator.kind in OPERATORS else None
        if axis is not None:
            weights = operator.input_tensors[1]
            assert weights.quantized_dimension == axis or len(weights.scales) == 1
            assert len(weights.scales) in (1, weights.shape[axis])
            seen.add(operator.kind)
    assert {"CONV_2D", "FULLY_CONNECTED"} <= seen


def test_a_reshaped_softmax_keeps_its_range_and_joined_tensors_share_theirs():
    import keras

    inputs = keras.Input((4,))
    soft = keras.layers.Reshape((2, 2))(keras.layers.Softmax()(inputs))
    both = keras.layers.Concatenate()([keras.layers.ReLU()(inputs), inputs])
    graph = read_graph(to_float_tflite(keras.Model(inputs, [soft, both])))
    activations = {*graph.inputs, *(i for o in graph.operators for i in o.outputs)}
    ranges = share_scales(graph, {i: (-1.0 - i, 2.0 + i) for i in activations})
    for operator in graph.operators:
        if operator.kind == "RESHAPE":
            assert ranges[operator.outputs[0]] == (0.0, 255 / 256)
        if operator.kind == "CONCATENATION":
            ends = {ranges[i] for i in (*operator.inputs, *operator.outputs)}
            assert len(ends) == 1
