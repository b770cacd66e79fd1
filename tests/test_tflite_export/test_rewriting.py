"""What is written into a .tflite file is read back from it, and LiteRT computes with it."""

import numpy as np
import pytest
import tiny_models
from measures import sqnr_db

from dgh_tf.models.tflite.model import pack_int4, read_model, unpack_int4
from dgh_tf.models.tflite.run import read_graph
from dgh_tf.models.tflite.spec import CHANNEL_AXIS
from tflite_export import (
    Runner,
    check_integer,
    operator_table,
    to_float_tflite,
    to_tflite,
    to_tflite_with_ranges,
)
from tflite_export.simulation.fake_quant import integer_constants, predict, quantized_constants
from tflite_export.simulation.ranges import collect_ranges
from tflite_export.tflite.edit import (
    integer_weights,
    with_constants,
    with_integers,
    without_softmax,
)
from tflite_export.tflite.names import names_in, unless_taken, with_short_names


@pytest.fixture(scope="module")
def small():
    """(float bytes, graph, images, ranges, int8 bytes) of the smallest classifier, taken before its
    softmax.
    """
    model, images = tiny_models.conv_bn_relu(), tiny_models.images()
    tflite = to_float_tflite(model)
    graph = read_graph(tflite)
    ranges = collect_ranges(graph, images)
    return tflite, graph, images, ranges, to_tflite_with_ranges(tflite, ranges=ranges)


def test_int4_puts_the_first_value_in_the_low_nibble():
    assert pack_int4(np.array([1, -2, 7])) == bytes([0xE1, 0x07])
    values = np.random.default_rng(0).integers(-8, 8, 33)
    np.testing.assert_array_equal(unpack_int4(pack_int4(values), 33), values)


@pytest.mark.parametrize("weight_bits", [8, 4])
def test_the_file_holds_the_chosen_integers_and_runs_like_the_simulator(small, weight_bits):
    tflite, graph, images, ranges, _ = small
    chosen = integer_constants(graph, weight_bits=weight_bits, rule="mse")
    rng = np.random.default_rng(0)  # not what rounding to nearest would give
    chosen = {
        i: (
            np.clip(
                w + rng.integers(-1, 2, w.shape),
                *{8: (-127, 127), 4: (-8, 7)}[weight_bits],
            ).astype(np.int8),
            s,
        )
        for i, (w, s) in chosen.items()
    }
    made = to_tflite_with_ranges(tflite, ranges=ranges, weights=chosen, weight_bits=weight_bits)
    back, names = integer_weights(made), names_in(read_model(made), graph.model)
    assert len(back) == len(chosen)
    assert {8: -127, 4: -8}[weight_bits] == min(w.min() for w, _ in back.values())
    for o in graph.operators:
        if o.kind in CHANNEL_AXIS:
            name = names[graph.tensors[o.outputs[0]].name]
            for got, want in zip(back[name], chosen[o.inputs[1]], strict=True):
                np.testing.assert_array_equal(got, want)
    check_integer(made, io_dtype="int8")
    simulated = predict(
        graph, images, ranges=ranges, constants=quantized_constants(graph, weights=chosen)
    )
    assert sqnr_db(Runner(made).predict(images), simulated) > 30


def test_biases_follow_the_scales(small):
    """The converter's own integers with doubled scales: every product doubles, so halved integers
    change nothing.
    """
    *_, made = small
    present = integer_weights(made)
    even = {name: ((w // 2 * 2).astype(np.int8), s) for name, (w, s) in present.items()}
    halved = {name: ((w // 2).astype(np.int8), s * 2) for name, (w, s) in present.items()}
    a, b = (Runner(with_integers(made, weights=w)).predict(small[2]) for w in (even, halved))
    step = check_integer(made, io_dtype="int8")["outputs"][0]["scale"]
    # two steps, each a float32 product of integer and scale
    assert np.abs(a - b).max() <= 2.001 * step and np.mean(a == b) > 0.8


def test_equal_zero_points_are_stored_once_and_read_as_before(small):
    """What LiteRT itself reads of both files; zero points have 8 bytes."""
    from ai_edge_litert.interpreter import Interpreter

    *_, images, _, made = small
    smaller = with_integers(made, weights=integer_weights(made)).data
    before, after = (
        Interpreter(model_content=each).get_tensor_details() for each in (made, smaller)
    )
    channels = 0
    for old, new in zip(before, after, strict=True):
        for key in ("scales", "zero_points", "quantized_dimension"):
            np.testing.assert_array_equal(
                old["quantization_parameters"][key], new["quantization_parameters"][key]
            )
        channels += max(len(old["quantization_parameters"]["zero_points"]) - 1, 0)
    assert len(made) - len(smaller) > 8 * channels / 2 > 0
    np.testing.assert_array_equal(Runner(made).predict(images), Runner(smaller).predict(images))


def test_names_stay_unique():
    names = ["relu;add;conv", "split;a", "split;b", "conv", "mean;conv", "mean;x"]
    shorter = ["relu", "split", "split", "conv", "conv", "mean"]
    assert unless_taken(names, shorter) == [
        *("relu", "split;a", "split;b", "conv", "mean;conv", "mean")
    ]


def test_a_file_with_short_names_is_smaller_and_computes_the_same(small):
    """As LiteRT sees both; every operator's output is found again in the float file."""
    from ai_edge_litert.interpreter import Interpreter

    _, graph, images, ranges, _ = small
    chosen = integer_constants(graph, weight_bits=8)
    long = to_tflite_with_ranges(graph.model, ranges=ranges)
    whole = with_integers(long, weights=integer_weights(long)).data
    short = to_tflite_with_ranges(graph.model, ranges=ranges, weights=chosen)
    before, after = (
        Interpreter(model_content=each).get_tensor_details() for each in (whole, short)
    )
    saved = sum(len(a["name"]) - len(b["name"]) for a, b in zip(before, after, strict=True))
    assert saved > 200 and abs(len(whole) - len(short) - saved) <= 4 * len(after)  # padding
    assert len({each["name"] for each in after}) == len(after)
    np.testing.assert_array_equal(Runner(long).predict(images), Runner(short).predict(images))
    names = names_in(read_model(short), graph.model)
    assert [names[o.output_tensors[0].name] for o in graph.operators] == [
        o.output_tensors[0].name for o in read_model(short).operators if o.kind != "QUANTIZE"
    ]


def test_constants_reach_litert(small):
    tflite, graph, images, *_ = small
    weights = {
        o.inputs[2]: graph.tensors[o.inputs[2]].value + 1
        for o in graph.operators
        if o.kind == "FULLY_CONNECTED"
    }
    got = Runner(with_constants(tflite, constants=weights)).predict(images)
    np.testing.assert_allclose(got, predict(graph, images, constants=weights), atol=1e-5)


def test_w4a8_packs_weights_and_shrinks_the_file():
    model, images = (
        tiny_models.many_channels(),
        tiny_models.images(shape=tiny_models.many_channels().inputs[0].shape[1:]),
    )
    eight, four = to_tflite(model, images), to_tflite(model, images, scheme="w4a8")
    report = check_integer(four, io_dtype="int8")
    kinds = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
    uses = [row["inputs"][1]["dtype"] for row in operator_table(four) if row["operator"] in kinds]
    assert uses and set(uses) == {"INT4"} and report["tensor_dtypes"]["INT4"] == len(uses)
    weights = integer_weights(eight)
    same = with_short_names(with_integers(eight, weights=weights)).data
    size = sum(w.size for w, _ in weights.values())
    assert len(same) - len(four) == pytest.approx(size / 2, rel=0.1, abs=1024)
    assert np.isfinite(Runner(four).predict(images)).all()


def test_operators_that_share_weights_get_the_same_ones():
    model, images = tiny_models.shared_bn(), tiny_models.images()
    made = to_tflite(model, images, scheme="w4a8")
    present = integer_weights(made)
    first, second = [name for name, (w, _) in present.items() if w.shape[-1] == 8 and w.ndim == 4]
    np.testing.assert_array_equal(present[first][0], present[second][0])
    other = {first: present[first], second: (-present[second][0].clip(-7), present[second][1])}
    for weights in (other, {first: present[first]}):
        with pytest.raises(ValueError, match="the same weights in the file"):
            with_integers(made, weights=weights, weight_bits=4)


def test_w4a8_without_such_weights_is_refused():
    import keras

    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.ReLU()(inputs))
    with pytest.raises(ValueError, match="no weights that can be 4 bits.*--scheme=int8"):
        to_tflite(model, tiny_models.images(shape=(8, 8, 3)), scheme="w4a8")


def test_what_does_not_fit_is_named(small):
    *_, made = small
    name, (integers, scales) = next(iter(integer_weights(made).items()))
    with pytest.raises(ValueError, match="no weights behind nothing"):
        with_integers(made, weights={"nothing": (integers, scales)})
    with pytest.raises(ValueError, match="positive scales"):
        with_integers(made, weights={name: (integers, scales[:-1])})
    with pytest.raises(ValueError, match="4 bits hold -8 to 7"):
        with_integers(made, weights={name: (np.full_like(integers, 8), scales)}, weight_bits=4)


@pytest.mark.parametrize("build", ["softmax_head", "single_output"])
def test_a_file_without_its_softmax_gives_the_logits_and_holds_no_tensor_that_nothing_makes(build):
    """Softmax and sigmoid of the logits in float64 are the whole file's outputs; ai-edge-quantizer
    reads every tensor there is.
    """
    model, images = getattr(tiny_models, build)(), tiny_models.images(4)
    whole = to_float_tflite(model)
    bare = without_softmax(whole)
    z = Runner(bare).predict(images).astype(np.float64)
    expected = (
        np.exp(z) / np.exp(z).sum(-1, keepdims=True)
        if build == "softmax_head"
        else 1 / (1 + np.exp(-z))
    )
    np.testing.assert_allclose(Runner(whole).predict(images), expected, atol=1e-6)
    graph = read_graph(bare)
    used = {i for o in graph.operators for i in (*o.inputs, *o.outputs) if i >= 0} | set(
        graph.inputs
    )
    assert used == set(range(len(graph.tensors)))
