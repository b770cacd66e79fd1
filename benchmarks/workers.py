"""What several workers of one job cost, on this machine alone: python -m benchmarks.workers.

For each number of workers that many processes meet over the loopback device and work on one set, a
batch each at a time. Told are the bytes that a batch update exchanges, the time of one all-reduce
of as many values with nothing else to do, and the time of a batch update beside what one worker
alone predicts: its own time, or that of all workers' processor time on the CPUs there are, and the
all-reduces.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from absl import flags

from benchmarks.measure.ports import job_environments
from benchmarks.measure.trees import ROOT
from benchmarks.measure.worker import BATCHES
from benchmarks.output.table import grid
from dgh_tf.common import console, machine
from dgh_tf.common.files import atomic_write, require_writable

FLAGS = flags.FLAGS
ALL_REDUCES = 1 + 1 / BATCHES  # of a batch update: the table's, and a step's asks whether to stop
_SECONDS = 1800  # after which workers hang


@dataclasses.dataclass(frozen=True)
class Row:
    """Medians over the workers of one run.

    Attributes:
      workers: how many there were.
      update_ms, processor_ms: wall and processor time of a worker's batch update.
      exchange_ms: of one all-reduce alone; 0 for one worker.
      payload: bytes of one all-reduce.
    """

    workers: int
    update_ms: float
    processor_ms: float
    exchange_ms: float
    payload: int

    @property
    def exchanged(self) -> float:
        """Bytes that a ring all-reduce sends from each worker."""
        return 2 * (self.workers - 1) / self.workers * self.payload


def predicted_ms(row: Row, *, alone: Row, cpus: int) -> float:
    """The time of a batch update that one worker alone predicts, in ms.

    Example: with 20 ms of wall and 30 ms of processor time alone, four workers on two CPUs need
      max(20, 4 * 30 / 2) = 60 ms and 1.5 all-reduces.
    """
    compute = max(alone.update_ms, row.workers * alone.processor_ms / cpus)
    return compute + ALL_REDUCES * row.exchange_ms


def first_failed(running: Sequence[subprocess.Popen], *, seconds: float) -> int | None:
    """Waits for all to end, or for one to fail, for which the others would wait.

    Returns: the place of one that failed; None where all ended well. Raises TimeoutError after so
      many seconds.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        codes = [process.poll() for process in running]
        for place, code in enumerate(codes):
            if code:
                return place
        if None not in codes:
            return None
        time.sleep(0.05)
    raise TimeoutError(f"{len(running)} workers took more than {seconds:g} s.")


def measured(model: str, *, batch_size: int, workers: int, updates: int) -> Row:
    """Runs so many workers. Raises ValueError where one fails, TimeoutError where one hangs."""
    environments = job_environments(workers) if workers > 1 else [dict(os.environ)]
    with tempfile.TemporaryDirectory(prefix="workers_") as folder:
        results = [pathlib.Path(folder) / f"{index}.json" for index in range(workers)]
        running: list[subprocess.Popen] = []
        try:
            for environment, result in zip(environments, results, strict=True):
                command = [sys.executable, "-m", "benchmarks.measure.worker", model]
                command += [*map(str, (batch_size, workers, updates)), str(result)]
                with result.with_suffix(".txt").open("wb") as told:
                    running.append(
                        subprocess.Popen(
                            command,
                            cwd=ROOT,
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL,
                            stderr=told,
                        )
                    )
            failed = first_failed(running, seconds=_SECONDS)
        finally:
            for process in running:
                process.kill()
                process.wait()
        if failed is not None:
            text = results[failed].with_suffix(".txt").read_text(errors="replace")
            last = text.strip().splitlines()[-1:]
            raise ValueError(f"One of {workers} workers failed: {' '.join(last)}")
        found = [json.loads(result.read_text()) for result in results]
    medians = {key: statistics.median(each[key] for each in found) for key in found[0]}
    return Row(
        workers=workers,
        update_ms=medians["update_ms"],
        processor_ms=medians["processor_ms"],
        exchange_ms=medians["exchange_ms"],
        payload=4 * int(medians["values"]),
    )


def table(rows: Sequence[Row], *, batch_size: int, cpus: int) -> str:
    """The rows as markdown; the first is that of one worker."""
    lines = []
    for row in rows:
        predicted = predicted_ms(row, alone=rows[0], cpus=cpus)
        lines.append(
            [
                str(row.workers),
                f"{row.exchanged:.0f}",
                f"{row.exchange_ms:.2f}" if row.workers > 1 else "-",
                f"{row.update_ms:.1f}",
                f"{predicted:.1f}" if row.workers > 1 else "-",
                f"{row.update_ms / predicted:.2f}" if row.workers > 1 else "-",
                f"{1e3 * row.workers * batch_size / row.update_ms:.0f}",
            ]
        )
    headings = ["workers", "bytes sent by each", "all-reduce, ms", "batch update, ms"]
    headings += ["predicted, ms", "ratio", "image-steps/s"]
    return grid(lines, headings)


def define_flags() -> None:
    flags.DEFINE_string("model", "demo", "demo, a .keras or .h5 file, or keras:NAME.")
    flags.DEFINE_list("workers", ["2", "4"], "Numbers of workers beside one alone.")
    flags.DEFINE_integer("batch_size", 32, "Images of a batch.", lower_bound=1)
    flags.DEFINE_integer("updates", 100, "Batch updates timed of each worker.", lower_bound=2)
    flags.DEFINE_string("output", None, "File for the figures (.json).", required=True)
    flags.register_validator(
        "workers",
        lambda values: all(value.isdigit() and int(value) > 1 for value in values),
        "give whole numbers of 2 or more, such as --workers=2,4.",
    )


def main(argv: list[str]) -> int:
    del argv
    from dgh_tf.models.loading import require_model

    require_model(FLAGS.model)
    require_writable(FLAGS.output, flag="output")
    rows = []
    for workers in (1, *map(int, FLAGS.workers)):
        console.say(f"{workers} worker{'s' * (workers > 1)}")
        rows.append(
            measured(
                FLAGS.model, batch_size=FLAGS.batch_size, workers=workers, updates=FLAGS.updates
            )
        )
    figures = {"machine": machine.describe(), "rows": [dataclasses.asdict(row) for row in rows]}
    atomic_write(FLAGS.output, json.dumps(figures, indent=1) + "\n")
    console.say(table(rows, batch_size=FLAGS.batch_size, cpus=os.cpu_count() or 1))
    return 0


if __name__ == "__main__":
    define_flags()
    console.run(main)
