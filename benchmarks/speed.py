"""python -m benchmarks.speed: the generation loop's rate against the machine's limit, in one
process.
"""

from __future__ import annotations

import json
import pathlib
import statistics
import tempfile
import time
from typing import TYPE_CHECKING, Any

from absl import flags

from dgh_tf.common.console import run, say
from dgh_tf.common.machine import peak_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    import tensorflow as tf

    from dgh_tf.generation.generator import Generator
    from dgh_tf.models.network import Network


FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("model", "demo", "demo, a .keras or .h5 file, or keras:NAME.")
    flags.DEFINE_integer("batch_size", 32, "Images at once.", lower_bound=1)
    flags.DEFINE_string("output", None, "File for the figures (.json).", required=True)
    flags.DEFINE_integer("batches", 2, "Batches of the generated set.", lower_bound=1)
    flags.DEFINE_float("seconds", 4.0, "Seconds of each measurement.", lower_bound=0.1)
    flags.DEFINE_integer(
        "repeats",
        5,
        "Measurements of each side, in turn; their medians are compared.",
        lower_bound=1,
    )
    flags.DEFINE_bool(
        "stream",
        False,
        "Stream the set through a file, as generate does with sets larger than --memory_mib.",
    )
    flags.DEFINE_string(
        "start", "leaves", "Start images; white is fastest to draw, where thousands are."
    )
    flags.DEFINE_string("input_range", "", "Valid input range; empty: found from the model.")


def limit_step(network: Network, images: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    """One plain forward and backward pass of the network with respect to its input, compiled: the
    machine's limit.
    """
    import tensorflow as tf

    from dgh_tf.models.network import call_model

    @tf.function(autograph=False)
    def step(count: tf.Tensor) -> tf.Tensor:
        def body(i: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            x = (
                images + tf.cast(i, tf.float32) * 0.0
            )  # depends on i, so that no pass is hoisted out of the loop
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = tf.add_n(
                    [
                        tf.reduce_sum(tf.cast(y, tf.float32))
                        for y in tf.nest.flatten(call_model(network.model, [x]))
                    ]
                )
            return i + 1, total + tf.reduce_sum(tape.gradient(value, x)[:, 0])

        return tf.while_loop(lambda i, _: i < count, body, (0, 0.0), parallel_iterations=1)[1]

    return step


def measure(
    model: Any,
    *,
    batch_size: int,
    batches: int,
    seconds: float,
    repeats: int,
    input_range: str = "",
    start: str = "leaves",
    store_file: pathlib.Path | None = None,
) -> dict:
    """Image-steps per second of the real loop (everything included) and of the limit, measured in
    turn.

    Returns: image_steps_per_second, limit_image_steps_per_second, efficiency (median of the pairs'
      ratios), their lists, trace_seconds and peak_rss_mib of the process.
    """
    import tensorflow as tf

    from dgh_tf.config import GenerationConfig
    from dgh_tf.generation.generator import Generator

    config = GenerationConfig(
        num_images=batch_size * batches,
        batch_size=batch_size,
        steps=10**6,
        input_range=input_range,
        start=start,
    )
    generator = Generator(model, config, store_file=store_file)
    if len(generator.ranges) > 1:
        raise ValueError("The speed benchmark takes models with one input.")
    began = time.perf_counter()
    generator.start()
    _timed_loop(generator, 0.0)
    trace = time.perf_counter() - began
    limit = limit_step(generator.network, tf.constant(next(generator.images())[0]))
    limit(tf.constant(1))
    ours, plain = [], []
    for _ in range(repeats):
        ours.append(_timed_loop(generator, seconds))
        plain.append(_timed_limit(limit, batch_size, seconds))
    generator.store.close()
    return {
        "batch_size": batch_size,
        "num_images": config.num_images,
        "streamed": generator.streamed,
        "image_steps_per_second": statistics.median(ours),
        "limit_image_steps_per_second": statistics.median(plain),
        "efficiency": statistics.median(a / b for a, b in zip(ours, plain, strict=True)),
        "rates": ours,
        "limit_rates": plain,
        "trace_seconds": trace,
        "peak_rss_mib": None if (most := peak_memory()) is None else most / 2**20,
    }


def _timed_loop(generator: Generator, seconds: float) -> float:
    """Runs the generator for about `seconds` more. Returns its rate in image-steps per second."""
    began, first = time.perf_counter(), generator.state.visits
    generator.run(due=lambda: (False, time.perf_counter() - began > seconds))
    images = generator.config.num_images / generator.rounds
    return (generator.state.visits - first) * images / (time.perf_counter() - began)


def _timed_limit(limit: Callable[[tf.Tensor], tf.Tensor], batch_size: int, seconds: float) -> float:
    import tensorflow as tf

    began = time.perf_counter()
    limit(tf.constant(4))
    count = max(4, int(4 * seconds / (time.perf_counter() - began)))
    began = time.perf_counter()
    limit(tf.constant(count))
    return count * batch_size / (time.perf_counter() - began)


def main(argv: list[str]) -> int:
    del argv
    from dgh_tf.common.files import atomic_write, require_writable
    from dgh_tf.models.loading import require_model

    require_model(FLAGS.model)
    require_writable(FLAGS.output, flag="output")
    say(f"loading {FLAGS.model}")
    from dgh_tf import load_model

    with tempfile.TemporaryDirectory(prefix="speed_") as name:
        row = {
            "model": FLAGS.model,
            **measure(
                load_model(FLAGS.model),
                batch_size=FLAGS.batch_size,
                batches=FLAGS.batches,
                seconds=FLAGS.seconds,
                repeats=FLAGS.repeats,
                input_range=FLAGS.input_range,
                start=FLAGS.start,
                store_file=pathlib.Path(name) / "records" if FLAGS.stream else None,
            ),
        }
    atomic_write(FLAGS.output, json.dumps(row, indent=1) + "\n")
    memory = row["peak_rss_mib"]
    say(
        f"{row['image_steps_per_second']:.0f} image-steps/s, limit "
        f"{row['limit_image_steps_per_second']:.0f}, "
        f"efficiency {row['efficiency']:.2f}, first call {row['trace_seconds']:.1f} "
        f"s, peak memory {'not known' if memory is None else f'{memory:.0f} MiB'}"
    )
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
