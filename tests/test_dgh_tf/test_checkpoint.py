"""Runs killed at random moments end in the images of an undisturbed run; damaged checkpoints are
passed over, foreign ones refused.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import commands
import numpy as np
import pytest
import tiny_models

from dgh_tf.common.files import sha256_array
from dgh_tf.config import GenerationConfig
from dgh_tf.generation.generator import State
from dgh_tf.generation.images import generate_images
from dgh_tf.generation.store import MemoryStore, Record
from dgh_tf.run import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = {"num_images": 5, "batch_size": 3, "steps": 700, "seed": 3, "input_range": "-1,1"}


# ---- real processes
# ------------------------------------------------------------


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    return path


@pytest.fixture(scope="module")
def undisturbed(model_path):
    """sha256 of the images of a run that nobody interrupts, made by the Python function in this
    process.
    """
    import keras

    return sha256_array(
        generate_images(
            keras.models.load_model(model_path, compile=False), GenerationConfig(**SETTINGS)
        )
    )


def command(model_path, folder, **changes):
    flags = [f"--{name}={value}" for name, value in {**SETTINGS, **changes}.items()]
    return [
        "dgh_tf.generate",
        f"--model={model_path}",
        f"--output_dir={folder}",
        "--checkpoint_seconds=0",
        *flags,
    ]


def start(model_path, folder):
    return subprocess.Popen(
        [sys.executable, "-m", *command(model_path, folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def finish(process):
    """(exit code, standard output, standard error), at most two minutes later."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def latest_step(folder):
    """In steps; two batches make one. -1 without a checkpoint."""
    return (
        max(
            (
                int(p.stem.removeprefix("visit-"))
                for p in (folder / "checkpoint").glob("visit-*.json")
            ),
            default=-2,
        )
        / 2
    )


def stop_after(process, folder, *, delay, number):
    """Sends signal `number` to a process, `delay` seconds after it has written another checkpoint
    than those it found.
    """
    found, limit = latest_step(folder), time.monotonic() + 120
    while latest_step(folder) <= found:
        assert process.poll() is None and time.monotonic() < limit, finish(process)
        time.sleep(0.005)
    time.sleep(delay)
    process.send_signal(number)
    return finish(process)


@pytest.fixture(scope="module")
def survivor(model_path, tmp_path_factory):
    """Folder of a run that was killed, gone on with, terminated, gone on with, and finished; the
    last in this process.
    """
    folder, moment = tmp_path_factory.mktemp("survivor"), random.Random(7)
    code, *_ = stop_after(
        start(model_path, folder), folder, delay=moment.uniform(0.0, 0.15), number=signal.SIGKILL
    )
    assert code == -signal.SIGKILL and not (folder / "manifest.json").exists()

    before = latest_step(folder)
    code, out, err = stop_after(
        start(model_path, folder), folder, delay=moment.uniform(0.0, 0.15), number=signal.SIGTERM
    )
    assert code == 128 + signal.SIGTERM, (out, err)
    assert (
        f"going on from step {int(before)} of 700" in out
        and "stopped: saved at step" in err
        and "Traceback" not in err
    )
    assert latest_step(folder) > before

    code, out, err = commands.call(*command(model_path, folder), "--checkpoint_seconds=30")
    assert code == 0, (out, err)
    return folder


def test_killed_and_terminated_run_ends_in_the_images_of_an_undisturbed_one(survivor, undisturbed):
    manifest = json.loads((survivor / "manifest.json").read_text())
    assert (
        manifest["images_sha256"] == undisturbed == sha256_array(np.load(survivor / "images.npy"))
    )
    assert not (survivor / "checkpoint").exists()
    steps = [
        json.loads(line)["step"] for line in (survivor / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(set(steps)) and steps[-1] == 700


def test_finished_run_says_so_and_exits_0(model_path, survivor, undisturbed):
    code, out, err = commands.call(*command(model_path, survivor))
    assert (code, err) == (0, "") and "is finished" in out and undisturbed in out


def test_finished_folder_refuses_other_settings_and_names_them(model_path, survivor):
    written = (survivor / "images.npy").read_bytes()
    code, _, err = commands.call(*command(model_path, survivor, steps=701, seed=4))
    assert (
        code == 1
        and "steps: 700 there, 701 now" in err
        and "seed: 3 there, 4 now" in err
        and "batch_size" not in err
    )
    assert "Traceback" not in err and (survivor / "images.npy").read_bytes() == written


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_run_stopped_again_and_again_at_random_moments_ends_in_the_same_images(
    model_path, undisturbed, tmp_path, seed, number
):
    moment = random.Random(seed)
    for _ in range(3):
        process = start(model_path, tmp_path)
        time.sleep(moment.uniform(2.0, 14.0))  # anywhere from the imports to the report
        process.send_signal(number)
        assert finish(process)[0] in (0, -number, 128 + number)
    code, out, err = finish(start(model_path, tmp_path))
    assert code == 0, (out, err)
    assert json.loads((tmp_path / "manifest.json").read_text())["images_sha256"] == undisturbed


# ---- damage
# ------------------------------------------------------------

IDENTITY = {"model_sha256": "ab", "config": {"seed": 1, "steps": 9}, "version": "1", "replicas": 1}


class Run:
    """What a checkpoint asks of a generator, with records and a state that follow from a number."""

    def __init__(self, number):
        rng = np.random.default_rng(number)
        self.batches = [0, 1]
        records = [
            [
                rng.standard_normal(shape).astype(np.float32)
                for shape in ((3, 4, 4, 3), (3, 4, 4, 3), (3, 4, 4, 3), (2, 5))
            ]
            for _ in self.batches
        ]
        self.store = MemoryStore([(4, 4, 3)], [3, 3], channels=5, devices=["CPU:0"])
        for place, record in enumerate(records):
            self.store.write(place, Record.of(record))
        carry = [
            rng.standard_normal((1, 2, 5)),
            *(rng.standard_normal((1, n)).astype(np.float32) for n in (1, 5, 1, 1, 1)),
        ]
        self.state = State(number, (0.5, float("inf"), number), {"bn": 0.25 * number}, carry)


@pytest.fixture
def folder(tmp_path):
    """A folder with checkpoints of the visits 10, 20 and 100."""
    for visits in (10, 20, 100):
        checkpoint.save(tmp_path / "checkpoint", Run(visits), identity=IDENTITY)
    return tmp_path / "checkpoint"


def newest(folder):
    """The newest whole checkpoint, restored into a run that held something else; None
    without one.
    """
    found, run = checkpoint.available(folder), Run(7)
    if not found:
        return None
    checkpoint.restore(folder, run, identity=IDENTITY, visits=found[0])
    return run


def assert_same(got, wanted):
    for place in range(2):
        for x, y in zip(
            got.store.read(place).arrays(), wanted.store.read(place).arrays(), strict=True
        ):
            np.testing.assert_array_equal(x, y)
    for a, b in zip(got.state.carry, wanted.state.carry, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert got.state[:3] == wanted.state[:3]


def test_what_was_saved_comes_back_and_two_are_kept(folder, recwarn):
    assert_same(newest(folder), Run(100))
    assert not recwarn.list
    assert sorted(p.name for p in folder.iterdir()) == [
        f"visit-{s:012d}.{kind}" for s in (20, 100) for kind in ("bin", "json")
    ]


def test_without_a_checkpoint_there_is_nothing_to_go_on_with(tmp_path):
    assert checkpoint.available(tmp_path / "checkpoint") == []


@pytest.mark.parametrize("kind", ["bin", "json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_checkpoint_falls_back_to_the_one_before_with_a_warning(folder, kind, share):
    path = folder / f"visit-000000000100.{kind}"
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.warns(UserWarning, match="visit-000000000100.bin is damaged"):
        assert_same(newest(folder), Run(20))


@pytest.mark.parametrize("kind", ["bin", "json"])
@pytest.mark.parametrize("seed", range(12))
def test_one_flipped_bit_anywhere_falls_back_with_a_warning(folder, kind, seed):
    path, rng = folder / f"visit-000000000100.{kind}", random.Random(seed)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="visit-000000000100.bin is damaged"):
        assert_same(newest(folder), Run(20))


def test_missing_records_fall_back_and_all_damaged_start_anew(folder):
    (folder / "visit-000000000100.bin").unlink()
    with pytest.warns(UserWarning, match="visit-000000000100.bin is damaged"):
        assert checkpoint.available(folder) == [20]
    os.truncate(folder / "visit-000000000020.bin", 100)
    with pytest.warns(UserWarning, match="damaged"):
        assert newest(folder) is None


def test_records_without_their_checksum_are_not_a_checkpoint(folder):
    """A run killed between the two writes: the checksum is written last."""
    (folder / "visit-000000000100.json").unlink()
    assert checkpoint.available(folder) == [20]


def test_full_disk_leaves_the_last_checkpoint_as_it_was(folder):
    """A file size limit stands in for the disk: writing past it fails as on a full one."""
    import resource

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    old, ignored = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
        with pytest.raises(OSError, match="too large"):
            checkpoint.save(folder, Run(200), identity=IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, ignored)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert_same(newest(folder), Run(100))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_sha256": "cd"}, "model_sha256: 'ab' there, 'cd' now"),
        ({"config": {"seed": 2, "steps": 9}}, "seed: 1 there, 2 now"),
        ({"config": {"seed": 1, "steps": 9, "new": 0}}, "new: None there, 0 now"),
        ({"replicas": 2}, "replicas: 1 there, 2 now"),
    ],
)
def test_checkpoint_of_another_run_is_refused_and_the_difference_named(folder, change, text):
    with pytest.raises(ValueError, match=text) as caught:
        checkpoint.require_run(folder, identity={**IDENTITY, **change})
    assert "--output_dir" in str(caught.value)
    assert latest_step(folder.parent) == 50  # refused, not deleted
