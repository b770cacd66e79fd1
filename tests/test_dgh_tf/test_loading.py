"""dgh_tf.loading and dgh_tf.keras2: every kind of model file, against the model that was saved;
refusals that teach.
"""

from __future__ import annotations

import hashlib
import pathlib
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_models as tiny

from dgh_tf.models.keras2 import as_keras3
from dgh_tf.models.loading import load_model, model_path, model_sha256
from dgh_tf.models.network import Network


def outputs(model, arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [
        np.asarray(y)
        for y in tf.nest.flatten(model(arrays if len(arrays) > 1 else arrays[0], training=False))
    ]


def require_equal(loaded, saved, *, tolerance: float = 1e-5) -> None:
    assert isinstance(loaded, keras.Model)
    arrays = [tiny.images(2, shape=tuple(t.shape[1:])) for t in saved.inputs]
    for a, b in zip(outputs(loaded, arrays), outputs(saved, arrays), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * max(1.0, np.abs(b).max()))


def old_parts(*, keras):
    """Layers whose Keras 2 configs carry arguments that Keras 3 has dropped."""
    layers = keras.layers
    x = inputs = keras.Input((16, 16, 3))
    x = layers.experimental.SyncBatchNormalization()(
        layers.SeparableConv2D(8, 3, use_bias=False)(x)
    )
    x = layers.BatchNormalization(scale=False, center=False)(
        layers.Conv2DTranspose(6, 3, strides=2)(layers.LeakyReLU(0.1)(x))
    )
    return tiny.settle(
        keras.Model(
            inputs, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
        )
    )


def frozen_backbone(*, keras):
    model = tiny.nested_backbone(keras=keras)
    model.get_layer("backbone").trainable = False
    return model


def sequential(*, keras):
    layers = keras.layers
    return tiny.settle(
        keras.Sequential(
            [
                layers.InputLayer((16, 16, 3)),
                layers.Conv2D(8, 3),
                layers.BatchNormalization(),
                layers.ReLU(6.0),
                layers.Flatten(),
                layers.Dense(3),
            ]
        )
    )


def lambda_layer(*, keras):
    layers = keras.layers
    inputs = keras.Input((16, 16, 3))
    x = layers.Lambda(lambda x: 2.0 * x, output_shape=(16, 16, 4))(
        layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(inputs))
    )
    return tiny.settle(keras.Model(inputs, layers.Conv2D(2, 3, padding="same")(x)))


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(
    "build", [tiny.softmax_head, tiny.nested_backbone, tiny.two_inputs, tiny.sequential]
)
def test_keras3_files_load(tmp_path, build, suffix):
    model = build()
    path = tmp_path / f"model{suffix}"
    model.save(path)
    require_equal(load_model(str(path)), model)


KEPT = [
    (tiny.conv_bn_relu, 4),
    (tiny.nested_backbone, 3),
    (frozen_backbone, 3),
    (tiny.two_inputs, 3),
    (tiny.two_heads, 3),
    (tiny.shared_bn, 1),
    (old_parts, 2),
    (sequential, 1),
]


@pytest.mark.parametrize(
    ("build", "layers", "form"),
    [
        *((build, layers, form) for build, layers in KEPT for form in (".keras", ".h5")),
        *(
            (build, layers, "SavedModel")
            for build, layers in KEPT
            if build in (frozen_backbone, tiny.two_inputs, old_parts)
        ),
    ],
)
def test_keras2_models_load_with_equal_outputs_and_all_their_bn_layers(
    tmp_path, build, layers, form
):
    import tf_keras

    model = build(keras=tf_keras)
    path = tmp_path / (f"model{form}" if form != "SavedModel" else "model")
    model.save(path, **({"save_format": "tf"} if form == "SavedModel" else {}))
    loaded = load_model(str(path))
    require_equal(loaded, model)
    assert len(Network(loaded).layers) == layers


def test_keras2_config_of_a_nested_model_by_hand():
    config = {
        "class_name": "Functional",
        "config": {
            "layers": [
                {"class_name": "InputLayer", "config": {"name": "a"}, "inbound_nodes": []},
                {
                    "class_name": "Sequential",
                    "config": {"name": "inner", "layers": []},
                    "inbound_nodes": [[["a", 0, 0, {}]]],
                },
                {
                    "class_name": "DepthwiseConv2D",
                    "config": {"name": "d", "groups": 1},
                    "inbound_nodes": [[["inner", 1, 0, {}]]],
                },
            ],
            "output_layers": [["inner", 2, 0]],
        },
    }
    changed = as_keras3(config)["config"]
    assert changed["layers"][1]["inbound_nodes"] == [[["a", 0, 0, {}]]]
    assert changed["layers"][2] == {
        "class_name": "DepthwiseConv2D",
        "config": {"name": "d"},
        "inbound_nodes": [[["inner", 0, 0, {}]]],
    }
    assert changed["output_layers"] == ["inner", 1, 0]  # one tensor, not a list of one
    assert config["config"]["output_layers"] == [["inner", 2, 0]]  # the given config stays


@pytest.mark.parametrize(
    ("name", "layers", "shape"),
    [
        pytest.param("vww_mobilenetv1_025_keras2.h5", 27, (96, 96, 3), marks=pytest.mark.slow),
        pytest.param("kws_dscnn_tfkeras.h5", 9, (49, 10, 1), marks=pytest.mark.slow),
        ("resnet8_cifar10_keras2.h5", 7, (32, 32, 3)),
    ],
)
def test_published_keras2_models_load(shared_data, name, layers, shape):
    import tf_keras

    try:
        expected = tf_keras.models.load_model(shared_data / name, compile=False)
    except TypeError as error:
        pytest.skip(f"saved by a newer tf_keras than {tf_keras.__version__}: {str(error)[-60:]}")
    loaded = load_model(str(shared_data / name))
    require_equal(loaded, expected)
    network = Network(loaded)
    assert (len(network.layers), network.input_shapes) == (layers, [shape])


def test_demo_detector_is_a_keras_cv_model_with_heads_per_level():
    network = Network(load_model("demo_detector"))
    heads = []
    tf.function(
        lambda x: heads.extend(
            (h.name, h.logits.shape[1], h.logits.shape[3]) for h in network.forward([x]).heads
        ),
        autograph=False,
    ).get_concrete_function(tf.TensorSpec((None, *network.input_shapes[0])))
    assert heads == [
        (f"{kind}_{i}", side, channels)
        for kind, channels in (("boxes", 64), ("classes", 10))
        for i, side in enumerate((12, 6, 3))
    ]  # 96 pixels at strides 8, 16, 32


def test_random_weights_of_an_application_are_usable_and_the_same_each_time():
    first, second = (load_model("keras:MobileNet", weights="none") for _ in range(2))
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    network = Network(first)
    assert len(network.layers) == 27
    assert all(bn.layer.momentum == 0.99 for bn in network.layers)
    assert (
        min(float(bn.variance.min()) for bn in network.layers) > 0.0
        and np.isfinite(network.layers[-1].variance).all()
    )


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_lambda_needs_the_user_s_word(tmp_path, suffix):
    import tf_keras

    for module in (keras, tf_keras):
        model = lambda_layer(keras=module)
        path = tmp_path / f"{module.__name__}{suffix}"
        model.save(path)
        with pytest.raises(ValueError, match="allow_unsafe_deserialization=True"):
            load_model(str(path))
        require_equal(load_model(str(path), allow_unsafe_deserialization=True), model)


def test_keras2_savedmodel_with_a_lambda_is_refused_before_it_is_read(tmp_path):
    import tf_keras

    lambda_layer(keras=tf_keras).save(tmp_path / "model", save_format="tf")
    with pytest.raises(ValueError, match="Lambda.*allow_unsafe_deserialization=True"):
        load_model(str(tmp_path / "model"))


def test_tensorflow_functions_that_are_not_on_the_list_are_refused(tmp_path):
    import tf_keras

    inputs = tf_keras.Input((8, 8, 3))
    model = tf_keras.Model(
        inputs, tf.signal.fft(tf.cast(tf_keras.layers.BatchNormalization()(inputs), tf.complex64))
    )
    model.save(tmp_path / "model.h5")
    with pytest.raises(ValueError, match="TFOpLambda of tf.signal.fft.*Build the model in Keras 3"):
        load_model(str(tmp_path / "model.h5"))


def test_subclassed_files_point_to_the_python_call(tmp_path):
    import tf_keras

    tiny.subclassed().save(tmp_path / "three.keras")
    tiny.subclassed(keras=tf_keras).save(tmp_path / "two", save_format="tf")
    for name in ("three.keras", "two"):
        with pytest.raises(ValueError, match="Subclassed.*dgh_tf.generate_images"):
            load_model(str(tmp_path / name))


def test_exported_graph_is_refused(tmp_path):
    tiny.conv_bn_relu().export(tmp_path / "model", verbose=False)
    with pytest.raises(ValueError, match="keras_metadata.pb.*it was exported from"):
        load_model(str(tmp_path / "model"))


def write(path: pathlib.Path, data: bytes) -> pathlib.Path:
    path.write_bytes(data)
    return path


def test_files_that_are_no_model_are_refused_with_what_they_are(tmp_path):
    tiny.conv_bn_relu().save(tmp_path / "whole.keras")
    data = (tmp_path / "whole.keras").read_bytes()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.writestr("config.json", "{}")
    (tmp_path / "empty").mkdir()
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(
        tmp_path / "only.weights.h5"
    )
    cases = [
        (write(tmp_path / "text.keras", b"no model"), "neither a .keras archive nor an HDF5"),
        (write(tmp_path / "m.tflite", b"\x1c\0\0\0TFL3" + bytes(64)), "damaged TFLite model"),
        (write(tmp_path / "cut.keras", data[: len(data) // 2]), "damaged|Keras could not load"),
        (
            write(tmp_path / "cut.h5", b"\x89HDF\r\n\x1a\n" + bytes(100)),
            "Keras could not load|damaged",
        ),
        (tmp_path / "only.weights.h5", "weights without a model|could not load"),
        (tmp_path / "other.zip", "without config.json"),
        (tmp_path / "weights.zip", "could not load"),
        (tmp_path / "empty", "without saved_model.pb"),
    ]
    for path, reason in cases:
        with pytest.raises(ValueError, match=reason):
            load_model(str(path))


def test_names_that_lead_nowhere_say_what_is_accepted():
    with pytest.raises(FileNotFoundError, match="demo_detector.*keras:NAME"):
        load_model("no/such/model.keras")
    with pytest.raises(ValueError, match="has no model 'MobilNet'.*MobileNetV2"):
        load_model("keras:MobilNet")
    with pytest.raises(ValueError, match="weights=coco: expected imagenet"):
        load_model("keras:MobileNet", weights="coco")


def test_hash_follows_content_and_weights(tmp_path):
    path = write(tmp_path / "model.keras", b"abc")
    assert model_sha256(str(path)) == hashlib.sha256(b"abc").hexdigest()
    assert model_sha256("keras:MobileNet") != model_sha256("keras:MobileNet", weights="none")
    assert model_path("demo_detector").name == "demo_detector.keras"


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16"])
def test_half_precision_models_are_loaded_in_float32_with_the_same_weights(policy, tmp_path):
    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        half = tiny.nested_backbone()
    finally:
        keras.config.set_dtype_policy(usual)
    half.save(tmp_path / "half.keras")
    model = load_model(str(tmp_path / "half.keras"))
    assert {layer.compute_dtype for layer in model._flatten_layers()} == {"float32"}
    for a, b in zip(half.get_weights(), model.get_weights(), strict=True):
        assert b.dtype == np.float32
        np.testing.assert_array_equal(a.astype(np.float32), b)
    x = tiny.images(4)
    gap = np.abs(np.float32(half(x, training=False)) - np.asarray(model(x, training=False))).max()
    assert gap < 0.1 * np.ptp(np.asarray(model(x, training=False)))  # bfloat16 holds 8 bits


def with_functions(kind: str):
    """A tf_keras model whose input is prepared, and whose features are gated and pooled, by
    TensorFlow functions.
    """
    import tf_keras

    inputs = tf_keras.Input((16, 16, 3))
    x = {
        "symmetric": tf_keras.applications.mobilenet_v2.preprocess_input,
        "caffe": tf_keras.applications.resnet.preprocess_input,
        "imagenet": tf_keras.applications.densenet.preprocess_input,
        "own": lambda x: 1.0 - 2.0 * (tf.cast(x, tf.float32) / 255.0),
        "slices": lambda x: tf.concat([x[..., 1:], x[:, :, :, :1]], axis=-1),
    }[kind](inputs)
    x = tf_keras.layers.BatchNormalization(name="block/bn")(
        tf_keras.layers.Conv2D(6, 3, name="block/conv")(x)
    )
    x = x + tf.nn.silu(x)
    x = x * (tf.nn.relu6(tf.reduce_mean(x, axis=[1, 2], keepdims=True) + 3.0) / 6.0)
    return tiny.settle(tf_keras.Model(inputs, tf_keras.layers.Dense(3)(tf.reduce_mean(x, [1, 2]))))


@pytest.mark.parametrize("kind", ["symmetric", "caffe", "imagenet", "own", "slices"])
def test_tensorflow_functions_and_slashed_names_of_keras2_give_the_same_outputs(kind, tmp_path):
    saved = with_functions(kind)
    saved.save(tmp_path / "model.h5")
    loaded = load_model(str(tmp_path / "model.h5"))
    x = tiny.images(3, low=0.0, high=255.0)
    np.testing.assert_allclose(
        np.asarray(loaded(x)), np.asarray(saved(x)), rtol=1e-3, atol=1e-3 * np.abs(saved(x)).max()
    )
    loaded.save(tmp_path / "again.keras")  # the layer's config is whole
    assert len(Network(loaded).layers) == 1


def keras2_transfer(kind: str):
    """What Keras 2 scripts save: augmentation and a nested backbone, a recurrent head, half
    precision.
    """
    import tf_keras

    layers = tf_keras.layers
    if kind == "half":
        tf_keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        backbone = tiny.nested_backbone(keras=tf_keras)
        inputs = tf_keras.Input((16, 16, 3))
        x = backbone(layers.RandomRotation(0.2)(layers.RandomFlip("horizontal")(inputs)))
        if kind == "sequential":
            parts = [
                tf_keras.Input((16, 16, 3)),
                layers.RandomFlip(),
                backbone,
                layers.BatchNormalization(),
                layers.Dense(2),
            ]
            return tiny.settle(tf_keras.Sequential(parts))
        if kind == "recurrent":
            x = layers.Bidirectional(layers.GRU(4))(layers.Reshape((5, 1))(x))
        return tiny.settle(tf_keras.Model(inputs, layers.Dense(2, dtype="float32")(x)))
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("kind", ["augmented", "sequential", "recurrent", "half"])
def test_what_keras2_scripts_save_gives_the_same_outputs(kind, tmp_path):
    saved = keras2_transfer(kind)
    saved.save(tmp_path / "model.h5")
    loaded = load_model(str(tmp_path / "model.h5"))
    x = tiny.images(3)
    expected = np.asarray(saved(x, training=False))
    np.testing.assert_allclose(
        np.asarray(loaded(x)),
        expected,
        atol=(0.05 if kind == "half" else 1e-4) * np.abs(expected).max(),
    )
    assert len(Network(loaded).layers) == 3 + (kind == "sequential")
    assert {layer.compute_dtype for layer in loaded._flatten_layers()} == {"float32"}


def keras2_of_another_kind(kind: str):
    """Keras 2 models that reach the loader in other ways: built late, wrapped, compiled by hand."""
    import tf_keras

    layers = tf_keras.layers
    if kind == "built late":
        parts = [
            layers.Conv2D(4, 3),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(2),
        ]
        model = tf_keras.Sequential(parts)
        model.build((None, 16, 16, 3))
    elif kind == "compiled":
        model = tiny.nested_backbone(keras=tf_keras)
        model.compile("adam", loss=lambda truth, found: tf.reduce_mean(truth - found))
    else:
        inputs = layers.Input((4, 8, 8, 3))
        x = layers.TimeDistributed(layers.BatchNormalization())(
            layers.TimeDistributed(layers.Conv2D(3, 3))(inputs)
        )
        x = layers.RNN([layers.GRUCell(3), layers.LSTMCell(2)])(
            layers.TimeDistributed(layers.Flatten())(x)
        )
        model = tf_keras.Model(inputs, layers.Dense(2, activation=layers.LeakyReLU(0.3))(x))
    return tiny.settle(model)


@pytest.mark.parametrize("form", ["keras", "h5", "tf"])
@pytest.mark.parametrize("kind", ["built late", "compiled", "wrapped", "own"])
def test_every_form_of_a_keras2_model_gives_the_same_outputs(kind, form, tmp_path):
    saved = with_functions(kind) if kind == "own" else keras2_of_another_kind(kind)
    path = tmp_path / "model.keras"  # before Keras 2.12 HDF5 had this ending too
    saved.save(path, save_format=form)
    x = tiny.images(2, shape=tuple(saved.input_shape[1:]))
    expected = np.asarray(saved(x, training=False))
    np.testing.assert_allclose(
        np.asarray(load_model(str(path))(x)), expected, atol=1e-5 * max(1.0, np.abs(expected).max())
    )


def test_a_keras_3_file_loads_without_importing_keras_2(monkeypatch):
    """Its import takes a quarter of a second, and who registers a class with it has imported it."""
    monkeypatch.setitem(sys.modules, "tf_keras", None)  # an import would raise ImportError
    assert load_model("demo").name == "demo"
