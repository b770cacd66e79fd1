"""One worker of `benchmarks.workers`: MODEL BATCH_SIZE WORKERS UPDATES RESULT.json, with TF_CONFIG
in the environment where there are several.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import statistics
import sys
import time

BATCHES = 2  # of each worker
EXCHANGES = 200  # all-reduces timed
WARM = 4  # batch updates before those that are timed


def measure(model: str, *, batch_size: int, workers: int, updates: int) -> dict[str, float]:
    """What this worker's batch updates and all-reduces take.

    Returns: update_ms, processor_ms: wall and own processor time of a batch update; exchange_ms:
      median of an all-reduce of as many values, alone; values: float32 that one exchanges.
    """
    import tensorflow as tf

    from dgh_tf import load_model
    from dgh_tf.config import GenerationConfig
    from dgh_tf.generation.distribution import make_strategy
    from dgh_tf.generation.generator import Generator

    strategy = make_strategy("multi_worker" if workers > 1 else "one")
    config = GenerationConfig(
        num_images=BATCHES * batch_size * workers, batch_size=batch_size, steps=10**6, start="white"
    )
    generator = Generator(load_model(model), config, strategy=strategy)
    generator.start()
    values = 2 * len(generator.targets.mean) + len(generator.head_names)

    def run(visits: int) -> int:
        """About so many batch updates, whole steps; how many there were."""
        before, calls = generator.state.visits, itertools.count(1)
        generator.run(due=lambda: (False, next(calls) >= visits))
        return generator.state.visits - before

    run(WARM)
    began, own = time.perf_counter(), time.process_time()
    done = run(updates)
    wall, processor = time.perf_counter() - began, time.process_time() - own

    exchange_ms = 0.0
    if workers > 1:
        zeros = tf.zeros([values])

        def reduced() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, zeros)

        exchange = tf.function(lambda: strategy.run(reduced), autograph=False)
        exchange()
        times = []
        for _ in range(EXCHANGES):
            began = time.perf_counter()
            exchange()
            times.append(time.perf_counter() - began)
        exchange_ms = 1e3 * statistics.median(times)
    return {
        "update_ms": 1e3 * wall / done,
        "processor_ms": 1e3 * processor / done,
        "exchange_ms": exchange_ms,
        "values": values,
    }


if __name__ == "__main__":
    name, size, count, updates, result = sys.argv[1:]
    found = measure(name, batch_size=int(size), workers=int(count), updates=int(updates))
    pathlib.Path(result).write_text(json.dumps(found))
