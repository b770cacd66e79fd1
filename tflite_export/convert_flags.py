"""The flags of python -m tflite_export.convert."""

from __future__ import annotations

import dataclasses

from absl import flags

import dgh_tf
from dgh_tf.common.help import MODEL_HELP
from tflite_export.algorithms.by_name import HEADS, NAMES
from tflite_export.targets.report import TARGETS
from tflite_export.tflite.schemes import SCHEMES


def define_flags() -> None:
    _define_model()
    _define_images()
    _define_file()
    _define_targets_and_units()
    flags.mark_flags_as_required(["model", "output"])


def _define_model() -> None:
    flags.DEFINE_string(
        "model",
        None,
        MODEL_HELP,
    )
    flags.DEFINE_string("signature", "", "Of a .tflite file with several: the key of the one.")
    flags.DEFINE_enum("weights", "imagenet", ["imagenet", "none"], "Weights of a keras:NAME model.")
    flags.DEFINE_bool(
        "allow_unsafe_deserialization",
        False,
        "Run Python code that the model file brings (Lambda layers).",
    )


def _define_images() -> None:
    flags.DEFINE_string(
        "calibration",
        None,
        "A generate folder, .npy, .npz or folder of images. Without it images are generated.",
    )
    flags.DEFINE_string(
        "images_dir",
        None,
        "Without --calibration: folder of the generated images, which serves every scheme and "
        "target of the same model. F_images for --output=F.tflite.",
    )
    flags.DEFINE_integer(
        "num_images", 64, "Without --calibration: images that calibrate.", lower_bound=2
    )
    flags.DEFINE_integer(
        "steps", 100, "Without --calibration: optimizer steps of every image.", lower_bound=1
    )
    (kind,) = [f for f in dataclasses.fields(dgh_tf.GenerationConfig) if f.name == "input_kind"]
    flags.DEFINE_enum(
        "input_kind",
        kind.default,
        list(kind.metadata["choices"]),
        f"Without --calibration. {kind.metadata['help']}",
    )
    flags.DEFINE_float(
        "fail_below",
        None,
        "Without --calibration: exit code 3 when the predicted agreement is below this share, "
        "0 to 1. The file is written.",
        lower_bound=0.0,
        upper_bound=1.0,
    )


def _define_file() -> None:
    flags.DEFINE_string(
        "output", None, "The .tflite file to write; the proof goes beside it as .json."
    )
    flags.DEFINE_enum(
        "scheme",
        "int8",
        list(SCHEMES),
        "int8: all 8 bits. int16x8: 16-bit activations. w4a8: 4-bit weights. mixed: 4 or 8 bits "
        "for the weights of each layer, by --max_kib or --min_agreement.",
    )
    flags.DEFINE_float(
        "max_kib",
        None,
        "With --scheme=mixed: size of the file in KiB (1024 bytes) that it may not exceed. Without "
        "both limits: three quarters of what 4 bits everywhere save.",
        lower_bound=0.0,
    )
    flags.DEFINE_float(
        "min_agreement",
        None,
        "With --scheme=mixed: the smallest file whose predicted agreement with the float model is "
        "at least this share, 0 to 1.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_enum(
        "algorithm",
        "best",
        list(NAMES),
        "How images become integers (docs/guide/algorithms.md). best: what measured best for the "
        "scheme; minmax where the model does not allow it.",
    )
    flags.DEFINE_enum(
        "head",
        "model",
        list(HEADS),
        "model: the outputs as they are. logits: without a softmax, sigmoid or argmax at the end.",
    )
    flags.DEFINE_integer(
        "seed", 0, "Of what the algorithm and the generation of images draw.", lower_bound=0
    )


def _define_targets_and_units() -> None:
    flags.DEFINE_list(
        "target", ["none"], f"Targets to check the file for, by comma: {', '.join(TARGETS)}."
    )
    flags.DEFINE_bool(
        "require_full_mapping",
        False,
        "Fail, and write nothing, when a target leaves an operator to a slower processor.",
    )
    for name, text in (
        ("vela_config", "A .ini file of Vela's that describes your chip; unset: Vela's own."),
        (
            "vela_system",
            "Ethos-U: the section System_Config.NAME of the chip, or TARGET:NAME,...",
        ),
        ("vela_memory", "Ethos-U: the section Memory_Mode.NAME, in the same forms."),
    ):
        flags.DEFINE_string(name, None, text)
    flags.DEFINE_string(
        "input_range",
        "",
        "Valid input range LOW,HIGH of the model, or a convention such as unit, byte, symmetric; "
        "in quotes LOW,HIGH;LOW,HIGH with a pair for every channel, and for several inputs "
        "NAME:RANGE;NAME:RANGE. Overrides what is found or the manifest says.",
    )
    flags.DEFINE_list(
        "preprocess",
        ["1", "0"],
        "SCALE,OFFSET for image files and arrays: input = stored value * SCALE + OFFSET. Images "
        "that dgh_tf.generate made are in the model's units and stay as they are.",
    )
    flags.DEFINE_bool(
        "verdict", True, "Tell in F.json what the calibration images say of the file."
    )
    flags.DEFINE_float(
        "timeout", None, "Seconds after which the converter is stopped.", lower_bound=0.0
    )
