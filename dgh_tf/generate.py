"""cli: python -m dgh_tf.generate: a trained model in, a folder of calibration images out."""
from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import signal
import sys
import time
import warnings

from absl import flags

from dgh_tf import console
from dgh_tf.config import GenerationConfig
from dgh_tf.files import remove_unused

_DEFINE = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
_CONFIG = {f.name: _DEFINE[type(f.default)](f.name, f.default, f.metadata["help"]) for f in dataclasses.fields(GenerationConfig)}
_MODEL = flags.DEFINE_string("model", "demo", "demo, demo_detector, a .keras or .h5 file, a SavedModel folder, or keras:NAME.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the run; the same command again goes on with it.", required=True)
_CHECKPOINT_SECONDS = flags.DEFINE_float("checkpoint_seconds", 30.0, "Seconds between checkpoints.", lower_bound=0.0)
_WEIGHTS = flags.DEFINE_enum("weights", "imagenet", ["imagenet", "none"], "Weights of a keras:NAME model.")
_UNSAFE = flags.DEFINE_bool("allow_unsafe_deserialization", False, "Run Python code that the model file brings (Lambda layers).")


def main(argv: list[str]) -> int:
    import filelock

    del argv
    config = GenerationConfig(**{name: holder.value for name, holder in _CONFIG.items()})
    from dgh_tf.loading import model_sha256

    sha256 = model_sha256(_MODEL.value, weights=_WEIGHTS.value)
    folder = pathlib.Path(_OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            return _run(folder, config, sha256)
    except filelock.Timeout:
        raise ValueError(f"Another process is writing to {folder}. Wait for it, or give another --output_dir.") from None
    except BaseException:
        remove_unused(folder)
        raise


def _run(folder: pathlib.Path, config: GenerationConfig, sha256: str) -> int:
    from dgh_tf import checkpoint, output

    stop = _catch_signals()
    from dgh_tf.generation import Generator
    from dgh_tf.replicas import make_strategy

    strategy = make_strategy(config.strategy)
    identity = output.run_identity(sha256, config, replicas=strategy.num_replicas_in_sync)
    manifest = output.read_manifest(folder)
    if manifest:
        checkpoint.require_same(manifest["identity"], identity, folder)
        output.load_images(folder)
        console.say(f"{folder} is finished: {config.num_images} images, sha256 {manifest['images_sha256']}.")
        return 0
    from dgh_tf.loading import load_model

    model = load_model(_MODEL.value, weights=_WEIGHTS.value, allow_unsafe_deserialization=_UNSAFE.value)
    generator = Generator(model, config, strategy=strategy)
    _announce(generator)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = checkpoint.load_latest(folder / "checkpoint", identity=identity)
    for warning in caught:
        console.say(f"warning: {warning.message}")
    if state:
        console.say(f"going on from step {state.step} of {config.steps}")
    began = time.time()
    metrics = _Metrics(folder, keep_until=state.step if state else 0)
    state = _generate(generator, state, identity, metrics, folder, stop)
    _finish(generator, state, identity, metrics, folder, seconds=time.time() - began)
    return 0


def _announce(generator) -> None:
    console.say(f"{len(generator.network.layers)} BatchNorm layers, {len(generator.sizes)} batches of up to {max(generator.sizes)} images")
    network = generator.network
    for name, valid, layout, first in zip(network.input_names, generator.ranges, generator.layouts, network.channels_first, strict=True):
        low, high = (", ".join(f"{v:.4g}" for v in bound) for bound in (valid.low, valid.high))
        console.say(f"input {name} {layout.shape}{', written with channels first' * first}: range {low} to {high}, from {valid.source}; "
                    f"{layout.describe()}")


def _generate(generator, state, identity: dict, metrics: _Metrics, folder: pathlib.Path, stop: list[int]):
    from dgh_tf import checkpoint

    steps = generator.config.steps
    state = state or generator.start()
    if len(generator.head_names) > 1 and generator.config.output_weight:
        console.say(f"heads {', '.join(generator.head_names)}: stretched one by one, each with an equal share of the weight")
    bar = _ProgressBar(steps, done=state.step)
    saved_at = [time.monotonic()]

    def report(progress, fetch) -> bool:
        metrics.add(progress)
        bar.show(progress)
        due = time.monotonic() - saved_at[0] >= _CHECKPOINT_SECONDS.value
        if (due or stop) and progress.step < steps:
            checkpoint.save(folder / "checkpoint", fetch(), identity=identity)
            saved_at[0] = time.monotonic()
        return bool(stop)

    with bar:
        state = generator.run(state, report=report)
    if state.step < steps:
        raise console.Interrupted(f"saved at step {state.step} of {steps}; the same command goes on from there.", exit_code=128 + stop[0])
    return state


def _finish(generator, state, identity: dict, metrics: _Metrics, folder: pathlib.Path, *, seconds: float) -> None:
    import shutil

    import keras
    import numpy
    import tensorflow

    from dgh_tf import output, report

    images = generator.images(state)
    written = output.write_images(folder, images, generator.network.input_names)
    gaps = generator.layer_gaps(state)
    spreads = {name.removeprefix("spread/"): value for name, value in metrics.last.items() if name.startswith("spread/")}
    manifest = {
        "model": _MODEL.value, **written, "model_sha256": identity["model_sha256"], "seed": generator.config.seed,
        "input_range": [r.as_dict() for r in generator.ranges], "augmentation": [layout.describe() for layout in generator.layouts],
        "lambda": {name: generator.config.output_weight / value for name, value in spreads.items() if value},
        "stretched_to": dict(zip(generator.head_names, map(float, state.spreads * generator.config.stretch_limit), strict=True)),
        "final_losses": metrics.last, "gap_start": generator.gap_start(), "gap_end": gaps, "seconds": round(seconds, 2),
        "unmatched_layers": generator.network.unmatched, "identity": identity,
        "versions": {"dgh_tf": identity["version"], "tensorflow": tensorflow.__version__, "keras": keras.__version__,
                     "numpy": numpy.__version__, "python": sys.version.split()[0]},
    }
    shown = images[0].transpose(0, 2, 3, 1) if generator.network.channels_first[0] else images[0]
    report.write_preview(folder, shown, low=generator.ranges[0].low, high=generator.ranges[0].high)
    command = shlex.join(["python", "-m", "dgh_tf.generate", *sys.argv[1:]])
    report.write_page(folder, manifest=manifest, metrics=metrics.rows, command=command)
    output.write_manifest(folder, manifest)
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    mean = sum(gaps.values()) / len(gaps)
    console.say(f"{len(images[0])} images in {folder} after {seconds:.0f} s, mean statistics gap {mean:.3g}; see report.html")


class _Metrics:
    """metrics.jsonl: one line per report; lines after the step that a run resumes from are dropped."""

    def __init__(self, folder: pathlib.Path, *, keep_until: int):
        self._path = folder / "metrics.jsonl"
        self.rows: list[dict] = []
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    break  # the run was killed while writing this line
                if row.get("step", keep_until + 1) <= keep_until:
                    self.rows.append(row)
        self._path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    @property
    def last(self) -> dict[str, float]:
        return {key: value for key, value in (self.rows or [{}])[-1].items() if key not in ("step", "rate")}

    def add(self, progress) -> None:
        row = {"step": progress.step, **progress.losses, "rate": round(progress.rate, 1)}
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class _ProgressBar:
    """A tqdm bar on a terminal, a plain line every ten seconds otherwise."""

    def __init__(self, steps: int, *, done: int):
        self._steps, self._shown = steps, 0.0
        self._first: tuple[float, int] | None = None  # time and step of the first report: what came before is compilation
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=done, unit="step")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.close()

    def show(self, progress) -> None:
        text = f"{progress.rate:.0f} images*steps/s, BN gap {progress.losses['bn']:.4g}"
        if self._bar:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(progress.step - self._bar.n)
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now, progress.step
            console.say(f"step {progress.step}/{self._steps}, compiled; BN gap {progress.losses['bn']:.4g}")
        elif now - self._shown > 10 or progress.step == self._steps:
            self._shown, (began, at) = now, self._first
            left = (now - began) / (progress.step - at) * (self._steps - progress.step)
            console.say(f"step {progress.step}/{self._steps}, {text}, {left:.0f} s left")


def _catch_signals() -> list[int]:
    """A list that fills with the number of the first SIGTERM or SIGINT; a second one ends the process at once."""
    received: list[int] = []

    def handler(number, _frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)
    return received


if __name__ == "__main__":
    console.run(main)
