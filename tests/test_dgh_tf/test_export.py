"""python -m dgh_tf.export: every form is read back and compared with the run's images; refusals and
failures leave nothing.
"""

import errno
import json
import subprocess
import sys
import types

import commands
import numpy as np
import pytest
from PIL import Image

from dgh_tf.calibration_sets import formats
from dgh_tf.common import run_folder

ALL = tuple(formats.FORMATS)
NAMES = ("left", "right")


def a_run(folder, *, shapes, low=-1.0, high=1.0, channels_first=False, count=5):
    """The folder of a finished run with inputs `shapes`, {name: shape}; its images by name."""
    rng = np.random.default_rng(3)
    images = {n: rng.uniform(low, high, (count, *s)).astype("f4") for n, s in shapes.items()}
    folder.mkdir()
    written = run_folder.write_images(folder, [list(images.values())], list(shapes), count=count)
    ends = {"low": np.atleast_1d(low).tolist(), "high": np.atleast_1d(high).tolist()}
    manifest = {
        **written,
        "identity": {"model_sha256": "ab" * 32},
        "input_range": [{**ends, "found": "--input_range"}] * len(shapes),
        "channels_first": [channels_first] * len(shapes),
    }
    run_folder.write_manifest(folder, manifest)
    return images


@pytest.fixture
def pictures(tmp_path):
    """Five RGB images for a model with one input."""
    return a_run(tmp_path / "run", shapes={"image": (6, 4, 3)})["image"]


@pytest.fixture
def pairs(tmp_path):
    """Five samples for a model with two inputs, one of them no image."""
    return a_run(tmp_path / "run", shapes={"left": (6, 4, 3), "right": (7,)})


def export(tmp_path, form, *options, code=0):
    """calibration.json of the run exported as `form`, or the error's text."""
    arguments = [f"--images={tmp_path / 'run'}", f"--format={form}", f"--output={tmp_path / 'set'}"]
    given, out, err = commands.call("dgh_tf.export", *arguments, *options)
    assert given == code, err
    if code:
        assert not out and err.startswith("error: ") and len(err.splitlines()) == 1
        assert not (tmp_path / "set").exists() and not list(tmp_path.glob(".*"))
        return err
    return json.loads((tmp_path / "set" / "calibration.json").read_text())


def printed_by(code, *, folder):
    """What a program in a folder of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# ---- one array per input


def test_npy_is_the_run_s_array(tmp_path, pictures):
    described = export(tmp_path, "npy")
    found = np.load(tmp_path / "set" / "images.npy")
    assert found.dtype == np.float32 and np.array_equal(found, pictures)
    assert described["images"] == 5 and described["model_sha256"] == "ab" * 32
    assert described["inputs"][0] == {
        "name": "image", "shape": [6, 4, 3], "low": [-1.0], "high": [1.0], "file": "images.npy",
    }  # fmt: skip


def test_npz_holds_every_input_by_its_name(tmp_path, pairs):
    export(tmp_path, "npz", "--input_names=file,a/b:0")  # numpy.savez cannot take either
    with np.load(tmp_path / "set" / "images.npz") as file:
        assert sorted(file.files) == ["a/b:0", "file"]
        assert np.array_equal(file["file"], pairs["left"])
        assert np.array_equal(file["a/b:0"], pairs["right"])


# ---- one file per sample


def test_raw_files_are_bare_little_endian_float32(tmp_path, pairs):
    export(tmp_path, "raw")
    lines = (tmp_path / "set" / "input_list.txt").read_text().splitlines()
    assert len(lines) == 5
    for i, line in enumerate(lines):
        named = dict(part.split(":=") for part in line.split())
        for name in NAMES:
            values = np.fromfile(tmp_path / "set" / named[name], "<f4")
            assert np.array_equal(values, pairs[name][i].ravel())


def test_a_single_input_s_list_is_bare_paths(tmp_path, pictures):
    export(tmp_path, "raw")
    lines = (tmp_path / "set" / "input_list.txt").read_text().splitlines()
    assert lines == [f"images/{i:05d}.raw" for i in range(5)]
    assert (tmp_path / "set" / lines[4]).stat().st_size == 4 * 6 * 4 * 3


def test_npy_list_names_one_file_per_input_on_a_line(tmp_path, pairs):
    export(tmp_path, "npy_list")
    lines = (tmp_path / "set" / "dataset.txt").read_text().splitlines()
    assert len(lines) == 5
    for i, line in enumerate(lines):
        for name, file in zip(NAMES, line.split(), strict=True):
            assert np.array_equal(np.load(tmp_path / "set" / file), pairs[name][i : i + 1])


@pytest.mark.parametrize(
    ("low", "high", "shape", "first"),
    [
        (-1.0, 1.0, (6, 4, 3), False),
        (0.0, 255.0, (6, 4, 1), False),
        ([-103.9, -116.8, -123.7], [151.1, 138.2, 131.3], (6, 4, 3), False),
        ([-2.1, -2.0, -1.8], [2.2, 2.4, 2.6], (3, 6, 4), True),
    ],
    ids=["symmetric", "gray bytes", "per channel", "channels first"],
)
def test_pixels_come_back_within_half_a_step_by_the_told_mean_and_std(
    tmp_path, low, high, shape, first
):
    channels = shape[0 if first else -1]
    bounds = [np.broadcast_to(end, channels).reshape(-1, 1, 1) if first else end
              for end in (low, high)]  # fmt: skip
    folder = tmp_path / "run"
    images = a_run(folder, shapes={"x": shape}, low=bounds[0], high=bounds[1], channels_first=first)
    ends = {"low": np.atleast_1d(low).tolist(), "high": np.atleast_1d(high).tolist()}
    changed(tmp_path, input_range=[ends])
    told = export(tmp_path, "png")["inputs"][0]
    files = (tmp_path / "set" / "dataset.txt").read_text().splitlines()
    for image, file in zip(images["x"], files, strict=True):
        pixels = np.asarray(Image.open(tmp_path / "set" / file), np.float64).reshape(6, 4, channels)
        back = (pixels - told["mean"]) / told["std"]
        wanted = image.transpose(1, 2, 0) if first else image
        half = 0.5 * (np.asarray(high) - np.asarray(low)) / 255
        assert np.all(np.abs(back - wanted) <= half + 1e-5)


# ---- modules


def test_litert_module_gives_every_sample_from_any_folder(tmp_path, pairs):
    export(tmp_path, "litert")
    code = f"""if True:
        import importlib.util, json
        spec = importlib.util.spec_from_file_location("x", {str(tmp_path / "set/calib_data.py")!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        data = module.get_calibration_data()
        print(json.dumps([list(data)[0], [
            {{n: [str(a.dtype), a.shape, float(a.sum(dtype="f8"))] for n, a in s.items()}}
            for s in data[None]]]))
    """
    (tmp_path / "elsewhere").mkdir()
    signature, found = printed_by(code, folder=tmp_path / "elsewhere")
    assert signature is None and len(found) == 5
    for i, sample in enumerate(found):
        for name in NAMES:
            image = pairs[name][i]
            total = float(image.sum(dtype="f8"))
            assert sample[name] == ["float32", [1, *image.shape], pytest.approx(total)]


def imported(path, monkeypatch, *, stand_ins=None):
    """The module at `path`. stand_ins: packages it imports, where the real ones are tried by the
    slow tests.
    """
    for name, module in (stand_ins or {}).items():
        monkeypatch.setitem(sys.modules, name, module)
    names = {"__file__": str(path), "__name__": path.stem}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return types.SimpleNamespace(**names)


def test_mct_generator_yields_the_inputs_in_order(tmp_path, pairs, monkeypatch):
    export(tmp_path, "mct")
    module = imported(tmp_path / "set" / "representative_data.py", monkeypatch)
    for _ in range(2):  # MCT goes through it several times
        found = list(module.representative_data_gen())
        assert len(found) == 5 and all(len(each) == 2 for each in found)
        for position, name in enumerate(NAMES):
            assert np.array_equal(np.concatenate([s[position] for s in found]), pairs[name])


def test_onnxruntime_reader_ends_with_none_and_rewinds(tmp_path, pairs, monkeypatch):
    export(tmp_path, "onnxruntime")
    quantization = types.SimpleNamespace(CalibrationDataReader=object)
    stand_ins = {"onnxruntime": types.SimpleNamespace(), "onnxruntime.quantization": quantization}
    module = imported(tmp_path / "set" / "calibration_reader.py", monkeypatch, stand_ins=stand_ins)
    reader = module.CalibrationImages(input_names=["a", "b"])
    for _ in range(2):
        found = list(iter(reader.get_next, None))
        assert np.array_equal(np.concatenate([each["a"] for each in found]), pairs["left"])
        assert np.array_equal(np.concatenate([each["b"] for each in found]), pairs["right"])
        reader.rewind()
    assert set(module.CalibrationImages().get_next()) == set(NAMES)


@pytest.mark.parametrize("form", ["litert", "onnxruntime", "openvino", "mct"])
def test_modules_are_documented_and_formatted_as_our_own(tmp_path, pictures, form):
    export(tmp_path, form)
    file = tmp_path / "set" / formats.MODULES[form][0]
    for arguments in (["check", "--select=E,F,W,I,B,UP,D1"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "--line-length=100", "--isolated", file],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_name_of_a_model_becomes_code(tmp_path, monkeypatch):
    evil = '"""\nraise SystemExit("ran")\n"""\\'
    images = a_run(tmp_path / "run", shapes={evil: (4, 4, 1)})
    export(tmp_path, "litert")
    module = imported(tmp_path / "set" / "calib_data.py", monkeypatch)
    assert np.array_equal(module.get_calibration_data()[None][2][evil], images[evil][2:3])


# ---- whole or nothing


@pytest.mark.parametrize("form", ALL)
def test_the_same_command_gives_the_same_bytes(tmp_path, pictures, form):
    export(tmp_path, form)
    files = {p.relative_to(tmp_path / "set"): p.read_bytes()
             for p in (tmp_path / "set").rglob("*") if p.is_file()}  # fmt: skip
    (tmp_path / "set").rename(tmp_path / "before")
    export(tmp_path, form)
    assert {p.relative_to(tmp_path / "set"): p.read_bytes()
            for p in (tmp_path / "set").rglob("*") if p.is_file()} == files  # fmt: skip


@pytest.mark.parametrize("form", ALL)
def test_a_full_disk_leaves_nothing(tmp_path, pictures, form, monkeypatch):
    written = formats.FORMATS[form].write

    def full(source, folder):
        written(source, folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    broken = formats.dataclasses.replace(formats.FORMATS[form], write=full)
    monkeypatch.setitem(formats.FORMATS, form, broken)
    assert "No space left" in export(tmp_path, form, code=1)


def test_an_empty_folder_is_taken_and_a_full_one_is_kept(tmp_path, pictures):
    (tmp_path / "set").mkdir()
    export(tmp_path, "npy")
    before = sorted(p.name for p in (tmp_path / "set").iterdir())
    code, _, err = commands.call(
        "dgh_tf.export", f"--images={tmp_path / 'run'}", "--format=png",
        f"--output={tmp_path / 'set'}",
    )  # fmt: skip
    assert code == 1 and "is not empty" in err
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == before


def changed(tmp_path, **parts):
    path = tmp_path / "run" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


@pytest.mark.parametrize(
    ("parts", "options", "said"),
    [
        ({}, ["--input_names=a,b"], "expected 1 different names, for image"),
        ({"files": {"image": "../run/images.npy"}}, [], "files is not what a run writes"),
        ({"files": {"image": "gone.npy"}}, [], "cannot be read"),
        ({"files": []}, [], "files is not what a run writes"),
        ({"input_range": []}, [], "the numbers of files, ranges and layouts differ"),
        ({"input_range": [{"low": [1.0], "high": [1.0]}]}, [], "not low < high"),
        ({"input_range": [{"low": [0.0], "high": [float("nan")]}]}, [], "not low < high"),
        ({"input_range": ["wide"]}, [], "input_range is not what a run writes"),
        ({"input_range": [{"low": "wide"}]}, [], "does not describe"),
        ({"images_sha256": "0" * 64}, [], "the sha256 differs"),
        ({"identity": "x"}, [], "identity is not what a run writes"),
    ],
)
def test_a_run_that_cannot_be_read_is_one_line(tmp_path, pictures, parts, options, said):
    changed(tmp_path, **parts)
    assert said in export(tmp_path, "npy", *options, code=1)


def test_images_beyond_the_range_are_no_png(tmp_path, pictures):
    changed(tmp_path, input_range=[{"low": [-0.5], "high": [0.5]}])
    assert "bytes would cut them off" in export(tmp_path, "png", code=1)
    export(tmp_path, "npy")  # which keeps the values


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"left": (6, 4, 3), "right": (6, 4, 3)}, "for models with one input"),
        ({"signal": (40, 9)}, "holds [height, width, 1 or 3]"),
        ({"image": (6, 4, 4)}, "holds [height, width, 1 or 3]"),
    ],
)
def test_png_refuses_what_is_no_single_image(tmp_path, shapes, said):
    a_run(tmp_path / "run", shapes=shapes)
    error = export(tmp_path, "png", code=1)
    assert said in error and "--format=npy" in error


@pytest.mark.parametrize("name", ["a b", "a:=b", "a\nb"])
def test_names_that_a_list_cannot_hold_are_refused(tmp_path, name):
    a_run(tmp_path / "run", shapes={name: (4,), "other": (3,)})
    assert "--input_names" in export(tmp_path, "raw", code=1)
    export(tmp_path, "raw", "--input_names=a,b")


def test_no_run_no_folder_no_format(tmp_path):
    assert "no such folder" in export(tmp_path, "npy", code=1)
    (tmp_path / "run").mkdir()
    assert "no finished run" in export(tmp_path, "npy", code=1)
    output = f"--output={tmp_path / 'no' / 'set'}"
    assert output in commands.call("dgh_tf.export", "--images=x", "--format=npy", output)[2]
    code, _, err = commands.call("dgh_tf.export", "--images=x", "--output=y", "--format=tar")
    assert code == 1 and "litert" in err
