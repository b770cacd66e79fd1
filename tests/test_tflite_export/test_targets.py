"""Targets: Edge TPU's rules and TFLM's memory by hand on hand-made files, Vela's and TFLM's own
tools where they are installed.
"""

import json

import commands
import numpy as np
import pytest
import tiny_models

from dgh_tf.models.tflite.model import Tensor, read_model
from tflite_export import to_float_tflite, to_tflite
from tflite_export.conversion import errors
from tflite_export.targets import edgetpu, memory_plan, report, tflm, vela

TYPES = {"INT8": np.int8, "INT32": np.int32, "FLOAT32": np.float32, "INT16": np.int16}


def handmade(tensors, operators, *, inputs=(0,), outputs=None):
    """A .tflite file from parts.

    tensors: (name, shape, dtype, value or None). operators: (kind, inputs, outputs, (options class,
    {field: value}) or None).
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.operatorCodes = 3, [schema.BufferT()], []
    graph.tensors, graph.operators, graph.inputs = [], [], list(inputs)
    for name, shape, dtype, value in tensors:
        tensor, quantization = schema.TensorT(), schema.QuantizationParametersT()
        quantization.scale, quantization.zeroPoint = [0.1], [0]
        tensor.name, tensor.shape, tensor.type, tensor.quantization = (
            name,
            list(shape),
            getattr(schema.TensorType, dtype),
            quantization,
        )
        tensor.shapeSignature, tensor.shape = list(shape), [max(size, 1) for size in shape]
        if value is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.asarray(value, TYPES[dtype]).tobytes(), np.uint8)
            tensor.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(tensor)
    for kind, ins, outs, options in operators:
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        operator.opcodeIndex, operator.inputs, operator.outputs = (
            len(model.operatorCodes),
            list(ins),
            list(outs),
        )
        if options:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, options[0])
            operator.builtinOptions = getattr(schema, f"{options[0]}T")()
            for field, value in options[1].items():
                setattr(operator.builtinOptions, field, value)
        model.operatorCodes.append(code)
        graph.operators.append(operator)
    graph.outputs = list(outputs or [operators[-1][2][0]])
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def one(kind, *, shape=(1, 8, 8, 4), out=None, dtype="INT8", options=None, constants=()):
    """A file of one operator: input 'a', output 'b', constants between."""
    tensors = [
        ("a", shape, dtype, None),
        *((f"c{i}", np.shape(v), t, v) for i, (t, v) in enumerate(constants)),
        ("b", out or shape, dtype, None),
    ]
    return handmade(tensors, [(kind, range(len(tensors) - 1), [len(tensors) - 1], options)])


WEIGHTS, BIAS = ("INT8", np.ones((4, 3, 3, 4))), ("INT32", [0, 0, 0, 0])
# file, words of the reason; empty: the Edge TPU takes it. From Coral's operator table, by hand.
EDGETPU = [
    (one("ADD"), ""),
    (one("GELU"), "not in the operator table"),
    (one("ADD", dtype="INT16"), "a is INT16"),
    (one("ADD", dtype="FLOAT32"), "a is FLOAT32"),
    (one("ADD", shape=(-1, 8, 8, 4)), "open size"),
    (one("ADD", shape=(2, 8, 8, 4)), "batch above 1"),
    (one("ADD", shape=(1, 2, 2, 2, 2)), "more than three axes"),
    (
        one(
            "CONV_2D",
            constants=[WEIGHTS, BIAS],
            options=("Conv2DOptions", {"dilationHFactor": 2, "dilationWFactor": 2}),
        ),
        "",
    ),
    (
        one(
            "CONV_2D",
            constants=[WEIGHTS, BIAS],
            options=("Conv2DOptions", {"dilationHFactor": 2, "dilationWFactor": 1}),
        ),
        "dilation",
    ),
    (
        handmade(
            [
                ("a", (1, 8, 8, 4), "INT8", None),
                ("w", (4, 3, 3, 4), "INT8", None),
                ("b", (1, 8, 8, 4), "INT8", None),
            ],
            [("CONV_2D", [0, 1], [2], ("Conv2DOptions", {}))],
            inputs=(0, 1),
        ),
        "not constant",
    ),
    (
        one("AVERAGE_POOL_2D", options=("Pool2DOptions", {"fusedActivationFunction": 1})),
        "fused activation",
    ),
    (one("MEAN", constants=[("INT32", [1, 2])]), ""),
    (one("MEAN", constants=[("INT32", [0, 1])]), "over the batch"),
    (
        one("MEAN", shape=(1, 8, 8, 6), constants=[("INT32", [3])]),
        "6 channels, not a multiple of 4",
    ),
    (one("PAD", constants=[("INT32", [[0, 0], [1, 1], [1, 1], [0, 0]])]), ""),
    (one("PAD", constants=[("INT32", [[0, 1], [1, 1], [1, 1], [0, 0]])]), "pads the batch"),
    (one("SOFTMAX", shape=(1, 1000)), ""),
    (one("SOFTMAX", shape=(1, 20000)), "at most 16000"),
    (one("SOFTMAX", shape=(1, 8, 8, 4)), "not one axis"),
    (
        one(
            "FULLY_CONNECTED", shape=(1, 4), out=(1, 4), constants=[("INT8", np.ones((4, 4))), BIAS]
        ),
        "",
    ),
    (
        one(
            "FULLY_CONNECTED",
            shape=(1, 5, 4),
            out=(1, 5, 4),
            constants=[("INT8", np.ones((4, 4))), BIAS],
        ),
        "more than one axis",
    ),
    (
        one(
            "SQUEEZE",
            shape=(1, 1, 1, 10),
            out=(1, 10),
            options=("SqueezeOptions", {"squeezeDims": [1, 2]}),
        ),
        "",
    ),
    (
        one(
            "SQUEEZE",
            shape=(1, 5, 1, 10),
            out=(1, 5, 10),
            options=("SqueezeOptions", {"squeezeDims": [2]}),
        ),
        "behind a longer one",
    ),
    (
        one(
            "STRIDED_SLICE",
            constants=[("INT32", [0] * 4), ("INT32", [1, 4, 4, 4]), ("INT32", [1] * 4)],
            options=("StridedSliceOptions", {}),
        ),
        "",
    ),
    (
        one(
            "STRIDED_SLICE",
            constants=[("INT32", [0] * 4), ("INT32", [1, 8, 8, 4]), ("INT32", [1, 2, 2, 1])],
            options=("StridedSliceOptions", {}),
        ),
        "strides other than 1",
    ),
    (
        one("CONCATENATION", options=("ConcatenationOptions", {"fusedActivationFunction": 1})),
        "fused activation",
    ),
    (one("PRELU", constants=[("INT8", np.ones((1, 1, 4)))]), ""),
    (one("PRELU", constants=[("INT8", np.ones((8, 8, 4)))]), "alpha"),
]


@pytest.mark.parametrize(("tflite", "words"), EDGETPU, ids=range(len(EDGETPU)))
def test_edge_tpu_rules_by_hand(tflite, words):
    found = [why for _, why in edgetpu.edgetpu_fallback(read_model(tflite))]
    assert [bool(words)] * len(found) == [True] * len(found) and len(found) == bool(words), found
    assert not words or words in found[0]


def test_edge_tpu_leaves_all_behind_an_unknown_operator_to_the_cpu():
    # By hand: RELU on the chip; GELU is unknown; ADD reads it, MUL reads only the RELU.
    shape = (1, 4, 4, 4)
    names = [(name, shape, "INT8", None) for name in "abcde"]
    tflite = handmade(
        names,
        [
            ("RELU", [0], [1], None),
            ("GELU", [1], [2], None),
            ("ADD", [2, 1], [3], None),
            ("MUL", [1, 1], [4], None),
        ],
        outputs=[3, 4],
    )
    verdict = report.judge(tflite, targets=["edgetpu"], float_tflite=tflite).verdicts["edgetpu"]
    assert [(row["operator"], row["why"]) for row in verdict["fallback"]] == [
        ("GELU", "not in the operator table"),
        ("ADD", "behind GELU"),
    ]
    assert (verdict["operators_mapped"], verdict["operators_cpu"], verdict["fully_mapped"]) == (
        2,
        2,
        False,
    )
    assert "static check" in verdict["how"] and "coral.ai" in verdict["how"]
    with pytest.raises(
        ValueError,
        match=r"^--require_full_mapping: edgetpu leaves out 2 operators: GELU c \(not in "
        r".*No file was written",
    ):
        report.require_full_mapping({"edgetpu": verdict})


def diamond():
    """a [64] -> b [48] and c [32]; b + c -> d [16]; int8, so sizes are bytes."""
    sizes = {"a": 64, "b": 48, "c": 32, "d": 16}
    return handmade(
        [(name, (1, size), "INT8", None) for name, size in sizes.items()],
        [("RELU", [0], [1], None), ("TANH", [0], [2], None), ("ADD", [1, 2], [3], None)],
    )


def test_memory_of_activations_by_hand():
    """Alive: at RELU a+b = 112; at TANH a+b+c = 144; at ADD b+c+d = 96. Plan: a at 0..64, b
    64..112, c 112..144, d at 0 (a is dead).
    """
    file = read_model(diamond())
    lives = {tensor.name: (start, end) for tensor, start, end in memory_plan.lifetimes(file)}
    assert lives == {"a": (0, 1), "b": (0, 2), "c": (1, 2), "d": (2, 2)}
    assert memory_plan.live_peak(file) == (144, 1)
    assert memory_plan.planned_bytes(memory_plan.lifetimes(file)) == 144


def test_a_memory_plan_fills_gaps_and_aligns():
    """By hand: x (40 bytes -> 48) at 0..1, y (30 -> 32) at 1..2 goes behind x, z (10 -> 16) at 2..3
    fits where x was: 48 + 32 = 80.
    """

    def tensor(name, size):
        return Tensor(0, name, (1, size), (1, size), "INT8", (0.1,), (0,), 0, None)

    assert (
        memory_plan.planned_bytes(
            [(tensor("x", 40), 0, 1), (tensor("y", 30), 1, 2), (tensor("z", 10), 2, 3)]
        )
        == 80
    )


@pytest.fixture(scope="module")
def files():
    """(int8, float) files of the smallest classifier."""
    model = tiny_models.softmax_head()
    return to_tflite(model, tiny_models.images()), to_float_tflite(model)


def test_microcontroller_and_cpu_verdicts_of_a_whole_model(files):
    found = report.judge(
        files[0], targets=["tflm", "cpu", "edgetpu"], float_tflite=files[1]
    ).verdicts
    assert all(
        verdict["fully_mapped"] and verdict["operators_mapped"] == 7 for verdict in found.values()
    )  # 7: see test_convert
    # By hand, int8 at 8x8: the input 16x16x3 = 768 with the first convolution's 8x8x8 = 512; then
    # 512 + 512, 512 + 768, 768 + 4x4x16.
    # Peak: 768 + 512 = 1280 bytes, twice.
    assert found["tflm"]["figures"]["live_peak_bytes"] == 1280
    assert (
        found["tflm"]["figures"]["arena_estimate_bytes"]
        > found["tflm"]["figures"]["activations_bytes"]
        >= 1280
    )
    assert any(
        "scale per output channel" in note for note in found["tflm"]["notes"]
    )  # TFLite quantizes Dense per channel since 2.17
    cpu = found["cpu"]["figures"]
    assert cpu["model_bytes"] == len(files[0]) < cpu["float_model_bytes"] == len(files[1])
    assert cpu["latency_ms"] > 0 and cpu["speedup"] == pytest.approx(
        cpu["float_latency_ms"] / cpu["latency_ms"], rel=0.02
    )
    report.require_full_mapping(found)
    json.dumps(found)


def test_an_operator_that_microcontrollers_lack_is_named():
    verdict = tflm.report(read_model(one("GELU")))
    assert not verdict["fully_mapped"] and verdict["fallback"] == [
        {"operator": "GELU", "tensor": "b", "why": "TFLM has no such operator"}
    ]


def test_tflm_itself_agrees(files):
    """TFLM counts its own arena; LiteRT's kernels give the outputs to compare with."""
    pytest.importorskip("tflite_micro")
    figures = tflm.report(read_model(files[0]))["figures"]
    assert (
        figures["agrees"]
        and abs(figures["arena_bytes"] / figures["arena_estimate_bytes"] - 1) < 0.2
    )


@pytest.mark.parametrize(
    ("names", "scheme", "words"),
    [
        (["edgetpus"], "int8", "names edgetpus; expected none, or some of ethos-u55-32, "),
        (["none", "tflm"], "int8", "names none"),
        (["edgetpu"], "int16x8", "takes 8 bits"),
        (["edgetpu"], "w4a8", "takes 8 bits"),
    ],
)
def test_wrong_targets_are_refused_before_work(names, scheme, words):
    with pytest.raises(ValueError, match=words):
        report.check_targets(names, scheme=scheme)


def test_targets_are_taken_once_and_in_order():
    assert report.check_targets(["tflm", " cpu", "tflm"]) == ["tflm", "cpu"]
    assert report.check_targets(["none"]) == report.check_targets([]) == []


def test_a_missing_compiler_names_the_extra(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "dgh-tf\[vela\]"'):
        report.check_targets(["ethos-u55-128"])


VELA_LINES = """
Warning (supported operators) operator: ELU, ofm: 'elu;x'
Reason: Operation is not supported
Only these are

CPU operators = 1 (14.3%)
   CPU: Passthrough = elu;x (outputs [1, 4, 4, 8])
NPU operators = 6 (85.7%)
"""


def test_velas_lines_are_read_by_hand():
    npu, cpu, rows = vela.read_log(VELA_LINES, kinds={"elu;x": "ELU"})
    assert (npu, cpu) == (6, 1)
    assert rows == [
        {"operator": "ELU", "tensor": "elu;x", "why": "Operation is not supported Only these are"}
    ]


@pytest.mark.parametrize("target", ["ethos-u55-128", "ethos-u85-256"])
def test_vela_maps_a_whole_model(files, target):
    pytest.importorskip("ethosu.vela")
    verdict = report.judge(files[0], targets=[target], float_tflite=files[1]).verdicts[target]
    assert verdict["fully_mapped"] and verdict["operators_mapped"] == 7 and not verdict["fallback"]
    figures = verdict["figures"]
    assert (
        figures["cycles"] > 0 and figures["sram_kib"] > 1
    )  # at least the 1280 bytes of activations above
    assert figures["inferences_per_second"] == pytest.approx(
        1e6 * figures["clock_mhz"] / figures["cycles"], rel=0.01
    )


def test_vela_leaves_float_operators_to_the_cpu_and_says_so(files):
    pytest.importorskip("ethosu.vela")
    verdict = vela.compile_for(read_model(files[1]), target="ethos-u55-256").verdict
    assert (
        not verdict["fully_mapped"]
        and verdict["operators_mapped"] == 0
        and verdict["figures"]["inferences_per_second"] is None
    )
    assert any(
        row["operator"] == "SOFTMAX" and "Float32" in row["why"] for row in verdict["fallback"]
    )


def test_a_crash_of_vela_is_one_line(files):
    pytest.importorskip("ethosu.vela")
    from tflite_export.conversion.converter import _four_bit

    four_bit = _four_bit(*files)
    with pytest.raises(
        ValueError,
        match="Vela .* crashed with SIGFPE on this file. It does not take packed INT4 weights",
    ):
        vela.compile_for(read_model(four_bit), target="ethos-u55-128")
    with pytest.raises(ValueError, match="--scheme=int8"):
        report.check_targets(["ethos-u55-128"], scheme="w4a8")


def with_activation(name):
    """A convolution, the activation as a layer named odd_layer, pooling and a dense head on [8, 8,
    3].
    """
    import keras

    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Activation(getattr(keras.ops, name), name="odd_layer")(
        keras.layers.Conv2D(4, 3)(inputs)
    )
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))


def test_an_operator_that_cannot_be_quantized_is_named_with_its_layer():
    model, images = with_activation("sin"), {"image": tiny_models.images(shape=(8, 8, 3))}
    shape = (1, 6, 6, 4)
    # what to_float_tflite gives of this model, as far as it counts, without the seconds that it
    # takes
    reference = handmade(
        [("image", shape, "FLOAT32", None), ("model/odd_layer_1/Sin", shape, "FLOAT32", None)],
        [("SIN", [0], [1], None)],
    )
    with pytest.raises(
        ValueError,
        match="^The model cannot be made integer with --scheme=int8: SIN of "
        "model/odd_layer_1/Sin has no",
    ):
        errors.check_operators(model, images, float_tflite=reference, scheme="int8")


def test_an_operator_that_tflite_lacks_is_named_from_the_converters_message():
    # the message of TensorFlow 2.21 for keras.ops.erf, cut
    text = (
        'error: loc(callsite(fused["Erf:", "model/odd_layer_1/Erf@__inference_1"] at '
        'callsite(fused["PartitionedCall:", "Partit@x"]'
    )
    error = errors.explained(ValueError(text), float_tflite=None, scheme="int8")
    assert str(error).startswith("TFLite has no operator for Erf of model/odd_layer_1/Erf. Replace")


def test_convert_fails_on_a_target_that_does_not_take_all_and_writes_nothing(tmp_path):
    with_activation("leaky_relu").save(tmp_path / "m.keras")
    np.save(tmp_path / "c.npy", tiny_models.images(shape=(8, 8, 3)))
    code, _, err = commands.call(
        "tflite_export.convert",
        f"--model={tmp_path}/m.keras",
        f"--calibration={tmp_path}/c.npy",
        f"--output={tmp_path}/o.tflite",
        "--target=edgetpu,tflm",
        "--require_full_mapping",
        "--algorithm=minmax",
    )
    commands.forget()
    assert code == 1 and not list(tmp_path.glob("*o.*"))
    assert (
        err.startswith("error: --require_full_mapping: edgetpu leaves out") and err.count("\n") == 1
    )
    assert "LEAKY_RELU" in err and "odd_layer" in err
