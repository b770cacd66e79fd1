"""Whatever a user or a broken disk hands a command: one clear line, exit code above 0, no traceback, nothing left half-written.

Commands run in this process, through the same flag parser and error guard as `python -m`; a few run as real processes.
"""
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import commands
import hostile_files
import numpy as np
import pytest
import tiny_models
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEEN: set[tuple[str, ...]] = set()


@pytest.fixture(scope="module", autouse=True)
def no_flags_left():
    """Leaves no command's flags behind."""
    yield
    commands.forget()


def listing(folder):
    """Every file below a folder with its size and time, locks aside."""
    return {str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in pathlib.Path(folder).rglob("*")
            if p.name != ".lock" and not p.is_dir()}


def refused(work, command, *arguments, words="", code=1):
    """Runs a bad input and checks the promise of this file; returns the line."""
    SEEN.add((command, *arguments))
    before = listing(work)
    got, _, err = commands.call(command, *arguments)
    lines = err.strip("\n").split("\n")
    assert got == code, (got, err)
    assert len(lines) == 1 and err.startswith("error: ") and "Traceback" not in err, err
    assert 25 < len(err) < 1500, err
    assert words in err, err
    assert listing(work) == before, set(listing(work)) ^ set(before)
    return err


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a small good model (8x8x3) and good data: good.keras, good.npy, good.npz."""
    import keras

    folder = tmp_path_factory.mktemp("hostile")
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x)))
    tiny_models.settle(model).save(folder / "good.keras")
    np.save(folder / "good.npy", hostile_files.GOOD)
    np.savez(folder / "good.npz", x=hostile_files.GOOD, y=np.arange(4) % 3)
    (folder / "trap").mkdir()
    return folder


TRAP = pathlib.Path("/tmp") / f"hostile_trap_{os.getpid()}"


def convert(work, **changed):
    """Arguments of convert, good but for `changed`; None leaves one out."""
    given = {"model": work / "good.keras", "calibration": work / "good.npy", "output": work / "out.tflite", **changed}
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def written(work, name, data):
    path = work / name
    path.write_bytes(data)
    return path


# ---- flags

REQUIRED = {  # flags that each command needs, good values; {w} is the work folder
    "tflite_export.convert": {"model": "{w}/good.keras", "calibration": "{w}/good.npy", "output": "{w}/out.tflite"},
    "benchmarks.calibration": {"model": "{w}/good.keras", "real": "{w}/good.npz", "evaluation": "{w}/good.npz", "output_dir": "{w}/bench"},
    "benchmarks.layers": {"model": "{w}/good.keras", "calibrations": "{w}/good.npy"},
    "benchmarks.verdict": {"model": "{w}/good.keras", "tflite": "{w}/none.tflite"},
    "benchmarks.privacy": {"model": "{w}/good.keras", "output_dir": "{w}/privacy"},
    "benchmarks.speed": {"model": "{w}/good.keras", "output": "{w}/speed.json"},
    "benchmarks.suite": {"output_dir": "{w}/suite"},
    "benchmarks.lowbit": {"model": "{w}/good.keras", "real": "{w}/good.npz", "evaluation": "{w}/good.npz", "output_dir": "{w}/low"},
    "dgh_tf.report": {"output_dir": "{w}/nothing"},
    "dgh_tf.generate": {"model": "{w}/good.keras", "output_dir": "{w}/generated"},
}
NUMBERS = ["x", "1.5.2", "", "0x", "1e", "--", "-1", "999999999999999999999999x", "١٢x", "None"]


def test_every_number_and_choice_of_every_command_refuses_nonsense(work):
    for command, good in REQUIRED.items():
        commands.ready(command)
        names = [flag.name for flag in flags.FLAGS.get_flags_for_module(command)]
        parsers = {name: flags.FLAGS[name].parser for name in names}
        for name, parser in parsers.items():
            values = {"int": NUMBERS, "float": NUMBERS[:6], "bool": ["maybe", "2", "yess"]}.get(parser.flag_type(), [])
            if isinstance(parser, flags.EnumParser):
                values = ["nonsense", "", "none,none"]
            if name == "seed" or getattr(parser, "lower_bound", 0) is None:
                values = [value for value in values if value != "-1"] + (["-1"] if name == "seed" else [])
            for value in values:
                refused(work, command, *(f"--{k}={v.format(w=work)}" for k, v in good.items()), f"--{name}={value}")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=st.text(min_size=1, max_size=12).filter(lambda t: not t.strip().lstrip("+-").replace("_", "").isdigit()))
def test_no_text_passes_for_a_number(work, text):
    refused(work, "tflite_export.convert", *convert(work), f"--seed={text}")


@pytest.mark.parametrize("command", REQUIRED)
def test_unknown_flags_missing_flags_and_stray_words_are_refused(work, command):
    given = [f"--{k}={v.format(w=work)}" for k, v in REQUIRED[command].items()]
    refused(work, command, *given, "--nonsense=1", words="Unknown command line flag 'nonsense'")
    refused(work, command, *given, "stray", words="unexpected argument 'stray'", code=2)
    if command != "dgh_tf.generate":
        refused(work, command, words="is missing")


@pytest.mark.parametrize(("changed", "words"), [
    ({"model": "absent.keras"}, "No model at"), ({"model": ""}, "model"), ({"model": "keras:NoSuchNet"}, "has no model"),
    ({"model": "keras:"}, "has no model"), ({"model": "keras:__doc__"}, "has no model"), ({"model": "a" * 300}, ""), ({"model": "."}, ""),
    ({"model": "/dev/null"}, ""), ({"model": "bad\0name"}, ""), ({"calibration": "absent.npy"}, "There is no calibration data"),
    ({"calibration": ""}, ""), ({"calibration": "/dev/null"}, ""), ({"calibration": "a" * 300 + ".npy"}, ""),
    ({"calibration": "a\0.npy"}, ""),
    ({"output": "out.bin"}, "does not end in .tflite"), ({"output": ""}, "does not end in .tflite"),
    ({"output": ".tflite"}, "does not end in"),
    ({"output": "no/such/folder/o.tflite"}, "does not exist"), ({"output": "/dev/null/o.tflite"}, ""), ({"output": "/proc/o.tflite"}, ""),
    ({"output": "a" * 300 + ".tflite"}, ""), ({"output": "o\0.tflite"}, ""), ({"preprocess": "1"}, "not two numbers"),
    ({"preprocess": "a,b"},
    "not two numbers"), ({"preprocess": "nan,nan"}, ""), ({"input_range": "1"}, "not two numbers"), ({"input_range": "5,-5"}, "low < high"),
    ({"input_range": "0,255"}, "fills"), ({"input_range": "nan,nan"}, "not two numbers"), ({"input_range": "inf,inf"}, ""),
    ({"target": "toaster"}, "names toaster; expected none"), ({"target": "none,tflm"}, "names none"), ({"scheme": "w4a8",
    "target": "edgetpu"},
    "takes 8 bits"), ({"require_full_mapping": "true"}, "--target is none"), ({"scheme": "int16x8", "algorithm": "reconstruction"},
    "has no scheme int16x8"), ({"scheme": "int16x8", "head": "logits"}, "--head=model"),
], ids=str)
def test_convert_refuses_values_that_make_no_sense(work, changed, words):
    refused(work, "tflite_export.convert", *convert(work, **changed), words=words)


# ---- files

@pytest.mark.parametrize("name", hostile_files.arrays(TRAP))
def test_broken_npy_is_refused(work, name):
    path = written(work, "bad.npy", hostile_files.arrays(TRAP)[name])
    refused(work, "tflite_export.convert", *convert(work, calibration=path, input_range="0,1"), f"--seed={len(SEEN)}", words="alibration" if
            "nan" in name else "")
    assert not TRAP.exists()  # nothing was unpickled


@pytest.mark.parametrize("name", hostile_files.archives(TRAP))
def test_broken_npz_is_refused_by_export_and_benchmarks(work, name):
    path = written(work, "bad.npz", hostile_files.archives(TRAP)[name])
    refused(work, "tflite_export.convert", *convert(work, calibration=path), f"--seed={len(SEEN)}")
    for role in ("real", "evaluation"):
        sets = {"real": work / "good.npz", "evaluation": work / "good.npz", role: path}
        if name == "only labels" or "labels" not in name:
            refused(work, "benchmarks.calibration", f"--model={work}/good.keras", *(f"--{k}={v}" for k, v in sets.items()),
                    f"--output_dir={work}/bench", "--num_images=4", f"--steps={len(SEEN) + 1}")
    assert not TRAP.exists()


@pytest.mark.parametrize("name", hostile_files.labels(TRAP))
def test_bad_labels_are_refused(work, name):
    path = written(work, "bad.npz", hostile_files.labels(TRAP)[name])
    refused(work, "benchmarks.calibration", f"--model={work}/good.keras", f"--real={work}/good.npz", f"--evaluation={path}",
            f"--output_dir={work}/bench", "--num_images=4", f"--steps={len(SEEN) + 1}")
    assert not TRAP.exists()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300), keep=st.integers(0, 200), suffix=st.sampled_from([".npy", ".npz"]))
def test_random_bytes_behind_a_good_start_are_refused(work, data, keep, suffix):
    good = hostile_files.saved(hostile_files.GOOD) if suffix == ".npy" else hostile_files.npz(x=hostile_files.GOOD)
    path = written(work, f"random{suffix}", good[:keep] + data)
    with pytest.raises((ValueError, OSError)) as error:
        from tflite_export import check_calibration, load_calibration

        check_calibration(load_calibration(path).images, input_shapes={"image": (8, 8, 3)})
    assert str(path) in str(error.value) or "alibration data" in str(error.value)
    SEEN.add((suffix, good[:keep].hex(), data.hex()))


@pytest.fixture(scope="module")
def bad_models(work):
    from tflite_export import to_float_tflite

    tflite = b"\x1c\0\0\0TFL3" + bytes(64)
    del to_float_tflite
    return hostile_files.models((work / "good.keras").read_bytes(), tflite)


def test_broken_models_are_refused(work, bad_models):
    for name, data in bad_models.items():
        path = written(work, f"bad {name}.keras", data)
        refused(work, "tflite_export.convert", *convert(work, model=path))
        path.unlink()


def test_broken_manifests_are_refused(work):
    from dgh_tf.files import sha256_array

    folder = work / "run"
    folder.mkdir()
    np.save(folder / "images.npy", hostile_files.GOOD)
    for name, data in hostile_files.manifests(sha256_array(hostile_files.GOOD)).items():
        written(folder, "manifest.json", data)
        refused(work, "tflite_export.convert", *convert(work, calibration=folder), f"--seed={len(SEEN)}")
        SEEN.add(("manifest", name))


def test_places_that_are_no_files_are_refused_at_once(work):
    """A pipe that nobody writes to would be waited for for ever, a loop of links followed for ever."""
    os.mkfifo(work / "pipe.npy")
    (work / "loop.npy").symlink_to(work / "loop.npy")
    (work / "dangling.npy").symlink_to(work / "nowhere.npy")
    (work / "folder.npy").mkdir()
    (work / "folder.keras").mkdir()
    os.mkfifo(work / "pipe.keras")
    os.mkfifo(work / "pipe.npz")
    for name in ("pipe.npy", "pipe.npz", "loop.npy", "dangling.npy", "folder.npy"):
        refused(work, "tflite_export.convert", *convert(work, calibration=work / name))
    for name in ("pipe.keras", "folder.keras"):
        refused(work, "tflite_export.convert", *convert(work, model=work / name))
    for name in ("pipe.npz", "loop.npy", "dangling.npy"):
        refused(work, "benchmarks.calibration", f"--model={work}/good.keras", f"--real={work / name}", f"--evaluation={work}/good.npz",
                f"--output_dir={work}/bench")


def test_folders_of_broken_pictures_are_refused(work):
    folder = work / "pictures"
    folder.mkdir()
    for name, data in {"empty.png": b"", "text.jpg": b"no picture", "cut.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "zeros.bmp": bytes(100)}.items():
        path = written(folder, name, data)
        refused(work, "tflite_export.convert", *convert(work, calibration=folder), f"--seed={len(SEEN)}", words=name)
        path.unlink()
    refused(work, "tflite_export.convert", *convert(work, calibration=folder), words="no image files")


# ---- the place to write to

def test_output_that_cannot_be_written_is_refused_before_work(work):
    (work / "taken.tflite").mkdir()
    (work / "proof.json").mkdir()
    written(work, "a_file", b"x")
    (work / "lost").symlink_to(work / "nowhere")
    for output in ("taken.tflite", "proof.tflite", "a_file/o.tflite", "lost/o.tflite"):
        refused(work, "tflite_export.convert", *convert(work, output=work / output))
    data = [f"--real={work}/good.npz", f"--evaluation={work}/good.npz", "--num_images=4"]
    for folder in ("a_file", "a_file/below", "lost"):
        refused(work, "benchmarks.calibration", f"--model={work}/good.keras", *data, f"--output_dir={work / folder}")
        refused(work, "benchmarks.suite", f"--output_dir={work / folder}", "--only=demo")
        refused(work, "benchmarks.privacy", f"--model={work}/good.keras", f"--output_dir={work / folder}")
        refused(work, "dgh_tf.generate", f"--model={work}/good.keras", f"--output_dir={work / folder}")
    for output in ("a_file/s.json", "taken.tflite", "nowhere/s.json"):
        refused(work, "benchmarks.speed", f"--model={work}/good.keras", f"--output={work / output}")
        refused(work, "benchmarks.layers", f"--model={work}/good.keras", f"--calibrations={work}/good.npy", f"--output={work / output}")
        refused(work, "benchmarks.verdict", f"--model={work}/good.keras", f"--tflite={work}/good.npy", f"--output={work / output}")


@pytest.mark.parametrize(("command", "arguments"), [
    ("benchmarks.calibration", ["--real={w}/good.npz", "--evaluation={w}/good.npz"]), ("benchmarks.suite", ["--only=demo"]),
    ("dgh_tf.generate", ["--steps=1"]), ("benchmarks.lowbit", ["--real={w}/good.npz", "--evaluation={w}/good.npz"]),
])
def test_a_second_process_on_the_same_folder_is_refused(work, command, arguments):
    import filelock

    (work / "busy").mkdir(exist_ok=True)
    model = [] if command == "benchmarks.suite" else [f"--model={work}/good.keras"]
    with filelock.FileLock(work / "busy" / ".lock", timeout=0):
        refused(work, command, *model, *(a.format(w=work) for a in arguments), f"--output_dir={work}/busy", words="writing to")


def test_a_killed_owner_leaves_no_lock(work):
    import filelock

    folder = work / "orphan"
    folder.mkdir()
    owner = subprocess.Popen([sys.executable, "-c", "import filelock, sys, time\n"
                              "with filelock.FileLock(sys.argv[1]): print('held', flush=True); time.sleep(60)", str(folder / ".lock")],
                             stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    arguments = [f"--real={work}/good.npz", f"--evaluation={work}/good.npz", f"--model={work}/good.keras", f"--output_dir={folder}"]
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
        refused(work, "benchmarks.calibration", f"--model={work}/good.keras", f"--real={work}/good.npz", f"--evaluation={work}/good.npz",
                "--num_images=4", f"--output_dir={folder}", "--sources=real", f"--steps={len(SEEN) + 1}", words=str(folder))
        assert (folder / "results.json").read_bytes() == text


LISTS = {
    "empty": b"", "no json": b"{", "a number": b"5", "no models": b"{}", "models a number": b'{"models": 3}',
    "models empty": b'{"models": []}',
    "entries of text": b'{"models": ["a"]}', "an entry without anything": b'{"models": [{}]}', "binary": bytes(range(256)),
    "unknown field": b'{"models": [{"name": "a", "model": "m", "real": "r", "evaluation": "e", "task": "classification", "colour": 1}]}',
    "bad name": b'{"models": [{"name": "../a", "model": "m", "real": "r", "evaluation": "e", "task": "classification"}]}',
    "bad task": b'{"models": [{"name": "a", "model": "m", "real": "r", "evaluation": "e", "task": "juggling"}]}',
    "twice": b'{"models": [%s, %s]}' % ((b'{"name": "a", "model": "m", "real": "r", "evaluation": "e", "task": "detection"}',) * 2),
    "numbers": b'{"models": [{"name": 1, "model": 2, "real": 3, "evaluation": 4, "task": "classification"}]}',
    "steps of text": b'{"models": [{"name": "a", "model": "m", "real": "r", "evaluation": "e", "task": "detection", "steps": "many"}]}',
}


@pytest.mark.parametrize("name", LISTS)
def test_bad_lists_of_models_are_refused(work, name):
    path = written(work, "list.json", LISTS[name])
    refused(work, "benchmarks.suite", f"--models={path}", f"--output_dir={work}/suite_{len(SEEN)}")


def test_bad_arguments_of_the_suite_and_the_comparison(work):
    for value in ("x", "0", "-3", "8,8", "", "1.5"):
        refused(work, "benchmarks.suite", f"--output_dir={work}/suite", "--only=demo", f"--num_images={value}")
    refused(work, "benchmarks.suite", f"--output_dir={work}/suite", "--only=nobody", words="not in the list")
    refused(work, "benchmarks.suite", f"--output_dir={work}/suite", "--only=demo", "--schemes=int3", words="expected some of")
    refused(work, "benchmarks.suite", f"--output_dir={work}/suite", "--only=demo", "--sources=dreams")
    refused(work, "benchmarks.suite", f"--output_dir={work}/suite", "--models=absent.json", words="no such file")
    written(work, "code.yaml", b"models: !!python/object/apply:os.system ['touch %s']" % str(TRAP).encode())
    refused(work, "benchmarks.suite", f"--output_dir={work}/suite", f"--models={work}/code.yaml")
    assert not TRAP.exists()
    data = [f"--model={work}/good.keras", f"--real={work}/good.npz", f"--evaluation={work}/good.npz", f"--output_dir={work}/bench"]
    for value in ("dreams", "", "real,dreams"):
        refused(work, "benchmarks.calibration", *data, f"--sources={value}")
    for value in ("x", "1", "1,2,3", "nan,0", "imagenett", ""):
        refused(work, "benchmarks.calibration", *data, "--num_images=4", f"--preprocess={value}")
    for value in ("0,", "1,0", "nan,nan", "wide", "0,1,2"):
        refused(work, "benchmarks.calibration", *data, "--num_images=4", f"--input_range={value}")
    refused(work, "benchmarks.calibration", *data, "--num_images=5", words="fewer than --num_images")
    for value in ("tfds:", "tfds:no_such_set", "tfds:no_such_set/train", str(work), "absent.json"):
        refused(work, "benchmarks.calibration", *data[:1], f"--real={value}", *data[2:])


def test_bad_arguments_of_the_low_bit_study_and_the_report(work):
    given = [f"--{k}={v.format(w=work)}" for k, v in REQUIRED["benchmarks.lowbit"].items()]
    for more in ("--settings=W9A8", "--settings=", "--settings=8", "--rules=best", "--rules=", "--sources=dreams"):
        refused(work, "benchmarks.lowbit", *given, more)
    assert not (work / "low").exists()
    folder = work / "reported"
    folder.mkdir()
    refused(work, "dgh_tf.report", f"--output_dir={folder}", words="holds no finished run")
    for text in (b"{", b"5", b"[]", b"{}", bytes(range(256)), b'{"identity": {}, "images_sha256": "x"}'):
        written(folder, "manifest.json", text)
        SEEN.add(("manifest of a report", text.decode("latin1")))
        refused(work, "dgh_tf.report", f"--output_dir={folder}", words=str(folder))


SETTINGS = {
    "learning_rate": ["nan", "inf", "-1", "0"], "bn_weight": ["-1", "nan"], "output_weight": ["inf"], "prior_weight": ["-0.5"],
    "std_weight": ["nan"], "stretch_limit": ["-2"], "num_images": ["0", "-5"], "batch_size": ["0"], "steps": ["0"], "seed": [str(2**31)],
    "schedule": ["linear", ""], "flip": ["sideways"], "start": ["dogs"], "strategy": ["many"], "image_size": ["x", "0,0", "8", "8,8,8"],
    "input_range": ["wide", "1,0", "nan,nan", "0", "0,inf"], "model": ["absent.keras", "keras:Nope", "", "/dev/null"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_generation_refuses_settings_that_make_no_sense(work, name):
    for value in SETTINGS[name]:
        given = {"model": work / "good.keras", "output_dir": work / "generated", "steps": 1, name: value}
        refused(work, "dgh_tf.generate", *(f"--{k}={v}" for k, v in given.items()))
        assert not (work / "generated").exists()


def test_a_refused_run_removes_only_a_folder_that_it_made(work):
    (work / "kept").mkdir()
    for name in ("kept", "new"):
        refused(work, "dgh_tf.generate", f"--model={work}/good.keras", f"--output_dir={work}/{name}", "--input_range=wide")
    assert (work / "kept").is_dir() and not (work / "new").exists()


def test_each_worker_locks_a_shared_folder_for_itself(tmp_path):
    from dgh_tf.files import locked_folder

    with locked_folder(tmp_path, flag="f"), locked_folder(tmp_path, flag="f", worker=1):
        with pytest.raises(ValueError, match="writing to"), locked_folder(tmp_path, flag="f", worker=1):
            pass
        with pytest.raises(ValueError, match="writing to"), locked_folder(tmp_path, flag="f"):
            pass


def test_generation_refuses_broken_models_and_folders_of_other_things(work, bad_models):
    for name in ("empty file", "half", "no config", "weights cut", "config bomb", "unknown layer", "lambda layer", "hdf5 cut"):
        path = written(work, f"bad {name}.keras", bad_models[name])
        refused(work, "dgh_tf.generate", f"--model={path}", f"--output_dir={work}/generated", "--steps=1")
        assert not (work / "generated").exists()
        path.unlink()
    folder = work / "earlier"
    folder.mkdir()
    for text in (b"{", b"5", b"[]", b"{}", b'{"identity": 3}', bytes(range(256)), b""):
        written(folder, "manifest.json", text)
        refused(work, "dgh_tf.generate", f"--model={work}/good.keras", f"--output_dir={folder}", f"--steps={len(SEEN) + 1}")
        assert (folder / "manifest.json").read_bytes() == text


def test_bad_files_of_the_verdict_and_the_layers(work):
    model = f"--model={work}/good.keras"
    for name in ("good.npy", "good.keras"):
        refused(work, "benchmarks.verdict", model, f"--tflite={work / name}")
    written(work, "cut.tflite", b"\x1c\0\0\0TFL3" + bytes(20))
    refused(work, "benchmarks.verdict", model, f"--tflite={work}/cut.tflite")
    refused(work, "benchmarks.verdict", model, f"--tflite={work}/none.tflite", words="no such file")
    for value in ("", "=", "a=", f"{work}/good.npy,{work}/good.npy", "absent.npy", f"a={work}/good.npy,b=absent.npy"):
        refused(work, "benchmarks.layers", model, f"--calibrations={value}")
    good = f"--calibrations={work}/good.npy"
    for more in ("--images=absent.npz", "--scheme=int3", "--algorithm=magic", "--algorithm=equalization", "--preprocess=x",
    "--output=a.txt"):
        refused(work, "benchmarks.layers", model, good, more)


# ---- real processes

def process(*arguments, **options):
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen([sys.executable, "-m", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=environment, **options)


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
    assert running.stdout.readline().startswith("converting")
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and err.startswith("stopped: ") and err.count("\n") == 1, err
    assert {path.name for path in names.iterdir()} == {"good.keras", "good.npy"}


@pytest.mark.slow
def test_odd_names_work(names):
    done = process("tflite_export.convert", *convert(names))
    _, err = done.communicate(timeout=120)
    assert (done.returncode, err) == (0, "")
    assert json.loads((names / "out.json").read_text())["fully_integer"] and (names / "out.tflite").stat().st_size > 1000


@pytest.mark.parametrize("seconds", [0.7, 1.5, 3.0, 4.5])
@pytest.mark.slow
def test_ctrl_c_at_any_time_is_one_line_at_most(names, seconds):
    running = process("tflite_export.convert", *convert(names, output=names / "late.tflite"))
    time.sleep(seconds)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode in (130, -signal.SIGINT) and "Traceback" not in err and err.count("\n") <= 1, err
    assert not list(names.glob("*late*"))


@contextlib.contextmanager
def mounted(folder, options):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
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
    """A read-only file system: it refuses root too, as a folder of another user refuses everyone else."""
    model, data = f"--model={work}/good.keras", [f"--real={work}/good.npz", f"--evaluation={work}/good.npz"]
    with mounted(tmp_path, "ro,size=64k") as folder:
        refused(work, "tflite_export.convert", *convert(work, output=folder / "o.tflite"), words="nothing can be written there")
        for command, more in (("benchmarks.calibration", data), ("benchmarks.privacy", []), ("dgh_tf.generate", ["--steps=1"])):
            for place in (folder, folder / "new"):
                refused(work, command, model, *more, f"--output_dir={place}")
        refused(work, "benchmarks.suite", "--only=demo", f"--output_dir={folder}")
        refused(work, "benchmarks.speed", model, f"--output={folder}/s.json")
        refused(work, "benchmarks.layers", model, f"--calibrations={work}/good.npy", f"--output={folder}/s.json")


def test_a_full_disk_keeps_the_old_files(full_disk):
    """Both new files are whole on disk before the first old one is replaced: a proof never stands beside another file."""
    from tflite_export.convert import write_pair

    write_pair(full_disk / "out.tflite", b"the old file", full_disk / "out.json", "the old proof")
    for room in (0, 6, 12):  # KiB: nothing fits; the smaller fits; the larger fits, but not both
        (full_disk / "filler").write_bytes(bytes((64 - 8 - room) * 1024))
        with pytest.raises(OSError, match="No space left.*out"):
            write_pair(full_disk / "out.tflite", bytes(9000), full_disk / "out.json", "x" * 9000 if room == 12 else "x")
        assert (full_disk / "out.tflite").read_bytes() == b"the old file" and (full_disk / "out.json").read_text() == "the old proof"
        assert {path.name for path in full_disk.iterdir()} == {"out.tflite", "out.json", "filler"}


def test_an_array_on_a_full_disk_names_its_file(full_disk):
    from dgh_tf.files import atomic_path

    with pytest.raises(OSError, match="images.npy") as error, atomic_path(full_disk / "images.npy") as path:
        np.save(path, np.zeros(100_000))
    assert error.value.errno == 28 and not list(full_disk.iterdir())  # ENOSPC


@pytest.mark.slow
def test_convert_on_a_full_disk_is_one_line(work, full_disk):
    (full_disk / "filler").write_bytes(bytes(64 * 1024))
    running = process("tflite_export.convert", *convert(work, output=full_disk / "out.tflite"))
    _, err = running.communicate(timeout=120)
    assert running.returncode == 1 and err.startswith("error: ") and err.count("\n") == 1 and "No space left" in err, err
    assert "Free some space" in err and "out." in err
    assert {path.name for path in full_disk.iterdir()} == {"filler"}


def test_at_least_200_distinct_bad_inputs_were_tried(capsys):
    """Only meaningful after the whole file: a single test run alone has tried fewer."""
    with capsys.disabled():
        print(f"\n{len(SEEN)} distinct bad inputs refused")
    if len(SEEN) < 100:
        pytest.skip("only part of this file ran")
    assert len(SEEN) >= 200
