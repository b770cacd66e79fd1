"""cli: python -m dgh_tf.generate: a trained model in, a folder of calibration images out."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import pathlib
import shlex
import shutil
import signal
import sys
import time
import warnings
from typing import Any

from absl import flags

from dgh_tf.common import console
from dgh_tf.common.convergence import judge_convergence
from dgh_tf.common.files import locked_folder
from dgh_tf.config import GenerationConfig
from dgh_tf.run import tensorboard
from dgh_tf.run.progress import Metrics, ProgressBar

_DEFINE = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}
_AUTO = ("num_images", "steps")  # of the settings, which may be "auto"
_CONFIG = {
    f.name: flags.DEFINE_string(
        f.name, str(f.default), f"{f.metadata['help']} auto: grow until ranges hold still."
    )
    if f.name in _AUTO
    else _DEFINE[type(f.default)](f.name, f.default, f.metadata["help"])
    for f in dataclasses.fields(GenerationConfig)
}
_BUDGET = flags.DEFINE_float(
    "budget_minutes",
    10.0,
    "With auto: no attempt begins that would end later; 0: no limit.",
    lower_bound=0.0,
)
_REAL_HINT = flags.DEFINE_string(
    "real_hint",
    None,
    "1 to 32 real images without labels (a folder, .npy or .npz): their statistics are "
    "pooled with the generated images' and they join the calibration set.",
)
_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "Write TensorBoard summaries into --output_dir/tensorboard."
)
_MODEL = flags.DEFINE_string(
    "model",
    "demo",
    "demo, demo_detector, a .keras or .h5 file, a SavedModel folder, a float .tflite file, or "
    "keras:NAME.",
)
_SIGNATURE = flags.DEFINE_string(
    "signature", "", "Of a .tflite file with several: the key of the one."
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder of the run; the same command again goes on with it.", required=True
)
_CHECKPOINT_SECONDS = flags.DEFINE_float(
    "checkpoint_seconds", 30.0, "Seconds between checkpoints.", lower_bound=0.0
)
_MEMORY_MIB = flags.DEFINE_integer(
    "memory_mib",
    4096,
    "Memory for images and optimizer slots; larger sets are streamed through a "
    "file in --output_dir.",
    lower_bound=0,
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", "imagenet", ["imagenet", "none"], "Weights of a keras:NAME model."
)
_UNSAFE = flags.DEFINE_bool(
    "allow_unsafe_deserialization",
    False,
    "Run Python code that the model file brings (Lambda layers).",
)


def main(argv: list[str]) -> int:
    del argv
    numbers = {name: _number(name) for name in _AUTO}
    settings: dict[str, Any] = {
        **{name: holder.value for name, holder in _CONFIG.items() if name not in _AUTO},
        **{name: number for name, number in numbers.items() if number is not None},
    }
    config = GenerationConfig(**settings)
    if _TENSORBOARD.value:
        tensorboard.require()
    from dgh_tf.generation.distribution import worker_number
    from dgh_tf.models.loading import model_sha256

    worker = worker_number(config.strategy)
    sha256 = model_sha256(_MODEL.value, weights=_WEIGHTS.value, signature=_SIGNATURE.value)
    with locked_folder(_OUTPUT_DIR.value, flag="output_dir", worker=worker) as folder:
        if None in numbers.values():
            return _automatic(folder, config, sha256, **numbers)
        return _run(folder, config, sha256, worker=worker)


def _number(name: str) -> int | None:
    """The setting's value; None for auto."""
    text = _CONFIG[name].value
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
    from dgh_tf.common import run_folder
    from dgh_tf.run import autosize

    if config.strategy == "multi_worker":
        raise ValueError(
            "auto takes one process; give --num_images and --steps as numbers with "
            "--strategy=multi_worker."
        )
    manifest = run_folder.read_manifest(folder)
    if manifest:
        known = manifest["identity"]["config"]
        chosen = {
            name: known[name]
            for name, value in (("num_images", num_images), ("steps", steps))
            if value is None
        }
        return _run(folder, dataclasses.replace(config, **chosen), sha256, worker=0)

    def measure(images: int, steps: int) -> autosize.Attempt:
        trial = autosize.trial_folder(folder, images, steps)
        found = autosize.kept(trial)
        if found is None:
            console.say(f"attempt: {images} images, {steps} steps")
            _run(
                trial, dataclasses.replace(config, num_images=images, steps=steps), sha256, worker=0
            )
            found = autosize.keep(trial, _model(), steps=steps, image_size=config.image_size)
        console.say(f"ranges of halves of the set differ by {found.halves:.0%} (median)")
        return found

    choice = autosize.choose(
        measure, num_images=num_images, steps=steps, budget_seconds=60 * _BUDGET.value
    )
    autosize.adopt(folder, choice, command=_command())
    console.say(f"{choice.num_images} images, {choice.steps} steps: {choice.why}")
    return 0


def _model():
    return _loaded(_MODEL.value, _WEIGHTS.value, _UNSAFE.value, _SIGNATURE.value)


@functools.lru_cache(maxsize=1)  # attempts of auto share it
def _loaded(model: str, weights: str, unsafe: bool, signature: str):
    from dgh_tf.models.loading import load_model

    return load_model(
        model, weights=weights, allow_unsafe_deserialization=unsafe, signature=signature
    )


def _command() -> str:
    return shlex.join(["python", "-m", "dgh_tf.generate", *sys.argv[1:]])


def _run(folder: pathlib.Path, config: GenerationConfig, sha256: str, *, worker: int) -> int:
    """worker: 0 for the chief or the only process, which alone writes what the run leaves."""
    from dgh_tf.common import run_folder
    from dgh_tf.run import checkpoint

    stop: list[int] = []
    _catch_signals(stop)
    from dgh_tf.generation.distribution import agreed_number, lost_peer, make_strategy
    from dgh_tf.generation.generator import Generator

    strategy = make_strategy(config.strategy)
    _catch_signals(
        stop
    )  # again: with several workers TensorFlow takes SIGTERM for itself when they first meet
    identity = run_folder.run_identity(
        sha256, config, replicas=strategy.num_replicas_in_sync, real_hint=_REAL_HINT.value
    )
    manifest = run_folder.read_manifest(folder)
    if manifest:
        checkpoint.require_same(manifest["identity"], identity, folder)
        run_folder.load_images(folder)
        console.say(
            f"{folder} is finished: {config.num_images} images, sha256 {manifest['images_sha256']}."
        )
        return 0
    saved = folder / ("checkpoint" if not worker else f"checkpoint-{worker}")
    with _said_warnings():
        checkpoint.require_run(saved, identity=identity)
    generator = Generator(
        _model(),
        config,
        strategy=strategy,
        store_file=folder / f".store-{worker}",
        memory_bytes=_MEMORY_MIB.value * 2**20,
        real_hint=_REAL_HINT.value,
    )
    _announce(generator)
    with contextlib.closing(generator.store), lost_peer(strategy):
        with _said_warnings():
            visits = agreed_number(strategy, checkpoint.available(saved))
        if visits is None:
            generator.start()
        else:
            checkpoint.restore(saved, generator, identity=identity, visits=visits)
            console.say(f"going on from step {visits // generator.rounds} of {config.steps}")
        began, first = time.time(), visits // generator.rounds if visits else 0
        metrics = Metrics(
            folder if not worker else None, keep_until=first, tensorboard=_TENSORBOARD.value
        )
        _generate(generator, identity, metrics, saved, stop, first=first)
        _finish(
            generator,
            identity,
            metrics,
            folder if not worker else None,
            seconds=time.time() - began,
        )
    shutil.rmtree(saved, ignore_errors=True)
    return 0


@contextlib.contextmanager
def _said_warnings():
    """Warnings of damaged checkpoints as lines for the user."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        console.say(f"warning: {text}")


def _announce(generator) -> None:
    kept = "streamed through a file" if generator.streamed else "in memory"
    console.say(f"evidence: {generator.network.evidence.sentence}")
    console.say(
        f"{len(generator.sizes)} batches of up to {max(generator.sizes)} images, "
        f"{generator.record_bytes / 2**20:.0f} MiB {kept}"
    )
    network = generator.network
    for name, valid, layout, first in zip(
        network.input_names,
        generator.ranges,
        generator.layouts,
        network.channels_first,
        strict=True,
    ):
        low, high = (", ".join(f"{v:.4g}" for v in bound) for bound in (valid.low, valid.high))
        console.say(
            f"input {name} {layout.shape}{', written with channels first' * first}: "
            f"range {low} to {high}, from {valid.source}; "
            f"{layout.describe()}"
        )


def _generate(
    generator, identity: dict, metrics: Metrics, saved: pathlib.Path, stop: list[int], *, first: int
) -> None:
    from dgh_tf.run import checkpoint

    steps = generator.config.steps
    if len(generator.head_names) > 1 and generator.config.output_weight:
        console.say(
            f"heads {', '.join(generator.head_names)}: stretched one by one, each "
            "with an equal share of the weight"
        )
    bar = ProgressBar(steps, done=first, has_statistics=bool(generator.network.layers))
    pause = _Pause(_CHECKPOINT_SECONDS.value)

    def report(progress) -> None:
        metrics.add(progress)
        bar.show(progress)
        if (progress.save or progress.stop) and progress.step < steps:
            with pause.measured():
                checkpoint.save(saved, generator, identity=identity)

    _catch_signals(stop)  # and once more, should they have met only now
    with bar:
        generator.run(report=report, due=lambda: (pause.over(), bool(stop)))
    step = generator.state.visits // generator.rounds
    if step < steps:
        number = stop[0] if stop else signal.SIGTERM  # without one here, another worker was stopped
        raise console.Interrupted(
            f"saved at step {step} of {steps}; the same command goes on from there.",
            exit_code=128 + number,
        )


class _Pause:
    """Time between checkpoints: as asked for, but at least twenty times what the last one took, so
    that they cost 5% at most.
    """

    def __init__(self, seconds: float):
        self._seconds, self._next = seconds, time.monotonic() + seconds

    def over(self) -> bool:
        return time.monotonic() >= self._next

    @contextlib.contextmanager
    def measured(self):
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._next = began + took + max(self._seconds, 20.0 * took if self._seconds else 0.0)


def _finish(
    generator, identity: dict, metrics: Metrics, folder: pathlib.Path | None, *, seconds: float
) -> None:
    """Writes what the run leaves. folder: None for a worker that only takes part in what all must
    compute together.
    """
    import keras
    import numpy
    import tensorflow

    from dgh_tf.common import machine, run_folder
    from dgh_tf.report import page as report

    gaps = generator.layer_gaps()
    convergence = judge_convergence(gaps) if generator.network.layers else None
    if folder is None:
        for _ in generator.images():
            pass
        return
    written = run_folder.write_images(
        folder,
        generator.images(),
        generator.network.input_names,
        count=generator.config.num_images + len(generator.real),
    )
    config, state = generator.config, generator.state
    spreads = {
        name.removeprefix("spread/"): value
        for name, value in metrics.last.items()
        if name.startswith("spread/")
    }
    manifest = {
        "model": _MODEL.value,
        **written,
        "model_sha256": identity["model_sha256"],
        "seed": config.seed,
        "input_range": [r.as_dict() for r in generator.ranges],
        "augmentation": [layout.describe() for layout in generator.layouts],
        "lambda": {name: config.output_weight / value for name, value in spreads.items() if value},
        "stretched_to": dict(
            zip(
                generator.head_names,
                map(float, generator.spreads() * config.stretch_limit),
                strict=True,
            )
        ),
        "final_losses": metrics.last,
        "gap_start": state.gap_start,
        "gap_end": gaps,
        "convergence": convergence and convergence.as_dict(),
        "seconds": round(seconds, 2),
        "finished": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine.describe(),
        "channels_first": list(map(bool, generator.network.channels_first)),
        "evidence": generator.network.evidence.as_dict(),
        "unmatched_layers": generator.network.unmatched,
        "real_images": len(generator.real),
        "identity": identity,
        "versions": {
            "dgh_tf": identity["version"],
            "tensorflow": tensorflow.__version__,
            "keras": keras.__version__,
            "numpy": numpy.__version__,
            "python": sys.version.split()[0],
        },
    }
    first = numpy.load(folder / next(iter(written["files"].values())), mmap_mode="r")[:64]
    shown = first.transpose(0, 2, 3, 1) if generator.network.channels_first[0] else first
    report.write_preview(folder, shown, low=generator.ranges[0].low, high=generator.ranges[0].high)
    report.write_page(folder, manifest=manifest, metrics=metrics.rows, command=_command())
    if metrics.summaries:
        grid = report.preview_grid(
            shown, low=generator.ranges[0].low, high=generator.ranges[0].high
        )
        metrics.summaries.finish(config.steps, preview=grid, gaps=gaps)
    run_folder.write_manifest(folder, manifest)
    reached = convergence.summary if convergence else generator.network.evidence.sentence
    told = f"{config.num_images} images in {folder} after {seconds:.0f} s, {reached}; "
    advice = convergence.advice if convergence else ""
    console.say(f"{told}see report.html. {advice}".rstrip(". "))


def _catch_signals(received: list[int]) -> None:
    """Fills the list with the number of the first SIGTERM or SIGINT; a second one ends the process
    at once.
    """

    def handler(number, _frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


if __name__ == "__main__":
    console.run(main)
