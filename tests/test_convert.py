"""Conversion gives integers only, keeps names, agrees with the float model, and a crash of it is an error message."""
import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import commands
import numpy as np
import pytest
import tiny_models

from tflite_export import (
    ConversionError,
    IntegerError,
    Runner,
    check_integer,
    converter,
    freezing,
    operator_table,
    to_float_tflite,
    to_tflite,
    warm,
)
from tflite_export.runtime import dequantize, quantize


@pytest.fixture(scope="module")
def small():
    """(model, calibration images, int8 bytes, float bytes) of the smallest classifier."""
    model, images = tiny_models.softmax_head(), tiny_models.images()
    return model, images, to_tflite(model, images), to_float_tflite(model)


@pytest.fixture(scope="module")
def heads():
    model = tiny_models.two_heads()
    return model, to_tflite(model, tiny_models.images())


def sqnr_db(reference, value):
    """Signal (variance of the reference) over squared error, in dB."""
    reference = np.asarray(reference, np.float64)
    return 10 * np.log10(reference.var() / np.mean((reference - value) ** 2))


def test_every_tensor_is_an_integer(small):
    proof = check_integer(small[2], io_dtype="int8")
    assert set(proof["tensor_dtypes"]) == {"INT8", "INT32"}  # INT32: biases and the axes of the mean
    # By hand from the builder: 3 Conv2D, 1 depthwise, pooling, dense, softmax; BN and ReLU are fused away.
    assert proof["operators"] == {
        "CONV_2D": 3, "DEPTHWISE_CONV_2D": 1, "MEAN": 1, "FULLY_CONNECTED": 1, "SOFTMAX": 1,
    }  # fmt: skip
    assert proof["bytes"] < len(small[3])


def test_table_agrees_with_the_interpreter(small):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=small[2], experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    expected = [op["op_name"] for op in interpreter._get_ops_details()]
    assert [row["operator"] for row in operator_table(small[2])] == expected
    names = {d["name"]: np.dtype(d["dtype"]).name.upper() for d in interpreter.get_tensor_details()}
    for row in operator_table(small[2]):
        for tensor in row["inputs"] + row["outputs"]:
            assert names[tensor["name"]] == tensor["dtype"]


def test_float_file_is_refused_with_its_operators(small):
    with pytest.raises(IntegerError, match=r"(?s)not fully integer.*CONV_2D #0: .*FLOAT32.*SOFTMAX"):
        check_integer(small[3], io_dtype="int8")


def test_wrong_io_type_is_refused(small):
    with pytest.raises(IntegerError, match="input 'image' has dtype int8 .*expected int16"):
        check_integer(small[2], io_dtype="int16")


def test_a_file_that_is_no_model_is_refused():
    with pytest.raises(ValueError, match="not a TFLite model"):
        check_integer(b"not a model at all", io_dtype="int8")


def test_round_trip_is_within_half_a_step(small):
    # Rounding to the nearest code errs by at most half a step; float32 arithmetic adds its own rounding (1e-6).
    detail = Runner(small[2]).inputs["image"]
    scale, zero_point = detail["quantization"]
    x = np.linspace((-128 - zero_point) * scale, (127 - zero_point) * scale, 10001, dtype=np.float32)
    codes = quantize(x, detail)
    assert codes.dtype == np.int8 and (codes.min(), codes.max()) == (-128, 127)
    assert np.abs(dequantize(codes, detail) - x).max() <= scale / 2 + 1e-6
    assert quantize(np.float32([1e9, -1e9]), detail).tolist() == [127, -128]


def test_quantize_by_hand():
    # By hand: 0.3 / 0.1 = 3, + zero point 5 -> 8; -0.26 / 0.1 = -2.6 -> -3, + 5 -> 2; back: (2 - 5) * 0.1 = -0.3.
    detail = {"dtype": np.int16, "quantization": (0.1, 5)}
    assert quantize(np.float32([0.3, -0.26]), detail).tolist() == [8, 2]
    np.testing.assert_allclose(dequantize(np.int16([8, 2]), detail), [0.3, -0.3], rtol=1e-6)


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
def test_int8_agrees_with_the_float_model(small, kernels):
    model, _, tflite, _ = small
    x = tiny_models.images(64, seed=7)  # not the calibration images
    expected, got = model.predict(x, verbose=0), Runner(tflite, kernels=kernels).predict(x)
    assert got.shape == expected.shape and got.dtype == np.float32
    assert np.abs(got - expected).max() < 8 / 256  # some steps of a softmax output, whose scale is 1/256
    assert sqnr_db(expected, got) > 20


def test_float_file_equals_the_keras_model(small):
    model, images, _, tflite = small
    np.testing.assert_allclose(Runner(tflite).predict(images), model.predict(images, verbose=0), atol=1e-5)


def test_dict_outputs_keep_their_names(heads):
    model, tflite = heads
    x = tiny_models.images(16, seed=7)
    expected, got = model.predict(x, verbose=0), Runner(tflite).predict(x)
    assert sorted(got) == ["boxes", "classes"]
    for name in got:
        assert got[name].shape == expected[name].shape
        assert sqnr_db(expected[name], got[name]) > 25
    proof = check_integer(tflite, io_dtype="int8")
    last = {row["name"]: row["shape"][-1] for row in proof["outputs"]}
    assert last == {"boxes": 4, "classes": 3}  # channels of the two heads in the builder
    assert sorted(row["index"] for row in proof["outputs"]) == [0, 1]


def test_two_inputs_are_fed_by_name():
    model = tiny_models.two_inputs()
    def data(seed):
        return {"left": tiny_models.images(seed=seed), "right": tiny_models.images(shape=(8, 8, 1), seed=seed + 1)}
    runner = Runner(to_tflite(model, data(1)))
    x = data(7)
    expected = np.asarray(model([x["right"], x["left"]], training=False))
    # 23.5 dB was measured; unrelated outputs of equal variance give -3 dB.
    assert sqnr_db(expected, runner.predict(x)) > 20
    with pytest.raises(ValueError, match="the model takes"):
        runner.predict({"left": x["left"]})


def test_tf_keras_and_16_bit_activations():
    import tf_keras

    model, images = tiny_models.softmax_head(keras=tf_keras), tiny_models.images()
    tflite = to_tflite(model, images, scheme="int16x8")
    assert check_integer(tflite, io_dtype="int16")["inputs"][0]["zero_point"] == 0  # 16-bit is symmetric by its spec
    expected = model.predict(images, verbose=0)
    assert sqnr_db(expected, Runner(tflite).predict(images)) > 30


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_recurrent_layers_convert_as_they_were_built(package):
    """Loops crash the converter. Against the model's own outputs; its layers are left as they were."""
    import importlib

    keras = importlib.import_module(package)
    keras.utils.set_random_seed(0)
    inputs = keras.layers.Input((12, 4), name="sound")
    x = keras.layers.Bidirectional(keras.layers.LSTM(4, return_sequences=True))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GRU(5)(x)))
    sounds = tiny_models.images(16, shape=(12, 4))
    wanted, got = model.predict(sounds, verbose=0), Runner(to_tflite(model, sounds)).predict(sounds)
    np.testing.assert_allclose(Runner(to_float_tflite(model)).predict(sounds), wanted, atol=1e-5)
    assert np.mean((got - wanted) ** 2) < 0.05 * np.mean(wanted**2)  # 13 dB; 16 and more when this was written
    assert model.layers[-2].unroll is False and np.array_equal(model.predict(sounds, verbose=0), wanted)


def test_layer_normalization_is_integer_and_equals_keras():
    """Its negation has no integer kernel and is written as a product; the float file against the model's own outputs."""
    import keras

    inputs = keras.Input((8, 8, 3))
    x = keras.layers.LayerNormalization()(keras.layers.Conv2D(6, 3)(inputs))
    model = keras.Model(inputs, -keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))))
    images = tiny_models.images(16, shape=(8, 8, 3))
    wanted, tflite = model.predict(images, verbose=0), to_tflite(model, images)
    check_integer(tflite, io_dtype="int8")
    np.testing.assert_allclose(Runner(to_float_tflite(model)).predict(images), wanted, atol=1e-5)
    assert np.mean((Runner(tflite).predict(images) - wanted) ** 2) < 0.01 * np.mean(wanted**2)  # 20 dB


def test_inputs_and_outputs_stand_in_the_models_order():
    """Alphabetical order, the converter's own and the model's differ here; shapes tell the tensors apart."""
    import keras
    from ai_edge_litert.interpreter import Interpreter

    wide, narrow = keras.Input((6,), name="z_wide"), keras.Input((3,), name="a_narrow")
    x = keras.layers.Concatenate()([wide, narrow])
    model = keras.Model([wide, narrow], [keras.layers.Dense(n, name=name)(x) for n, name in ((4, "last"), (2, "first"), (5, "middle"))])
    tflite = to_tflite(model, {"z_wide": tiny_models.images(8, shape=(6,)), "a_narrow": tiny_models.images(8, shape=(3,))})
    interpreter = Interpreter(model_content=tflite)
    assert [list(row["shape"]) for row in interpreter.get_input_details()] == [[1, 6], [1, 3]]
    assert [list(row["shape"]) for row in interpreter.get_output_details()] == [[1, 4], [1, 2], [1, 5]]
    runner = Runner(tflite)
    assert (list(runner.inputs), list(runner.outputs)) == (["z_wide", "a_narrow"], ["last", "first", "middle"])


def test_subclassed_models_of_several_inputs_are_called_as_they_were():
    assert freezing._as_called(["input"], "x") == "x"
    assert freezing._as_called(["input_0", "input_1"], ("x", "y")) == ["x", "y"]
    assert freezing._as_called(["left", "right"], ("x", "y")) == {"left": "x", "right": "y"}


def test_subclassed_model_takes_its_shape_from_the_images():
    model, images = tiny_models.subclassed(), tiny_models.images()
    got = Runner(to_tflite(model, images)).predict(images)
    assert sqnr_db(model(images), got) > 25
    with pytest.raises(ValueError, match="subclassed"):
        to_float_tflite(model)


def in_policy(policy, build):
    import keras

    usual = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        return build()
    finally:
        keras.config.set_dtype_policy(usual)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_models_in_half_precision_are_converted_in_float32(policy):
    model, x = in_policy(policy, tiny_models.softmax_head), tiny_models.images(8)
    got = Runner(to_float_tflite(model)).predict(x)
    assert got.dtype == np.float32 and sqnr_db(np.float32(model(x, training=False)), got) > 20  # bfloat16 holds 8 bits


def test_a_half_precision_model_that_cannot_be_rebuilt_is_refused():
    with pytest.raises(ValueError, match="'subclassed' computes in half precision .* dtype policy float32"):
        to_float_tflite(in_policy("mixed_bfloat16", tiny_models.subclassed), images=tiny_models.images(1))


def test_a_loaded_sequential_model_converts_before_its_first_call(tmp_path):
    import keras
    import tensorflow as tf

    layers = [keras.Input((4, 4, 1), name="image"), keras.layers.Flatten(), keras.layers.Dense(2)]
    keras.Sequential(layers).save(tmp_path / "m.keras")
    model = keras.models.load_model(tmp_path / "m.keras", compile=False)
    x = tiny_models.images(1, shape=(4, 4, 1))
    # what the converter is given; running it as well would take ten times as long and prove no more
    assert freezing.save_frozen(model, tmp_path / "frozen", shapes=freezing.input_shapes(model)) == ["output"]
    got = tf.saved_model.load(str(tmp_path / "frozen")).signatures["serving_default"](image=tf.constant(x))["output"]
    weights, bias = (w.astype(np.float64) for w in model.get_weights())
    np.testing.assert_allclose(got, x.reshape(len(x), -1) @ weights + bias, atol=1e-5)  # the layers by hand, in float64


def test_runner_refuses_wrong_shapes(small):
    with pytest.raises(ValueError, match=r"expected \[images, 16, 16, 3\]"):
        Runner(small[2]).predict(np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="Unknown kernels"):
        Runner(small[2], kernels="fast")


def test_bad_images_never_reach_the_converter(small, monkeypatch):
    monkeypatch.setattr(converter, "run_worker", lambda *a, **k: pytest.fail("the converter was started"))
    with pytest.raises(ValueError, match="nan"):
        to_tflite(small[0], np.full((4, 16, 16, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="Unknown scheme 'int4'"):
        to_tflite(small[0], small[1], scheme="int4")


def test_a_real_crash_of_the_converter_is_an_error(small):
    # Past the check on purpose: Inf in calibration data is a segmentation fault in TensorFlow 2.21's converter.
    images, server = np.where(small[1] > 0.9, np.inf, small[1]).astype(np.float32), warm._ready().pid
    with pytest.raises(ConversionError, match="crashed with SIG(SEGV|ABRT|FPE)"):
        converter._convert(small[0], {"image": (16, 16, 3)}, {"image": images}, "int8", None)
    assert to_float_tflite(small[0]) == small[3] and warm._ready().pid == server  # only the fork of this conversion died


def test_a_warm_process_gives_the_bytes_of_a_cold_one_in_any_thread(small, monkeypatch):
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert set(threads.map(lambda _: to_tflite(small[0], small[1]), range(2))) == {small[2]}
    monkeypatch.setattr(warm, "run", warm._run_cold)
    assert to_tflite(small[0], small[1]) == small[2]


def running(pid):
    """Whether the process is there and no zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="conversions start cold processes")
def test_the_warm_process_ends_with_its_parent_though_a_fork_of_that_lives_on():
    code = """import os, time
from tflite_export import warm
warm.start_worker()
server, fork = warm._server.pid, os.fork()
if fork:
    print(server, fork, flush=True)
time.sleep(600)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        server, fork = map(int, parent.stdout.readline().split())
        assert running(server)
        parent.kill()
    try:
        limit = time.monotonic() + 60  # it reads the end of its input when TensorFlow is imported
        while running(server) and time.monotonic() < limit:
            time.sleep(0.1)
        assert not running(server) and running(fork)
    finally:
        os.kill(fork, signal.SIGKILL)


@pytest.fixture
def no_server(monkeypatch):
    """As if none had been started yet; the one that runs is there again afterwards."""
    monkeypatch.setattr(warm, "_server", None)
    monkeypatch.setattr(warm, "_log", None)
    yield
    warm.stop()


def test_a_killed_or_endless_worker_is_an_error(tmp_path, monkeypatch, no_server):
    script, python = tmp_path / "python", sys.executable
    script.write_text(f"#!{python}\nimport os\nos.kill(os.getpid(), {int(signal.SIGKILL)})\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(ConversionError, match="crashed with SIGKILL.*printed nothing"):
        converter.run_worker(tmp_path)
    script.write_text(f"#!{python}\nimport time\ntime.sleep(60)\n")
    with pytest.raises(ConversionError, match="more than 0.5 s"):
        converter.run_worker(tmp_path, timeout=0.5)


def test_an_exception_in_the_worker_keeps_its_text(tmp_path):
    with pytest.raises(ConversionError, match="request.json"):
        converter.run_worker(tmp_path)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tflite_export.convert", *map(str, arguments)],
        capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip


def test_command_writes_the_file_and_its_proof(tmp_path, small):
    import hashlib

    model, images, tflite, _ = small
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "c.npy", images)
    done = command(f"--model={tmp_path}/m.keras", f"--calibration={tmp_path}/c.npy", f"--output={tmp_path}/o.tflite",
                   "--target=edgetpu,tflm", "--algorithm=minmax")
    assert (done.returncode, done.stderr) == (0, "")  # not a line of the libraries beneath
    assert "edgetpu: 7 of 7 operators mapped" in done.stdout and "tflm: 7 of 7" in done.stdout
    assert "7 operators, all integer; int8 in and out" in done.stdout
    data, proof = (tmp_path / "o.tflite").read_bytes(), json.loads((tmp_path / "o.json").read_text())
    assert proof["sha256"]["tflite"] == hashlib.sha256(data).hexdigest()
    assert proof["fully_integer"] and len(proof["table"]) == 7 and proof["algorithm"] == "minmax"
    assert all(verdict["fully_mapped"] for verdict in proof["targets"].values())
    ratios = [row["sqnr_db"] for row in proof["verdict"]["layers"]]
    assert len(ratios) == 8 and ratios == sorted(ratios)  # the input and 7 operators, the worst first
    np.testing.assert_array_equal(Runner(data).predict(images), Runner(tflite).predict(images))


def test_command_refuses_in_one_line_and_writes_nothing(tmp_path, small, monkeypatch):
    monkeypatch.setattr(warm, "run", lambda *a, **k: pytest.fail("the converter was started"))
    small[0].save(tmp_path / "m.keras")
    np.save(tmp_path / "c.npy", np.full((4, 16, 16, 3), np.inf, np.float32))
    code, _, err = commands.call("tflite_export.convert", f"--model={tmp_path}/m.keras", f"--calibration={tmp_path}/c.npy",
                                 f"--output={tmp_path}/o.tflite")
    assert code == 1
    assert err.startswith("error: Calibration data for input 'image' holds inf") and err.count("\n") == 1
    assert not list(tmp_path.glob("o.*"))


def test_resnet8_int8_keeps_its_answers(shared_data):
    # 0.957 over 10 000 images was measured with another program for 256 real calibration images; this set has 3000.
    import keras

    model = keras.models.load_model(shared_data / "resnet8_cifar10.keras", compile=False)
    real = np.load(shared_data / "cifar10_real.npz")["x"][:256].astype(np.float32)
    evaluation = np.load(shared_data / "cifar10_evaluation.npz")["x"][:1000].astype(np.float32)
    got = Runner(to_tflite(model, real)).predict(evaluation)
    agreement = np.mean(got.argmax(-1) == model.predict(evaluation, verbose=0).argmax(-1))
    assert 0.94 < agreement < 0.975


def test_inputs_that_would_share_a_name_in_the_file_are_refused():
    import keras

    inputs = [keras.Input((8,), name=name) for name in ("a.b", "a_b")]
    model = keras.Model(inputs, keras.layers.Add()(inputs))
    with pytest.raises(ValueError, match=r"a\.b, a_b .* same name"):
        to_tflite(model, {"a.b": np.zeros((2, 8), np.float32), "a_b": np.zeros((2, 8), np.float32)})
