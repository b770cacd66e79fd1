"""Places that cannot be written to, are in use or full, and Ctrl-C; the last test counts the bad
inputs of all hostile files.
"""

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hostile import SEEN, convert, refused, written

from tflite_export.proof import write_set


def test_output_that_cannot_be_written_is_refused_before_work(work):
    (work / "taken.tflite").mkdir()
    (work / "proof.json").mkdir()
    written(work, "a_file", b"x")
    (work / "lost").symlink_to(work / "nowhere")
    for output in ("taken.tflite", "proof.tflite", "a_file/o.tflite", "lost/o.tflite"):
        refused(work, "tflite_export.convert", *convert(work, output=work / output))
    data = [f"--real={work}/good.npz", f"--evaluation={work}/good.npz", "--num_images=4"]
    for folder in ("a_file", "a_file/below", "lost"):
        refused(
            work,
            "benchmarks.calibration",
            f"--model={work}/good.keras",
            *data,
            f"--output_dir={work / folder}",
        )
        refused(work, "benchmarks.suite", f"--output_dir={work / folder}", "--only=demo")
        refused(
            work,
            "benchmarks.privacy",
            f"--model={work}/good.keras",
            f"--output_dir={work / folder}",
        )
        refused(
            work, "dgh_tf.generate", f"--model={work}/good.keras", f"--output_dir={work / folder}"
        )
    for output in ("a_file/s.json", "taken.tflite", "nowhere/s.json"):
        refused(work, "benchmarks.speed", f"--model={work}/good.keras", f"--output={work / output}")
        refused(
            work,
            "benchmarks.layers",
            f"--model={work}/good.keras",
            f"--calibrations={work}/good.npy",
            f"--output={work / output}",
        )
        refused(
            work,
            "benchmarks.verdict",
            f"--model={work}/good.keras",
            f"--tflite={work}/good.npy",
            f"--output={work / output}",
        )


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("benchmarks.calibration", ["--real={w}/good.npz", "--evaluation={w}/good.npz"]),
        ("benchmarks.suite", ["--only=demo"]),
        ("dgh_tf.generate", ["--steps=1"]),
        ("benchmarks.lowbit", ["--real={w}/good.npz", "--evaluation={w}/good.npz"]),
        ("benchmarks.structure", ["--real={w}/good.npz"]),
    ],
)
def test_a_second_process_on_the_same_folder_is_refused(work, command, arguments):
    import filelock

    (work / "busy").mkdir(exist_ok=True)
    model = [] if command == "benchmarks.suite" else [f"--model={work}/good.keras"]
    with filelock.FileLock(work / "busy" / ".lock", timeout=0):
        refused(
            work,
            command,
            *model,
            *(a.format(w=work) for a in arguments),
            f"--output_dir={work}/busy",
            words="writing to",
        )


def test_a_killed_owner_leaves_no_lock(work):
    import filelock

    folder = work / "orphan"
    folder.mkdir()
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import filelock, sys, time\n"
            "with filelock.FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)",
            str(folder / ".lock"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout.readline() == "held\n"
    arguments = [
        f"--real={work}/good.npz",
        f"--evaluation={work}/good.npz",
        f"--model={work}/good.keras",
        f"--output_dir={folder}",
    ]
    refused(work, "benchmarks.calibration", *arguments, words="writing to")
    owner.kill()
    owner.wait()
    with filelock.FileLock(folder / ".lock", timeout=0):
        pass


def test_damaged_results_are_refused_and_kept(work):
    folder = work / "old"
    folder.mkdir()
    for text in (b"{", b"[5]", b'[{"source": "real"}]', bytes(range(256))):
        written(folder, "results.json", text)
        refused(
            work,
            "benchmarks.calibration",
            f"--model={work}/good.keras",
            f"--real={work}/good.npz",
            f"--evaluation={work}/good.npz",
            "--num_images=4",
            f"--output_dir={folder}",
            "--sources=real",
            f"--steps={len(SEEN) + 1}",
            words=str(folder),
        )
        assert (folder / "results.json").read_bytes() == text


def test_a_refused_run_removes_only_a_folder_that_it_made(work):
    (work / "kept").mkdir()
    for name in ("kept", "new"):
        refused(
            work,
            "dgh_tf.generate",
            f"--model={work}/good.keras",
            f"--output_dir={work}/{name}",
            "--input_range=wide",
        )
    assert (work / "kept").is_dir() and not (work / "new").exists()


def test_each_worker_locks_a_shared_folder_for_itself(tmp_path):
    from dgh_tf.common.files import locked_folder

    with locked_folder(tmp_path, flag="f"), locked_folder(tmp_path, flag="f", worker=1):
        with (
            pytest.raises(ValueError, match="writing to"),
            locked_folder(tmp_path, flag="f", worker=1),
        ):
            pass
        with pytest.raises(ValueError, match="writing to"), locked_folder(tmp_path, flag="f"):
            pass


def process(*arguments, **options):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


@pytest.fixture
def names(work):
    """A folder whose name has spaces and letters beyond ASCII, with the good files in it."""
    folder = work / "Ordner mit Lücken 数据 'quotes'"
    folder.mkdir(exist_ok=True)
    for name in ("good.keras", "good.npy"):
        (folder / name).write_bytes((work / name).read_bytes())
    return folder


def test_ctrl_c_while_converting_leaves_nothing(names):
    running = process("tflite_export.convert", *convert(names))
    while not (line := running.stdout.readline()).startswith("converting"):
        assert line.startswith(("loading ", "warning: "))
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and err.startswith("stopped: ") and err.count("\n") == 1, err
    assert {path.name for path in names.iterdir()} == {"good.keras", "good.npy"}


@pytest.mark.slow
def test_odd_names_work(names):
    done = process("tflite_export.convert", *convert(names))
    _, err = done.communicate(timeout=120)
    assert (done.returncode, err) == (0, "")
    assert (
        json.loads((names / "out.json").read_text())["fully_integer"]
        and (names / "out.tflite").stat().st_size > 1000
    )


@pytest.mark.parametrize("seconds", [0.7, 1.5, 3.0, 4.5])
@pytest.mark.slow
def test_ctrl_c_at_any_time_is_one_line_at_most(names, seconds):
    running = process("tflite_export.convert", *convert(names, output=names / "late.tflite"))
    time.sleep(seconds)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert "Traceback" not in err and err.count("\n") <= 1, err
    left = {path.name: path.read_bytes() for path in names.glob("*late*")}
    for name in left:
        (names / name).unlink()
    # nothing, or on a fast machine the pair as it was replaced together
    assert (
        not left
        or set(left) == {"late.tflite", "late.json"}
        and json.loads(left["late.json"])["fully_integer"]
    ), set(left)
    assert running.returncode in (130, -signal.SIGINT, *([0] if left else [])) and (
        not left or seconds > 1
    )


@contextlib.contextmanager
def mounted(folder, options):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 KiB."""
    with mounted(tmp_path, "size=64k") as folder:
        yield folder


def test_a_place_without_write_permission_is_refused_before_work(work, tmp_path):
    """A read-only file system: it refuses root too, as a folder of another user refuses everyone
    else.
    """
    model, data = (
        f"--model={work}/good.keras",
        [f"--real={work}/good.npz", f"--evaluation={work}/good.npz"],
    )
    with mounted(tmp_path, "ro,size=64k") as folder:
        refused(
            work,
            "tflite_export.convert",
            *convert(work, output=folder / "o.tflite"),
            words="nothing can be written there",
        )
        for command, more in (
            ("benchmarks.calibration", data),
            ("benchmarks.privacy", []),
            ("dgh_tf.generate", ["--steps=1"]),
        ):
            for place in (folder, folder / "new"):
                refused(work, command, model, *more, f"--output_dir={place}")
        refused(work, "benchmarks.suite", "--only=demo", f"--output_dir={folder}")
        refused(work, "benchmarks.speed", model, f"--output={folder}/s.json")
        refused(
            work,
            "benchmarks.layers",
            model,
            f"--calibrations={work}/good.npy",
            f"--output={folder}/s.json",
        )


def test_a_full_disk_keeps_the_old_files(full_disk):
    """Both new files are whole on disk before the first old one is replaced: a proof never stands
    beside another file.
    """
    names = ("out.tflite", "out.json", "out_model.h")
    write_set({full_disk / name: f"the old {name}".encode() for name in names})
    for room in (0, 6, 12):  # KiB: nothing fits; the smallest fits; the first fits, but not all
        (full_disk / "filler").write_bytes(bytes((64 - 12 - room) * 1024))
        proof = bytes(9000 if room == 12 else 1)
        with pytest.raises(OSError, match="No space left.*out"):
            write_set(
                {
                    full_disk / "out.tflite": bytes(9000),
                    full_disk / "out.json": proof,
                    full_disk / "out_model.h": proof,
                }
            )
        for name in names:
            assert (full_disk / name).read_text() == f"the old {name}"
        assert {path.name for path in full_disk.iterdir()} == {*names, "filler"}


def test_files_that_two_write_at_once_belong_together(tmp_path):
    """Two conversions onto one name: whoever is last, the proof is that of the file beside it."""
    names = [tmp_path / f"out.{ending}" for ending in ("tflite", "json", "h")]
    barrier = threading.Barrier(2)

    def write(mark):
        barrier.wait()
        write_set(dict.fromkeys(names, mark))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in range(30):
            list(pool.map(write, (b"1", b"2")))
            assert len({path.read_bytes() for path in names}) == 1
    assert set(tmp_path.iterdir()) == set(names)


def test_an_array_on_a_full_disk_names_its_file(full_disk):
    from dgh_tf.common.files import atomic_path

    with (
        pytest.raises(OSError, match="images.npy") as error,
        atomic_path(full_disk / "images.npy") as path,
    ):
        np.save(path, np.zeros(100_000))
    assert error.value.errno == 28 and not list(full_disk.iterdir())  # ENOSPC


@pytest.mark.slow
def test_convert_on_a_full_disk_is_one_line(work, full_disk):
    (full_disk / "filler").write_bytes(bytes(64 * 1024))
    running = process("tflite_export.convert", *convert(work, output=full_disk / "out.tflite"))
    _, err = running.communicate(timeout=120)
    assert (
        running.returncode == 1
        and err.startswith("error: ")
        and err.count("\n") == 1
        and "No space left" in err
    ), err
    assert "Free some space" in err and "out." in err
    assert {path.name for path in full_disk.iterdir()} == {"filler"}


def test_at_least_200_distinct_bad_inputs_were_tried(capsys):
    """Only meaningful after the whole file: a single test run alone has tried fewer."""
    with capsys.disabled():
        print(f"\n{len(SEEN)} distinct bad inputs refused")
    if len(SEEN) < 100:
        pytest.skip("only part of this file ran")
    assert len(SEEN) >= 200
