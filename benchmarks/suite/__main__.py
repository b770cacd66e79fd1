"""cli: every model of a list over sources, set sizes, seeds and schemes: python -m
benchmarks.suite.
"""

from __future__ import annotations

import pathlib
import shlex
import sys
import time
from collections.abc import Callable

import numpy as np
from absl import flags

from benchmarks.data.sources import SOURCES, check_sources
from benchmarks.suite.plan import Entry, Key, Store, plan, read_models
from dgh_tf.common.console import run, say
from dgh_tf.common.files import locked_folder
from tflite_export.conversion.server import start_worker
from tflite_export.tflite.schemes import SCHEMES

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "models",
    str(pathlib.Path(__file__).with_name("suite.json")),
    "The list of models, .json or .yaml.",
)
flags.DEFINE_string("data", "", "What {data} stands for in the list's paths.")
flags.DEFINE_string(
    "output_dir",
    None,
    "Folder of the suite; the same command again goes on with it.",
    required=True,
)
flags.DEFINE_list("only", [], "Names of the list's models to run; empty for all.")
flags.DEFINE_list("sources", list(SOURCES), f"Some of {', '.join(SOURCES)}.")
flags.DEFINE_list(
    "num_images", ["8", "64", "512"], "Set sizes, images; an entry of the list may have its own."
)
flags.DEFINE_list(
    "ablation_num_images",
    ["64"],
    "Set sizes of sources that lack a part of the method, and of further schemes.",
)
flags.DEFINE_integer("seeds", 3, "Number of seeds: 0, 1, ...", lower_bound=1)
flags.DEFINE_list("schemes", ["int8"], f"Some of {', '.join(SCHEMES)}; an entry may have its own.")
flags.DEFINE_integer(
    "held_out",
    16,
    "Generated images of each kind and seed that the verdict is told from.",
    lower_bound=2,
)
flags.DEFINE_float(
    "minutes",
    0.0,
    "Stop before the row that would begin after so many minutes; 0: no limit.",
    lower_bound=0.0,
)
flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")


def _sizes(flag: str) -> list[int]:
    texts = FLAGS[flag].value
    try:
        sizes = [int(text) for text in texts]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise ValueError(
            f"--{flag}={','.join(texts)}: expected different whole numbers above 0, "
            "for example 8,64,512."
        )
    return sizes


def _keys(entries: list[Entry]) -> list[Key]:
    for names, where in [
        (FLAGS.schemes, "--schemes"),
        *((entry.schemes, f"the schemes of {entry.name}") for entry in entries),
    ]:
        if set(names) - set(SCHEMES) or (not names and where == "--schemes"):
            raise ValueError(f"{where}={','.join(names)}: expected some of {', '.join(SCHEMES)}.")
    return plan(
        entries,
        sources=check_sources(FLAGS.sources),
        num_images=_sizes("num_images"),
        ablation_num_images=_sizes("ablation_num_images"),
        seeds=FLAGS.seeds,
        schemes=FLAGS.schemes,
    )


def _entries() -> list[Entry]:
    import dataclasses

    # a list may name models whose data is not here: {data} is asked for only where a chosen entry
    # needs it
    entries = read_models(FLAGS.models, data=FLAGS.data or "{data}")
    wanted = FLAGS.only or [entry.name for entry in entries]
    unknown = [name for name in wanted if name not in {entry.name for entry in entries}]
    if unknown:
        raise ValueError(
            f"--only={','.join(FLAGS.only)}: {', '.join(unknown)} not in the list, which has "
            f"{', '.join(entry.name for entry in entries)}."
        )
    chosen = [entry for entry in entries if entry.name in wanted]
    missing = [
        entry.name for entry in chosen if "{data}" in "".join(map(str, dataclasses.astuple(entry)))
    ]
    if missing:
        raise ValueError(
            f"The paths of {', '.join(missing)} hold {{data}}. Say with --data=DIR "
            "what that is, or leave them out "
            "with --only."
        )
    return chosen


def time_left(times: dict[tuple[str, str], list[float]], missing: list[Key]) -> float | None:
    """Seconds that the missing rows will take: the mean of the model's and source's rows so far,
    else of the model's, else of all.
    """
    if not times:
        return None

    def expected(key: Key) -> float:
        for alike in (
            lambda k: k == (key.model, key.source),
            lambda k: k[0] == key.model,
            lambda k: True,
        ):
            known = [second for k, seconds in times.items() if alike(k) for second in seconds]
            if known:
                return float(np.mean(known))
        return 0.0

    return sum(map(expected, missing))


def _measure_all(
    entries: list[Entry],
    keys: list[Key],
    store: Store,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Measures what is missing, model by model within a seed. Returns False when --minutes ended
    it.
    """
    from benchmarks.suite.rows import Bench, measure

    benches: dict[str, Bench] = {}
    times: dict[tuple[str, str], list[float]] = {}
    began, done = clock(), 0
    for position, key in enumerate(keys):
        if key.model not in benches:
            say(f"loading {key.model}")
            entry = next(entry for entry in entries if entry.name == key.model)
            benches[key.model] = Bench(
                entry,
                store,
                real_limit=4 * max(k.num_images for k in keys),
                data_dir=FLAGS.data_dir,
                held_out=entry.held_out or FLAGS.held_out,
            )
        bench = benches[key.model]
        if store.row(key, fingerprint=bench.run) is not None:
            done += 1
            continue
        if FLAGS.minutes and clock() - began > 60 * FLAGS.minutes:
            say(f"--minutes={FLAGS.minutes:g} are over; the same command goes on from here")
            return False
        start = clock()
        row = measure(bench, key)
        store.add(key, row)
        times.setdefault((key.model, key.source), []).append(clock() - start)
        left = time_left(times, keys[position + 1 :])
        shown = {"top1": "top-1", "map": "mAP", "agreement": "agreement", "sqnr_db": "SQNR"}
        figures = row.get("error") or ", ".join(
            f"{text} {row[name]:.3f}" for name, text in shown.items() if row.get(name) is not None
        )
        say(
            f"[{position + 1}/{len(keys)}] {key.name}: {figures}; "
            f"{clock() - start:.0f} s, at most {left / 60:.0f} min left"
        )
    if done:
        say(f"{done} of {len(keys)} rows were done already")
    return True


def main(argv: list[str]) -> int:
    """Measures what is missing, then writes the tables and plots of all that is there."""
    import logging

    del argv
    logging.getLogger("tensorflow").setLevel(
        logging.ERROR
    )  # every generation traces anew, which TensorFlow warns of
    entries = _entries()
    keys = _keys(entries)
    with locked_folder(FLAGS.output_dir, flag="output_dir") as folder:
        store = Store(folder)
        start_worker()
        from benchmarks.suite import report

        try:
            _measure_all(entries, keys, store)
        finally:  # also of a suite that is stopped: what is measured can be read
            if store.rows(keys):
                command = shlex.join(["python", "-m", "benchmarks.suite", *sys.argv[1:]])
                say("\n" + report.write(store, entries, keys, command=command))
    return 0


if __name__ == "__main__":
    run(main)
