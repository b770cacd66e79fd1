"""Operators between DEQUANTIZE and QUANTIZE, put onto integers."""

import numpy as np
import pytest
from ai_edge_litert import interpreter as litert
from test_targets import handmade

from dgh_tf.models.tflite.model import read_model
from dgh_tf.models.tflite.parts import pack, unpack
from tflite_export.tflite.integer_check import check_integer
from tflite_export.tflite.integer_kernels import with_integer_kernels

X = np.random.default_rng(0).integers(-128, 128, (2, 6), np.int8)


def _in_floats(*, also=()):
    """INT8 [1, 6] in three parts by a float SPLIT; only the first part is used."""
    tensors = [
        ("a", (1, 6), "INT8", None),
        ("axis", (), "INT32", [1]),
        ("floats", (1, 6), "FLOAT32", None),
        ("first", (1, 2), "FLOAT32", None),
        ("second", (1, 2), "FLOAT32", None),
        ("third", (1, 2), "FLOAT32", None),
        ("b", (1, 2), "INT8", None),
        ("c", (1, 6), "INT8", None),
    ]
    operators = [
        ("DEQUANTIZE", [0], [2], None),
        ("SPLIT", [1, 2], [3, 4, 5], ("SplitOptions", {"numSplits": 3})),
        ("QUANTIZE", [3], [6], None),
        *also,
    ]
    return handmade(tensors, operators, outputs=[6, *(o[2][0] for o in also)])


def _integers(tflite):
    model = read_model(tflite)
    interpreter = litert.Interpreter(model_content=model.data)
    interpreter.allocate_tensors()
    found = []
    for x in X:
        interpreter.set_tensor(model.inputs[0], x[None])
        interpreter.invoke()
        found.append([interpreter.get_tensor(i)[0] for i in model.outputs])
    return [np.stack(part) for part in zip(*found, strict=True)]


def test_a_split_left_in_floats_becomes_one_on_integers():
    made = with_integer_kernels(_in_floats())
    assert [o.kind for o in made.operators] == ["SPLIT"]
    assert check_integer(made.data, io_dtype="int8")["operators"] == {"SPLIT": 1}
    np.testing.assert_array_equal(_integers(made)[0], X[:, :2])


def test_what_others_take_stays_beside_it():
    made = with_integer_kernels(_in_floats(also=[("QUANTIZE", [2], [7], None)]))
    assert [o.kind for o in made.operators] == ["DEQUANTIZE", "SPLIT", "QUANTIZE"]
    first, whole = _integers(made)
    np.testing.assert_array_equal(first, X[:, :2])
    np.testing.assert_array_equal(whole, X)


@pytest.mark.parametrize("part", ["scale", "zeroPoint"])
def test_a_split_of_two_scales_stays_in_floats(part):
    parts = unpack(read_model(_in_floats()))
    setattr(parts.subgraphs[0].tensors[6].quantization, part, [3])
    made = with_integer_kernels(pack(parts))
    assert [o.kind for o in made.operators] == ["DEQUANTIZE", "SPLIT", "QUANTIZE"]
