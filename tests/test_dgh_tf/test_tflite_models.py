"""Float .tflite files as models: what they compute against LiteRT, what they say of their inputs,
what is refused, and images and integer files from them.
"""

import json
import pathlib

import commands
import numpy as np
import pytest
import tensorflow as tf
import tflite_sources as sources
import tiny_models as tiny
from ai_edge_litert.interpreter import Interpreter

from dgh_tf import GenerationConfig, generate_images, load_model
from dgh_tf.input_range.find import network_ranges
from dgh_tf.models.network import Network
from dgh_tf.models.tflite.model import read_model
from tflite_export import to_float_tflite
from tflite_export.quantization import quantize
from tflite_export.tflite.integer_check import check_integer

KERNEL = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
FILTERS = np.random.default_rng(1).normal(size=(3, 3, 3, 8)).astype(np.float32)


def loaded(tmp_path, data, **options):
    path = tmp_path / "model.tflite"
    path.write_bytes(data)
    return load_model(str(path), **options)


def by_litert(data, images):
    """The first output for each image, by LiteRT at batch 1."""
    interpreter = Interpreter(model_content=data)
    place = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(place, [1, *images.shape[1:]])
    interpreter.allocate_tensors()
    found = []
    for image in images:
        interpreter.set_tensor(place, image[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0])
    return np.stack(found)


def channels_first():
    """As files from PyTorch begin: channels moved to the end."""

    def function(x):
        x = tf.nn.conv2d(tf.transpose(x, (0, 2, 3, 1)), FILTERS, 2, "SAME")
        return tf.reduce_mean(tf.nn.relu(x), (1, 2))

    return sources.of_function(function, (1, 3, 16, 16))


FILES = {
    "open batch": lambda: sources.converted(tiny.softmax_head()),
    "shapes computed": lambda: sources.converted(flat()),
    "float16 weights": lambda: sources.converted(tiny.softmax_head(), half=True),
    "no signature": lambda: sources.without_signature(sources.converted(tiny.softmax_head())),
    "channels first": channels_first,
    "biases behind a reshape": lambda: sources.converted(on_sequences()),
    "every sum of a channel and a constant": lambda: sources.of_function(
        lambda x: tf.reshape(tf.matmul(x, KERNEL), (1, 3, 1)) + KERNEL[0], (1, 6)
    ),
    "square and negation": lambda: sources.of_function(
        lambda x: tf.matmul(-tf.square(x), KERNEL), (1, 6)
    ),
}


def on_sequences():
    """Dense layers on a sequence, whose biases converters add behind a reshape: with a ReLU, and
    one value for each of two axes; and a sum that is no bias, with a value for each step.
    """
    import keras

    inputs = keras.Input((6, 4))
    x = keras.layers.Dense(6, activation="relu", bias_initializer="random_normal")(inputs)
    x = keras.layers.EinsumDense("btc,chd->bthd", (6, 2, 3), bias_axes="hd")(x)
    x = keras.layers.Reshape((6, 6))(x)
    x = keras.layers.Dense(6, use_bias=False)(x)
    steps = keras.ops.reshape(keras.ops.arange(6, dtype="float32"), (6, 1))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: x + steps)(x))
    for place, weights in enumerate(model.weights):
        weights.assign(np.random.default_rng(place).normal(size=weights.shape))
    return model


def flat():
    """Whose Reshape reads the batch size where the batch is open."""
    import keras

    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Flatten()(keras.layers.Conv2D(4, 3)(inputs))
    return tiny.settle(keras.Model(inputs, keras.layers.Dense(5)(x)))


def attention():
    """A small ViT: the batch is folded into the tokens inside."""
    from benchmarks.zoo.networks import vit

    return tiny.settle(vit((32, 32, 3), 5))


@pytest.mark.parametrize(("build", "batched"), [(attention, True), (tiny.recurrent, False)])
def test_images_are_made_through_graphs_of_any_kind(tmp_path, build, batched):
    """Whether several images run at once or one by one, outputs and gradients are Keras' own."""
    keras_model = build()
    model = loaded(tmp_path, to_float_tflite(keras_model))
    assert model.layers[-1].graph.batched is batched
    shape = (3, *model.inputs[0].shape[1:])
    x = tf.constant(np.random.default_rng(0).uniform(0, 1, shape), tf.float32)

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(tf.square(model(x)))
        return tape.gradient(value, x)

    with tf.GradientTape() as tape:
        tape.watch(x)
        wanted = keras_model(x, training=False)
        value = tf.reduce_sum(tf.square(wanted))
    np.testing.assert_allclose(model(x), wanted, atol=1e-4 * np.abs(wanted).max())
    slope = tape.gradient(value, x).numpy()
    np.testing.assert_allclose(gradient(x), slope, atol=1e-3 * np.abs(slope).max())
    config = GenerationConfig(num_images=2, steps=2, input_range="0,1")
    assert generate_images(model, config, verbose=0).shape == (2, *shape[1:])


@pytest.mark.parametrize("name", FILES)
def test_a_file_computes_what_litert_computes(tmp_path, name):
    data = FILES[name]()
    model = loaded(tmp_path, data)
    images = np.random.default_rng(0).normal(size=(5, *model.inputs[0].shape[1:]))
    images = images.astype(np.float32)
    wanted = by_litert(data, images)
    np.testing.assert_allclose(model(images), wanted, atol=2e-5 * np.abs(wanted).max())


def test_shapes_that_were_computed_are_constants(tmp_path):
    data = sources.converted(flat())
    assert "SHAPE" in {o.kind for o in read_model(data).operators}  # else this shows nothing
    kinds = [o.kind for o in read_model(to_float_tflite(loaded(tmp_path, data))).operators]
    assert kinds == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]


def test_biases_behind_a_reshape_move_into_their_operator(tmp_path):
    data = sources.converted(on_sequences())
    assert [o.kind for o in read_model(data).operators].count("ADD") == 3  # else this shows nothing
    made = read_model(to_float_tflite(loaded(tmp_path, data))).operators
    assert [o.kind for o in made].count("ADD") == 1  # a value for each step is no bias
    dense = [o for o in made if o.kind == "FULLY_CONNECTED"]
    assert [o.options["activation"] for o in dense] == ["RELU", "NONE", "NONE"]


def test_names_and_order_are_those_of_the_file(tmp_path):
    data = sources.converted(tiny.two_heads())
    model = loaded(tmp_path, data)
    images = tiny.images(16)
    made = read_model(quantize(model, images).tflite)
    wanted = read_model(data)
    assert made.input_names == wanted.input_names
    assert made.output_names == wanted.output_names == ("boxes", "classes")
    assert made.signatures[0].key == wanted.signatures[0].key
    assert list(Network(model).head_names(precision="float32")) == ["boxes", "classes"]


def test_images_with_channels_first_are_made_in_the_files_layout(tmp_path):
    model = loaded(tmp_path, channels_first())
    network = Network(model)
    assert network.channels_first == [True] and network.input_shapes == [(16, 16, 3)]
    config = GenerationConfig(num_images=4, steps=4, input_range="symmetric")
    images = generate_images(model, config)
    assert images.shape == (4, 3, 16, 16)
    check_integer(quantize(model, images).tflite, io_dtype="int8")


# ---- the unit of the input


@pytest.mark.parametrize(
    ("scale", "offset", "low", "high"),
    [(1 / 127.5, -1.0, 0.0, 255.0), (2.0, -1.0, 0.0, 1.0), (1 / 32767.5, -1.0, 0.0, 65535.0)],
)
def test_a_first_scaling_declares_the_range(tmp_path, scale, offset, low, high):
    model = loaded(tmp_path, sources.rescaled(scale, offset))
    (found,) = network_ranges(Network(model), text="")
    assert (found.low, found.high) == ((low,), (high,)) and "first MUL" in found.source


def test_metadata_declares_the_range(tmp_path):
    """(0 - mean) / std to (255 - mean) / std by hand."""
    data = sources.converted(tiny.softmax_head())
    model = loaded(tmp_path, sources.with_metadata(data, mean=[127.5], std=[128.0]))
    (found,) = network_ranges(Network(model), text="")
    np.testing.assert_allclose([found.low, found.high], [[-0.99609375], [0.99609375]])
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    model = loaded(tmp_path, sources.with_metadata(data, mean=mean, std=std))
    (found,) = network_ranges(Network(model), text="")
    np.testing.assert_allclose(found.low, [-2.117904, -2.035714, -1.804444], atol=1e-5)
    np.testing.assert_allclose(found.high, [2.248908, 2.428571, 2.64], atol=1e-5)


def test_damaged_metadata_says_nothing(tmp_path):
    data = sources.with_metadata(sources.converted(tiny.softmax_head()), mean=[1.0], std=[1.0])
    assert b"M001" in data
    place = data.index(b"M001") - 4
    for junk in (b"\xff\xff\xff\x7f", b"\x08\x00\x00\x00", b"\x01\x00\x00\x00"):
        model = loaded(tmp_path, data[:place] + junk + data[place + 4 :])
        with pytest.raises(ValueError, match="input_range"):
            network_ranges(Network(model), text="")


def test_without_either_the_range_must_be_given(tmp_path):
    model = loaded(tmp_path, sources.converted(tiny.softmax_head()))
    with pytest.raises(ValueError, match=r"input_range=LOW,HIGH or one of byte \(0 to 255\)"):
        network_ranges(Network(model), text="")


def test_a_folded_batchnorm_is_no_declaration(tmp_path):
    """BatchNorm on the input is a first product and sum, too, and tells no range."""
    model = loaded(tmp_path, sources.converted(tiny.squeeze_excite()))
    with pytest.raises(ValueError, match="input_range"):
        network_ranges(Network(model), text="")


# ---- refusals

REFUSED = {
    "quantized": (
        lambda: sources.converted(tiny.softmax_head(), images=tiny.images(8)),
        "quantized already",
    ),
    "dynamic range": (
        lambda: sources.converted(tiny.many_channels(), dynamic_range=True),
        "hybrid file",
    ),
    "several signatures": (sources.two_signatures, r"2 signatures \(double, plain\).*--signature"),
    "batch of eight": (
        lambda: sources.of_function(lambda x: tf.matmul(x, KERNEL), (8, 6)),
        r"shape \[8, 6\].*batch size 1",
    ),
    "loop": (
        lambda: sources.of_function(
            lambda x: tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, 2 * y + x), (0, x))[1],
            (1, 6),
        ),
        "WHILE: control flow",
    ),
    "no gradient": (lambda: sources.of_function(tf.math.sin, (1, 6)), "SIN: .*Expected only"),
    "class index": (
        lambda: sources.of_function(lambda x: tf.argmax(tf.matmul(x, KERNEL), -1), (1, 6)),
        "ARG_MAX",
    ),
    "damaged": (lambda: b"\x1c\0\0\0TFL3" + bytes(64), "damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_no_float_models_are_refused_with_the_reason(tmp_path, name):
    build, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason) as caught:
        loaded(tmp_path, build())
    assert "model.tflite: " in str(caught.value) and "\n" not in str(caught.value)


def test_a_signature_can_be_chosen(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    plain, double = (
        loaded(tmp_path, sources.two_signatures(), signature=key)(x) for key in ("plain", "double")
    )
    kernel = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4)
    np.testing.assert_allclose(plain, x @ kernel, atol=1e-5)
    np.testing.assert_allclose(double, 2 * x @ kernel, atol=1e-5)
    with pytest.raises(ValueError, match="--signature=other is none of them"):
        loaded(tmp_path, sources.two_signatures(), signature="other")
    with pytest.raises(ValueError, match="is for .tflite files"):
        load_model("demo", signature="plain")


def test_refusals_of_the_commands_leave_nothing(tmp_path):
    path = tmp_path / "int8.tflite"
    path.write_bytes(sources.converted(tiny.softmax_head(), images=tiny.images(8)))
    code, _, err = commands.call(
        "dgh_tf.generate", f"--model={path}", f"--output_dir={tmp_path / 'out'}"
    )
    assert code == 1 and "quantized already" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---- integer files


@pytest.mark.parametrize("algorithm", ["bias_correction", "best", "minmax"])
def test_an_integer_file_from_a_file_is_that_from_its_model(tmp_path, algorithm):
    """The same images, the file of our own converter and one of TensorFlow's with an open batch. No
    weight, bias or output code differs by more than 1; minmax of a Keras model is measured by
    TensorFlow's calibrator, that of a file here.
    """
    model, images = tiny.softmax_head(), tiny.images(24)
    wanted = quantize(model, images, algorithm=algorithm).tflite
    own = quantize(loaded(tmp_path, to_float_tflite(model)), images, algorithm=algorithm).tflite
    foreign = quantize(loaded(tmp_path, sources.converted(model)), images, algorithm=algorithm)
    if algorithm == "bias_correction":
        assert own == wanted
    test = tiny.images(64, seed=9)
    for found in (own, foreign.tflite):
        pairs = zip(read_model(wanted).operators, read_model(found).operators, strict=True)
        for ours, theirs in pairs:
            assert ours.kind == theirs.kind
            for a, b in zip(ours.input_tensors, theirs.input_tensors, strict=True):
                if a is not None and a.constant and a.dtype.startswith("INT"):
                    assert np.abs(a.value.astype(np.int64) - b.value.astype(np.int64)).max() <= 1
        assert np.abs(codes_of(wanted, test) - codes_of(found, test)).max() <= 1


def test_files_of_litert_torch_become_integer(tmp_path):
    """Their mark keeps TensorFlow's quantizer from every operator with weights."""
    data = sources.with_entry(channels_first(), b"keep_stablehlo_constant", b"true")
    images = np.moveaxis(tiny.images(16), -1, 1)
    check_integer(quantize(loaded(tmp_path, data), images).tflite, io_dtype="int8")


def codes_of(data, images):
    """The integers of the only output, by LiteRT's interpreter."""
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    (source,), (sink,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero = source["quantization"]
    found = []
    for image in images:
        codes = np.clip(np.rint(image / scale) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(source["index"], codes[None])
        interpreter.invoke()
        found.append(interpreter.get_tensor(sink["index"])[0].astype(int))
    return np.stack(found)


def test_generate_and_convert_take_a_file(tmp_path):
    path, folder = tmp_path / "float.tflite", tmp_path / "images"
    path.write_bytes(sources.converted(tiny.softmax_head()))
    code, out, err = commands.call(
        "dgh_tf.generate",
        f"--model={path}",
        f"--output_dir={folder}",
        "--num_images=8",
        "--steps=4",
        "--input_range=symmetric",
    )
    assert code == 0 and "no statistics in this model" in out, err
    made = tmp_path / "int8.tflite"
    code, _, err = commands.call(
        "tflite_export.convert", f"--model={path}", f"--calibration={folder}", f"--output={made}"
    )
    assert code == 0, err
    proof = json.loads(pathlib.Path(made).with_suffix(".json").read_text())
    assert proof["fully_integer"] and proof["inputs"][0]["name"] == "image"
    weights = [t for t in read_model(path.read_bytes()).tensors if t.dtype == "FLOAT32"]
    assert proof["float_weight_bytes"] == sum(t.nbytes for t in weights if t.constant)


def test_schemes_that_need_the_keras_model_say_so(tmp_path):
    model = loaded(tmp_path, sources.converted(tiny.softmax_head()))
    with pytest.raises(ValueError, match="starts from a Keras model"):
        quantize(model, tiny.images(4), scheme="int16x8")
    with pytest.raises(ValueError, match="not saved as Keras model"):
        model.save(tmp_path / "model.keras")


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_of_a_float_file_is_refused(precision, tmp_path):
    """A .tflite file computes in float32 whatever is asked for; it was ignored before."""
    import dgh_tf
    import tflite_export

    path = tmp_path / "m.tflite"
    path.write_bytes(tflite_export.to_float_tflite(dgh_tf.load_model("demo")))
    config = dgh_tf.GenerationConfig(num_images=2, steps=1, precision=precision, input_range="-1,1")
    with pytest.raises(ValueError, match=f"precision={precision} needs a Keras model"):
        dgh_tf.generate_images(dgh_tf.load_model(path), config, verbose=0)
