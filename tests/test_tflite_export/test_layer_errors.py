"""What each layer of an integer file adds to the error of the logits, against numpy."""

import keras
import numpy as np
import pytest

from tflite_export import to_float_tflite
from tflite_export.quality.layer_errors import (
    LayerError,
    by_layer,
    layer_errors,
    look_first,
    stand_out,
)
from tflite_export.quantization import quantize
from tflite_export.targets.advice import layer_of


@pytest.fixture(scope="module")
def branched():
    """(model, images, float file, 4-bit file): one weight of branch "bad" is far above the others,
    so that 4 bits leave little of those.
    """
    rng = np.random.default_rng(0)
    image = keras.Input((6, 6, 3))
    good = keras.layers.Conv2D(4, 1, name="good")(image)
    bad = keras.layers.Conv2D(4, 1, name="bad")(image)
    y = keras.layers.Add(name="sum")([good, bad])
    y = keras.layers.GlobalAveragePooling2D()(y)
    model = keras.Model(image, keras.layers.Dense(5, name="classes")(y))
    for layer in model.layers:
        layer.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    kernel, bias = model.get_layer("bad").get_weights()
    kernel[0, 0, 0] = 12.0
    model.get_layer("bad").set_weights([kernel, bias])
    # the first channel hardly differs from image to image, the others do
    x = rng.normal(0.0, 0.2, (8, 1, 1, 3)) * [0.05, 1, 1] + rng.normal(0.0, 0.2, (8, 6, 6, 3))
    x = x.astype(np.float32)
    float_tflite = to_float_tflite(model, images=x[:1])
    made = quantize(
        model, x, scheme="w4a8", algorithm="percentile", float_tflite=float_tflite
    ).tflite
    return model, x, float_tflite, made


def test_the_layer_right_behind_a_branch_is_named(branched):
    model, x, float_tflite, made = branched
    found = layer_errors(float_tflite, made, x, layers=[each.name for each in model.layers])
    assert found[0].layer == "bad" and found[0].four_bits
    assert [each.layer for each in stand_out(found)][0] == "bad"
    assert "keep them at 8 bits" in found[0].what_to_do
    assert {"good", "sum", "classes"} <= {each.layer for each in found}


def test_error_of_weights_against_numpy(branched):
    """Four bits to nearest per channel with the clipping of least error, in float64, and the bias
    as LiteRT reads it.
    """
    from ai_edge_litert.interpreter import Interpreter

    model, x, float_tflite, made = branched
    (worst, *_) = layer_errors(float_tflite, made, x, layers=["good", "bad", "classes"])
    weights = {name: model.get_layer(name).get_weights() for name in ("good", "bad", "classes")}
    reader = Interpreter(model_content=made)
    (bias,) = (
        reader.get_tensor(each["index"]) * each["quantization_parameters"]["scales"]
        for each in reader.get_tensor_details()
        if "bad_1/" in each["name"] and each["dtype"] is np.int32
    )

    def rounded(kernel):
        best = np.zeros_like(kernel)
        for channel in range(kernel.shape[-1]):
            w = kernel[..., channel].astype(np.float64)
            steps = np.float32(np.linspace(0.3, 1.0, 71) * np.abs(w).max() / 7).astype(np.float64)
            tried = [np.clip(np.rint(w / s), -7, 7) * s for s in steps]
            best[..., channel] = min(tried, key=lambda each: np.sum((each - w) ** 2))
        return best

    def logits(bad):
        y = sum(
            x.astype(np.float64) @ k[0, 0].astype(np.float64) + b for k, b in (weights["good"], bad)
        )
        return y.mean((1, 2)) @ weights["classes"][0] + weights["classes"][1]

    want = logits(weights["bad"])
    error = np.square(logits((rounded(weights["bad"][0]), bias)) - want).mean()
    assert worst.weights == pytest.approx(error / np.var(want - want.mean(0)), rel=1e-3)


def test_a_verdict_says_what_to_do(branched):
    model, x, float_tflite, made = branched
    verdict = {
        "level": "doubtful",
        "predicted_agreement": 0.9,
        "band": [0.8, 0.95],
        "held_out": True,
        "reasons": [],
        "layers": [{"tensor": "m_1/bad_1/convolution", "sqnr_db": 3.0}],
    }
    names = [each.name for each in model.layers]
    told = look_first(verdict, float_tflite, made, x, layers=names)
    assert "Look first at bad" in told["sentence"] and told["look_first"][0]["layer"] == "bad"
    assert told["reasons"][0].startswith("bad makes ") and "8 bits" in told["reasons"][0]
    fine = look_first({**verdict, "level": "fine"}, float_tflite, made, x, layers=names)
    assert fine["look_first"] == [] and "Look first" not in fine["sentence"]


def layer(added, **changes):
    figures = {"weights": 0.0, "four_bits": False, "clipped": 0.0, "layer": None, **changes}
    return LayerError(tensor="t", **{"operator": "CONV_2D", **figures}, added=added)


def test_a_layer_of_many_operators_counts_with_all_they_add():
    parts = [layer(0.4, layer="norm", operator="RSQRT"), layer(0.2), layer(0.3, layer="norm")]
    first, second = by_layer(parts)
    assert (first.layer, first.operator, second.layer) == ("norm", "RSQRT", None)
    assert (first.added, second.added) == pytest.approx((0.7, 0.2))
    assert "spread" in first.what_to_do and "int16x8" in first.what_to_do


def test_a_variance_that_rounds_to_nothing_is_an_error_of_a_size_and_named_once():
    """One place in two is nearly flat: 8 bits of the squares make its variance 0, of which float
    arithmetic takes an infinite 1 / sqrt, and a file the end of its range.
    """
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 4))
    y = keras.layers.LayerNormalization(name="norm", epsilon=1e-12)(image)
    y = keras.layers.GlobalMaxPooling2D()(keras.layers.Conv2D(6, 3, name="after")(y))
    model = keras.Model(image, keras.layers.Dense(5, name="classes")(y))
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype(np.float32)
    x[:, ::2] *= 0.01
    float_tflite = to_float_tflite(model, images=x[:1])
    made = quantize(model, x, algorithm="minmax", float_tflite=float_tflite).tflite
    found = layer_errors(float_tflite, made, x, layers=["norm", "after", "classes"])
    assert all(np.isfinite(each.added) for each in found)
    verdict = {
        **{"level": "do not ship", "predicted_agreement": 0.5, "band": [0.3, 0.7]},
        **{"held_out": True, "reasons": [], "layers": [{"tensor": "m_1/norm_1/moments/mean"}]},
    }
    told = look_first(verdict, float_tflite, made, x, layers=["norm", "after", "classes"])
    assert [each["layer"] for each in told["look_first"]] == ["norm"]
    assert told["layers"] == [{"tensor": "m_1/norm_1/moments/mean", "layer": "norm"}]


def test_harmless_layers_are_not_named_and_many_equal_ones_neither():
    assert stand_out([layer(9e-4), layer(1e-5)]) == []  # below 30 dB
    assert stand_out([layer(2e-3)] * 20) == []  # a twentieth each
    assert [each.added for each in stand_out([layer(0.1), layer(0.05), layer(1e-3)])] == [0.1, 0.05]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clipped": 0.05, "weights": 1.0}, "cuts off 5.0%"),
        ({"weights": 0.9, "four_bits": True}, "scheme mixed"),
        ({"weights": 0.9}, "equalization"),
        ({}, "int16x8"),
    ],
)
def test_what_to_do_follows_the_cause(changes, said):
    assert said in layer(1.0, **changes).what_to_do


def test_numbered_scopes_are_of_the_layer_without_the_number():
    """The trace of a model numbers its scopes: conv2d is conv2d_1 there, conv2d_1 conv2d_1_2."""
    names = ["conv2d", "conv2d_1"]
    assert layer_of("m_1/conv2d_1/convolution", names) == "conv2d"
    assert layer_of("m_1/conv2d_1_2/convolution", names) == "conv2d_1"
    assert layer_of("m/conv2d_1/convolution", names) == "conv2d_1"  # no scope is numbered
