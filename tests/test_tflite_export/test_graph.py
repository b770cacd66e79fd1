"""The graph runs as LiteRT runs it, at any batch, and its gradients are those of finite
differences.
"""

import numpy as np
import pytest
import tiny_models

from dgh_tf.models.loading import load_model
from dgh_tf.models.tflite.run import feeds_of, read_graph, run
from tflite_export import Runner, to_float_tflite


def outputs(graph, x, **options):
    made = run(graph, feeds_of(graph, x), **options)
    return [made[i].numpy() for i in graph.outputs]


def assert_like_litert(tflite, x):
    """Batch of 3 and batch of 1 against LiteRT image by image, to 1e-5 of the largest value."""
    graph = read_graph(tflite)
    wanted = Runner(tflite).predict(x)
    wanted = [wanted[n] for n in graph.output_names] if isinstance(wanted, dict) else [wanted]
    one = {k: v[:1] for k, v in x.items()} if isinstance(x, dict) else x[:1]
    for got, single, want in zip(outputs(graph, x), outputs(graph, one), wanted, strict=True):
        limit = 1e-5 * max(np.abs(want).max(), 1e-6)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=limit)
        np.testing.assert_allclose(single, want[:1], rtol=0, atol=limit)


@pytest.mark.parametrize(
    "name",
    [
        "softmax_head",
        "two_heads",
        "silu_detector",
        "sliced_detector",
        "batchnorm_variants",
        "segmentation",
        "nested_backbone",
    ],
)
def test_tiny_models_run_as_in_litert(name):
    model = getattr(tiny_models, name)()
    assert_like_litert(
        to_float_tflite(model), tiny_models.images(3, shape=model.inputs[0].shape[1:])
    )


@pytest.mark.parametrize("spec", [pytest.param("demo", marks=pytest.mark.slow), "demo_detector"])
def test_demos_run_as_in_litert(spec):
    model = load_model(spec)
    assert_like_litert(
        to_float_tflite(model), tiny_models.images(3, shape=model.inputs[0].shape[1:])
    )


@pytest.mark.parametrize(
    "file",
    [
        "resnet8_cifar10",
        pytest.param("mobilenet_v1_025_224", marks=pytest.mark.slow),
        pytest.param("kws_dscnn", marks=pytest.mark.slow),
    ],
)
def test_real_models_run_as_in_litert(file, shared_data):
    model = load_model(str(shared_data / f"{file}.keras"))
    assert_like_litert(
        to_float_tflite(model), tiny_models.images(3, shape=model.inputs[0].shape[1:])
    )


def test_a_span_of_operators_continues_what_another_began():
    graph, x = read_graph(to_float_tflite(tiny_models.two_heads())), tiny_models.images(2)
    middle = len(graph.operators) // 2
    first = run(graph, feeds_of(graph, x), operators=range(middle))
    second = run(graph, first, operators=range(middle, len(graph.operators)))
    made = {**first, **second}
    for index, want in zip(graph.outputs, outputs(graph, x), strict=True):
        np.testing.assert_array_equal(made[index].numpy(), want)


def test_observe_sees_inputs_and_activations_and_can_change_them():
    graph, x, seen = (
        read_graph(to_float_tflite(tiny_models.softmax_head())),
        tiny_models.images(2),
        {},
    )

    def record(index, value):
        seen[index] = value.shape
        return value * 0.0 if index in graph.inputs else value

    got = outputs(graph, x, observe=record)
    assert set(seen) == {*graph.inputs, *(i for o in graph.operators for i in o.outputs)}
    np.testing.assert_array_equal(got[0], outputs(graph, x * 0)[0])


def test_gradients_of_weights_equal_finite_differences():
    import tensorflow as tf

    graph, x = read_graph(to_float_tflite(tiny_models.softmax_head())), tiny_models.images(2)
    weights = [
        o.inputs[1]
        for o in graph.operators
        if o.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    ]
    out, rng = graph.outputs[0], np.random.default_rng(0)

    def loss(values):
        return tf.reduce_sum(run(graph, feeds_of(graph, x), constants=values)[out] ** 2)

    values = {i: tf.constant(graph.tensors[i].value) for i in weights}
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = loss(values)
    gradients = tape.gradient(total, values)
    for index in weights:
        way = rng.normal(size=values[index].shape).astype(np.float32)
        way *= 1e-2 * np.linalg.norm(values[index]) / np.linalg.norm(way)
        up, down = (float(loss({**values, index: values[index] + s * way})) for s in (1, -1))
        assert np.sum(gradients[index] * way) == pytest.approx((up - down) / 2, rel=0.05, abs=1e-5)


def test_an_unknown_operator_is_named_with_the_way_out():
    import keras

    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.ops.sin(inputs))
    with pytest.raises(ValueError, match=r"SIN.*--algorithm=minmax"):
        read_graph(to_float_tflite(model))


def test_wrong_input_names_are_refused():
    graph = read_graph(to_float_tflite(tiny_models.softmax_head()))
    with pytest.raises(ValueError, match="the model takes"):
        feeds_of(graph, {"nothing": tiny_models.images(1)})
