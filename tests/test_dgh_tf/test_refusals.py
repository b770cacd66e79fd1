"""What cannot work is refused by the commands themselves: one line that teaches, exit code 1,
nothing half-written left behind.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import commands
import numpy as np
import pytest
import tiny_models as tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run_all(command: str, runs: dict[str, list[str]]) -> dict[str, tuple[int, str]]:
    """(exit code, standard error) of every run."""
    return {name: commands.call(command, *arguments)[::2] for name, arguments in runs.items()}


def with_bn(values: dict[int, float]):
    """conv_bn_relu with one weight (2 mean, 3 variance) of its first BN layer filled with a
    value.
    """
    import keras

    model = tiny.conv_bn_relu()
    bn = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    bn.set_weights(
        [np.full_like(w, values[i]) if i in values else w for i, w in enumerate(bn.get_weights())]
    )
    return model


def convolutional(*middle):
    import keras

    x = inputs = keras.Input((16, 16, 3))
    for layer in (
        keras.layers.Conv2D(4, 3),
        *middle,
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(2),
    ):
        x = layer(x)
    return keras.Model(inputs, x)


def dead():
    model = tiny.conv_bn_relu()
    model.get_layer("logits").set_weights([np.zeros((16, 5)), np.ones(5)])
    return model


def coded():
    import keras

    return tiny.settle(
        convolutional(keras.layers.BatchNormalization(), keras.layers.Lambda(lambda x: x * 2))
    )


def models() -> dict:
    """Builder, what the message says was found, and what it says to do."""
    import keras

    layers = keras.layers
    return {
        "no_bn.keras": (convolutional, "no BatchNorm statistics", "input_range=LOW,HIGH or one"),
        "layer.keras": (
            lambda: convolutional(layers.LayerNormalization()),
            "range of input",
            "imagenet (-2.118 to 2.64)",
        ),
        "nan.keras": (lambda: with_bn({3: np.nan}), "not finite", "train again"),
        "zero.keras": (lambda: with_bn({3: 0.0}), "zero or below", "trained or converted"),
        "untrained.keras": (
            lambda: convolutional(layers.BatchNormalization()),
            "no BatchNorm statistics",
            "--input_range",
        ),
        "dead.keras": (dead, "does not depend on its input", "Check the weights"),
        "coded.keras": (coded, "Lambda", "--allow_unsafe_deserialization"),
        "open.keras": (tiny.dynamic_size, "dynamic shape", "--image_size"),
        "two.keras": (tiny.two_inputs, "range of right, left", "--input_range"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The models above and some files that are none."""
    folder = tmp_path_factory.mktemp("models")
    for name, (build, *_) in models().items():
        build().save(folder / name)
    (folder / "folded.tflite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    (folder / "damaged.keras").write_bytes((folder / "dead.keras").read_bytes()[:3000])
    tiny.conv_bn_relu().export(folder / "exported", verbose=False)
    tiny.conv_bn_relu().save(folder / "good.keras")
    return folder


def test_generate_refuses_what_cannot_work_and_leaves_nothing(folder, tmp_path):
    expected = {name: texts for name, (_, *texts) in models().items()}
    expected |= {
        "folded.tflite": ["damaged TFLite model", "Convert the model again"],
        "exported": ["keras_metadata.pb", "exported from"],
        "damaged.keras": ["damaged", "again"],
        "absent.keras": ["No model at", "keras:NAME"],
        "keras:VGG99": ["no model 'VGG99'", "It has"],
    }

    def arguments(name, **flags):
        flags = {"input_range": "", "steps": 2, "num_images": 2, **flags}
        path = name if name.startswith("keras:") else folder / name
        return [
            f"--model={path}",
            f"--output_dir={tmp_path / 'out'}",
            *(f"--{key}={value}" for key, value in flags.items()),
        ]

    runs = {name: arguments(name) for name in expected}
    settings = {
        "input_range": ("3,1", "LOW,HIGH"),
        "image_size": ("8,8", "fixed shape"),
        "num_images": ("0", "at least 1"),
    }
    runs |= {
        flag: arguments("good.keras", **{flag: value}) for flag, (value, _) in settings.items()
    }
    expected |= {flag: [text] for flag, (_, text) in settings.items()}
    for name, (code, stderr) in run_all("dgh_tf.generate", runs).items():
        assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 1, (
            name,
            code,
            stderr,
        )
        assert all(text in stderr for text in expected[name]), (name, stderr)
    assert not (tmp_path / "out").exists()


def test_convert_refuses_what_cannot_work_and_leaves_nothing(folder, tmp_path):
    np.save(tmp_path / "images.npy", tiny.images(4))
    bad = tiny.images(4)
    bad[1, 2, 3, 0] = np.nan
    np.save(tmp_path / "nan.npy", bad)
    np.save(tmp_path / "small.npy", bad[:, :8])
    cases = {
        "lambda": ("coded.keras", "images", "--allow_unsafe_deserialization"),
        "nan": ("good.keras", "nan", "nan at image 1"),
        "tflite": ("folded.tflite", "images", "TFLite model"),
        "small": ("good.keras", "small", "Resize or crop"),
        "absent": ("good.keras", "absent", "no calibration data"),
    }
    runs = {
        name: [
            f"--model={folder / model}",
            f"--calibration={tmp_path / images}.npy",
            f"--output={tmp_path / 'm.tflite'}",
        ]
        for name, (model, images, _) in cases.items()
    }
    for name, (code, stderr) in run_all("tflite_export.convert", runs).items():
        assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 1, (
            name,
            code,
            stderr,
        )
        assert cases[name][2] in stderr, (name, stderr)
    assert not list(tmp_path.glob("m.*")) and not list(tmp_path.glob(".m*"))


@pytest.mark.slow
def test_the_same_from_a_process_of_its_own(folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "dgh_tf.generate",
        f"--model={folder / 'dead.keras'}",
        f"--output_dir={tmp_path / 'out'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (
        done.returncode == 1
        and "does not depend on its input" in done.stderr
        and done.stderr.count("\n") == 1
    )
    assert not (tmp_path / "out").exists()


def test_convolutions_with_channels_first_are_refused_where_they_cannot_run(tmp_path):
    """TensorFlow's own CPU kernel has none; oneDNN's, on some CPUs, and GPUs have."""
    tiny.channels_first_convolution().save(tmp_path / "first.keras")
    command = [
        sys.executable,
        "-m",
        "dgh_tf.generate",
        f"--model={tmp_path / 'first.keras'}",
        f"--output_dir={tmp_path / 'out'}",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0", "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert all(
        text in done.stderr for text in ("does not run on this device", "channels_last", "Permute")
    )
    assert not (tmp_path / "out").exists()
