"""dgh_tf.network and dgh_tf.heads: what a traced model shows, against Keras' own sub-models and
hand-written graphs.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tiny_models as tiny

from dgh_tf.models.hooks import record_calls
from dgh_tf.models.network import Network


def tapped(network: Network, arrays: list[np.ndarray]):
    """Values of one traced pass: BN inputs [(layer index, array)], logits by head name, last BN
    layer by head name.
    """
    structure = {}

    def run(*inputs):
        result = network.forward(list(inputs))
        structure["calls"] = [index for index, _ in result.calls]
        structure["last"] = {
            h.name: None if h.last_call is None else result.calls[h.last_call][0]
            for h in result.heads
        }
        return [x for _, x in result.calls], {h.name: h.logits for h in result.heads}

    inputs, logits = tf.function(run, autograph=False)(*map(tf.constant, arrays))
    calls = list(zip(structure["calls"], (x.numpy() for x in inputs), strict=True))
    return calls, {name: value.numpy() for name, value in logits.items()}, structure["last"]


@pytest.mark.parametrize("build", [tiny.conv_bn_relu, tiny.shared_bn, tiny.nested_backbone])
def test_the_surveyed_graph_gives_the_inputs_of_the_bn_layers_as_a_pass_does(build):
    network = Network(build())
    x = tf.constant(tiny.images(3, shape=network.input_shapes[0]))
    surveyed = tf.function(lambda x: [y for _, y in network.normalized([x])], autograph=False)(x)
    passed, *_ = tapped(network, [x.numpy()])
    assert len(surveyed) == len(passed) > 0
    for found, (_, expected) in zip(surveyed, passed, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_bn_layer_within_a_function_of_its_own_is_passed_instead():
    """What a function in the graph computes cannot be taken out of it."""
    network = Network(tiny.conv_bn_relu())
    network._norm_calls = None
    x = tf.constant(tiny.images(3))
    given = tf.function(lambda x: [y for _, y in network.normalized([x])], autograph=False)(x)
    passed, *_ = tapped(network, [x.numpy()])
    for found, (_, expected) in zip(given, passed, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_statistics_and_inputs_of_every_bn_layer_equal_those_of_a_keras_submodel():
    model, x = tiny.conv_bn_relu(), tiny.images(4)
    network = Network(model)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    expected = keras.Model(model.input, [layer.input for layer in norms])(x)
    calls, _, _ = tapped(network, [x])
    assert [index for index, _ in calls] == [0, 1, 2, 3]
    for (index, value), layer, wanted in zip(calls, norms, expected, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-5)
        np.testing.assert_array_equal(network.layers[index].mean, layer.get_weights()[2])
        np.testing.assert_array_equal(network.layers[index].variance, layer.get_weights()[3])


def test_shared_layer_gives_every_call():
    model, x = tiny.shared_bn(), tiny.images(2)
    stem, conv, bn = model.layers[1], model.layers[2], model.get_layer("shared")
    first = conv(stem(x))
    second = conv(tf.nn.relu(bn(first, training=False)))
    calls, _, _ = tapped(Network(model), [x])
    assert [index for index, _ in calls] == [0, 0]
    np.testing.assert_allclose(calls[0][1], first, atol=1e-5)
    np.testing.assert_allclose(calls[1][1], second, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (tiny.nested_backbone, 3),
        (tiny.subclassed, 2),
        (tiny.sequential, 2),
        (lambda: tiny.subclassed(keras=tf_keras), 2),
        (tiny.batchnorm_variants, 6),
        (tiny.one_dimensional, 2),
        (tiny.vector, 2),
    ],
)
def test_every_bn_layer_is_found(build, layers):
    assert len(Network(build()).layers) == layers


def test_axis_of_a_bn_layer_is_counted_from_the_front():
    assert [bn.axis for bn in Network(tiny.batchnorm_variants()).layers] == [1, 3, 3, 3, 3, 3]


def test_softmax_is_stripped_to_its_logits():
    model, x = tiny.softmax_head(), tiny.images(3)
    _, logits, _ = tapped(Network(model), [x])
    exponentials = np.exp(np.float64(logits["output"]))
    np.testing.assert_allclose(
        exponentials / exponentials.sum(1, keepdims=True), model(x), atol=1e-6
    )


def test_sigmoid_is_stripped_per_head_and_each_head_has_its_own_last_bn():
    model, x = tiny.two_heads(), tiny.images(3)
    network = Network(model)
    _, logits, last = tapped(network, [x])
    outputs = model(x)
    np.testing.assert_allclose(
        1 / (1 + np.exp(-np.float64(logits["classes"]))), outputs["classes"], atol=1e-6
    )
    np.testing.assert_allclose(logits["boxes"], outputs["boxes"], atol=1e-5)
    assert network.layers[last["boxes"]].mean.shape == (
        8,
    )  # the block before `boxes` has 8 filters, the other 12
    assert network.layers[last["classes"]].mean.shape == (12,)


def test_heads_are_found_behind_slices_of_joined_levels():
    model, x = tiny.sliced_detector(), tiny.images(2)
    network = Network(model)
    _, logits, last = tapped(network, [x])
    assert {name: value.shape for name, value in logits.items()} == {
        "boxes_0": (2, 8, 8, 4),
        "boxes_1": (2, 4, 4, 4),
        "classes_0": (2, 8, 8, 3),
        "classes_1": (2, 4, 4, 3),
    }
    joined = np.concatenate([logits[f"classes_{i}"].reshape(2, -1, 3) for i in range(2)], axis=1)
    np.testing.assert_allclose(
        1 / (1 + np.exp(-np.float64(joined))), model(x)["classes"], atol=1e-6
    )
    assert [len(network.layers[last[name]].mean) for name in sorted(last)] == [6, 6, 7, 7]


def test_slice_across_two_parts_takes_a_piece_of_each():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.BatchNormalization()(inputs)
    a, b = keras.layers.Conv2D(4, 1)(x), keras.layers.Conv2D(5, 1, activation="sigmoid")(x)
    model = tiny.settle(keras.Model(inputs, keras.layers.Concatenate()([a, b])[..., 3:6]))
    x = tiny.images(2, shape=(8, 8, 3))
    _, logits, _ = tapped(Network(model), [x])
    expected = model(x).numpy()
    np.testing.assert_allclose(logits["output_0"], expected[..., :1], atol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits["output_1"])), expected[..., 1:], atol=1e-6)


def test_raw_heads_and_silu_stay_as_they_are():
    model, x = tiny.silu_detector(), tiny.images(2, shape=(32, 32, 3))
    _, logits, last = tapped(Network(model), [x])
    for name, value in zip(["output_0", "output_1", "output_2"], model(x), strict=True):
        np.testing.assert_allclose(logits[name], value, atol=1e-5)
    assert len(set(last.values())) == 3
    inputs = keras.Input((8, 8, 3))
    ends_in_silu = tiny.settle(
        keras.Model(
            inputs, keras.layers.Activation("silu")(keras.layers.BatchNormalization()(inputs))
        )
    )
    x = tiny.images(2, shape=(8, 8, 3))
    np.testing.assert_allclose(
        tapped(Network(ends_in_silu), [x])[1]["output"], ends_in_silu(x), atol=1e-6
    )


def test_inputs_keep_the_model_s_order_and_dicts_are_taken():
    network = Network(tiny.two_inputs())
    assert (network.input_names, network.input_shapes) == (
        ["right", "left"],
        [(8, 8, 1), (16, 16, 3)],
    )
    left, right = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 1), name="right")
    joined = keras.layers.BatchNormalization()(keras.layers.Concatenate()([left, right]))
    model = tiny.settle(keras.Model({"right": right, "left": left}, joined))
    network = Network(model)
    arrays = [tiny.images(2, shape=shape) for shape in network.input_shapes]
    calls, _, _ = tapped(network, arrays)
    by_name = dict(zip(network.input_names, arrays, strict=True))
    np.testing.assert_allclose(
        calls[0][1], np.concatenate([by_name["left"], by_name["right"]], axis=-1)
    )


@pytest.mark.parametrize("build", [tiny.nested_backbone, tiny.two_inputs, tiny.two_heads])
def test_a_tf_keras_model_shows_the_same_as_its_keras3_twin(build):
    twins = [Network(build(keras=module)) for module in (tf_keras, keras)]
    arrays = [tiny.images(2, shape=shape) for shape in twins[0].input_shapes]
    (calls, logits, _), (wanted, wanted_logits, _) = (tapped(network, arrays) for network in twins)
    for (index, a), (wanted_index, b) in zip(calls, wanted, strict=True):
        assert index == wanted_index
        np.testing.assert_allclose(a, b, atol=1e-4)
    for name, value in logits.items():
        np.testing.assert_allclose(value, wanted_logits[name], atol=1e-4)


def test_open_size_asks_for_image_size_and_takes_it():
    with pytest.raises(ValueError, match="image_size=HEIGHT,WIDTH"):
        Network(tiny.dynamic_size())
    assert Network(tiny.dynamic_size(), image_size=(24, 16)).input_shapes == [(24, 16, 3)]
    with pytest.raises(ValueError, match="fixed shape"):
        Network(tiny.conv_bn_relu(), image_size=(24, 16))


def test_parts_without_statistics_are_named():
    assert sorted(Network(tiny.partly_normalized()).unmatched) == ["head_a", "head_b", "without_bn"]


def test_calls_are_put_back_also_after_an_error_and_also_the_user_s_own():
    model = tiny.conv_bn_relu()
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]

    def mine(x, training=False):
        return x

    object.__setattr__(norms[0], "call", mine)
    with pytest.raises(RuntimeError), record_calls(norms):
        raise RuntimeError
    assert norms[0].__dict__["call"] is mine
    assert all("call" not in layer.__dict__ for layer in norms[1:])


def broken(values: dict[int, float], *, layer: int = 0):
    """conv_bn_relu with weights of one BN layer (0 gamma, 1 beta, 2 mean, 3 variance) filled with a
    value.
    """
    model = tiny.conv_bn_relu()
    bn = [item for item in model.layers if isinstance(item, keras.layers.BatchNormalization)][layer]
    bn.set_weights(
        [
            np.full_like(w, values.get(i, 0)) if i in values else w
            for i, w in enumerate(bn.get_weights())
        ]
    )
    return model


def broken_kernel():
    model = tiny.conv_bn_relu()
    model.get_layer("logits").kernel.assign(np.full((16, 5), np.nan))
    return model


def plain(*middle):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    for layer in middle:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x)))


def token_ids():
    inputs = keras.Input((8,), dtype="int32")
    return tiny.settle(
        keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Embedding(5, 3)(inputs)))
    )


@pytest.mark.parametrize(
    ("build", "found", "advice"),
    [
        (lambda: broken({3: np.nan}), "not finite", "train again"),
        (lambda: broken({2: np.inf}, layer=2), "not finite", "train again"),
        (broken_kernel, "logits/kernel.*not finite", "train again"),
        (lambda: broken({3: 0.0}), "zero or below", "trained or converted"),
        (
            lambda: keras.Sequential(
                [keras.layers.Conv2D(3, 3), keras.layers.BatchNormalization()]
            ),
            "never called or built",
            "Input layer",
        ),
        (token_ids, "int32", "behind that input"),
    ],
)
def test_models_that_cannot_work_are_refused_with_what_to_do(build, found, advice):
    with pytest.raises(ValueError, match=found) as caught:
        Network(build())
    assert advice in str(caught.value)


def test_output_that_does_not_depend_on_the_input_is_refused():
    class Constant(keras.Model):
        def __init__(self):
            super().__init__()
            self.bn = keras.layers.BatchNormalization()

        def call(self, x, training=False):
            return {"real": self.bn(x, training=training), "fixed": tf.ones((1, 3))}

    model = Constant()
    model(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="'fixed'.*does not depend on its input"):
        Network(tiny.settle(model))


def test_output_whose_every_path_is_dead_is_refused():
    model = tiny.conv_bn_relu()
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([0 * kernel, bias])
    with pytest.raises(ValueError, match="'output'.*does not depend on its input.*dead"):
        Network(model)


def test_channels_first_is_seen_as_the_image_that_it_is():
    model = tiny.channels_first()
    network = Network(model)
    assert (network.channels_first, network.input_shapes) == ([True], [(16, 20, 3)])
    x = tiny.images(2, shape=(16, 20, 3))
    _, logits, _ = tapped(network, [x])
    np.testing.assert_allclose(logits["output"], model(x.transpose(0, 3, 1, 2)), atol=1e-5)
    np.testing.assert_array_equal(network.own_layout([x])[0], x.transpose(0, 3, 1, 2))
    # a map of many channels, one too small for an image, and rows of many channels stay as they are
    for shape in ((16, 16, 6), (3, 49, 10), (6, 16, 16), (3, 20, 20)):
        assert Network(tiny.conv_bn_relu(shape=shape)).channels_first == [False]


def test_convolutions_with_channels_first_are_seen_where_the_device_runs_them():
    """Refused where it does not: tests/test_refusals.py."""
    model, x = tiny.channels_first_convolution(), tiny.images(2, shape=(16, 16, 3))
    try:
        expected = model(x.transpose(0, 3, 1, 2))
    except tf.errors.UnimplementedError:
        pytest.skip("neither a GPU nor a CPU whose oneDNN has convolutions with channels first")
    network = Network(model)
    assert network.channels_first == [True]
    np.testing.assert_allclose(next(iter(tapped(network, [x])[1].values())), expected, atol=1e-5)


@pytest.mark.parametrize("form", ["list", "dict"])
@pytest.mark.parametrize("module", ["keras", "tf_keras"])
def test_subclassed_models_take_several_inputs_as_they_were_called(module, form):
    import importlib

    library = importlib.import_module(module)

    class Joined(library.Model):
        def __init__(self):
            super().__init__(name="joined")
            self.bn, self.dense = library.layers.BatchNormalization(), library.layers.Dense(2)

        def call(self, inputs, training=False):
            left, right = (inputs["left"], inputs["right"]) if isinstance(inputs, dict) else inputs
            return self.dense(self.bn(left, training=training) + 2 * right)

    model, arrays = Joined(), [np.float32([[1, 2, 3]]), np.float32([[4, 5, 6]])]
    given = dict(zip(("left", "right"), arrays, strict=True)) if form == "dict" else arrays
    model(given)
    network = Network(tiny.settle(model))
    assert network.input_names == (["left", "right"] if form == "dict" else ["input_0", "input_1"])
    _, logits, _ = tapped(network, arrays)
    np.testing.assert_allclose(logits["output"], model(given), atol=1e-6)
