"""One run in its folder, from its model to what it leaves. Starts TensorFlow."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
import signal
import time
import warnings
from collections.abc import Iterator

import tensorflow as tf

from dgh_tf.common import console, run_folder
from dgh_tf.common.text import rounded
from dgh_tf.config import GenerationConfig
from dgh_tf.generation.distribution import agreed_number, lost_peer, make_strategy
from dgh_tf.generation.generator import Generator
from dgh_tf.generation.prepared import Prepared, prepared
from dgh_tf.generation.update import Progress
from dgh_tf.models.loading import load_model
from dgh_tf.run import checkpoint
from dgh_tf.run.finish import finish, require_space
from dgh_tf.run.meeting import Job
from dgh_tf.run.progress import Lines, Metrics, ProgressBar
from dgh_tf.run.request import Request
from dgh_tf.run.signals import StopSignal


def load(request: Request) -> Prepared:
    """The model that the request names."""
    if request.loaded is not None:
        return prepared(request.loaded)
    return _loaded(
        request.model, request.weights, request.allow_unsafe_deserialization, request.signature
    )


@functools.lru_cache(maxsize=1)  # attempts of auto share it
def _loaded(model: str, weights: str, unsafe: bool, signature: str) -> Prepared:
    return Prepared(
        load_model(model, weights=weights, allow_unsafe_deserialization=unsafe, signature=signature)
    )


def run(
    request: Request, folder: pathlib.Path, config: GenerationConfig, identity: dict, job: Job
) -> None:
    """Goes from the last checkpoint, or the start, to the end of a run.

    Args:
      request: where the run's parts come from and how it goes on.
      folder: locked, without a finished run.
      config: settings of the run.
      identity: see `run_folder.run_identity`; the number of replicas joins it.
      job: worker 0 alone writes what the run leaves.
    Raises: console.Interrupted where a signal stopped it; what `Generator` and files raise.
    """
    stop = StopSignal()
    strategy = _strategy(request, config, job, stop)
    identity["replicas"] = strategy.num_replicas_in_sync
    saved = run_folder.checkpoint_folder(folder, job.index)
    with _said_warnings():
        checkpoint.require_run(saved, identity=identity)
    model = load(request)
    console.say("finding the input range")
    generator = Generator(
        model,
        config,
        strategy=strategy,
        store_file=folder / run_folder.store_name(job.index),
        memory_bytes=request.memory_bytes,
        real_hint=request.real_hint,
    )
    with contextlib.closing(generator.store), lost_peer(strategy):
        _announce(generator)
        known = sum(path.stat().st_size for path in saved.glob("visit-*.bin"))
        require_space(generator, folder, known=known)
        with _said_warnings():
            visits = agreed_number(strategy, checkpoint.available(saved))
        if visits is None:
            generator.start(told=_Starting(generator, stop))
        else:
            checkpoint.restore(saved, generator, identity=identity, visits=visits)
            console.say(f"going on from step {visits // generator.rounds} of {config.steps}")
        _steps_and_finish(_Run(request, generator, identity, folder, job), stop)


class _Starting(Lines):
    """The progress of a start; a signal ends the command there, since no step is lost."""

    def __init__(self, generator: Generator, stop: StopSignal) -> None:
        super().__init__(sum(generator.sizes[k] for k in generator.batches))
        self._stop = stop

    def __call__(self, what: str, images: int) -> None:
        if self._stop.number is not None:  # several workers; one alone is told by an exception
            text = "before the first step; the same command starts again."
            raise console.Interrupted(text, exit_code=128 + self._stop.number)
        super().__call__(what, images)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run that has begun, in its folder."""

    request: Request
    generator: Generator
    identity: dict
    folder: pathlib.Path
    job: Job

    @property
    def step(self) -> int:
        """Whole steps that are done."""
        return self.generator.state.visits // self.generator.rounds

    def save(self) -> None:
        """Writes a checkpoint."""
        saved = run_folder.checkpoint_folder(self.folder, self.job.index)
        checkpoint.save(saved, self.generator, identity=self.identity)

    def interrupted(self, number: int) -> console.Interrupted:
        """What a signal of this number ends the saved run with."""
        steps = self.generator.config.steps
        return console.Interrupted(
            f"saved at step {self.step} of {steps}; the same command goes on from there.",
            exit_code=128 + number,
        )


def _steps_and_finish(run: _Run, stop: StopSignal) -> None:
    """From where the run stands to its end. A signal stops it where it can be gone on with."""
    began, own = time.time(), None if run.job.index else run.folder
    metrics = Metrics(own, keep_until=run.step, tensorboard=run.request.tensorboard)
    stop.remember()  # again: with several workers TensorFlow takes SIGTERM for itself
    _generate(run, metrics, stop)
    if len(run.job.addresses) == 1:  # several finish together
        stop.raise_at_once()
    try:
        finish(
            run.generator,
            own,
            model=run.request.model,
            identity=run.identity,
            metrics=metrics,
            seconds=time.time() - began,
            command=run.request.command,
            with_page=run.request.page,
        )
    except KeyboardInterrupt as signalled:
        stop.remember()
        run.save()
        if isinstance(signalled, console.Unheard):
            raise
        raise run.interrupted(getattr(signalled, "number", signal.SIGINT)) from None


def _strategy(
    request: Request, config: GenerationConfig, job: Job, stop: StopSignal
) -> tf.distribute.Strategy:
    """The run's strategy. TensorFlow's own meeting of several workers neither ends by itself nor
    hears signals: it goes on in a thread, and this one watches.
    """
    if len(job.addresses) == 1:
        strategy = make_strategy(config.strategy)
        stop.raise_at_once()
        return strategy
    pool = concurrent.futures.ThreadPoolExecutor(1)
    made = pool.submit(make_strategy, config.strategy)
    limit = time.monotonic() + request.wait_seconds
    while not made.done():
        stop.remember()  # again and again: TensorFlow takes SIGTERM for itself
        with contextlib.suppress(concurrent.futures.TimeoutError):
            made.exception(timeout=0.2)
        if stop.number is not None:
            console.leave("stopped", "while the workers met.", 128 + stop.number)
        if time.monotonic() > limit:
            text = "a worker ended while all of them met. Start the same command on all again."
            console.leave("error", text, 1)
    stop.remember()
    try:
        return made.result()
    except tf.errors.OpError as error:
        raise ConnectionError(
            f"TensorFlow cannot connect the workers at {job.names(range(len(job.addresses)))} "
            f"({error.message.splitlines()[0]}). Look at TF_CONFIG and the network, and start the "
            "same command on all of them again."
        ) from error


@contextlib.contextmanager
def _said_warnings() -> Iterator[None]:
    """Warnings of damaged checkpoints as lines for the user."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        console.say(f"warning: {text}")


def _announce(generator: Generator) -> None:
    kept = "streamed through a file" if generator.streamed else "in memory"
    console.say(f"evidence: {generator.network.evidence.sentence}")
    console.say(
        f"{len(generator.sizes)} batches of up to {max(generator.sizes)} images, "
        f"{generator.record_bytes / 2**20:.0f} MiB {kept}"
    )
    network = generator.network
    for name, known, layout, first in zip(
        network.input_names,
        generator.known,
        generator.layouts,
        network.channels_first,
        strict=True,
    ):
        valid, kind = known.valid, known.kind
        low, high = (
            ", ".join(rounded(v, digits=4) for v in bound) for bound in (valid.low, valid.high)
        )
        if known.signal:
            kind += " (--input_kind says otherwise)"
        console.say(
            f"input {name} {layout.shape}{', written with channels first' * first}: {kind}, "
            f"range {low} to {high}, from {valid.source}; "
            f"{layout.describe()}"
        )


def _generate(run: _Run, metrics: Metrics, stop: StopSignal) -> None:
    """The steps, with checkpoints. Raises console.Interrupted where a signal came."""
    generator = run.generator
    steps = generator.config.steps
    if len(generator.head_names) > 1 and generator.config.output_weight:
        console.say(
            f"heads {', '.join(generator.head_names)}: stretched one by one, each "
            "with an equal share of the weight"
        )
    bar = ProgressBar(steps, done=run.step, has_statistics=bool(generator.network.layers))
    pause = _Pause(run.request.checkpoint_seconds)

    def report(progress: Progress) -> None:
        metrics.add(progress)
        bar.show(progress)
        if (progress.save or progress.stop) and progress.step < steps:
            with pause.measured():
                run.save()

    console.say("tracing")
    with bar:
        generator.run(report=report, due=lambda: (pause.over(), stop.number is not None))
    if run.step < steps:  # without a number another worker was stopped
        raise run.interrupted(stop.number or signal.SIGTERM)


class _Pause:
    """Time between checkpoints: as asked for, but at least twenty times what the last one took, so
    that they cost 5% at most.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, time.monotonic() + seconds

    def over(self) -> bool:
        return time.monotonic() >= self._next

    @contextlib.contextmanager
    def measured(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._next = began + took + max(self._seconds, 20.0 * took if self._seconds else 0.0)
