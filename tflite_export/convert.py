"""python -m tflite_export.convert: a Keras model becomes a full-integer .tflite file, with
given calibration images or with generated ones.

Example: python -m tflite_export.convert --model=model.keras --output=model.tflite
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

from absl import flags

import dgh_tf
from dgh_tf.common import console
from dgh_tf.common.files import require_folder, require_writable
from dgh_tf.common.quiet import held_stderr
from dgh_tf.common.value_range import parse_pairs
from dgh_tf.models.choices import without_choices
from dgh_tf.models.loading import require_model
from dgh_tf.models.tflite_model import weight_bytes
from tflite_export import convert_flags
from tflite_export.algorithms.by_name import check_algorithm
from tflite_export.calibration.check import Images, Range
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
from tflite_export.images import Generated, generate_into
from tflite_export.proof import output_paths, proof, proof_bytes, summary, write_set
from tflite_export.quality.accuracy_estimate import UNKNOWN
from tflite_export.quality.held_out import Estimate, estimate
from tflite_export.quality.layer_comparison import calibration_verdict
from tflite_export.quantization import Limit, check_limit, quantize
from tflite_export.targets.advice import layer_names
from tflite_export.targets.report import (
    check_targets,
    judge,
    remarks,
    require_full_mapping,
    table,
)
from tflite_export.targets.vela import System, find_systems
from tflite_export.tflite.edit import left_to_cut, without_softmax
from tflite_export.tflite.integer_check import IntegerError

__all__ = ["to_float_tflite", "to_tflite"]

FLAGS = flags.FLAGS
_BEGAN = time.monotonic()
_BELOW = 3  # exit code: the file is whole, but --fail_below asks for more
_LONG = (
    "reconstruction",
    "distillation",
)  # minutes: an operator that stays float is looked for first


def define_flags() -> None:
    """Only when this runs as a command, so that importing it beside another one never clashes."""
    convert_flags.define_flags()
    flags.adopt_module_key_flags(convert_flags)


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


def _range(model: Any) -> Range | Mapping[str, Range] | None:
    """--input_range as (lows, highs), one or one per channel; by input name where it names inputs
    or a convention; None without it.
    """
    if not FLAGS.input_range:
        return None
    pairs = parse_pairs(FLAGS.input_range)
    if pairs is not None:
        lows, highs = zip(*pairs, strict=True)
        return lows, highs
    found = dgh_tf.find_input_range(model, input_range=FLAGS.input_range)
    names = input_shapes(model) if getattr(model, "inputs", None) else ["input"]
    return {name: (each.low, each.high) for name, each in zip(names, found, strict=True)}


def _given_preprocess() -> str:
    """--preprocess, with its value where it has another than the default."""
    given = _pair(FLAGS.preprocess, "preprocess") != (1.0, 0.0)
    return "--preprocess" + (f"={','.join(FLAGS.preprocess)}" if given else "")


@dataclasses.dataclass(frozen=True)
class _Source:
    """A conversion's model, the sha256 of its file, and its checked images by input name.

    Attributes:
      held_out: images by kind that judge the file; none where calibration was given.
      chose: whether a choice, such as an argmax, was taken off the model's end.
    """

    model: Any
    sha256: str
    calibration: Calibration
    images: dict[str, Any]
    held_out: Mapping[str, Images]
    chose: bool


def _load() -> _Source:
    from dgh_tf.models.loading import load_model, model_sha256

    model = load_model(
        FLAGS.model,
        weights=FLAGS.weights,
        allow_unsafe_deserialization=FLAGS.allow_unsafe_deserialization,
        signature=FLAGS.signature,
    )
    whole, model = model, without_choices(model) if FLAGS.head == "logits" else model
    if model is not whole:
        console.say(f"the file ends before the choice, at {', '.join(model.output_names)}")
    if getattr(model, "inputs", None):
        input_shapes(model)  # raises before images are made
    sha256 = model_sha256(FLAGS.model, weights=FLAGS.weights, signature=FLAGS.signature)
    limits = None  # what images are made in, their folder tells
    if FLAGS.calibration is None:
        made = _generated(model)
        calibration, held_out, what = made.calibration, made.held_out, str(_images_dir())
    else:
        calibration, held_out, limits = _given(model, sha256), {}, _range(model)
        what = f"--calibration={FLAGS.calibration}"
    images, warnings = checked_images(
        model,
        calibration.images,
        value_range=limits or calibration.value_range,
        what=what,
        preprocess=_given_preprocess(),
        input_range="--input_range",
    )
    for text in warnings:
        console.say(f"warning: {text}")
    return _Source(model, sha256, calibration, images, held_out, chose=model is not whole)


def _given(model: Any, sha256: str) -> Calibration:
    """What --calibration names. Raises ValueError for images of another model."""
    scale, offset = _pair(FLAGS.preprocess, "preprocess")
    declared = list(input_shapes(model).values()) if getattr(model, "inputs", None) else [None]
    calibration = load_calibration(
        FLAGS.calibration, image_shape=declared[0], scale=scale, offset=offset
    )
    if calibration.model_sha256 not in (None, sha256):
        raise ValueError(
            f"The images in {FLAGS.calibration} were generated for another model (sha256 "
            f"{calibration.model_sha256[:12]}, this one is {sha256[:12]}). Generate "
            "images for this model."
        )
    return calibration


def _images_dir() -> pathlib.Path:
    """Where generated images go."""
    output = pathlib.Path(FLAGS.output)
    return pathlib.Path(FLAGS.images_dir or output.with_name(f"{output.stem}_images"))


def _generated(model: Any) -> Generated:
    """The images that dgh_tf makes of the model, with the command's settings."""
    config = dgh_tf.GenerationConfig(
        num_images=FLAGS.num_images,
        steps=FLAGS.steps,
        seed=FLAGS.seed,
        input_range=FLAGS.input_range,
        input_kind=FLAGS.input_kind,
    )
    return generate_into(
        _images_dir(),
        config,
        model=FLAGS.model,
        loaded=model,
        weights=FLAGS.weights,
        signature=FLAGS.signature,
        flag="images_dir",
        command=_command(),
    )


def _command(**changes: str) -> str:
    """The command as it was given, some flags changed."""
    kept = [text for text in sys.argv[1:] if text.lstrip("-").split("=")[0] not in changes]
    more = [f"--{name}={value}" for name, value in changes.items()]
    return shlex.join(["python", "-m", "tflite_export.convert", *kept, *more])


def _vela_systems(targets: list[str]) -> dict[str, System]:
    return find_systems(
        targets, config=FLAGS.vela_config, system=FLAGS.vela_system, memory=FLAGS.vela_memory
    )


def _check_flags() -> tuple[pathlib.Path, pathlib.Path, str, list[str]]:
    """Everything that can be refused before TensorFlow starts; returns the files to write, the
    algorithm and the targets.
    """
    path, proof_path = output_paths(FLAGS.output)
    algorithm = check_algorithm(FLAGS.algorithm, scheme=FLAGS.scheme, head=FLAGS.head)
    check_limit(
        Limit(max_kib=FLAGS.max_kib, min_agreement=FLAGS.min_agreement), scheme=FLAGS.scheme
    )
    targets = check_targets(FLAGS.target, scheme=FLAGS.scheme)
    _vela_systems(targets)  # raises
    for name in possible_names(path.stem, targets):
        require_writable(path.with_name(name), flag="output")
    if FLAGS.require_full_mapping and not targets:
        raise ValueError(
            "--require_full_mapping asks a target, but --target is none. Name the "
            "target, or drop the flag."
        )
    _pair(FLAGS.preprocess, "preprocess")
    if FLAGS.calibration is None:
        if FLAGS.fail_below is not None and not FLAGS.verdict:
            raise ValueError("--fail_below needs the verdict; leave --noverdict out.")
        require_folder(_images_dir(), flag="images_dir")
    else:
        _check_given()
    require_model(FLAGS.model, signature=FLAGS.signature)
    return path, proof_path, algorithm, targets


def _check_given() -> None:
    """Refuses flags that do nothing beside --calibration, and what is not there."""
    made = ("images_dir", "num_images", "steps", "input_kind")
    idle = [name for name in made if FLAGS[name].present]
    if idle:
        raise ValueError(
            f"--{idle[0]} is for images that this command generates, but --calibration="
            f"{FLAGS.calibration} gives some. Leave one of the two out."
        )
    if FLAGS.fail_below is not None:
        raise ValueError(
            "--fail_below judges the file on images that took no part in its calibration, which "
            "are made without --calibration only. Leave one of the two out."
        )
    if not pathlib.Path(FLAGS.calibration).exists():
        load_calibration(FLAGS.calibration)  # raises


def _quantized(
    model: Any, images: Mapping[str, Any], float_tflite: bytes, *, head: str
) -> tuple[bytes, dict[str, Any]]:
    """The integer file, proven integer, and its notes by the algorithm asked for."""
    tflite, notes = quantize(
        model,
        images,
        scheme=FLAGS.scheme,
        algorithm=FLAGS.algorithm,
        head=head,
        seed=FLAGS.seed,
        say=console.say,
        timeout=FLAGS.timeout,
        float_tflite=float_tflite,
        max_kib=FLAGS.max_kib,
        min_agreement=FLAGS.min_agreement,
    )
    return tflite, {**notes, "head": FLAGS.head}


def _judged(
    source: _Source, float_tflite: bytes, tflite: bytes, *, same_inside: bool
) -> tuple[dict[str, Any], Estimate | None]:
    """The verdict for F.json, and the estimate on held-out images where there are some."""
    from dgh_tf.models.batchnorm import has_statistics  # loads TensorFlow, which refusals need not

    if not source.held_out:
        given = calibration_verdict(
            float_tflite,
            tflite,
            source.images,
            generated=source.calibration.model_sha256 is not None,
            same_inside=same_inside,
            layers=layer_names(source.model),
            statistics=has_statistics(source.model),
            convergence=source.calibration.convergence,
        )
        return given, None
    try:
        found = estimate(
            float_tflite,
            tflite,
            source.held_out,
            same_inside=same_inside,
            layers=layer_names(source.model),
            statistics=has_statistics(source.model),
            convergence=source.calibration.convergence,
        )
    except ValueError as error:  # control flow, say
        if FLAGS.fail_below is not None:
            raise
        why = f"No verdict: {str(error).splitlines()[0]}"
        return {"level": UNKNOWN, "sentence": why, "reasons": [], "held_out": True}, None
    return found.verdict, found


def _too_low(found: Estimate | None) -> str | None:
    """Why --fail_below fails the command. Raises ValueError where nothing can be predicted."""
    if FLAGS.fail_below is None or found is None:
        return None
    if found.agreement is None or found.level == UNKNOWN:
        raise ValueError(
            "--fail_below asks for the predicted agreement of classes, but there is none for this "
            f"file. {found} Leave the flag out. No file was written."
        )
    if found.agreement >= FLAGS.fail_below:
        return None
    return (
        f"the predicted agreement is {found.agreement:.3f}, below --fail_below={FLAGS.fail_below:g}"
        f" ({found.low:.3f} to {found.high:.3f} is possible)."
    )


def _tell(path: pathlib.Path, report: dict[str, Any], beside: Companions) -> None:
    """The file, one table of the targets, what is to be said of each, and what comes next."""
    targets = report["targets"]
    told = [f"{summary(str(path), report)}; proof in {path.with_suffix('.json').name}"]
    if targets:
        told += table(targets, files=beside.flash)
        told.append(f"beside it: {', '.join(beside.files)}")
        told.append(beside.remark)
    told += [
        f"warning: {name} is of an earlier conversion, not of this file."
        for name in left_over(path, beside.files)
    ]
    told += [report["algorithm_notes"].get("fallback")]
    told += [text for name, verdict in targets.items() for text in remarks(name, verdict)]
    for text in filter(None, [*told, report.get("verdict", {}).get("sentence")]):
        console.say(text)
    if FLAGS.calibration is None:
        console.say(
            f"{time.monotonic() - _BEGAN:.0f} s in all; images and report.html in "
            f"{_images_dir()}. Next: {_next(report)}"
        )


def _next(report: dict[str, Any]) -> str:
    """The command to give next: the other scheme for a doubtful file, targets for a fine one."""
    level, images = report.get("verdict", {}).get("level"), str(_images_dir())
    if level in ("doubtful", "do not ship") and FLAGS.scheme != "int16x8":
        output = pathlib.Path(FLAGS.output)
        other = str(output.with_name(f"{output.stem}_int16x8.tflite"))
        return _command(scheme="int16x8", output=other, images_dir=images)
    if not report["targets"]:
        return _command(target="edgetpu,tflm,cpu" if FLAGS.scheme == "int8" else "tflm,cpu")
    return f"python -m dgh_tf.report --output_dir={shlex.quote(images)} after more conversions"


def _float_file(model: Any, images: Mapping[str, Any]) -> bytes:
    try:
        return to_float_tflite(model, images=images, timeout=FLAGS.timeout)
    except ConversionError as error:
        raise explained(error, float_tflite=None, scheme=FLAGS.scheme) from error


def main(argv: list[str]) -> int:
    """Checks everything cheap first, converts, proves, asks the targets, and only then writes.

    Returns: 3 where the file is written but --fail_below asks for more.
    """
    del argv
    path, proof_path, algorithm, targets = _check_flags()
    console.say(f"loading {FLAGS.model}")
    start_worker()
    source = _load()
    model, images = source.model, source.images
    console.say(
        f"converting {model.name} to {FLAGS.scheme} with "
        f"{len(next(iter(images.values())))} images, algorithm {FLAGS.algorithm}"
    )
    whole = float_tflite = _float_file(model, images)
    head = left_to_cut(FLAGS.head, whole, chose=source.chose)
    if head == "logits":
        float_tflite = without_softmax(float_tflite).data
    if algorithm in _LONG:
        check_operators(
            model, images, float_tflite=float_tflite, scheme=FLAGS.scheme, timeout=FLAGS.timeout
        )
    try:
        tflite, notes = _quantized(model, images, whole, head=head)
    except (ConversionError, IntegerError) as error:
        raise explained(
            error, float_tflite=float_tflite, scheme=FLAGS.scheme, model=model, images=images
        ) from error
    report = proof(
        tflite,
        scheme=FLAGS.scheme,
        float_weight_bytes=weight_bytes(model),
        images=source.calibration.images,
        calibration_sha256=source.calibration.sha256,
        model_sha256=source.sha256,
    )
    report |= {"algorithm": notes["algorithm"], "algorithm_notes": notes}
    report["candidates"] = notes.get("candidates", {})
    if "mixed" in notes:
        report["mixed"] = notes["mixed"]
    judged = judge(
        tflite,
        targets=targets,
        float_tflite=float_tflite,
        layers=layer_names(model),
        systems=_vela_systems(targets),
    )
    report["targets"] = judged.verdicts
    if FLAGS.require_full_mapping:
        require_full_mapping(report["targets"])
    failure = None
    if FLAGS.verdict:
        console.say("checking")
        same_inside = notes["algorithm"] != "equalization"
        with held_stderr():  # LiteRT announces its delegate
            report["verdict"], found = _judged(
                source, float_tflite, tflite, same_inside=same_inside
            )
        failure = _too_low(found)
        if found:
            report["estimate"] = found.as_json()
    with held_stderr():
        beside = make_companions(path.stem, tflite, images, judged)
    report |= beside.described()
    if FLAGS.calibration is None:
        report |= {"images_folder": _images_dir().resolve().name, "command": _command()}
    write_set(
        {
            path: tflite,
            proof_path: proof_bytes(report),
            **{path.with_name(name): data for name, data in beside.files.items()},
        }
    )
    if FLAGS.calibration is None:
        dgh_tf.write_report(_images_dir())
    _tell(path, report, beside)
    return console.fail(failure, code=_BELOW) if failure else 0


def command() -> None:
    """The command as a console script starts it."""
    define_flags()
    console.run(main)


if __name__ == "__main__":
    command()
