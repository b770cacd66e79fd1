"""Bits chosen per layer: sizes are real files', limits hold, the choice is near the best."""

import itertools
import json

import numpy as np
import pytest
import tiny_models

import tflite_export
from tflite_export import Runner, to_float_tflite, to_tflite
from tflite_export.algorithms.bit_allocation import (
    Layer,
    Limit,
    allocate,
    layers_of,
    least_noise,
    limit_bytes,
    ordered,
)
from tflite_export.algorithms.bit_simulation import measured
from tflite_export.calibration.hold_out import hold_back
from tflite_export.quality.agreement import features_of, predict
from tflite_export.quality.candidates import before_softmax, outputs_of
from tflite_export.quantization import quantize
from tflite_export.tflite.edit import integer_weights, read_model, weighted_operators, weights_of
from tflite_export.tflite.names import names_in


def layer(index, *, weights, noise, protected=False):
    return Layer(index, f"layer {index}", "CONV_2D", weights, protected, noise)


@pytest.fixture(scope="module")
def images():
    return tiny_models.images(32)


@pytest.fixture(scope="module")
def float_tflite():
    return to_float_tflite(tiny_models.softmax_head())


@pytest.fixture(scope="module")
def found(float_tflite, images):
    return allocate(float_tflite, {"image": images}, limit=Limit(min_agreement=0.5))


def test_the_choice_is_the_best_of_all_choices():
    """Against all subsets, tried one by one."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        layers = ordered(
            [
                layer(i, weights=int(rng.integers(10, 400)) * 2, noise=float(rng.exponential()))
                for i in range(9)
            ]
        )
        total = sum(each.saved for each in layers)
        to_save = int(rng.uniform(0.1, 0.9) * total)
        chosen = least_noise(layers, to_save=to_save)
        subsets = itertools.chain.from_iterable(
            itertools.combinations(layers, k) for k in range(len(layers) + 1)
        )
        best = min(
            sum(each.noise for each in subset)
            for subset in subsets
            if sum(each.saved for each in subset) >= to_save
        )
        assert sum(each.saved for each in chosen) >= to_save
        assert sum(each.noise for each in chosen) == pytest.approx(best)


def test_a_choice_of_large_layers_saves_enough():
    """Counted in steps of many bytes: rounding must not save too little."""
    rng = np.random.default_rng(1)
    layers = [
        layer(i, weights=int(rng.integers(10, 10**6)), noise=float(rng.exponential()))
        for i in range(60)
    ]
    total = sum(each.saved for each in layers)
    for share in (0.1, 0.5, 0.9, 0.999):
        chosen = least_noise(layers, to_save=int(share * total))
        saved = sum(each.saved for each in chosen)
        assert share * total - 1 <= saved <= total
    assert least_noise(layers, to_save=total + 1) == layers


def test_depthwise_layers_and_the_first_one_leave_8_bits_last():
    quiet = layer(0, weights=100, noise=1e-9, protected=True)
    loud = layer(1, weights=100, noise=10.0)
    assert ordered([quiet, loud]) == [loud, quiet]
    model = read_model(to_float_tflite(tiny_models.conv_bn_relu()))
    kinds = [(each.kind, each.protected) for each in layers_of(model)]
    assert kinds[0][1] and ("DEPTHWISE_CONV_2D", True) in kinds and ("CONV_2D", False) in kinds


def test_what_is_not_needed_stays_at_8_bits():
    small, large = layer(0, weights=20, noise=0.2), layer(1, weights=400, noise=8.0)
    assert ordered([large, small]) == [small, large]
    assert least_noise([small, large], to_save=150) == [large]
    protected = layer(2, weights=400, noise=0.0, protected=True)
    assert least_noise([small, large, protected], to_save=150) == [large]
    assert least_noise([small, large, protected], to_save=250) == [small, large, protected]
    assert least_noise([small], to_save=0) == []


def test_every_point_of_the_curve_has_the_size_of_the_real_file(float_tflite, images, found):
    assert [point.layers for point in found.curve] == list(range(len(found.layers) + 1))
    eight, four = (
        quantize(float_tflite, images, scheme=scheme, algorithm="reconstruction", steps=1)
        for scheme in ("int8", "w4a8")
    )
    assert found.curve[0].bytes == len(eight.tflite)
    assert found.curve[-1].bytes == len(four.tflite)
    assert found.curve[0].sqnr_db > found.curve[-1].sqnr_db + 3


@pytest.mark.parametrize("algorithm", ["minmax", "mse", "reconstruction", "best"])
def test_a_mixed_file_meets_the_size_and_holds_the_bits_it_tells(
    algorithm, float_tflite, images, found
):
    middle = (found.curve[0].bytes + found.curve[-1].bytes) / 2 / 1024
    options = {"steps": 10} if algorithm in ("reconstruction", "best") else {}
    if algorithm == "best":
        options = {}
    made = quantize(
        float_tflite, images, scheme="mixed", algorithm=algorithm, max_kib=middle, **options
    )
    assert len(made.tflite) <= middle * 1024 and made.notes["mixed"]["file"]["bytes"] == len(
        made.tflite
    )
    names = names_in(read_model(made.tflite), read_model(float_tflite))
    told = {names[each["layer"]]: each["bits"] for each in made.notes["mixed"]["layers"]}
    assert set(told.values()) == {4, 8}
    operators = weighted_operators(read_model(made.tflite))
    assert {name: f"INT{bits}" for name, bits in told.items()} == {
        name: weights_of(operator).dtype for name, operator in operators.items()
    }
    largest = {
        name: np.abs(values).max() for name, (values, _) in integer_weights(made.tflite).items()
    }
    assert all(largest[name] <= 8 for name, bits in told.items() if bits == 4)
    assert all(largest[name] > 8 for name, bits in told.items() if bits == 8)


def test_the_file_runs_and_keeps_what_is_told(float_tflite, images):
    """Against numpy in float64 on LiteRT's own outputs."""
    made = quantize(float_tflite, images, scheme="mixed", algorithm="bias_correction")
    kept = made.notes["mixed"]["file"]
    told = measured(float_tflite, made.tflite, {"image": images})  # of a file
    assert kept == told
    _, held = hold_back({"image": images}, smallest=8)
    x = held["image"]
    mean = x.mean((1, 2), keepdims=True)
    both = np.concatenate([x, mean + 0.5 * (x - mean)]).astype(np.float32)
    from tflite_export.tflite.edit import without_softmax

    want, got = (
        np.float64(Runner(without_softmax(each).data).predict(both))
        for each in (float_tflite, made.tflite)
    )
    noise = np.mean((got - want) ** 2) / np.var(want - want.mean(0))
    assert kept["sqnr_db"] == pytest.approx(-10 * np.log10(noise), abs=0.02)


def test_the_agreement_is_told_by_the_rule_of_the_verdict(float_tflite, images):
    """Of all weights at 8 bits: LiteRT's logits of the two files, which the verdict reads too."""
    made = quantize(float_tflite, images, scheme="int8", algorithm="mse", float_tflite=float_tflite)
    _, held = hold_back({"image": images}, smallest=8)
    want, got = (
        next(iter(outputs_of(Runner(before_softmax(each)), held).values()))
        for each in (float_tflite, made.tflite)
    )
    for kind, generated in (("calibration", True), ("real", False)):
        wanted = predict({kind: features_of(want, got)}).agreement
        kept = measured(float_tflite, made.tflite, {"image": images}, generated=generated)
        assert kept["agreement"] == pytest.approx(wanted)


def test_an_agreement_gives_the_smallest_file_that_keeps_it(float_tflite, images, found):
    agreements = [point.agreement for point in found.curve]
    asked = (agreements[0] + min(agreements)) / 2
    chosen = allocate(float_tflite, {"image": images}, limit=Limit(min_agreement=asked))
    below = next(k for k, each in enumerate(agreements) if each < asked)
    assert chosen.point.layers == below - 1 and chosen.point.agreement >= asked
    larger = chosen.larger()
    assert larger is None or larger.point.bytes > chosen.point.bytes
    assert sum(bits == 4 for bits in chosen.bits.values()) == chosen.point.layers


def test_without_a_limit_the_file_saves_three_quarters_of_what_4_bits_save():
    assert limit_bytes(Limit(), eight=1000, four=520) == 640
    assert limit_bytes(Limit(), eight=1000, four=800) == 850
    assert limit_bytes(Limit(max_kib=1.5), eight=3000, four=100) == 1536
    assert limit_bytes(Limit(min_agreement=0.9), eight=1000, four=520) is None


@pytest.mark.parametrize(
    "options, text",
    [
        ({"max_kib": 0.5}, r"max_kib=0.5 cannot be met: the smallest file .* takes [0-9.]+ KiB"),
        ({"max_kib": 9, "min_agreement": 0.9}, "Give one of the two"),
        ({"max_kib": -1}, "expected a size above 0"),
        ({"max_kib": float("inf")}, "expected a size above 0"),
        ({"min_agreement": float("nan")}, "expected a share above 0"),
        ({"min_agreement": 1.5}, "expected a share above 0 and up to 1"),
        ({"min_agreement": 1.0}, "cannot be met: with all weights at 8 bits"),
        ({"max_kib": 9, "scheme": "int8"}, "max_kib is for scheme mixed"),
        ({"algorithm": "distillation"}, "distillation has no scheme mixed"),
    ],
)
def test_limits_that_cannot_be_met_are_refused(options, text, float_tflite, images):
    options = {"scheme": "mixed", "algorithm": "mse", **options}
    with pytest.raises(ValueError, match=text):
        quantize(float_tflite, images, **options)


def test_the_smallest_size_that_an_error_names_can_be_had(float_tflite, images):
    import re

    with pytest.raises(ValueError) as error:
        quantize(float_tflite, images, scheme="mixed", algorithm="mse", max_kib=0.1)
    smallest = float(re.search(r"takes ([0-9.]+) KiB", str(error.value)).group(1))
    made = quantize(float_tflite, images, scheme="mixed", algorithm="mse", max_kib=smallest)
    assert len(made.tflite) <= smallest * 1024


def test_a_model_without_4_bit_weights_and_the_converter_alone_are_refused(images):
    with pytest.raises(ValueError, match="Scheme mixed chooses the bits"):
        to_tflite(tiny_models.softmax_head(), images, scheme="mixed")


def test_python_and_its_files_tell_the_choice(tmp_path, images):
    made = tflite_export.quantize(
        tiny_models.softmax_head(), images, scheme="mixed", algorithm="mse", verbose=0
    )
    made.save(tmp_path / "f.tflite")
    told = json.loads((tmp_path / "f.json").read_text())
    assert told["scheme"] == "mixed" and told["mixed"]["max_kib"] is None
    sizes = [point["bytes"] for point in told["mixed"]["curve"]]
    assert sizes == sorted(sizes, reverse=True)
    assert told["mixed"]["file"]["bytes"] == (tmp_path / "f.tflite").stat().st_size


def test_the_page_draws_the_curve():
    from dgh_tf.report.charts import sizes

    curve = [
        {"layers": k, "bytes": 2048 - 512 * k, "sqnr_db": 20.0 - k, "agreement": None}
        for k in range(3)
    ]
    chart = sizes(curve, curve[1])
    assert chart.svg.startswith("<svg") and "SQNR of the logits, dB" in chart.svg
    told = [{**each, "agreement": 0.9} for each in curve]
    assert "predicted agreement" in sizes(told, told[0]).svg
