"""A Keras 3 model rebuilt in tf_keras gives the same outputs; what cannot be rebuilt is named,
never approximated.
"""

import warnings

import numpy as np
import pytest
import tiny_models

from tflite_export.algorithms.distillation.to_tf_keras import LegacyError, to_tf_keras


def application(name, side=32):
    """An architecture of keras.applications at random weights, its BatchNorm statistics moved off
    (0, 1).
    """
    import keras

    options = (
        {"alpha": 0.25} if name == "MobileNet" else {"alpha": 0.35} if name == "MobileNetV2" else {}
    )
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(side, side, 3), classes=10, **options
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.set_weights(
                [
                    (w + rng.uniform(0.0, 0.2, w.shape)).astype(np.float32)
                    for w in layer.get_weights()
                ]
            )
    return model


def outputs(model, x):
    import tensorflow as tf

    return [np.asarray(value) for value in tf.nest.flatten(model(x, training=False))]


def assert_equal(model, rebuilt, x):
    """Both run the same float32 kernels; another order of sums leaves about 1e-6 of the largest
    output.
    """
    import tf_keras

    assert isinstance(rebuilt, tf_keras.Model)
    for want, got in zip(outputs(model, x), outputs(rebuilt, x), strict=True):
        assert np.ptp(want) > 0 and np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize(
    "name",
    [
        "conv_bn_relu",
        "two_heads",
        "nested_backbone",
        "shared_bn",
        "silu_detector",
        "batchnorm_variants",
        "one_dimensional",
        "sequential",
        "segmentation",
    ],
)
def test_rebuilt_models_give_equal_outputs(name):
    model = getattr(tiny_models, name)()
    rebuilt = to_tf_keras(model)
    assert_equal(model, rebuilt, tiny_models.images(4, shape=tuple(model.inputs[0].shape[1:])))


def test_several_inputs_keep_their_order():
    model = tiny_models.two_inputs()
    x = [tiny_models.images(4, shape=tuple(each.shape[1:])) for each in model.inputs]
    assert_equal(model, to_tf_keras(model), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["MobileNet", "MobileNetV2", "EfficientNetB0", "ResNet50", "DenseNet121"]
)
def test_architectures_of_keras_applications_give_equal_outputs(name):
    model = application(name)
    x = tiny_models.images(2, shape=(32, 32, 3), low=0.0, high=255.0)
    assert_equal(model, to_tf_keras(model), x)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["resnet8_cifar10", "kws_dscnn", "mobilenet_v1_025_224"])
def test_real_models_give_equal_outputs(file, shared_data):
    from dgh_tf.models.loading import load_model

    model = load_model(str(shared_data / f"{file}.keras"))
    assert_equal(
        model, to_tf_keras(model), tiny_models.images(2, shape=tuple(model.inputs[0].shape[1:]))
    )


def test_folding_leaves_no_batchnorm_and_the_same_function():
    model = tiny_models.conv_bn_relu()
    folded = to_tf_keras(model, fold_batchnorm=True)
    kinds = [type(layer).__name__ for layer in folded.layers]
    assert "BatchNormalization" not in kinds and "BatchNormalization" in [
        type(layer).__name__ for layer in model.layers
    ]
    assert_equal(model, folded, tiny_models.images(4))


def test_folding_leaves_what_others_read_too():
    """A layer called twice, and a convolution whose output two layers read, keep their
    BatchNorm.
    """
    model = tiny_models.shared_bn()
    folded = to_tf_keras(model, fold_batchnorm=True)
    assert "BatchNormalization" in [type(layer).__name__ for layer in folded.layers]
    assert_equal(model, folded, tiny_models.images(4))


def test_split_heads_show_the_logits():
    import tf_keras

    model = tiny_models.softmax_head()
    split = to_tf_keras(model, split_heads=True)
    assert type(split.layers[-1]).__name__ == "Softmax"
    logits = np.asarray(tf_keras.Model(split.inputs, split.layers[-1].input)(tiny_models.images(4)))
    exp = np.exp(np.float64(logits) - logits.max(1, keepdims=True))  # softmax in float64
    np.testing.assert_allclose(
        exp / exp.sum(1, keepdims=True), outputs(model, tiny_models.images(4))[0], rtol=1e-4
    )


def test_what_has_no_counterpart_is_refused_by_name():
    import keras

    inputs = keras.Input((8, 8, 3))
    operator = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs) * 2.0)
    with pytest.raises(LegacyError, match="operator used as a layer"):
        to_tf_keras(operator)
    own = keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1.0, name="mine")(inputs))
    with pytest.raises(LegacyError, match="'mine'"):
        to_tf_keras(own)
    with pytest.raises(LegacyError, match="subclassed"):
        to_tf_keras(tiny_models.subclassed())


def test_a_rebuilt_model_that_differs_is_refused(monkeypatch):
    """The comparison itself: with a tolerance below any rounding, an exact rebuild must fail."""
    from tflite_export.algorithms.distillation import to_tf_keras as legacy

    monkeypatch.setattr(legacy, "TOLERANCE", -1.0)
    with pytest.raises(LegacyError, match="differ by"):
        to_tf_keras(tiny_models.conv_bn_relu())


def test_a_list_of_one_input_is_compared_without_a_warning():
    """Models that Keras 2 saved are built so; Keras 3 warns when such a model is called on the bare
    tensor.
    """
    import keras

    inputs = keras.Input((8, 8, 3))
    model = tiny_models.settle(
        keras.Model([inputs], keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rebuilt = to_tf_keras(model)
    assert rebuilt.input_shape == (None, 8, 8, 3)
