"""Files of every kind that are empty, cut, of the wrong type or shape, or traps: refused as
hostile.py promises.
"""

import os

import hostile_files
import numpy as np
import pytest
from hostile import SEEN, TRAP, convert, refused, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize("name", hostile_files.arrays(TRAP))
def test_broken_npy_is_refused(work, name):
    path = written(work, "bad.npy", hostile_files.arrays(TRAP)[name])
    words = "alibration" if "nan" in name else ""
    refused(
        work,
        "tflite_export.convert",
        *convert(work, calibration=path, input_range="0,1"),
        f"--seed={len(SEEN)}",
        words=words,
    )
    assert not TRAP.exists()  # nothing was unpickled


@pytest.mark.parametrize("name", hostile_files.archives(TRAP))
def test_broken_npz_is_refused_by_export_and_benchmarks(work, name):
    path = written(work, "bad.npz", hostile_files.archives(TRAP)[name])
    refused(work, "tflite_export.convert", *convert(work, calibration=path), f"--seed={len(SEEN)}")
    for role in ("real", "evaluation"):
        sets = {"real": work / "good.npz", "evaluation": work / "good.npz", role: path}
        if name == "only labels" or "labels" not in name:
            refused(
                work,
                "benchmarks.calibration",
                f"--model={work}/good.keras",
                *(f"--{k}={v}" for k, v in sets.items()),
                f"--output_dir={work}/bench",
                "--num_images=4",
                f"--steps={len(SEEN) + 1}",
            )
    assert not TRAP.exists()


@pytest.mark.parametrize("name", hostile_files.labels(TRAP))
def test_bad_labels_are_refused(work, name):
    path = written(work, "bad.npz", hostile_files.labels(TRAP)[name])
    refused(
        work,
        "benchmarks.calibration",
        f"--model={work}/good.keras",
        f"--real={work}/good.npz",
        f"--evaluation={path}",
        f"--output_dir={work}/bench",
        "--num_images=4",
        f"--steps={len(SEEN) + 1}",
    )
    assert not TRAP.exists()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.binary(max_size=300), keep=st.integers(0, 200), suffix=st.sampled_from([".npy", ".npz"])
)
def test_random_bytes_behind_a_good_start_are_refused(work, data, keep, suffix):
    good = (
        hostile_files.saved(hostile_files.GOOD)
        if suffix == ".npy"
        else hostile_files.npz(x=hostile_files.GOOD)
    )
    path = written(work, f"random{suffix}", good[:keep] + data)
    with pytest.raises((ValueError, OSError)) as error:
        from tflite_export import check_calibration, load_calibration

        check_calibration(load_calibration(path).images, input_shapes={"image": (8, 8, 3)})
    assert str(path) in str(error.value) or "alibration data" in str(error.value)
    SEEN.add((suffix, good[:keep].hex(), data.hex()))


def test_broken_models_are_refused(work, bad_models):
    for name, data in bad_models.items():
        path = written(work, f"bad {name}.keras", data)
        refused(work, "tflite_export.convert", *convert(work, model=path))
        path.unlink()


def test_broken_manifests_are_refused(work):
    from dgh_tf.common.files import sha256_array

    folder = work / "run"
    folder.mkdir()
    np.save(folder / "images.npy", hostile_files.GOOD)
    for name, data in hostile_files.manifests(sha256_array(hostile_files.GOOD)).items():
        written(folder, "manifest.json", data)
        refused(
            work, "tflite_export.convert", *convert(work, calibration=folder), f"--seed={len(SEEN)}"
        )
        SEEN.add(("manifest", name))


def test_places_that_are_no_files_are_refused_at_once(work):
    """A pipe that nobody writes to would be waited for for ever, a loop of links followed
    for ever.
    """
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
        refused(
            work,
            "benchmarks.calibration",
            f"--model={work}/good.keras",
            f"--real={work / name}",
            f"--evaluation={work}/good.npz",
            f"--output_dir={work}/bench",
        )


def test_folders_of_broken_pictures_are_refused(work):
    folder = work / "pictures"
    folder.mkdir()
    broken = {
        "empty.png": b"",
        "text.jpg": b"no picture",
        "cut.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "zeros.bmp": bytes(100),
    }
    for name, data in broken.items():
        path = written(folder, name, data)
        refused(
            work,
            "tflite_export.convert",
            *convert(work, calibration=folder),
            f"--seed={len(SEEN)}",
            words=name,
        )
        path.unlink()
    refused(
        work, "tflite_export.convert", *convert(work, calibration=folder), words="no image files"
    )


def test_generation_refuses_broken_models_and_folders_of_other_things(work, bad_models):
    for name in (
        "empty file",
        "half",
        "no config",
        "weights cut",
        "config bomb",
        "unknown layer",
        "lambda layer",
        "hdf5 cut",
    ):
        path = written(work, f"bad {name}.keras", bad_models[name])
        refused(
            work,
            "dgh_tf.generate",
            f"--model={path}",
            f"--output_dir={work}/generated",
            "--steps=1",
        )
        assert not (work / "generated").exists()
        path.unlink()
    folder = work / "earlier"
    folder.mkdir()
    for text in (b"{", b"5", b"[]", b"{}", b'{"identity": 3}', bytes(range(256)), b""):
        written(folder, "manifest.json", text)
        refused(
            work,
            "dgh_tf.generate",
            f"--model={work}/good.keras",
            f"--output_dir={folder}",
            f"--steps={len(SEEN) + 1}",
        )
        assert (folder / "manifest.json").read_bytes() == text


def test_bad_files_of_the_verdict_and_the_layers(work):
    model = f"--model={work}/good.keras"
    for name in ("good.npy", "good.keras"):
        refused(work, "benchmarks.verdict", model, f"--tflite={work / name}")
    written(work, "cut.tflite", b"\x1c\0\0\0TFL3" + bytes(20))
    refused(work, "benchmarks.verdict", model, f"--tflite={work}/cut.tflite")
    refused(work, "benchmarks.verdict", model, f"--tflite={work}/none.tflite", words="no such file")
    for value in (
        "",
        "=",
        "a=",
        f"{work}/good.npy,{work}/good.npy",
        "absent.npy",
        f"a={work}/good.npy,b=absent.npy",
    ):
        refused(work, "benchmarks.layers", model, f"--calibrations={value}")
    good = f"--calibrations={work}/good.npy"
    for more in (
        "--images=absent.npz",
        "--scheme=int3",
        "--algorithm=magic",
        "--algorithm=equalization",
        "--preprocess=x",
        "--output=a.txt",
    ):
        refused(work, "benchmarks.layers", model, good, more)
