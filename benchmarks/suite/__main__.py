"""Every model of a list over sources, set sizes, seeds and schemes: python -m
benchmarks.suite.
"""

from __future__ import annotations

import functools
import pathlib
import shlex
import sys

from absl import flags

from benchmarks.data.sources import SOURCES, SOURCES_HELP, check_sources
from benchmarks.output.results import Job, figures_of, run_jobs
from benchmarks.suite.plan import Entry, Key, Store, choose, plan
from dgh_tf.common.console import run, say
from dgh_tf.common.files import locked_folder
from tflite_export.conversion.server import start_worker
from tflite_export.tflite.schemes import SCHEMES

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string(
        "models",
        str(pathlib.Path(__file__).with_name("suite.json")),
        "The list of models, .json or .yaml.",
    )
    flags.DEFINE_string("data", "", "What {data} stands for in the list's paths.")
    flags.DEFINE_string(
        "zoo",
        "",
        "What {zoo} stands for: a folder with a folder NAME for each network that benchmarks.zoo "
        "or benchmarks.zoo.signals has trained.",
    )
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of the suite; the same command again goes on with it.",
        required=True,
    )
    flags.DEFINE_list("only", [], "Names of the list's models to run; empty for all.")
    # the list holds models that take no pictures
    anywhere = [source for source in SOURCES if source != "proxy"]
    flags.DEFINE_list("sources", anywhere, SOURCES_HELP)
    flags.DEFINE_list(
        "num_images",
        ["8", "64", "512"],
        "Set sizes, images; an entry of the list may have its own.",
    )
    flags.DEFINE_list(
        "ablation_num_images",
        ["64"],
        "Set sizes of sources that lack a part of the method, and of further schemes.",
    )
    flags.DEFINE_integer("seeds", 3, "Number of seeds: 0, 1, ...", lower_bound=1)
    flags.DEFINE_list(
        "schemes", ["int8"], f"Some of {', '.join(SCHEMES)}; an entry may have its own."
    )
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


def _jobs(entries: list[Entry], keys: list[Key], store: Store) -> list[Job]:
    """The rows in the order of the plan. A model is loaded at its first row, and kept."""
    from benchmarks.suite.rows import Bench, measure

    @functools.cache
    def bench(model: str) -> Bench:
        say(f"loading {model}")
        entry = next(entry for entry in entries if entry.name == model)
        return Bench(
            entry,
            store,
            real_limit=4 * max(key.num_images for key in keys),
            data_dir=FLAGS.data_dir,
            held_out=entry.held_out or FLAGS.held_out,
        )

    def done(key: Key) -> bool:
        return store.row(key, fingerprint=bench(key.model).run) is not None

    def measured(key: Key) -> str:
        row = measure(bench(key.model), key)
        store.add(key, row)
        return row.get("error") or figures_of(row)

    return [
        Job(
            key.name,
            ((key.model, key.source), key.model),
            functools.partial(done, key),
            functools.partial(measured, key),
        )
        for key in keys
    ]


def main(argv: list[str]) -> int:
    """Measures what is missing, then writes the tables and plots of all that is there."""
    del argv
    entries = choose(FLAGS.models, data=FLAGS.data, zoo=FLAGS.zoo, only=FLAGS.only)
    keys = _keys(entries)
    with locked_folder(FLAGS.output_dir, flag="output_dir") as folder:
        store = Store(folder)
        start_worker()
        from benchmarks.suite import report

        try:
            run_jobs(_jobs(entries, keys, store), minutes=FLAGS.minutes)
        finally:  # also of a suite that is stopped: what is measured can be read
            if store.rows(keys):
                command = shlex.join(["python", "-m", "benchmarks.suite", *sys.argv[1:]])
                say("\n" + report.write(store, entries, keys, command=command))
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
