"""Simulated low bits: how far generated images carry where 8 bits tell nothing apart: python
-m benchmarks.lowbit.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from benchmarks.data.choice import PART_HELP, PARTS
from benchmarks.data.datasets import require_sets
from benchmarks.data.generation_flags import define_generation_flags
from benchmarks.data.sources import SOURCES, SOURCES_HELP, check_sources
from benchmarks.measure.comparison import (
    Task,
    environment,
    fingerprint,
    load_task,
    seeded_configs,
    task_images,
)
from benchmarks.output import table
from benchmarks.output.names import name_of
from benchmarks.output.results import Job, Results, figures_of, run_jobs
from dgh_tf.common.console import run, say
from dgh_tf.common.files import locked_folder
from dgh_tf.models.loading import require_model

FLAGS = flags.FLAGS
KEY = ("source", "setting", "rule", "reconstruction", "seed")
RULES = ("minmax", "mse")


class Setting(NamedTuple):
    """Bits of weights and activations, the rule of their ranges, and whether roundings are
    learned.
    """

    name: str
    rule: str
    reconstruction: bool

    @property
    def bits(self) -> tuple[int, int]:
        """(weight bits, activation bits)."""
        return int(self.name[1]), int(self.name[3])  # of W8A4

    @property
    def label(self) -> str:
        return f"{self.name} {self.rule}" + (", reconstructed" if self.reconstruction else "")


def define_flags() -> None:
    flags.DEFINE_string(
        "model",
        None,
        "demo, a .keras or .h5 file, a SavedModel folder, or keras:NAME.",
        required=True,
    )
    flags.DEFINE_string(
        "real", None, "Real set, in the forms of benchmarks.calibration.", required=True
    )
    flags.DEFINE_string("evaluation", None, "Evaluation set, in the same forms.", required=True)
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of results.json, results.md, lowbit.png and the images.",
        required=True,
    )
    flags.DEFINE_list(
        "settings",
        ["W8A8", "W8A6", "W8A4", "W4A8", "W4A4"],
        "Bits of weights and activations: W8A6 ... .",
    )
    flags.DEFINE_list(
        "rules",
        list(RULES),
        "Ranges of activations and weights: minmax, mse (least squared error).",
    )
    flags.DEFINE_list(
        "reconstruction",
        ["false"],
        "false: weights to nearest; true: roundings and biases learned; or both.",
    )
    flags.DEFINE_list(
        "sources",
        ["real", "synthetic", "per_batch", "no_augmentation", "no_stretching", "noise"],
        SOURCES_HELP,
    )
    define_generation_flags()
    flags.DEFINE_integer(
        "reconstruction_steps", 300, "Optimizer steps of every block.", lower_bound=1
    )
    flags.DEFINE_string(
        "preprocess", "none", "Stored values to model input, as in benchmarks.calibration."
    )
    flags.DEFINE_integer(
        "num_evaluation", 0, "At most so many evaluation images; 0 for all.", lower_bound=0
    )
    flags.DEFINE_enum("part", "all", list(PARTS), PART_HELP)
    flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")


def settings_of(names: list[str], rules: list[str], reconstruction: list[str]) -> list[Setting]:
    """Every combination. Raises ValueError for names it does not know."""
    wrong = [n for n in names if not re.fullmatch(r"W[2-8]A[2-8]", n)] + [
        r for r in rules if r not in RULES
    ]
    wrong += [text for text in reconstruction if text not in ("true", "false")]
    if wrong or not (names and rules and reconstruction):
        raise ValueError(
            "--settings, --rules or --reconstruction: "
            f"{', '.join(wrong) or 'nothing'} given; expected settings such as "
            f"W8A6 with 2 to 8 bits, rules of {', '.join(RULES)}, and true or false."
        )
    return [
        Setting(name, rule, learned == "true")
        for name in names
        for rule in rules
        for learned in reconstruction
    ]


class Simulation:
    """One model as a graph that ends at the logits: integer softmax has 8 bits only, and few bits
    tie its small outputs.
    """

    def __init__(self, task: Task, *, steps: int) -> None:
        from dgh_tf.models.tflite.run import read_graph
        from tflite_export import to_float_tflite
        from tflite_export.simulation.fake_quant import predict
        from tflite_export.tflite.edit import without_softmax

        graph = read_graph(to_float_tflite(task.model, images=task.x[:1]))
        with contextlib.suppress(ValueError):  # where the outputs are logits already
            graph = read_graph(without_softmax(graph.model))
        self.task, self.graph, self.steps = task, graph, steps
        self.reference = self._by_name(predict(self.graph, task.x))

    def _by_name(self, outputs: Any) -> dict[str, np.ndarray]:
        return outputs if isinstance(outputs, dict) else {next(iter(self.task.reference)): outputs}

    def row(
        self, images: np.ndarray, setting: Setting, ranges: Callable[[str, int], Any], *, seed: int
    ) -> dict[str, Any]:
        """Scores of one setting, its activations' ranges given by (rule, bits)."""
        from benchmarks.measure.evaluation import distances
        from tflite_export.algorithms.block_reconstruction import reconstruct
        from tflite_export.simulation.fake_quant import predict, quantized_constants

        weight_bits, activation_bits = setting.bits
        limits, biases, weights = ranges(setting.rule, activation_bits), {}, None
        if setting.reconstruction:
            found = reconstruct(
                self.graph,
                images,
                ranges=limits,
                weight_bits=weight_bits,
                activation_bits=activation_bits,
                rule=setting.rule,
                steps=self.steps,
                seed=seed,
            )
            biases, weights = found.biases, found.weights
        constants = quantized_constants(
            self.graph,
            weight_bits=weight_bits,
            rule=setting.rule,
            constants=biases,
            weights=weights,
        )
        outputs = self._by_name(
            predict(
                self.graph,
                self.task.x,
                ranges=limits,
                constants=constants,
                activation_bits=activation_bits,
            )
        )
        return {
            **self.task.score(outputs),
            **distances(self.reference, outputs),
            **self.task.float_scores,
        }


def measure_missing(
    task: Task,
    results: Results,
    *,
    configs: list[Any],
    sources: list[str],
    settings: list[Setting],
    steps: int,
) -> None:
    """Adds every row that is not there yet, a line each. Ranges are found once per source, seed,
    rule and bits.
    """
    from tflite_export.simulation.ranges import collect_ranges

    simulation = functools.cache(lambda: Simulation(task, steps=steps))

    @functools.lru_cache(maxsize=1)  # rows of one source and seed follow each other
    def prepared(config: Any, source: str) -> tuple[np.ndarray, Callable[[str, int], Any]]:
        images, _ = task_images(task, source, config=config, folder=results.folder)
        graph = simulation().graph
        return images, functools.cache(
            lambda rule, bits: collect_ranges(graph, images, rule=rule, activation_bits=bits)
        )

    def measured(config: Any, source: str, setting: Setting) -> str:
        images, ranges = prepared(config, source)
        row = {
            "source": source,
            "setting": setting.name,
            "rule": setting.rule,
            "reconstruction": setting.reconstruction,
            "seed": config.seed,
            "num_images": len(images),
            **simulation().row(images, setting, ranges, seed=config.seed),
        }
        results.add(row, {})
        return figures_of(row)

    run_jobs(
        [
            Job(
                f"{source} seed {config.seed}, {setting.label}",
                ((source, setting), setting),
                functools.partial(results.done, source, *setting, config.seed),
                functools.partial(measured, config, source, setting),
            )
            for config in configs
            for source in sources
            for setting in settings
        ]
    )


def pivot(rows: list[dict[str, Any]], *, field: str, sources: list[str]) -> str:
    """A markdown table of `field`: a line per setting, a column per source (mean ± deviation over
    seeds), and the mean of generated minus real, in points (hundredths) of scores and in dB of an
    SQNR.
    """
    groups: dict[Setting, dict[str, list[float]]] = {}
    for row in rows:
        setting = Setting(row["setting"], row["rule"], row["reconstruction"])
        groups.setdefault(setting, {}).setdefault(row["source"], []).append(row[field])
    both, lines = {"real", "synthetic"} <= set(sources), []
    scale, unit, digits = (1, "dB", 1) if field.startswith("sqnr") else (100, "points", 3)
    for setting, values in groups.items():
        gap = (
            [
                f"{scale * (np.mean(values['synthetic']) - np.mean(values['real'])):+.1f}"
                if {"real", "synthetic"} <= set(values)
                else "-"
            ]
            if both
            else []
        )
        lines.append(
            [
                setting.label,
                *(table.mean_std(values.get(source, []), digits=digits) for source in sources),
                *gap,
            ]
        )
    gain = f"{name_of('synthetic')} - {name_of('real')}, {unit}"
    headings = ["setting", *map(name_of, sources), *([gain] if both else [])]
    return table.grid(lines, headings)


def write_report(results: Results, *, command: str) -> str:
    """Writes results.md and lowbit.png; returns the table of the first score."""
    from benchmarks.output import plots
    from dgh_tf.common.files import atomic_write

    rows = sorted(
        results.rows,
        key=lambda row: (
            -int(row["setting"][1]),
            -int(row["setting"][3]),
            row["rule"],
            row["reconstruction"],
        ),
    )
    sources = [source for source in SOURCES if any(row["source"] == source for row in rows)]
    fields = {
        name: label
        for name, label in (
            ("top1", "Top-1"),
            ("map", "COCO mAP"),
            ("agreement", "Agreement with the float model"),
            ("sqnr_db", "SQNR of the logits, dB"),
        )
        if rows[0].get(name) is not None
    }
    tables = {name: pivot(rows, field=name, sources=sources) for name in fields}
    float_scores = "; ".join(
        f"float {name.removeprefix('float_')} {value:.3f}"
        for name, value in rows[0].items()
        if name.startswith("float_")
    )
    parts = [f"## {fields[name]}\n\n{text}" for name, text in tables.items()]
    atomic_write(
        results.folder / "results.md",
        "# Simulated low bits\n\n" + "\n\n".join(parts) + "\n\nMean ± standard deviation over "
        f"seeds; {rows[0]['num_images']} calibration images; {float_scores}. Fake "
        "quantization of input, logits and every "
        "activation between; weights per channel; a model that ends at its "
        f"logits.\n\n```\n{command}\n```\n\n{environment()}\n",
    )
    labelled = [
        {**row, "group": Setting(row["setting"], row["rule"], row["reconstruction"]).label}
        for row in rows
    ]
    first = next(iter(fields))
    plots.grouped(
        labelled,
        results.folder / "lowbit.png",
        field=first,
        label=fields[first],
        line=rows[0].get(f"float_{first}"),
    )
    return tables[first]


def main(argv: list[str]) -> int:
    require_model(FLAGS.model)
    require_sets(preprocess=FLAGS.preprocess, real=FLAGS.real, evaluation=FLAGS.evaluation)
    sources, settings = (
        check_sources(FLAGS.sources),
        settings_of(FLAGS.settings, FLAGS.rules, FLAGS.reconstruction),
    )
    shared, configs = seeded_configs(FLAGS)
    with locked_folder(FLAGS.output_dir, flag="output_dir") as folder:
        say(f"loading {FLAGS.model}")
        task = load_task(
            FLAGS.model,
            real=FLAGS.real,
            evaluation=FLAGS.evaluation,
            preprocess=FLAGS.preprocess,
            input_range=FLAGS.input_range,
            input_kind=FLAGS.input_kind,
            real_limit=4 * FLAGS.num_images,
            evaluation_limit=FLAGS.num_evaluation or None,
            part=FLAGS.part,
            data_dir=FLAGS.data_dir,
            sources=sources,
        )
        run_id = fingerprint(task, {**shared, "reconstruction_steps": FLAGS.reconstruction_steps})
        results = Results(folder, run=run_id, key=KEY)
        measure_missing(
            task,
            results,
            configs=configs,
            sources=sources,
            settings=settings,
            steps=FLAGS.reconstruction_steps,
        )
        say(
            "\n"
            + write_report(
                results, command=shlex.join(["python", "-m", "benchmarks.lowbit", *sys.argv[1:]])
            )
        )
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
