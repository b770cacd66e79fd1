"""What a run does with a full disk, a folder without locks, what killed runs left, and files that
were changed by hand.
"""

import errno
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import commands
import disks
import filelock
import loops
import numpy as np
import pytest
import tiny_models

from dgh_tf.common import files, run_folder
from dgh_tf.config import GenerationConfig
from dgh_tf.generation.generator import Generator
from dgh_tf.generation.store import FileStore
from dgh_tf.run import checkpoint, progress
from tflite_export.proof import output_paths

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = ("--num_images=4", "--batch_size=4", "--steps=2", "--input_range=-1,1")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    return path


def generate(model_path, folder, *more):
    return commands.call(
        "dgh_tf.generate", f"--model={model_path}", f"--output_dir={folder}", *SETTINGS, *more
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    with disks.small_disk(tmp_path, size="64k") as folder:
        yield folder


def test_a_set_too_large_for_the_disk_is_refused_with_the_numbers(small_disk, model_path):
    store = small_disk / ".store-0"
    with pytest.raises(OSError, match=r"streamed set 0\.9\), but 0\.1 MiB are free.*--memory_mib"):
        # 100 images of 8 x 8 x 3 float32, their two slots, and 2 x 5 channels: 0.88 MiB
        FileStore(store, [(8, 8, 3)], [4] * 100, channels=5, devices=["CPU:0"])
    assert not list(small_disk.iterdir())
    code, _, err = generate(model_path, small_disk / "run", "--num_images=64")
    assert code == 1 and err.count("\n") == 1 and "images 0.2" in err and "0.1 MiB are free" in err
    assert not (small_disk / "run").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks"), NotImplementedError("none")])
def test_a_file_system_without_locks_is_named(error, tmp_path, monkeypatch):
    def acquire(self, *arguments, **options):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with (
        pytest.raises(ValueError, match=r"new/\.lock cannot be locked.*a disk of this machine"),
        files.locked_folder(tmp_path / "new", flag="output_dir"),
    ):
        pass
    assert not (tmp_path / "new").exists()


def test_what_killed_runs_left_goes_also_from_a_finished_folder(model_path, tmp_path):
    folder = tmp_path / "run"
    assert generate(model_path, folder)[0] == 0
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    mine = folder / ".notes.txt.old"
    for name in (".images.npy.k3j.npy", ".preview.png.a.png", ".store-0", ".file.x", mine.name):
        (folder / name).write_bytes(b"half")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "visit-000000000001.bin").write_bytes(b"x")
    (folder / "attempts" / "16-25").mkdir(parents=True)
    code, out, _ = generate(model_path, folder)
    assert code == 0 and "is finished" in out
    assert {path.name for path in folder.iterdir()} == {*whole, mine.name}
    assert all((folder / name).read_bytes() == data for name, data in whole.items())


def test_the_manifest_of_a_run_is_not_replaced_by_a_proof(model_path, tmp_path):
    assert generate(model_path, tmp_path / "run")[0] == 0
    before = (tmp_path / "run" / "manifest.json").read_bytes()
    code, _, err = commands.call(
        "tflite_export.convert",
        f"--model={model_path}",
        f"--calibration={tmp_path}/run",
        f"--output={tmp_path}/run/manifest.tflite",
    )
    assert code == 1 and "manifest.json tells what the run in that folder is" in err
    assert (tmp_path / "run" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("results", '[{"source": "real"}]', "results.json tells what the run"),
        ("ranges", "{}", "ranges.json tells what the run"),
        ("labels", '["cat", "dog"]', "labels.json is no proof of an earlier conversion"),
        ("cut", '{"fully_int', "cut.json is no proof of an earlier conversion"),
    ],
)
def test_a_conversion_replaces_no_json_that_is_not_its_own(name, text, words, tmp_path):
    (tmp_path / f"{name}.json").write_text(text)
    with pytest.raises(FileExistsError, match=words):
        output_paths(tmp_path / f"{name}.tflite")
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.json"]
    assert (tmp_path / f"{name}.json").read_text() == text
    (tmp_path / "new.json").write_text('{"fully_integer": true}')
    assert output_paths(tmp_path / "new.tflite")[1] == tmp_path / "new.json"


WRITE_AND_WAIT = """
import pathlib, sys, time
from dgh_tf.common.files import atomic_path
with atomic_path(pathlib.Path(sys.argv[1])) as path:
    path.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_conversion_left_is_cleared_and_what_a_living_one_writes_is_not(tmp_path):
    output, mine = tmp_path / "F.tflite", tmp_path / ".F.tflite.my own notes"
    mine.write_text("mine")
    command = [sys.executable, "-c", WRITE_AND_WAIT, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"writing\n"
        (left,) = set(tmp_path.glob(".F.tflite.*")) - {mine}
        output_paths(output)
        assert left.read_bytes() == b"half"
        process.kill()
    assert left.exists()
    output_paths(output)
    assert list(tmp_path.iterdir()) == [mine]


def damaged_heads(data):
    """Checkpoints with a checksum that is right and a head that no run wrote."""
    length = int.from_bytes(data[:8], "little")
    head, rest = json.loads(data[8 : 8 + length]), data[8 + length :]

    def packed(value):
        text = json.dumps(value).encode()
        return len(text).to_bytes(8, "little") + text + rest

    yield (2**63).to_bytes(8, "little") + data[8:]
    yield (200_000).to_bytes(8, "little") + b"[" * 200_000 + rest
    yield packed([])
    yield packed({**head, "gap_start": []})
    yield packed({**head, "visits": "2"})
    yield packed({**head, "plateau": [1, 2]})
    yield packed({**head, "carry": [["|O", [1]]]})
    yield packed({**head, "carry": [["<f4", [10**12]]]})
    yield packed({**head, "identity": 5})
    yield b""


def test_heads_of_checkpoints_that_no_run_wrote_are_passed_over(tmp_path):
    generator = loops.first_step(loops.started(tiny_models.conv_bn_relu()))
    checkpoint.save(tmp_path, generator, identity={})
    (path,) = tmp_path.glob("*.bin")
    assert checkpoint.available(tmp_path) == [int(path.stem.removeprefix("visit-"))]
    for data in damaged_heads(path.read_bytes()):
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        path.with_suffix(".json").write_text(json.dumps({"sha256": digest}))
        with pytest.warns(UserWarning, match="is damaged"):
            assert checkpoint.available(tmp_path) == []


@pytest.mark.parametrize("data", [b"[" * 200_000, b"{", b"\xff", b"1" * 5000, b"5", None])
def test_a_manifest_that_no_run_wrote_is_one_line(data, model_path, tmp_path):
    path = tmp_path / "manifest.json"
    if data is None:
        os.mkfifo(path)
    else:
        path.write_bytes(data)
    code, _, err = generate(model_path, tmp_path)
    assert code == 1 and err.count("\n") == 1 and str(path) in err, err


def test_a_manifest_cannot_name_files_of_other_folders(tmp_path):
    np.save(tmp_path / "secret.npy", np.zeros(3))
    folder = tmp_path / "run"
    folder.mkdir()
    manifest = {"identity": {}, "images_sha256": "x", "files": {"": "../secret.npy"}}
    run_folder.write_manifest(folder, manifest)
    with pytest.raises(ValueError, match="files is not what a run writes"):
        run_folder.load_images(folder)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", b"PK\x05\x06" + bytes(18), b"\x80\x04", None])
def test_images_that_no_run_wrote_are_one_line(data, model_path, tmp_path):
    assert generate(model_path, tmp_path / "run")[0] == 0
    path = tmp_path / "run" / "images.npy"
    path.unlink()
    if data is None:
        os.mkfifo(path)
    else:
        path.write_bytes(data)
    code, _, err = generate(model_path, tmp_path / "run")
    assert code == 1 and err.count("\n") == 1 and "generate again" in err, err


def test_the_start_tells_how_many_images_it_has_behind_it():
    config = GenerationConfig(num_images=10, batch_size=4, steps=1, input_range="-1,1")
    generator, told = Generator(tiny_models.conv_bn_relu(), config), []
    generator.start(told=lambda what, images: told.append((what, images)))
    sums = np.cumsum(generator.sizes).tolist()
    assert sums[-1] == 10 and len(sums) == 3
    assert told == [(f"start images {done}", n) for done in ("drawn", "measured") for n in sums]


def test_lines_of_a_start_give_the_time_left(monkeypatch, capsys):
    """By hand: four images of 20 took 8 s after the first four, so 12 images take 24 s."""
    now = iter([0.0, 100.0, 100.0, 108.0, 108.0, 108.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    lines = progress.Lines(20)
    monkeypatch.setattr(lines._left.__class__, "SECONDS", 5.0)
    lines("start images drawn", 4)
    assert not capsys.readouterr().out
    lines("start images drawn", 8)
    assert capsys.readouterr().out == "8/20 start images drawn, 24 s left\n"


@pytest.mark.slow
def test_ctrl_c_while_a_large_set_starts_ends_within_seconds(model_path, tmp_path):
    """20000 start images take minutes; nothing was done that could be gone on with."""
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "dgh_tf.generate", f"--model={model_path}"),
            *(f"--output_dir={folder}", *SETTINGS, "--num_images=20000", "--memory_mib=0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    while "start images drawn" not in process.stdout.readline():  # after ten seconds
        assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.count("\n") == 1 and time.monotonic() - began < 2
    assert not folder.exists() or {path.name for path in folder.iterdir()} == {".lock"}
