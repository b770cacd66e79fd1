"""The disk fills while a run goes on: one line that names the file and the room that is left, the
folder without half-written files, and the same command goes on once there is room.
"""

import errno
import os
import sys
import tempfile

import commands
import disks
import numpy as np
import pytest
import tensorflow as tf
import tiny_models

from dgh_tf.common import console, run_folder
from dgh_tf.generation.store import FileStore
from dgh_tf.report import page
from dgh_tf.run import checkpoint, progress
from tflite_export.conversion import server
from tflite_export.conversion.converter import to_tflite


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    return path


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MiB."""
    with disks.small_disk(tmp_path, size="1m") as folder:
        yield folder


def generate(model_path, folder):
    return commands.call(
        *("dgh_tf.generate", f"--model={model_path}", f"--output_dir={folder}", "--num_images=4"),
        *(
            "--batch_size=2",
            "--steps=2",
            "--input_range=-1,1",
            "--checkpoint_seconds=0",
            "--memory_mib=0",
        ),
    )


def fill(folder):
    """Another program takes all the room."""
    size = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(bytes(size))


def filling_before(monkeypatch, disk, owner, name):
    """Fills the disk once, before the first call of a function, which then runs as it is."""
    original = getattr(owner, name)

    def call(*arguments, **options):
        if not (disk / "filler").exists():
            fill(disk)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, call)


# what is called right before a file is written: (owner, name, file)
METRICS = (progress.Metrics, "add", "metrics.jsonl")
IMAGES = (run_folder, "write_images", "images.npy")
STORE = (os, "posix_fallocate", ".store-0")
CHECKPOINT = (checkpoint, "save", "visit-")
PREVIEW = (page, "write_preview", "preview.png")
MANIFEST = (run_folder, "write_manifest", "manifest.json")


@pytest.fixture(scope="module")
def whole(model_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert generate(model_path, folder)[0] == 0
    return {path.name for path in folder.iterdir()}, np.load(folder / "images.npy")


@pytest.mark.parametrize(
    "point",
    [
        METRICS,
        *(pytest.param(p, marks=pytest.mark.slow) for p in (STORE, CHECKPOINT, PREVIEW, MANIFEST)),
        IMAGES,
    ],
    ids=lambda point: point[2],
)
def test_the_run_stops_with_one_line_and_goes_on(point, disk, model_path, whole, monkeypatch):
    folder, (owner, name, file) = disk / "run", point
    with monkeypatch.context() as changed:
        filling_before(changed, disk, owner, name)
        code, _, err = generate(model_path, folder)
    assert code == 1 and err.count("\n") == 1 and "No space left" in err and file in err, err
    assert "bytes are free there" in err and "Free some space" in err
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not {name for name in left if name.startswith(".") and name != ".lock"}
    (disk / "filler").unlink()
    assert generate(model_path, folder)[0] == 0
    names, images = whole
    assert {path.name for path in folder.iterdir()} == names
    np.testing.assert_array_equal(np.load(folder / "images.npy"), images)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is full")
@pytest.mark.parametrize("point", [METRICS, IMAGES], ids=lambda point: point[2])
def test_a_log_that_is_full_stops_the_run_with_one_line(
    point, tmp_path, model_path, whole, monkeypatch
):
    """The lines of the run go to a disk that is full, its files to one that is not."""
    owner, name, _ = point
    original = getattr(owner, name)

    def call(*arguments, **options):
        sys.stdout = open("/dev/full", "w")  # noqa: SIM115 - until `commands.call` takes it back
        return original(*arguments, **options)

    with monkeypatch.context() as changed:
        changed.setattr(owner, name, call)
        code, _, err = generate(model_path, tmp_path / "run")
    assert (code, err.count("\n")) == (1, 1) and "standard output takes no more" in err, err
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert not {name for name in left if name.startswith(".") and name != ".lock"}
    assert generate(model_path, tmp_path / "run")[0] == 0
    names, images = whole
    assert {path.name for path in (tmp_path / "run").iterdir()} == names
    np.testing.assert_array_equal(np.load(tmp_path / "run" / "images.npy"), images)


def test_a_store_that_could_not_set_its_room_aside_names_itself(disk, monkeypatch):
    """As on macOS and Windows."""
    monkeypatch.delattr(os, "posix_fallocate")
    store = FileStore(disk / ".store-0", [(8, 8, 3)], [4] * 8, channels=5, devices=["CPU:0"])
    slots = store.take(0, upcoming=None)
    fill(disk)
    store.put(0, slots)
    with pytest.raises(OSError, match="No space left.*store-0"):
        store.read(0)
    store.close()
    assert {path.name for path in disk.iterdir()} == {"filler"}


def test_a_converter_without_room_for_its_files_says_so(disk, monkeypatch):
    """In the process of the converter, where no text of an error would fit either."""
    model = tiny_models.conv_bn_relu()
    images = np.random.default_rng(0).uniform(-1, 1, (4, *model.input_shape[1:]))
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    filling_before(monkeypatch, disk, server, "run")
    with pytest.raises(OSError, match="No space left.*TMPDIR.*dgh_tf") as error:
        to_tflite(model, np.float32(images))
    assert error.value.errno == errno.ENOSPC
    assert not list(disk.glob("dgh_tf*/*"))


def test_tensorflow_without_room_is_told_as_a_full_disk(disk):
    """Not as a lack of memory, though TensorFlow has one error for both."""
    fill(disk)
    with pytest.raises(tf.errors.ResourceExhaustedError) as error:
        tf.saved_model.save(tf.Module(), str(disk / "model"))
    told = console._explained(error.value)
    assert "No space left" in told and "Free some space" in told and "memory" not in told
