"""cli: python -m tflite_export.convert: a Keras model and calibration images become a full-integer
.tflite file.

Flags are defined only when this runs as a command, so that importing it beside another command
never clashes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags

from dgh_tf.common import console
from dgh_tf.common.files import atomic_path, require_writable
from dgh_tf.common.quiet import held_stderr
from dgh_tf.models.tflite_model import weight_bytes
from tflite_export.calibration.check import Range
from tflite_export.calibration.load import Calibration, load_calibration
from tflite_export.calibration.units import checked_images
from tflite_export.conversion.converter import ConversionError, to_float_tflite, to_tflite
from tflite_export.conversion.errors import check_operators, explained
from tflite_export.conversion.freeze import input_shapes
from tflite_export.conversion.server import start_worker
from tflite_export.firmware.companions import (
    Companions,
    left_over,
    make_companions,
    possible_names,
)
from tflite_export.quality.layer_comparison import calibration_verdict
from tflite_export.quantization import HEADS, NAMES, check_algorithm, quantize
from tflite_export.targets.advice import layer_names
from tflite_export.targets.report import (
    TARGETS,
    check_targets,
    judge,
    remarks,
    require_full_mapping,
    table,
)
from tflite_export.targets.vela import CONFIGURATIONS, System, find_system
from tflite_export.tflite.edit import without_softmax
from tflite_export.tflite.integer_check import IntegerError, check_integer
from tflite_export.tflite.schemes import SCHEMES

__all__ = ["to_float_tflite", "to_tflite"]

FLAGS = flags.FLAGS
_LONG = (
    "reconstruction",
    "distillation",
)  # minutes: an operator that stays float is looked for first


def _define_flags() -> None:
    flags.DEFINE_string(
        "model",
        None,
        "demo, demo_detector, a .keras/.h5 file, a SavedModel folder, a float .tflite file or "
        "keras:NAME.",
    )
    flags.DEFINE_string("signature", "", "Of a .tflite file with several: the key of the one.")
    flags.DEFINE_enum("weights", "imagenet", ["imagenet", "none"], "Weights of a keras:NAME model.")
    flags.DEFINE_bool(
        "allow_unsafe_deserialization",
        False,
        "Run Python code that the model file brings (Lambda layers).",
    )
    flags.DEFINE_string("calibration", None, "A generate folder, .npy, .npz or folder of images.")
    flags.DEFINE_string(
        "output", None, "The .tflite file to write; the proof goes beside it as .json."
    )
    flags.DEFINE_enum(
        "scheme",
        "int8",
        list(SCHEMES),
        "int8: all 8 bits. int16x8: 16-bit activations. w4a8: 4-bit weights.",
    )
    flags.DEFINE_enum(
        "algorithm",
        "best",
        list(NAMES),
        "How images become integers (docs/guide/algorithms.md). best: what measured best for the "
        "scheme; minmax where the model does not allow it. minmax: the converter's own.",
    )
    flags.DEFINE_enum(
        "head",
        "model",
        list(HEADS),
        "model: the outputs as they are. logits: without a softmax or sigmoid at the end.",
    )
    flags.DEFINE_integer("seed", 0, "Of what the algorithm draws at random.", lower_bound=0)
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
        ("vela_system", "Ethos-U: the section System_Config.NAME to compile for."),
        ("vela_memory", "Ethos-U: the section Memory_Mode.NAME to compile for."),
    ):
        flags.DEFINE_string(name, None, text)
    flags.DEFINE_list(
        "input_range", None, "low,high of the model's input units; overrides the manifest's."
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
    flags.mark_flags_as_required(["model", "calibration", "output"])


def _pair(values: list[str], name: str) -> tuple[float, float]:
    try:
        first, second = map(float, values)
        if not math.isfinite(first) or not math.isfinite(second):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"--{name}={','.join(values)} is not two numbers. Write it as --{name}=1.0,0.0."
        ) from None
    return first, second


def _given_preprocess() -> str:
    """--preprocess, with its value where it has another than the default."""
    given = _pair(FLAGS.preprocess, "preprocess") != (1.0, 0.0)
    return "--preprocess" + (f"={','.join(FLAGS.preprocess)}" if given else "")


def _output_paths(text: str) -> tuple[pathlib.Path, pathlib.Path]:
    path = pathlib.Path(text)
    if path.suffix != ".tflite":
        raise ValueError(
            f"--output={text} does not end in .tflite. The proof goes beside it as "
            ".json; give F.tflite."
        )
    return require_writable(path, flag="output"), require_writable(
        path.with_suffix(".json"), flag="output"
    )


def proof(
    tflite: bytes,
    *,
    scheme: str,
    float_weight_bytes: int,
    calibration: Calibration,
    model_sha256: str,
) -> dict[str, Any]:
    """What F.json holds. Raises IntegerError when the file is not fully integer.

    Args:
      float_weight_bytes: size of the model's weights as float32, for comparison.
    """
    import tensorflow as tf

    images = calibration.images
    arrays = images if isinstance(images, Mapping) else {"images": images}
    return {
        "scheme": scheme,
        **check_integer(tflite, io_dtype=SCHEMES[scheme].io_dtype),
        "float_weight_bytes": float_weight_bytes,
        "sha256": {
            "model": model_sha256,
            "calibration": calibration.sha256,
            "tflite": hashlib.sha256(tflite).hexdigest(),
        },
        "calibration": {
            name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in arrays.items()
        },
        "versions": {"tensorflow": tf.__version__},
    }


def write_set(files: Mapping[pathlib.Path, bytes]) -> None:
    """Writes all files, whole, before any takes its place, so that a full disk leaves the old
    ones. Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        for path, data in files.items():
            stack.enter_context(atomic_path(path)).write_bytes(data)


def _summary(path: pathlib.Path, report: dict[str, Any]) -> str:
    ends = {e["dtype"].lower() for e in report["inputs"] + report["outputs"]}
    return (
        f"{path}: {sum(report['operators'].values())} operators, all integer; "
        f"{'/'.join(sorted(ends))} in and out; "
        f"{report['bytes'] / 1024:.0f} KiB (the float32 weights alone take "
        f"{report['float_weight_bytes'] / 1024:.0f}); "
        f"proof in {path.with_suffix('.json').name}"
    )


def _load(model_flag: str) -> tuple[Any, str, Calibration, dict[str, Any]]:
    """The model, its sha256, the calibration data and its checked images by input name."""
    from dgh_tf.models.loading import load_model, model_sha256

    scale, offset = _pair(FLAGS.preprocess, "preprocess")
    limits: Range | None = _pair(FLAGS.input_range, "input_range") if FLAGS.input_range else None
    model = load_model(
        model_flag,
        weights=FLAGS.weights,
        allow_unsafe_deserialization=FLAGS.allow_unsafe_deserialization,
        signature=FLAGS.signature,
    )
    digest = model_sha256(model_flag, weights=FLAGS.weights, signature=FLAGS.signature)
    declared = list(input_shapes(model).values()) if getattr(model, "inputs", None) else [None]
    calibration = load_calibration(
        FLAGS.calibration, image_shape=declared[0], scale=scale, offset=offset
    )
    if calibration.model_sha256 not in (None, digest):
        raise ValueError(
            f"The images in {FLAGS.calibration} were generated for another model (sha256 "
            f"{calibration.model_sha256[:12]}, this one is {digest[:12]}). Generate "
            "images for this model."
        )
    images, warnings = checked_images(
        model,
        calibration.images,
        value_range=limits or calibration.value_range,
        what=f"--calibration={FLAGS.calibration}",
        preprocess=_given_preprocess(),
        input_range="--input_range",
    )
    for text in warnings:
        console.say(f"warning: {text}")
    return model, digest, calibration, images


def _vela_system() -> System | None:
    return find_system(config=FLAGS.vela_config, system=FLAGS.vela_system, memory=FLAGS.vela_memory)


def _check_flags() -> tuple[pathlib.Path, pathlib.Path, str, list[str]]:
    """Everything that can be refused before TensorFlow starts; returns the files to write, the
    algorithm and the targets.
    """
    path, proof_path = _output_paths(FLAGS.output)
    algorithm = check_algorithm(FLAGS.algorithm, scheme=FLAGS.scheme, head=FLAGS.head)
    targets = check_targets(FLAGS.target, scheme=FLAGS.scheme)
    if _vela_system() and not set(targets) & set(CONFIGURATIONS):
        raise ValueError(
            "--vela_system and --vela_memory describe the chip around an Ethos-U, but --target "
            "names none. Name one, or drop the flags."
        )
    for name in possible_names(path.stem, targets):
        require_writable(path.with_name(name), flag="output")
    if FLAGS.require_full_mapping and not targets:
        raise ValueError(
            "--require_full_mapping asks a target, but --target is none. Name the "
            "target, or drop the flag."
        )
    _pair(FLAGS.preprocess, "preprocess")
    if FLAGS.input_range:
        _pair(FLAGS.input_range, "input_range")
    if not pathlib.Path(FLAGS.calibration).exists():
        load_calibration(FLAGS.calibration)  # raises
    return path, proof_path, algorithm, targets


def _quantized(
    model: Any, images: Mapping[str, Any], float_tflite: bytes
) -> tuple[bytes, dict[str, Any]]:
    """The integer file, proven integer, and its notes by the algorithm asked for."""
    tflite, notes = quantize(
        model,
        images,
        scheme=FLAGS.scheme,
        algorithm=FLAGS.algorithm,
        head=FLAGS.head,
        seed=FLAGS.seed,
        say=console.say,
        timeout=FLAGS.timeout,
        float_tflite=float_tflite,
    )
    check_integer(tflite, io_dtype=SCHEMES[FLAGS.scheme].io_dtype)
    return tflite, notes


def main(argv: list[str]) -> int:
    """Checks everything cheap first, converts, proves, asks the targets, and only then writes."""
    del argv
    path, proof_path, algorithm, targets = _check_flags()
    start_worker()
    model, digest, calibration, images = _load(FLAGS.model)
    try:
        float_tflite = to_float_tflite(model, images=images, timeout=FLAGS.timeout)
    except ConversionError as error:
        raise explained(error, float_tflite=None, scheme=FLAGS.scheme) from error
    whole = float_tflite
    if FLAGS.head == "logits":
        float_tflite = without_softmax(float_tflite).data
    if algorithm in _LONG:
        check_operators(
            model, images, float_tflite=float_tflite, scheme=FLAGS.scheme, timeout=FLAGS.timeout
        )
    console.say(
        f"converting {model.name} to {FLAGS.scheme} with "
        f"{len(next(iter(images.values())))} images, algorithm {FLAGS.algorithm}"
    )
    try:
        tflite, notes = _quantized(model, images, whole)
    except (ConversionError, IntegerError) as error:
        raise explained(
            error, float_tflite=float_tflite, scheme=FLAGS.scheme, model=model, images=images
        ) from error
    report = proof(
        tflite,
        scheme=FLAGS.scheme,
        float_weight_bytes=weight_bytes(model),
        calibration=calibration,
        model_sha256=digest,
    )
    report |= {"algorithm": notes["algorithm"], "algorithm_notes": notes}
    report["candidates"] = notes.get("candidates", {})
    judged = judge(
        tflite,
        targets=targets,
        float_tflite=float_tflite,
        layers=layer_names(model),
        system=_vela_system(),
    )
    report["targets"] = judged.verdicts
    if FLAGS.require_full_mapping:
        require_full_mapping(report["targets"])
    if FLAGS.verdict:
        with held_stderr():  # LiteRT announces its delegate
            report["verdict"] = calibration_verdict(
                float_tflite,
                tflite,
                images,
                generated=calibration.model_sha256 is not None,
                same_inside=notes["algorithm"] != "equalization",
                convergence=calibration.convergence,
            )
    with held_stderr():
        beside = make_companions(path.stem, tflite, images, judged)
    report |= beside.described()
    write_set(
        {
            path: tflite,
            proof_path: (json.dumps(report, indent=1) + "\n").encode(),
            **{path.with_name(name): data for name, data in beside.files.items()},
        }
    )
    _tell(path, report, beside)
    return 0


def _tell(path: pathlib.Path, report: dict[str, Any], beside: Companions) -> None:
    """The file, one table of the targets, then what is to be said of each."""
    targets = report["targets"]
    told = [_summary(path, report)]
    if targets:
        told += table(targets, files=beside.flash)
        told.append(f"beside it: {', '.join(beside.files)}")
    told += [
        f"warning: {name} is of an earlier conversion, not of this file."
        for name in left_over(path, beside.files)
    ]
    told += [report["algorithm_notes"].get("fallback")]
    told += [text for name, verdict in targets.items() for text in remarks(name, verdict)]
    for text in filter(None, [*told, report.get("verdict", {}).get("sentence")]):
        console.say(text)


if __name__ == "__main__":
    _define_flags()
    console.run(main)
