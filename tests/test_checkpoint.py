"""Runs killed at random moments end in the images of an undisturbed run; damaged checkpoints are passed over, foreign ones refused."""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_models

from dgh_tf import checkpoint
from dgh_tf.config import GenerationConfig
from dgh_tf.files import sha256_array
from dgh_tf.generation import State, generate_images

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = {"num_images": 5, "batch_size": 3, "steps": 700, "seed": 3, "input_range": "-1,1"}


# ---- real processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    return path


@pytest.fixture(scope="module")
def undisturbed(model_path):
    """sha256 of the images of a run that nobody interrupts, made by the Python function in this process."""
    import keras

    return sha256_array(generate_images(keras.models.load_model(model_path, compile=False), GenerationConfig(**SETTINGS)))


def start(model_path, folder, **changes):
    flags = [f"--{name}={value}" for name, value in {**SETTINGS, **changes}.items()]
    command = [sys.executable, "-m", "dgh_tf.generate", f"--model={model_path}", f"--output_dir={folder}", "--checkpoint_seconds=0", *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})


def finish(process):
    """(exit code, standard output, standard error), at most two minutes later."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def latest_step(folder):
    return max((int(p.stem.removeprefix("step-")) for p in (folder / "checkpoint").glob("step-*.json")), default=-1)


def stop_after(process, folder, *, delay, number):
    """Sends signal `number` to a process, `delay` seconds after it has written another checkpoint than those it found."""
    found, limit = latest_step(folder), time.monotonic() + 120
    while latest_step(folder) <= found:
        assert process.poll() is None and time.monotonic() < limit, finish(process)
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(number)
    return finish(process)


@pytest.fixture(scope="module")
def survivor(model_path, tmp_path_factory):
    """Folder of a run that was killed, gone on with, terminated, gone on with, and finished."""
    folder, moment = tmp_path_factory.mktemp("survivor"), random.Random(7)
    code, *_ = stop_after(start(model_path, folder), folder, delay=moment.uniform(0.0, 0.15), number=signal.SIGKILL)
    assert code == -signal.SIGKILL and not (folder / "manifest.json").exists()

    before = latest_step(folder)
    code, out, err = stop_after(start(model_path, folder), folder, delay=moment.uniform(0.0, 0.15), number=signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, (out, err)
    assert f"going on from step {before} of 700" in out and "stopped: saved at step" in err and "Traceback" not in err
    assert latest_step(folder) > before

    code, out, err = finish(start(model_path, folder))
    assert code == 0, (out, err)
    return folder


def test_killed_and_terminated_run_ends_in_the_images_of_an_undisturbed_one(survivor, undisturbed):
    manifest = json.loads((survivor / "manifest.json").read_text())
    assert manifest["images_sha256"] == undisturbed == sha256_array(np.load(survivor / "images.npy"))
    assert not (survivor / "checkpoint").exists()
    steps = [json.loads(line)["step"] for line in (survivor / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 700


def test_finished_run_says_so_and_exits_0(model_path, survivor, undisturbed):
    code, out, err = finish(start(model_path, survivor))
    assert (code, err) == (0, "") and "is finished" in out and undisturbed in out


def test_finished_folder_refuses_other_settings_and_names_them(model_path, survivor):
    written = (survivor / "images.npy").read_bytes()
    code, _, err = finish(start(model_path, survivor, steps=701, seed=4))
    assert code == 1 and "steps: 700 there, 701 now" in err and "seed: 3 there, 4 now" in err and "batch_size" not in err
    assert "Traceback" not in err and (survivor / "images.npy").read_bytes() == written


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_run_stopped_again_and_again_at_random_moments_ends_in_the_same_images(model_path, undisturbed, tmp_path, seed, number):
    moment = random.Random(seed)
    for _ in range(3):
        process = start(model_path, tmp_path)
        time.sleep(moment.uniform(2.0, 14.0))  # anywhere from the imports to the report
        process.send_signal(number)
        assert finish(process)[0] in (0, -number, 128 + number)
    code, out, err = finish(start(model_path, tmp_path))
    assert code == 0, (out, err)
    assert json.loads((tmp_path / "manifest.json").read_text())["images_sha256"] == undisturbed


# ---- damage ------------------------------------------------------------------------------------------------------------

IDENTITY = {"model_sha256": "ab", "config": {"seed": 1, "steps": 9}, "version": "1", "replicas": 1}


def state_at(step):
    rng = np.random.default_rng(step)

    def arrays(count):
        return [rng.standard_normal((2, 3, 4, 4, 3)).astype(np.float32) for _ in range(count)]

    table = rng.standard_normal((3, 2, 5)).astype(np.float32)
    return State(arrays(2), arrays(2), arrays(2), table[0], table[1], table[2, 0], step, (0.5, float("inf"), step))


@pytest.fixture
def folder(tmp_path):
    """A folder with checkpoints of the steps 10, 20 and 100."""
    for step in (10, 20, 100):
        checkpoint.save(tmp_path / "checkpoint", state_at(step), identity=IDENTITY)
    return tmp_path / "checkpoint"


def assert_same(got, wanted):
    for a, b in zip(got[:3], wanted[:3], strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    for a, b in zip(got[3:6], wanted[3:6], strict=True):
        np.testing.assert_array_equal(a, b)
    assert got[6:] == wanted[6:]


def test_what_was_saved_comes_back_and_two_are_kept(folder, recwarn):
    assert_same(checkpoint.load_latest(folder, identity=IDENTITY), state_at(100))
    assert not recwarn.list
    assert sorted(p.name for p in folder.iterdir()) == [f"step-{s:08d}.{kind}" for s in (20, 100) for kind in ("json", "npz")]


def test_without_a_checkpoint_there_is_nothing_to_go_on_with(tmp_path):
    assert checkpoint.load_latest(tmp_path / "checkpoint", identity=IDENTITY) is None


@pytest.mark.parametrize("kind", ["npz", "json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_checkpoint_falls_back_to_the_one_before_with_a_warning(folder, kind, share):
    path = folder / f"step-00000100.{kind}"
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.warns(UserWarning, match="step-00000100.npz is damaged"):
        assert_same(checkpoint.load_latest(folder, identity=IDENTITY), state_at(20))


@pytest.mark.parametrize("kind", ["npz", "json"])
@pytest.mark.parametrize("seed", range(12))
def test_one_flipped_bit_anywhere_falls_back_with_a_warning(folder, kind, seed):
    path, rng = folder / f"step-00000100.{kind}", random.Random(seed)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="step-00000100.npz is damaged"):
        assert_same(checkpoint.load_latest(folder, identity=IDENTITY), state_at(20))


def test_missing_arrays_fall_back_and_all_damaged_start_anew(folder):
    (folder / "step-00000100.npz").unlink()
    with pytest.warns(UserWarning, match="step-00000100.npz is damaged"):
        assert checkpoint.load_latest(folder, identity=IDENTITY).step == 20
    os.truncate(folder / "step-00000020.npz", 100)
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoint.load_latest(folder, identity=IDENTITY) is None


def test_arrays_without_their_record_are_not_a_checkpoint(folder):
    """A run killed between the two writes: the record is written last."""
    (folder / "step-00000100.json").unlink()
    assert checkpoint.load_latest(folder, identity=IDENTITY).step == 20


@pytest.mark.parametrize(("change", "text"), [
    ({"model_sha256": "cd"}, "model_sha256: 'ab' there, 'cd' now"),
    ({"config": {"seed": 2, "steps": 9}}, "seed: 1 there, 2 now"),
    ({"config": {"seed": 1, "steps": 9, "new": 0}}, "new: None there, 0 now"),
    ({"replicas": 2}, "replicas: 1 there, 2 now"),
])
def test_checkpoint_of_another_run_is_refused_and_the_difference_named(folder, change, text):
    with pytest.raises(ValueError, match=text) as caught:
        checkpoint.load_latest(folder, identity={**IDENTITY, **change})
    assert "--output_dir" in str(caught.value)
    assert latest_step(folder.parent) == 100  # refused, not deleted
