"""Operators that signals bring: what the converter leaves in floats, spoils or keeps apart."""

import keras
import numpy as np
import pytest
from measures import sqnr_db

from tflite_export.conversion import integer_forms
from tflite_export.conversion.converter import to_float_tflite, to_tflite
from tflite_export.tflite.integer_check import check_integer
from tflite_export.tflite.interpreter import Runner

ACTIVATIONS = ("elu", "selu", "celu", "softplus", "mish", "log_sigmoid", "relu")


def _expected(name, x):
    """In float64, as the papers define them."""
    x = np.float64(x)
    softplus = np.logaddexp(0.0, x)
    return {
        "elu": np.where(x > 0, x, np.expm1(x)),
        "selu": 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
        "celu": np.where(x > 0, x, np.expm1(x)),
        "softplus": softplus,
        "mish": x * np.tanh(softplus),
        "log_sigmoid": -np.logaddexp(0.0, -x),
        "relu": np.maximum(x, 0.0),
    }[name]


@pytest.fixture(scope="module")
def activations():
    """One input into every activation: what one does to its range must not touch the others."""
    inputs = keras.Input((12, 3), name="signal")
    outputs = {name: keras.layers.Activation(name)(inputs) for name in ACTIVATIONS}
    images = 2.5 * np.random.default_rng(0).standard_normal((64, 12, 3)).astype("float32")
    return keras.Model(inputs, outputs), images


def test_activations_keep_their_values_in_integers(activations):
    model, images = activations
    made = to_tflite(model, images)
    kinds = check_integer(made, io_dtype="int8")["operators"]
    assert kinds["ELU"] == 1  # elu and selu take the same
    assert "DEQUANTIZE" not in kinds
    got = Runner(made).predict(images)
    worst = {name: sqnr_db(_expected(name, images), got[name]) for name in ACTIVATIONS}
    # mish multiplies two rounded tensors; selu adds three
    assert min(worst.values()) > 30, worst


def test_activations_are_the_same_in_a_float_file(activations):
    model, images = activations
    got = Runner(to_float_tflite(model)).predict(images)
    for name in ACTIVATIONS:
        np.testing.assert_allclose(got[name], _expected(name, images), atol=2e-6, err_msg=name)


def test_bounds_keep_a_value_that_others_take():
    """Near, far and endless ones: a far bound must not give the value its own scale."""
    x = np.random.default_rng(0).standard_normal((32, 8, 3)).astype("float32")
    inputs = keras.Input((8, 3))
    bounds = {
        "lowest": (np.maximum, keras.ops.maximum, (-0.4, -300.0, -1e9)),
        "highest": (np.minimum, keras.ops.minimum, (0.0, 0.3, 300.0, 1e9, np.inf)),
    }
    outputs, expected = {"itself": inputs * 2.0}, {"itself": 2.0 * np.float64(x)}
    for kind, (in_numpy, in_keras, values) in bounds.items():
        for i, bound in enumerate(values):
            outputs[f"{kind}_{i}"] = in_keras(inputs, bound)
            expected[f"{kind}_{i}"] = in_numpy(np.float64(x), bound)
    model = keras.Model(inputs, outputs)
    in_floats = Runner(to_float_tflite(model)).predict(x)
    made = to_tflite(model, x)
    check_integer(made, io_dtype="int8")
    in_integers = Runner(made).predict(x)
    for name, wanted in expected.items():
        np.testing.assert_allclose(in_floats[name], wanted, atol=1e-6, err_msg=name)
        assert sqnr_db(wanted, in_integers[name]) > 30, name


def test_batchnorm_behind_relu_twice_is_converted():
    """The second one follows a layer that the folding of the first one adds."""
    keras.utils.set_random_seed(0)
    layers, rng = keras.layers, np.random.default_rng(0)
    inputs = keras.Input((6, 5, 2))
    x = layers.Conv2D(4, 3)(inputs)
    for _ in range(2):
        norm = layers.BatchNormalization()
        x = norm(layers.ReLU()(x))
        mean, spread = rng.standard_normal((2, 4))
        norm.set_weights([1.0 + 0.3 * mean, spread, 0.1 * mean, 1.0 + spread**2])
    model = keras.Model(inputs, x)
    images = rng.standard_normal((32, 6, 5, 2)).astype("float32")
    expected = np.asarray(model(images))
    np.testing.assert_allclose(
        Runner(to_float_tflite(model)).predict(images), expected, atol=1e-5 * expected.max()
    )
    made = to_tflite(model, images)
    check_integer(made, io_dtype="int8")
    assert sqnr_db(expected, Runner(made).predict(images)) > 25


def _behind_relu(library, rank, images):
    """BatchNorm behind ReLU, of channels that differ by orders of magnitude, in front of all that
    such a layer can be folded into or must be kept apart from. Its statistics are those of images.
    """
    layers = library.layers
    library.utils.set_random_seed(0)

    def normalized(x):
        return layers.BatchNormalization()(layers.ReLU()(x))

    inputs = layers.Input(images.shape[1:])
    if rank == 2:
        outputs = {"classes": layers.Dense(5)(normalized(layers.Dense(24)(inputs)))}
    else:
        one = rank == 3
        convolution = layers.Conv1D if one else layers.Conv2D
        pool = layers.MaxPooling1D if one else layers.MaxPooling2D
        mean = layers.GlobalAveragePooling1D if one else layers.GlobalAveragePooling2D
        depthwise = layers.DepthwiseConv1D if one else layers.DepthwiseConv2D
        x = normalized(convolution(8, 3, padding="same")(inputs))
        x = normalized(pool(2)(convolution(12, 3, padding="same")(x)))  # padded with zeros
        x = normalized(convolution(12, 1)(x))  # no padding
        x = layers.BatchNormalization()(pool(2)(layers.LeakyReLU()(depthwise(2)(x))))
        outputs = {
            "classes": layers.Dense(5)(mean()(x)),
            "sum": layers.Add()([x, layers.ReLU()(x)]),
        }
    model = library.Model(inputs, outputs)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        kind = type(layer).__name__
        if kind == "BatchNormalization":
            seen = np.asarray(library.Model(model.inputs, layer.input)(images, training=False))
            axes = tuple(range(seen.ndim - 1))
            gamma = rng.choice([-1.0, 1.0], seen.shape[-1])
            gamma[1] = 0.0  # a dead channel
            beta = rng.standard_normal(seen.shape[-1])
            layer.set_weights([gamma, beta, seen.mean(axes), seen.var(axes)])
        elif layer.get_weights() and layer.output.shape[-1] != 5:
            kernel, bias = layer.get_weights()
            orders = 10.0 ** rng.uniform(-2, 1, len(bias))
            by_output = orders[:, None] if "Depthwise" in kind else orders
            layer.set_weights([kernel * by_output, 0.1 * orders * rng.standard_normal(len(bias))])
    return model


@pytest.mark.parametrize(
    ("library", "rank"), [("keras", 2), ("keras", 3), ("keras", 4), ("tf_keras", 4)]
)
def test_batchnorm_behind_relu_is_folded_exactly(library, rank, monkeypatch):
    library = pytest.importorskip(library)
    shape = {2: (16,), 3: (20, 3), 4: (12, 10, 1)}[rank]
    images = np.random.default_rng(1).standard_normal((48, *shape)).astype("float32")
    model = _behind_relu(library, rank, images)
    expected = {name: np.asarray(y) for name, y in model(images, training=False).items()}
    got = _by_name(Runner(to_float_tflite(model)).predict(images))
    for name, wanted in expected.items():
        np.testing.assert_allclose(got[name], wanted, atol=1e-5 * np.abs(wanted).max())
    folded = _quality(model, images, expected)
    monkeypatch.setattr(integer_forms, "fold_affine", lambda graph: False)
    apart = _quality(model, images, expected)
    assert folded > 18  # 40.2, 19.5, 26.4, 26.4
    assert folded > apart + 12, (folded, apart)


def _by_name(outputs):
    return outputs if isinstance(outputs, dict) else {"classes": outputs}


def _quality(model, images, expected):
    made = to_tflite(model, images)
    check_integer(made, io_dtype="int8")
    return sqnr_db(expected["classes"], _by_name(Runner(made).predict(images))["classes"])
