"""Every algorithm gives a full-integer file of its scheme; the integers in the file are the chosen
ones; misfits are refused early.
"""

import importlib.util

import numpy as np
import pytest
import tiny_models

from dgh_tf.models.tflite.model import read_model
from dgh_tf.models.tflite.run import read_graph
from dgh_tf.models.tflite.spec import CHANNEL_AXIS
from tflite_export import Runner, check_integer, to_float_tflite, to_tflite_with_ranges
from tflite_export.algorithms import ai_edge
from tflite_export.algorithms.block_reconstruction import reconstruct
from tflite_export.algorithms.blocks import find_blocks
from tflite_export.algorithms.by_name import ALGORITHMS, check_algorithm
from tflite_export.calibration import check
from tflite_export.quantization import quantize
from tflite_export.simulation.fake_quant import integer_constants, predict
from tflite_export.simulation.ranges import collect_ranges
from tflite_export.tflite.edit import integer_weights, without_softmax
from tflite_export.tflite.names import names_in

IN_FILE = {"int8": "INT8", "int16x8": "INT8", "w4a8": "INT4"}  # type of the weights
ENDS = {"int8": "int8", "int16x8": "int16", "w4a8": "int8"}
QUICK = {
    ("mse", "int8"),
    ("equalization", "w4a8"),
    ("reconstruction", "w4a8"),
}  # the rest takes four seconds each
HERE = [
    pytest.param(name, scheme, marks=() if (name, scheme) in QUICK else pytest.mark.slow)
    for name in ALGORITHMS
    if name not in ("distillation", "ai_edge")
    for scheme in ("int8", "w4a8")
]  # these have tests of their own


@pytest.fixture(scope="module")
def tflite():
    return to_float_tflite(tiny_models.softmax_head())


@pytest.mark.parametrize("algorithm, scheme", HERE)
def test_every_algorithm_gives_an_integer_file_close_to_float(tflite, algorithm, scheme):
    images = tiny_models.images(16)
    options = {"steps": 20} if algorithm == "reconstruction" else {}
    made = quantize(tflite, images, scheme=scheme, algorithm=algorithm, **options)
    proof = check_integer(made.tflite, io_dtype=ENDS[scheme])
    assert proof["tensor_dtypes"].get(IN_FILE[scheme], 0) >= 4 and (
        "INT4" in proof["tensor_dtypes"]
    ) == (scheme == "w4a8")
    assert made.notes["algorithm"] == algorithm and made.notes["images"] == 16
    float_outputs = Runner(tflite).predict(images)
    assert np.abs(Runner(made.tflite).predict(images) - float_outputs).mean() < (
        0.02 if scheme == "int8" else 0.1
    )


def test_files_that_end_at_the_logits_do(tflite):
    images = tiny_models.images(16)
    made = quantize(tflite, images, algorithm="bias_correction", head="logits")
    assert "SOFTMAX" not in check_integer(made.tflite, io_dtype="int8")["operators"]
    logits = np.float64(Runner(made.tflite).predict(images))
    exp = np.exp(logits - logits.max(1, keepdims=True))
    assert np.abs(exp / exp.sum(1, keepdims=True) - Runner(tflite).predict(images)).mean() < 0.02


@pytest.mark.parametrize("bits", [pytest.param(8, marks=pytest.mark.slow), 4])
def test_integers_in_the_file_are_the_chosen_ones(tflite, bits):
    """Learned roundings, scales included; to the last integer, read back from the file's
    own bytes.
    """
    graph, images = read_graph(tflite), tiny_models.images(16)
    ranges = collect_ranges(graph, images, rule="mse")
    found = reconstruct(graph, images, ranges=ranges, weight_bits=bits, steps=20)
    made = to_tflite_with_ranges(
        tflite, ranges=ranges, constants=found.biases, weights=found.weights, weight_bits=bits
    )
    in_file, nearest = integer_weights(made), integer_constants(graph, weight_bits=bits, rule="mse")
    moved, names = 0, names_in(read_model(made), graph.model)
    behind = {
        o.inputs[1]: names[graph.tensors[o.outputs[0]].name]
        for o in graph.operators
        if o.kind in CHANNEL_AXIS
    }
    assert min(codes.min() for codes, _ in in_file.values()) == {8: -127, 4: -8}[bits]
    for i, (integers, scales) in found.weights.items():
        codes, file_scales = in_file[behind[i]]
        np.testing.assert_array_equal(codes, integers)
        np.testing.assert_array_equal(file_scales, scales)
        moved += np.sum(integers != nearest[i][0])
    assert moved > 0 and len(found.weights) == len(
        in_file
    )  # something was learned, and every weight was chosen


def test_blocks_cover_all_weights_once_and_in_order():
    graph = read_graph(to_float_tflite(tiny_models.silu_detector()))
    blocks = find_blocks(graph)
    assert [p for block in blocks for p in block] == list(range(blocks[-1].stop))
    assert not [o for o in graph.operators[blocks[-1].stop :] if o.kind == "CONV_2D"]


@pytest.mark.slow
def test_reconstruction_at_four_bits_beats_rounding_to_nearest(tflite):
    """Against the float outputs on images it has not seen. Nearest at four bits errs by several
    times as much.
    """
    graph, images, unseen = (
        read_graph(tflite),
        tiny_models.images(64),
        tiny_models.images(64, seed=9),
    )
    ranges = collect_ranges(graph, images, rule="mse")
    reference = predict(graph, unseen)
    learned = reconstruct(graph, images, ranges=ranges, weight_bits=4, steps=300)
    files = [
        to_tflite_with_ranges(
            tflite, ranges=ranges, constants=biases, weights=weights, weight_bits=4
        )
        for weights, biases in (
            (integer_constants(graph, weight_bits=4, rule="mse"), {}),
            (learned.weights, learned.biases),
        )
    ]
    nearest, ours = (np.mean(np.square(Runner(file).predict(unseen) - reference)) for file in files)
    assert ours < 0.7 * nearest


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file(tflite):
    images = tiny_models.images(16)
    first, again, other = (
        quantize(
            tflite, images, scheme="w4a8", algorithm="reconstruction", steps=10, seed=seed
        ).tflite
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_misfits_are_refused_by_name():
    with pytest.raises(ValueError, match="Unknown algorithm 'magic'.*best, minmax"):
        check_algorithm("magic", scheme="int8")
    with pytest.raises(ValueError, match="Unknown scheme 'int4'"):
        check_algorithm("best", scheme="int4")
    with pytest.raises(ValueError, match="mse has no scheme int16x8"):
        check_algorithm("mse", scheme="int16x8")
    with pytest.raises(ValueError, match="logits cannot be made"):
        check_algorithm("minmax", scheme="int16x8", head="logits")


def test_best_is_an_algorithm_of_every_scheme():
    for scheme in IN_FILE:
        assert scheme in ALGORITHMS[check_algorithm("best", scheme=scheme)].schemes


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"dgh-tf\[litert-quantizer\]"):
        check_algorithm("ai_edge", scheme="int8")


@pytest.mark.parametrize(
    ("known", "wanted"),
    [
        (("litert_quantizer", "ai_edge_quantizer"), "litert_quantizer"),
        (("litert_quantizer",), "litert_quantizer"),
        (("ai_edge_quantizer",), "ai_edge_quantizer"),
    ],
)
def test_the_newer_name_of_google_s_quantizer_is_preferred(monkeypatch, known, wanted):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in known or None)
    assert ai_edge.installed() == wanted and check_algorithm("ai_edge", scheme="int8") == "ai_edge"


@pytest.mark.parametrize("head", ["model", "logits"])
@pytest.mark.parametrize("scheme", ["int8", "int16x8"])
def test_ai_edge_quantizer_gives_an_integer_file_of_the_same_images(tflite, scheme, head, capfd):
    if not any(importlib.util.find_spec(module) for module in ai_edge.PACKAGES):
        pytest.skip("neither litert-quantizer nor ai-edge-quantizer is installed")
    images = tiny_models.images(8)
    capfd.readouterr()
    made = quantize(tflite, images, scheme=scheme, algorithm="ai_edge", head=head)
    assert capfd.readouterr() == ("", "")
    assert made.notes["tool"].split()[0] == ai_edge.PACKAGES[ai_edge.installed()]
    check_integer(made.tflite, io_dtype=ENDS[scheme])
    wanted = Runner(tflite if head == "model" else without_softmax(tflite)).predict(images)
    assert np.abs(Runner(made.tflite).predict(images) - wanted).mean() < (
        0.02 if head == "model" else 0.06
    )  # of probabilities; of logits


def test_few_images_of_a_large_input_are_held_in_memory_at_once():
    """128 of 224 x 224 x 3, 27 of 640 x 640 x 3 (2^25 / 1 228 800), and never fewer than 8; the
    first and the last are among them.
    """
    for side, wanted in ((224, 128), (640, 27), (1200, 8)):
        numbers = np.arange(500, dtype=np.float32)[:, None, None, None]
        few = check.few_images({"image": np.broadcast_to(numbers, (500, side, side, 3))})["image"]
        assert len(few) == wanted and few[0, 0, 0, 0] == 0 and few[-1, 0, 0, 0] == 499
