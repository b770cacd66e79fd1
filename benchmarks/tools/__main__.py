"""Real, generated and noise images in other quantizers, each in an environment of its own:
python -m benchmarks.tools.
"""

from __future__ import annotations

import functools
import pathlib
import shlex
import sys
from typing import Any

import numpy as np
from absl import flags

from benchmarks.data.datasets import require_sets
from benchmarks.data.generation_flags import define_generation_flags
from benchmarks.data.sources import check_sources
from benchmarks.measure.comparison import (
    COLUMNS,
    Task,
    environment,
    fingerprint,
    load_task,
    seeded_configs,
    task_images,
)
from benchmarks.measure.evaluation import distances
from benchmarks.output import table
from benchmarks.output.names import name_of
from benchmarks.output.results import Job, Results, figures_of, run_jobs
from benchmarks.tools.tools import TOOLS, check_tools, interpreter, run_tool
from dgh_tf.calibration_sets.source import Input, Source
from dgh_tf.common.console import run, say
from dgh_tf.common.files import atomic_write, locked_folder
from dgh_tf.models.loading import require_model

FLAGS = flags.FLAGS
_COLUMNS = {name: COLUMNS[name] for name in ("top1", "agreement", "sqnr_db")}


def define_flags() -> None:
    flags.DEFINE_string(
        "model", "demo", "demo, a .keras or .h5 file, a SavedModel folder, or keras:NAME."
    )
    flags.DEFINE_string("real", "demo", "Real set, in the forms that benchmarks.calibration takes.")
    flags.DEFINE_string("evaluation", "demo", "Evaluation set, in the same forms.")
    flags.DEFINE_string(
        "preprocess", "none", "Stored values to model input, as in benchmarks.calibration."
    )
    flags.DEFINE_list("tools", list(TOOLS), f"Some of {', '.join(TOOLS)}.")
    flags.DEFINE_list("sources", ["real", "synthetic", "noise"], "As in benchmarks.calibration.")
    define_generation_flags()
    flags.DEFINE_string(
        "environments",
        None,
        "Folder of the tools' environments; what is missing is installed with pip.",
        required=True,
    )
    flags.DEFINE_string("output_dir", None, "Folder of results.json and results.md.", required=True)


def _source(task: Task, images: np.ndarray) -> Source:
    low, high = (np.asarray(bound, np.float64).reshape(-1) for bound in task.bounds)
    name = task.model.inputs[0].name
    return Source((Input(name, images, low, high, task.network.channels_first[0]),), "")


def _measure_missing(
    task: Task, results: Results, *, configs: list[Any], pythons: dict[str, pathlib.Path]
) -> None:
    @functools.cache  # made when a row is missing
    def float_file() -> pathlib.Path:
        from tflite_export import to_float_tflite

        path = results.folder / "float.tflite"
        atomic_write(path, to_float_tflite(task.model))
        return path

    def measured(config: Any, tool: str, source: str) -> str:
        images, _ = task_images(task, source, config=config, folder=results.folder)
        made = run_tool(
            tool,
            python=pythons[tool],
            float_file=float_file(),
            source=_source(task, images),
            x=task.x,
        )
        outputs = {next(iter(task.reference)): made}
        row = {"tool": tool, "source": source, "seed": config.seed, "num_images": len(images)}
        row |= {**task.score(outputs), **distances(task.reference, outputs), **task.float_scores}
        results.add(row, {})
        return figures_of(row)

    run_jobs(
        [
            Job(
                f"{tool} {source} seed {config.seed}",
                ((tool, source), (tool,)),
                functools.partial(results.done, tool, source, config.seed),
                functools.partial(measured, config, tool, source),
            )
            for config in configs
            for source in FLAGS.sources
            for tool in pythons
        ]
    )


def _write_table(results: Results, *, command: str) -> str:
    rows = [
        {**row, "calibration": f"{row['tool']}, {name_of(row['source'])}"} for row in results.rows
    ]
    rows.sort(key=lambda row: list(TOOLS).index(row["tool"]))
    text = table.markdown(rows, by="calibration", columns=_COLUMNS)
    atomic_write(
        results.folder / "results.md",
        f"# Other quantizers\n\n{text}\n\nMean ± standard deviation over seeds; int8 by each tool; "
        f"{rows[0]['num_images']} calibration images. Agreement is with the float model's choices."
        f"\n\n```\n{command}\n```\n\n{environment()}\n",
    )
    return text


def main(argv: list[str]) -> int:
    """Refuses what can be refused, makes the environments, then measures row by row."""
    del argv
    require_model(FLAGS.model)
    require_sets(preprocess=FLAGS.preprocess, real=FLAGS.real, evaluation=FLAGS.evaluation)

    check_sources(FLAGS.sources)
    tools = check_tools(FLAGS.tools)
    settings, configs = seeded_configs(FLAGS)
    with locked_folder(FLAGS.output_dir, flag="output_dir") as folder:
        say(f"loading {FLAGS.model}")
        task = load_task(
            FLAGS.model,
            real=FLAGS.real,
            evaluation=FLAGS.evaluation,
            preprocess=FLAGS.preprocess,
            input_range=FLAGS.input_range,
            input_kind=FLAGS.input_kind,
            sources=FLAGS.sources,
        )
        if len(task.reference) != 1:
            raise ValueError(
                f"Model '{task.model.name}' has {len(task.reference)} outputs; this comparison "
                "takes models with one."
            )
        environments = pathlib.Path(FLAGS.environments).absolute()
        pythons = {name: interpreter(name, environments=environments) for name in tools}
        run_of = fingerprint(task, settings)
        results = Results(folder, run=run_of, key=("tool", "source", "seed"))
        _measure_missing(task, results, configs=configs, pythons=pythons)
        command = shlex.join(["python", "-m", "benchmarks.tools", *sys.argv[1:]])
        say("\n" + _write_table(results, command=command))
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
