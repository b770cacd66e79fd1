"""python -m dgh_tf.generate: a trained model in, a folder of calibration images out.

Example: python -m dgh_tf.generate --model=model.keras --output_dir=images --num_images=64
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import sys

from absl import flags

from dgh_tf.common import console, run_folder
from dgh_tf.common.files import locked_folder
from dgh_tf.common.help import MODEL_HELP
from dgh_tf.config import GenerationConfig
from dgh_tf.run import tensorboard
from dgh_tf.run.begin import begin
from dgh_tf.run.meeting import Job, read_job
from dgh_tf.run.request import Request

FLAGS = flags.FLAGS
_AUTO = ("num_images", "steps")  # of the settings, which may be "auto"


def define_flags() -> None:
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    for field in dataclasses.fields(GenerationConfig):
        text = field.metadata["help"]
        if field.name in _AUTO:
            text += " auto: grow until ranges hold still."
            flags.DEFINE_string(field.name, str(field.default), text)
        else:
            define[type(field.default)](field.name, field.default, text)
    flags.DEFINE_string(
        "model",
        "demo",
        MODEL_HELP,
    )
    flags.DEFINE_string("signature", "", "Of a .tflite file with several: the key of the one.")
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of the run; the same command again goes on with it.",
        required=True,
    )
    flags.DEFINE_float(
        "budget_minutes",
        10.0,
        "With auto: no attempt begins that would end later; 0: no limit.",
        lower_bound=0.0,
    )
    flags.DEFINE_string(
        "real_hint",
        None,
        "1 to 32 real images without labels (a folder, .npy or .npz): their statistics are "
        "pooled with the generated images' and they join the calibration set.",
    )
    flags.DEFINE_bool(
        "tensorboard", False, "Write TensorBoard summaries into --output_dir/tensorboard."
    )
    flags.DEFINE_float("checkpoint_seconds", 30.0, "Seconds between checkpoints.", lower_bound=0.0)
    flags.DEFINE_integer(
        "memory_mib",
        4096,
        "Memory for images and optimizer slots; larger sets are streamed through a "
        "file in --output_dir.",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "wait_minutes",
        10.0,
        "With --strategy=multi_worker: so long the workers wait for each other to start.",
        lower_bound=0.0,
    )
    flags.DEFINE_enum("weights", "imagenet", ["imagenet", "none"], "Weights of a keras:NAME model.")
    flags.DEFINE_bool(
        "allow_unsafe_deserialization",
        False,
        "Run Python code that the model file brings (Lambda layers).",
    )


def main(argv: list[str]) -> int:
    """Makes the run in --output_dir, goes on with it, or says that it is finished."""
    del argv
    numbers = {name: _number(name) for name in _AUTO}
    values = {
        field.name: FLAGS[field.name].value
        for field in dataclasses.fields(GenerationConfig)
        if field.name not in _AUTO
    }
    values |= {name: number for name, number in numbers.items() if number is not None}
    config = GenerationConfig(**values)
    if FLAGS.tensorboard:
        tensorboard.require()
    job = read_job(config.strategy)
    from dgh_tf.models.loading import model_sha256, require_model

    require_model(FLAGS.model, signature=FLAGS.signature)
    sha256 = model_sha256(FLAGS.model, weights=FLAGS.weights, signature=FLAGS.signature)
    with locked_folder(FLAGS.output_dir, flag="output_dir", worker=job.index) as folder:
        if None in numbers.values():
            return _automatic(folder, config, sha256, **numbers)
        return _run(folder, config, sha256, job)


def _number(name: str) -> int | None:
    """The setting's value; None for auto."""
    text = FLAGS[name].value
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--{name}={text}: expected a whole number or auto.") from None


def _automatic(
    folder: pathlib.Path,
    config: GenerationConfig,
    sha256: str,
    *,
    num_images: int | None,
    steps: int | None,
) -> int:
    """Runs as many attempts as auto.choose asks for, each whole and resumable in a folder of its
    own; the last becomes the run.
    """
    from dgh_tf.run import autosize, session

    if config.strategy == "multi_worker":
        raise ValueError(
            "auto takes one process; give --num_images and --steps as numbers with "
            "--strategy=multi_worker."
        )
    job = read_job(config.strategy)
    manifest = run_folder.read_manifest(folder)
    if manifest:
        known = manifest["identity"]["config"]
        chosen = {
            name: known[name]
            for name, value in (("num_images", num_images), ("steps", steps))
            if value is None
        }
        return _run(folder, dataclasses.replace(config, **chosen), sha256, job)

    def measure(images: int, steps: int) -> autosize.Attempt:
        trial = autosize.trial_folder(folder, images, steps)
        found = autosize.kept(trial)
        if found is None:
            console.say(f"attempt: {images} images, {steps} steps")
            _run(trial, dataclasses.replace(config, num_images=images, steps=steps), sha256, job)
            found = autosize.keep(
                trial, session.load(_request()).model, steps=steps, image_size=config.image_size
            )
        console.say(f"ranges of halves of the set differ by {found.halves:.0%} (median)")
        return found

    choice = autosize.choose(
        measure, num_images=num_images, steps=steps, budget_seconds=60 * FLAGS.budget_minutes
    )
    autosize.adopt(folder, choice, command=_request().command)
    run_folder.clean(folder, worker=0, finished=True)
    console.say(f"{choice.num_images} images, {choice.steps} steps: {choice.why}")
    return 0


def _request() -> Request:
    return Request(
        model=FLAGS.model,
        weights=FLAGS.weights,
        signature=FLAGS.signature,
        allow_unsafe_deserialization=FLAGS.allow_unsafe_deserialization,
        real_hint=FLAGS.real_hint,
        memory_bytes=FLAGS.memory_mib * 2**20,
        checkpoint_seconds=FLAGS.checkpoint_seconds,
        wait_seconds=60 * FLAGS.wait_minutes,
        tensorboard=FLAGS.tensorboard,
        command=shlex.join(["python", "-m", "dgh_tf.generate", *sys.argv[1:]]),
    )


def _run(folder: pathlib.Path, config: GenerationConfig, sha256: str, job: Job) -> int:
    begin(_request(), folder, config, sha256, job=job, output_dir=FLAGS.output_dir)
    return 0


def command() -> None:
    """The command as a console script starts it."""
    define_flags()
    console.run(main)


if __name__ == "__main__":
    command()
