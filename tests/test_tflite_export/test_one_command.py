"""One command and one call from a model to a proven and judged integer file, with no data given."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import commands
import numpy as np
import pytest
import tiny_models

import dgh_tf
import tflite_export
from dgh_tf.common import run_folder
from tflite_export import quantization
from tflite_export.calibration.hold_out import held_out_count, hold_out

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = ("--num_images=8", "--steps=6", "--input_range=-1,1", "--algorithm=minmax")
REST = [1, 2, 3, 5, 6, 8, 9, 10]  # of twelve images, those that calibrate
CONFIG = dgh_tf.GenerationConfig(num_images=8, steps=6, input_range="-1,1")


@pytest.fixture(scope="module")
def model_path():
    """The embedded demo: four steps bring its images near its statistics, as an untrained model's
    would not.
    """
    return "demo"


def convert(model_path, output, *more):
    return commands.call(
        "tflite_export.convert", f"--model={model_path}", f"--output={output}", *SETTINGS, *more
    )


@pytest.fixture(scope="module")
def made(model_path, tmp_path_factory):
    """(folder, what it printed) of the one command."""
    folder = tmp_path_factory.mktemp("one")
    code, out, err = convert(model_path, folder / "m.tflite", "--target=cpu")
    assert code == 0, err
    return folder, out


def test_ranges_are_taken_by_name_with_and_without_images(made, model_path, tmp_path):
    folder, _ = made
    wanted = json.loads((folder / "m_images" / "manifest.json").read_text())["input_range"][0]
    more = ("--algorithm=minmax", "--noverdict")
    files = (f"--model={model_path}", f"--output={tmp_path}/m.tflite")
    made_here = ("--num_images=2", "--steps=1", "--input_kind=image", "--input_range=image:-1,1")
    code, _, err = commands.call("tflite_export.convert", *files, *more, *made_here)
    assert code == 0, err
    found = json.loads((tmp_path / "m_images" / "manifest.json").read_text())["input_range"][0]
    assert (found["low"], found["high"]) == (wanted["low"], wanted["high"])
    given = (f"--calibration={folder}/m_images", "--input_range=symmetric")
    code, _, err = commands.call("tflite_export.convert", *files, *more, *given)
    assert code == 0, err


def classes(tflite, images):
    """What LiteRT itself chooses, by its built-in kernels: those of XNNPACK round differently, and
    classes of so small a set are close.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=tflite, experimental_op_resolver_type=kernels)
    interpreter.allocate_tensors()
    (into,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = into["quantization"]
    chosen = []
    for image in images:
        codes = np.clip(np.round(image / np.float32(scale)) + zero_point, -128, 127)
        interpreter.set_tensor(into["index"], np.int8(codes)[None])
        interpreter.invoke()
        chosen.append(int(interpreter.get_tensor(out["index"])[0].argmax()))
    return np.array(chosen)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_says_every_phase_and_one_summary(made):
    folder, out = made
    words = ["loading", "finding the input range", "tracing", "converting", "checking"]
    places = [out.index(word) for word in words]
    assert places == sorted(places)
    last = out.splitlines()[-1]
    assert f"report.html in {folder / 'm_images'}" in last and "Next: python -m" in last


def test_held_out_images_take_no_part_in_calibration(made):
    """The calibration digest of F.json is that of the eight others, counted here by hand: of
    twelve images numbers 0, 4, 7 and 11 are held out.
    """
    folder, _ = made
    images = np.load(folder / "m_images" / "images.npy")
    assert len(images) == 8 + held_out_count(8) == 12
    np.save(folder / "rest.npy", images[REST])
    report = json.loads((folder / "m.json").read_text())
    given = tflite_export.load_calibration(folder / "rest.npy")
    assert report["sha256"]["calibration"] == given.sha256
    assert report["calibration"]["images"]["shape"][0] == 8
    assert report["estimate"]["images"] == 8 and report["verdict"]["held_out"] is True


def test_the_file_is_that_of_these_images(made, model_path):
    folder, _ = made
    images = np.load(folder / "m_images" / "images.npy")
    model = dgh_tf.load_model(str(model_path))
    direct = quantization.quantize(model, images[REST], algorithm="minmax").tflite
    assert sha256(folder / "m.tflite") == hashlib.sha256(direct).hexdigest()


def test_the_estimate_counts_what_both_files_choose(made, model_path):
    """Counted agreement of the held-out images against Keras itself and LiteRT's plain runner."""
    folder, _ = made
    report = json.loads((folder / "m.json").read_text())
    model = dgh_tf.load_model(str(model_path))
    tflite = (folder / "m.tflite").read_bytes()
    sets = {
        "stretched": np.load(folder / "m_images" / "images.npy")[[0, 4, 7, 11]],
        "unstretched": np.load(folder / "m_images" / "unstretched" / "images.npy"),
    }
    for kind, images in sets.items():
        same = np.asarray(model(images)).argmax(-1) == classes(tflite, images)
        assert report["verdict"]["kinds"][kind]["agreement"] == same.mean()
    estimate = report["estimate"]
    assert estimate["agreement"] == report["verdict"]["predicted_agreement"]
    assert [estimate["low"], estimate["high"]] == report["verdict"]["band"]
    assert estimate["level"] == report["verdict"]["level"]


def test_the_report_shows_the_whole_job(made):
    folder, _ = made
    page = (folder / "m_images" / "report.html").read_text()
    for beside in ("../m.tflite", "../m.json", "./images.npy"):
        assert f'href="{beside}"' in page
    assert not (folder / "m_images" / "unstretched" / "report.html").exists()  # one page for all
    assert "m.tflite" in page and "--num_images=8" in page
    assert dgh_tf.write_report(folder / "m_images").files[0].name == "m.tflite"


def test_the_same_folder_serves_the_next_scheme(made, model_path):
    folder, _ = made
    before = sha256(folder / "m_images" / "manifest.json"), sha256(folder / "m.tflite")
    images = f"--images_dir={folder / 'm_images'}"
    code, out, err = convert(model_path, folder / "wide.tflite", "--scheme=int16x8", images)
    assert code == 0, err
    assert out.count("is finished") == 2 and "tracing" not in out
    code, _, err = convert(model_path, folder / "m.tflite", "--target=cpu")
    assert code == 0, err
    assert before == (sha256(folder / "m_images" / "manifest.json"), sha256(folder / "m.tflite"))
    names = {file.name for file in dgh_tf.write_report(folder / "m_images").files}
    assert names == {"m.tflite", "wide.tflite"}


def test_a_folder_of_other_settings_or_another_model_is_refused(made, model_path, tmp_path):
    folder, _ = made
    before = sha256(folder / "m.tflite")
    code, _, err = convert(model_path, folder / "m.tflite", "--seed=1")
    assert code == 1 and err.count("\n") == 1 and "seed: 0 there, 1 now" in err
    assert "another images_dir" in err and "output_dir" not in err
    other = tmp_path / "other.keras"
    tiny_models.conv_bn_relu().save(other)
    code, _, err = convert(other, folder / "m.tflite")
    assert code == 1 and err.count("\n") == 1 and "model_sha256" in err
    assert sha256(folder / "m.tflite") == before


def test_fail_below_compares_the_prediction(made, model_path):
    folder, _ = made
    predicted = json.loads((folder / "m.json").read_text())["estimate"]["agreement"]
    code, _, err = convert(model_path, folder / "m.tflite", f"--fail_below={predicted:.17g}")
    assert (code, err) == (0, "")
    above = np.nextafter(predicted, 2)
    code, _, err = convert(model_path, folder / "m.tflite", f"--fail_below={above:.17g}")
    assert code == 3 and err.count("\n") == 1 and f"{predicted:.3f}" in err


def test_flags_that_would_do_nothing_are_refused(made, model_path, tmp_path):
    given = f"--calibration={made[0] / 'm_images'}"
    for flag in ("--fail_below=0.5", "--images_dir=x"):
        code, _, err = convert(model_path, tmp_path / "m.tflite", given, flag)
        assert code == 1 and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_killed_command_goes_on_with_its_images(model_path, tmp_path):
    arguments = [f"--model={model_path}", f"--output={tmp_path / 'm.tflite'}", *SETTINGS[:3]]
    arguments = [*arguments, "--steps=300", "--algorithm=minmax"]
    command = [sys.executable, "-m", "tflite_export.convert", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("step"):
            break
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "goes on from there" in err
    assert [path.name for path in tmp_path.iterdir()] == ["m_images"]
    code, out, err = commands.call("tflite_export.convert", *arguments)
    told = [line for line in out.splitlines() if line.startswith("going on from step")]
    assert code == 0, err
    assert len(told) == 1 and int(told[0].split()[4]) > 0
    assert (tmp_path / "m.tflite").exists()


def test_hold_out_parts_a_set_without_loss():
    images = {"a": np.arange(20.0).reshape(10, 2), "b": np.arange(10.0)}
    rest, held = hold_out(images, 3)
    assert held["b"].tolist() == [0.0, 4.0, 9.0]  # numpy rounds 4.5 to the even 4
    assert sorted([*rest["b"], *held["b"]]) == list(range(10))
    assert held["a"][:, 0].tolist() == [0.0, 8.0, 18.0]
    for count in (0, 10):
        with pytest.raises(ValueError, match="held_out="):
            hold_out(images, count)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"rate": 0.1}, "has no option rate"),
        ({"verbose": 3}, "verbose=3"),
        ({"max_kib": 8}, "max_kib is for scheme mixed"),
        ({"algorithm": "worst"}, "Unknown algorithm"),
    ],
)
def test_python_names_a_wrong_option_before_images_are_made(model_path, monkeypatch, option, text):
    def late(*_, **__):
        raise AssertionError("images were made")

    monkeypatch.setattr("tflite_export.quantized.generate", late)
    with pytest.raises(ValueError, match=text):
        tflite_export.quantize(model_path, **option)


@pytest.fixture(scope="module")
def quantized(model_path):
    return tflite_export.quantize(model_path, config=CONFIG, algorithm="minmax", verbose=0)


def test_the_call_gives_the_bytes_of_the_command_for_the_same_images(quantized, made, model_path):
    folder, _ = made
    images = run_folder.load_images(folder / "m_images")[REST]
    again = tflite_export.quantize(model_path, images, algorithm="minmax", verbose=0)
    assert again.tflite == (folder / "m.tflite").read_bytes()
    assert len(quantized.held_out) == 4 and len(next(iter(quantized.images.values()))) == 8
    assert again.held_out is None


def test_the_call_saves_a_pair_that_tells_what_was_asked(quantized, tmp_path):
    found = quantized.estimate(verbose=0)
    assert found is quantized.estimate()  # no second generation
    assert found.images == 8 and found.low <= found.high
    reports = quantized.check_targets("cpu")
    assert reports["cpu"]["fully_mapped"] and str(reports).startswith("cpu:")
    assert quantized.save(tmp_path / "m.tflite") == tmp_path / "m.tflite"
    report = json.loads((tmp_path / "m.json").read_text())
    assert (tmp_path / "m.tflite").read_bytes() == quantized.tflite
    assert report["sha256"]["tflite"] == hashlib.sha256(quantized.tflite).hexdigest()
    assert report["estimate"] == found.as_json() and list(report["targets"]) == ["cpu"]
    assert "all integer" in quantized.summary()
    with pytest.raises(ValueError, match=r"does not end in \.tflite"):
        quantized.save(tmp_path / "m.json")


def test_an_estimate_on_given_images_judges_those(quantized, made, model_path):
    folder, _ = made
    images = np.asarray(run_folder.load_images(folder / "m_images")[:6])
    found = quantized.estimate(images)
    model = dgh_tf.load_model(str(model_path))
    same = np.asarray(model(images)).argmax(-1) == classes(quantized.tflite, images)
    assert found.images == 6 and found.verdict["kinds"]["given"]["agreement"] == same.mean()


def test_algorithms_still_has_quantize():
    from tflite_export import algorithms

    made = algorithms.quantize(tiny_models.softmax_head(), tiny_models.images(), algorithm="minmax")
    assert made.tflite and made.notes["algorithm"] == "minmax"


@pytest.mark.slow
def test_a_convention_is_as_good_as_its_two_numbers(made, model_path, tmp_path):
    """The demo's range is -1 to 1, symmetric."""
    folder, _ = made
    code, _, err = convert(model_path, tmp_path / "m.tflite", "--input_range=symmetric")
    assert code == 0, err
    assert sha256(tmp_path / "m.tflite") == sha256(folder / "m.tflite")


def test_a_convention_that_nobody_knows_is_refused_with_those_there_are(model_path, tmp_path):
    code, _, err = convert(model_path, tmp_path / "m.tflite", "--input_range=imagnet")
    assert code == 1 and "input_range=imagnet: expected" in err and "imagenet" in err, err
    assert not list(tmp_path.iterdir())
