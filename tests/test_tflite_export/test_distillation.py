"""Distillation by TFMOT, in its own process: integer files of both widths, closer to float than
without training, errors by name.
"""

import json
import os
import pathlib
import subprocess
import sys

import commands
import numpy as np
import pytest
import tiny_models

from dgh_tf.models.tflite.run import read_graph
from tflite_export import ConversionError, Runner, check_integer, to_float_tflite
from tflite_export.algorithms.block_reconstruction import learn_rounding
from tflite_export.algorithms.distillation.distill import distill
from tflite_export.algorithms.distillation.to_tf_keras import to_tf_keras
from tflite_export.simulation.fake_quant import integer_constants
from tflite_export.simulation.ranges import collect_ranges
from tflite_export.tflite.edit import integer_weights

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_bad_requests_are_refused_before_any_process_starts():
    model, images = tiny_models.softmax_head(), tiny_models.images(4)
    with pytest.raises(ValueError, match="no scheme 'int16x8'"):
        distill(model, images, scheme="int16x8")
    with pytest.raises(ValueError, match="steps >= 0"):
        distill(model, images, steps=-1)
    with pytest.raises(ValueError, match="subclassed"):
        distill(tiny_models.subclassed(), {"input": images})


@pytest.mark.slow
@pytest.mark.parametrize("scheme, dtype", [("int8", "INT8"), ("w4a8", "INT4")])
def test_training_without_labels_brings_the_file_closer_to_float(scheme, dtype):
    """Squared error of the outputs on unseen images, trained against untrained (steps=0: ranges and
    clipping alone).
    """
    model, images, unseen = (
        tiny_models.conv_bn_relu(),
        tiny_models.images(64),
        tiny_models.images(64, seed=9),
    )
    reference, errors = np.asarray(model(unseen, training=False)), []
    for steps in (0, 200):
        tflite = distill(model, images, scheme=scheme, steps=steps)
        assert check_integer(tflite, io_dtype="int8")["tensor_dtypes"][dtype] >= 5
        errors.append(np.mean(np.square(Runner(tflite).predict(unseen) - reference)))
    assert errors[0] < 0.5 * np.var(reference)  # the untrained file answers already
    assert errors[1] < (0.7 if scheme == "w4a8" else 1.5) * errors[0]


@pytest.mark.slow
def test_outputs_keep_their_names_and_the_seed_decides():
    model, images, lines = tiny_models.two_heads(), tiny_models.images(16), []
    files = [
        distill(model, images, scheme="w4a8", steps=5, seed=seed, say=lines.append)
        for seed in (0, 0, 1)
    ]
    assert files[0] == files[1] != files[2]
    assert set(Runner(files[0]).outputs) == {"boxes", "classes"}
    assert any("step 5/5" in line for line in lines)


@pytest.mark.slow
def test_four_bits_start_from_learned_roundings():
    """Without training the file holds reconstruction's integers, not the nearest ones; the dense
    layer, with one scale, has its own.
    """
    model, images = tiny_models.conv_bn_relu(), tiny_models.images(16)
    folded = to_tf_keras(model, fold_batchnorm=True, split_heads=True)
    graph = read_graph(to_float_tflite(folded, images=images))
    feeds = {graph.input_names[0]: images}
    ranges = collect_ranges(graph, feeds, rule="mse")
    found = learn_rounding(graph, feeds, ranges=ranges, weight_bits=4, narrow=True)
    nearest, moved = integer_constants(graph, weight_bits=4, rule="mse"), 0
    in_file = [
        integers for integers, _ in integer_weights(distill(model, images, steps=0)).values()
    ]
    wanted = {o.inputs[1] for o in graph.operators if o.kind in ("CONV_2D", "DEPTHWISE_CONV_2D")}
    for i in wanted:
        assert any(np.array_equal(found.weights[i][0], integers) for integers in in_file), (
            graph.tensors[i].name
        )
        moved += np.sum(found.weights[i][0] != nearest[i][0])
    assert moved > 0 and len(wanted) == 4 and len(in_file) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "error", "told"),
    [
        (
            "learn_rounding",
            ValueError("no kernel for this operator"),
            "no kernel for this operator",
        ),
        ("collect_ranges", RuntimeError("internals"), "it ends in RuntimeError"),
    ],
)
def test_where_roundings_cannot_be_learned_distillation_says_so_and_starts_from_the_nearest(
    monkeypatch, step, error, told
):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(f"tflite_export.algorithms.block_reconstruction.{step}", refuse)
    lines = []
    made = distill(tiny_models.conv_bn_relu(), tiny_models.images(16), steps=1, say=lines.append)
    assert "INT4" in check_integer(made, io_dtype="int8")["tensor_dtypes"]
    assert f"from rounding to nearest: {told}" in lines[0]


@pytest.mark.slow
def test_the_command_judges_the_file_though_its_tensors_have_other_names(tmp_path):
    tiny_models.softmax_head().save(tmp_path / "m.keras")
    np.save(tmp_path / "x.npy", tiny_models.images(16))
    code, out, err = commands.call(
        "tflite_export.convert",
        f"--model={tmp_path / 'm.keras'}",
        f"--calibration={tmp_path / 'x.npy'}",
        f"--output={tmp_path / 'm.tflite'}",
        "--algorithm=distillation",
        "--scheme=int8",
    )
    assert code == 0 and err == "", err
    layers = json.loads((tmp_path / "m.json").read_text())["verdict"]["layers"]
    assert {row["operator"] for row in layers} == {"INPUT", "FULLY_CONNECTED", "SOFTMAX"}


@pytest.mark.slow
def test_a_worker_that_takes_too_long_is_stopped():
    with pytest.raises(ConversionError, match="took more than 1 s"):
        distill(tiny_models.conv_bn_relu(), tiny_models.images(16), steps=5, timeout=1.0)


@pytest.mark.slow
def test_quantizers_have_a_range_per_channel_where_tflite_has_one():
    """In a process of its own, as importing TFMOT turns tf.keras to Keras 2."""
    code = """
import tensorflow_model_optimization, numpy as np, tf_keras
from tflite_export.algorithms.distillation import quantizers as own
x = inputs = tf_keras.Input((8, 8, 3))
x = tf_keras.layers.Conv2D(6, 3, name='conv')(x)
x = tf_keras.layers.ReLU()(x)
x = tf_keras.layers.DepthwiseConv2D(3, name='depthwise')(x)
model = tf_keras.Model(inputs, x)
config = own.config_for(model.get_layer('depthwise'), weight_bits=4)
(kernel, quantizer), = config.get_weights_and_quantizers(model.get_layer('depthwise'))
four = own.config_for(model.get_layer('conv'), weight_bits=4)
print(quantizer.flat_shape(kernel.shape), quantizer.num_bits, config.output, four.output)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
    )
    # six channels, four bits; the convolution's own output is not quantized, since ReLU follows in
    # the same operator
    assert done.stdout.strip().endswith("[1, 1, -1, 6] 4 True False"), done.stderr[-1000:]
