"""Conversion gives integers only, keeps names, agrees with the float model, and a crash of it is an
error message.
"""

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
from measures import sqnr_db

from tflite_export import (
    ConversionError,
    IntegerError,
    Runner,
    check_integer,
    operator_table,
    quantization,
    to_float_tflite,
    to_tflite,
)
from tflite_export.conversion import converter, server
from tflite_export.tflite.interpreter import dequantize, quantize


@pytest.fixture(scope="module")
def small():
    """(model, calibration images, int8 bytes, float bytes) of the smallest classifier."""
    model, images = tiny_models.softmax_head(), tiny_models.images()
    return model, images, to_tflite(model, images), to_float_tflite(model)


@pytest.fixture(scope="module")
def heads():
    model = tiny_models.two_heads()
    return model, to_tflite(model, tiny_models.images())


def test_every_tensor_is_an_integer(small):
    proof = check_integer(small[2], io_dtype="int8")
    assert set(proof["tensor_dtypes"]) == {
        "INT8",
        "INT32",
    }  # INT32: biases and the axes of the mean
    # By hand from the builder: 3 Conv2D, 1 depthwise, pooling, dense, softmax; BN and ReLU are
    # fused away.
    assert proof["operators"] == {
        "CONV_2D": 3, "DEPTHWISE_CONV_2D": 1, "MEAN": 1, "FULLY_CONNECTED": 1, "SOFTMAX": 1,
    }  # fmt: skip
    assert proof["bytes"] < len(small[3])


def test_table_agrees_with_the_interpreter(small):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=small[2],
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    expected = [op["op_name"] for op in interpreter._get_ops_details()]
    assert [row["operator"] for row in operator_table(small[2])] == expected
    names = {d["name"]: np.dtype(d["dtype"]).name.upper() for d in interpreter.get_tensor_details()}
    for row in operator_table(small[2]):
        for tensor in row["inputs"] + row["outputs"]:
            assert names[tensor["name"]] == tensor["dtype"]


def test_float_file_is_refused_with_its_operators(small):
    with pytest.raises(
        IntegerError, match=r"(?s)not fully integer.*CONV_2D #0: .*FLOAT32.*SOFTMAX"
    ):
        check_integer(small[3], io_dtype="int8")


def test_wrong_io_type_is_refused(small):
    with pytest.raises(IntegerError, match="input 'image' has dtype int8 .*expected int16"):
        check_integer(small[2], io_dtype="int16")


def test_a_file_that_is_no_model_is_refused():
    with pytest.raises(ValueError, match="not a TFLite model"):
        check_integer(b"not a model at all", io_dtype="int8")


def test_round_trip_is_within_half_a_step(small):
    # Rounding to the nearest code errs by at most half a step; float32 arithmetic adds its own
    # rounding (1e-6).
    detail = Runner(small[2]).inputs["image"]
    scale, zero_point = detail["quantization"]
    x = np.linspace(
        (-128 - zero_point) * scale, (127 - zero_point) * scale, 10001, dtype=np.float32
    )
    codes = quantize(x, detail)
    assert codes.dtype == np.int8 and (codes.min(), codes.max()) == (-128, 127)
    assert np.abs(dequantize(codes, detail) - x).max() <= scale / 2 + 1e-6
    assert quantize(np.float32([1e9, -1e9]), detail).tolist() == [127, -128]


def test_quantize_by_hand():
    # By hand: 0.3 / 0.1 = 3, + zero point 5 -> 8; -0.26 / 0.1 = -2.6 -> -3, + 5 -> 2; back: (2 - 5)
    # * 0.1 = -0.3.
    detail = {"dtype": np.int16, "quantization": (0.1, 5)}
    assert quantize(np.float32([0.3, -0.26]), detail).tolist() == [8, 2]
    np.testing.assert_allclose(dequantize(np.int16([8, 2]), detail), [0.3, -0.3], rtol=1e-6)


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
def test_int8_agrees_with_the_float_model(small, kernels):
    model, _, tflite, _ = small
    x = tiny_models.images(64, seed=7)  # not the calibration images
    expected, got = model.predict(x, verbose=0), Runner(tflite, kernels=kernels).predict(x)
    assert got.shape == expected.shape and got.dtype == np.float32
    assert (
        np.abs(got - expected).max() < 8 / 256
    )  # some steps of a softmax output, whose scale is 1/256
    assert sqnr_db(expected, got) > 20


def test_float_file_equals_the_keras_model(small):
    model, images, _, tflite = small
    np.testing.assert_allclose(
        Runner(tflite).predict(images), model.predict(images, verbose=0), atol=1e-5
    )


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


def test_runner_refuses_wrong_shapes(small):
    with pytest.raises(ValueError, match=r"expected \[images, 16, 16, 3\]"):
        Runner(small[2]).predict(np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="Unknown kernels"):
        Runner(small[2], kernels="fast")


def test_bad_images_never_reach_the_converter(small, monkeypatch):
    monkeypatch.setattr(
        converter, "run_worker", lambda *a, **k: pytest.fail("the converter was started")
    )
    with pytest.raises(ValueError, match="nan"):
        to_tflite(small[0], np.full((4, 16, 16, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="Unknown scheme 'int4'"):
        to_tflite(small[0], small[1], scheme="int4")


def test_a_real_crash_of_the_converter_is_an_error(small):
    # Past the check on purpose: Inf in calibration data is a segmentation fault in TensorFlow
    # 2.21's converter.
    images, process = (
        np.where(small[1] > 0.9, np.inf, small[1]).astype(np.float32),
        server._ready().pid,
    )
    with pytest.raises(ConversionError, match="crashed with SIG(SEGV|ABRT|FPE)"):
        converter.convert_checked(small[0], {"image": images}, scheme="int8")
    assert (
        to_float_tflite(small[0]) == small[3] and server._ready().pid == process
    )  # only the fork of this conversion died


def test_a_warm_process_gives_the_bytes_of_a_cold_one_in_any_thread(small, monkeypatch):
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert set(threads.map(lambda _: to_tflite(small[0], small[1]), range(2))) == {small[2]}
    monkeypatch.setattr(server, "run", server._run_cold)
    assert to_tflite(small[0], small[1]) == small[2]


def running(pid):
    """Whether the process is there and no zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="conversions start cold processes")
def test_a_command_forks_the_warm_process_off_its_own_import(small, tmp_path):
    """Also with its standard input closed, something in its buffers, and a parent that ignores the
    end of its children, as `trap '' CHLD` makes it; the bytes stay those of a process of its own.
    """
    small[0].save(tmp_path / "m.keras")
    np.save(tmp_path / "images.npy", small[1])
    code = """import signal, sys, numpy as np
from dgh_tf.common import processes
from tflite_export.conversion import server
print("said once", end="")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
server.start_worker()
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
from dgh_tf import load_model
from tflite_export import to_tflite
made = to_tflite(load_model(sys.argv[1] + "/m.keras"), np.load(sys.argv[1] + "/images.npy"))
open(sys.argv[1] + "/made.tflite", "wb").write(made)
assert isinstance(server._server, processes.Forked)
assert server.stop() == -9 and server.stop() is None"""
    command = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "said once"
    assert (tmp_path / "made.tflite").read_bytes() == small[2]


@pytest.mark.skipif(sys.platform != "linux", reason="conversions start cold processes")
@pytest.mark.parametrize("first", ["", "import tensorflow"])
def test_the_warm_process_ends_with_its_parent_though_a_fork_of_that_lives_on(first):
    """One that is forked off, and one of its own behind TensorFlow's import."""
    code = f"""import os, time
{first}
from tflite_export.conversion import server
server.start_worker()
server, fork = server._server.pid, os.fork()
if fork:
    print(server, fork, flush=True)
time.sleep(600)"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
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
    monkeypatch.setattr(server, "_server", None)
    monkeypatch.setattr(server, "_log", None)
    yield
    server.stop()


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

    model, images, _, _ = small
    model.save(tmp_path / "m.keras")
    np.save(tmp_path / "c.npy", images)
    done = command(
        f"--model={tmp_path}/m.keras",
        f"--calibration={tmp_path}/c.npy",
        f"--output={tmp_path}/o.tflite",
        "--target=edgetpu,tflm,cpu",
    )
    assert (done.returncode, done.stderr) == (0, "")  # not a line of the libraries beneath
    rows = [line.split() for line in done.stdout.splitlines()]
    mapped = [row[0] for row in rows if row[1:4] == ["7", "of", "7"]]
    assert mapped == ["edgetpu", "tflm", "cpu"]
    assert "7 operators, all integer; int8 in and out" in done.stdout
    data, proof = (
        (tmp_path / "o.tflite").read_bytes(),
        json.loads((tmp_path / "o.json").read_text()),
    )
    assert proof["sha256"]["tflite"] == hashlib.sha256(data).hexdigest()
    assert proof["fully_integer"] and len(proof["table"]) == 7
    assert proof["algorithm"] in proof["candidates"]
    assert all(verdict["fully_mapped"] for verdict in proof["targets"].values())
    ratios = [row["sqnr_db"] for row in proof["verdict"]["layers"]]
    assert len(ratios) == 8 and ratios == sorted(
        ratios
    )  # the input and 7 operators, the worst first
    alone = quantization.quantize(model, images, algorithm=proof["algorithm"]).tflite
    np.testing.assert_array_equal(Runner(data).predict(images), Runner(alone).predict(images))


def test_command_refuses_in_one_line_and_writes_nothing(tmp_path, small, monkeypatch):
    monkeypatch.setattr(server, "run", lambda *a, **k: pytest.fail("the converter was started"))
    small[0].save(tmp_path / "m.keras")
    np.save(tmp_path / "c.npy", np.full((4, 16, 16, 3), np.inf, np.float32))
    code, _, err = commands.call(
        "tflite_export.convert",
        f"--model={tmp_path}/m.keras",
        f"--calibration={tmp_path}/c.npy",
        f"--output={tmp_path}/o.tflite",
    )
    assert code == 1
    assert (
        err.startswith("error: Calibration data for input 'image' holds inf")
        and err.count("\n") == 1
    )
    assert not list(tmp_path.glob("o.*"))


def test_resnet8_int8_keeps_its_answers(shared_data):
    # 0.957 over 10 000 images was measured with another program for 256 real calibration images;
    # this set has 3000.
    import keras

    model = keras.models.load_model(shared_data / "resnet8_cifar10.keras", compile=False)
    real = np.load(shared_data / "cifar10_real.npz")["x"][:256].astype(np.float32)
    evaluation = np.load(shared_data / "cifar10_evaluation.npz")["x"][:1000].astype(np.float32)
    got = Runner(to_tflite(model, real)).predict(evaluation)
    agreement = np.mean(got.argmax(-1) == model.predict(evaluation, verbose=0).argmax(-1))
    assert 0.94 < agreement < 0.975
