"""Quality against optimizer steps, for the defaults and for the references' recipe: python -m
benchmarks.convergence.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import flags

from benchmarks.data.datasets import require_sets
from benchmarks.output import table
from dgh_tf.common.console import run, say
from dgh_tf.common.files import atomic_path, atomic_write, locked_folder
from dgh_tf.models.loading import require_model

# The references: RAdam as published at rate 16 for inputs of deviation 1 (about half of that in
# canvas units), halved on plateaus, from white noise, outputs stretched without an end. The others
# differ from ours in one thing each.
RECIPES: dict[str, dict[str, Any]] = {
    "ours": {},
    "reference": {
        "schedule": "plateau",
        "learning_rate": 8.0,
        "beta1": 0.9,
        "beta2": 0.999,
        "output_weight": 0.1,
        "start": "white",
        "stretch_limit": 0.0,
    },
    "from_noise": {"start": "noise"},
    "from_white_noise": {"start": "white"},
    "rate_0.2": {"learning_rate": 0.2},
    "longer_memory": {"beta1": 0.9, "beta2": 0.99},
    "stretched_harder": {"output_weight": 0.1},
}
FIGURES = {
    "gap": "mean gap of BN statistics",
    "sqnr_db": "SQNR of int8 outputs, dB",
    "agreement": "agreement with float",
}


def define_flags() -> None:
    """Only when this runs as a command."""
    flags.DEFINE_string(
        "model", "demo", "demo, a .keras or .h5 file, a SavedModel folder, or keras:NAME."
    )
    flags.DEFINE_string("evaluation", "demo", "Evaluation set, as in benchmarks.calibration.")
    flags.DEFINE_string(
        "output_dir", None, "Folder of results.json, results.md and convergence.png.", required=True
    )
    flags.DEFINE_list("recipes", ["ours", "reference"], f"Some of {', '.join(RECIPES)}.")
    flags.DEFINE_list(
        "steps",
        ["25", "50", "100"],
        "Lengths of runs; a recipe with a schedule is run anew for each.",
    )
    flags.DEFINE_list(
        "reference_steps",
        ["100", "300", "1000"],
        "Steps at which the reference's one run is looked at.",
    )
    flags.DEFINE_integer("num_images", 32, "Images.", lower_bound=1)
    flags.DEFINE_integer("batch_size", 32, "Images at once.", lower_bound=1)
    flags.DEFINE_integer("seeds", 3, "Number of seeds: 0, 1, ...", lower_bound=1)
    flags.DEFINE_integer(
        "num_evaluation", 0, "At most so many evaluation images; 0 for all.", lower_bound=0
    )
    flags.DEFINE_string(
        "preprocess", "none", "Stored values to model input, as in benchmarks.calibration."
    )


def curve(
    task: Any, recipe: str, *, seed: int, steps: list[int], num_images: int, batch_size: int
) -> Iterator[dict[str, Any]]:
    """One row of one seed for each number of steps (ascending), as soon as it is measured.

    A cosine ends where its run ends, so each length is a run of its own; a plateau schedule does
    not know its length: one run is looked at on its way.
    """
    from dgh_tf import GenerationConfig
    from dgh_tf.generation.generator import Generator

    settings = RECIPES[recipe]
    once = settings.get("schedule") == "plateau"
    generator = None
    for count in steps:
        if not (once and generator):
            config = GenerationConfig(
                num_images=num_images,
                batch_size=batch_size,
                seed=seed,
                steps=max(steps) if once else count,
                **settings,
            )
            generator = Generator(task.model, config)
            generator.start()
            generator.run(due=lambda: (False, True))  # the first visit traces
            spent = 0.0
        began, last = time.perf_counter(), count * generator.rounds
        while generator.state.visits < last:
            generator.run(due=_after(last - generator.state.visits))
        spent += time.perf_counter() - began
        yield {
            "source": recipe,
            "seed": seed,
            "steps": count,
            "seconds": round(spent, 2),
            **quality(task, generator),
        }


def _after(visits: int) -> Callable[[], tuple[bool, bool]]:
    """Tells a generator to stop after so many visits, and never to save."""
    left = itertools.count(visits, -1)
    return lambda: (False, next(left) == 1)


def quality(task: Any, generator: Any) -> dict[str, float]:
    """Mean gap of the BN layers, and what a full-int8 file calibrated on the images keeps of the
    float model's outputs.
    """
    from benchmarks.measure.evaluation import evaluate
    from tflite_export.quantization import quantize

    gaps = generator.layer_gaps()
    measured = evaluate(
        quantize(task.model, generator.all_images()[0], algorithm="minmax").tflite,
        task.x,
        reference=task.reference,
        score=task.score,
    )
    real = [gaps[layer.name] for layer in generator.network.layers]
    return {
        "gap": float(np.mean(real)),
        **{
            name: float(value)
            for name in ("sqnr_db", "agreement")
            if (value := measured.get(name)) is not None
        },
    }


def summary(rows: list[dict[str, Any]]) -> str:
    """A markdown table: mean and standard deviation over seeds by recipe and steps."""
    lines = []
    for recipe, steps in dict.fromkeys((row["source"], row["steps"]) for row in rows):
        mine = [row for row in rows if (row["source"], row["steps"]) == (recipe, steps)]
        figures = [
            f"{np.mean([r[name] for r in mine]):.3f} ± {np.std([r[name] for r in mine]):.3f}"
            if name in mine[0]
            else ""
            for name in FIGURES
        ]
        lines.append(
            [recipe, steps, *figures, f"{np.median([r['seconds'] for r in mine]):.1f}", len(mine)]
        )
    return table.grid(
        lines, ["recipe", "steps", *FIGURES.values(), "seconds, median", "seeds"], left=2
    )


def plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Every figure against steps, a line with a band over seeds for each recipe."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in FIGURES if name in rows[0]]
    figure = Figure(figsize=(4.5 * len(names), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(np.ravel(figure.subplots(1, len(names))), names, strict=True):
        for recipe in dict.fromkeys(row["source"] for row in rows):
            steps = sorted({row["steps"] for row in rows if row["source"] == recipe})
            values = [
                [row[name] for row in rows if row["source"] == recipe and row["steps"] == s]
                for s in steps
            ]
            axes.plot(steps, list(map(np.mean, values)), "o-", label=recipe)
            axes.fill_between(steps, list(map(min, values)), list(map(max, values)), alpha=0.2)
        axes.set(
            xlabel="steps",
            ylabel=FIGURES[name],
            xscale="log",
            yscale="log" if name == "gap" else "linear",
        )
    figure.axes[0].legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def counts(flag: str) -> list[int]:
    """The numbers of steps that a flag lists, ascending. Raises ValueError where one is none, or
    none is given.
    """
    listed = flags.FLAGS[flag].value
    if not listed or not all(text.isdecimal() and int(text) for text in listed):
        raise ValueError(
            f"--{flag}={','.join(listed)}: expected numbers of steps from 1 on, as in "
            f"--{flag}=25,50,100."
        )
    return sorted({int(text) for text in listed})


def check_recipes(names: list[str]) -> list[str]:
    """Raises ValueError where a name is no recipe, or none is given."""
    if not names or not set(names) <= set(RECIPES):
        raise ValueError(f"--recipes={','.join(names)}: expected some of {', '.join(RECIPES)}.")
    return names


def main(argv: list[str]) -> int:
    """Measures what is missing, one run of a recipe after the other, then writes table and plot."""
    values = flags.FLAGS
    require_model(values.model)
    require_sets(preprocess=values.preprocess, evaluation=values.evaluation)
    recipes, steps, reference_steps = (
        check_recipes(values.recipes),
        counts("steps"),
        counts("reference_steps"),
    )
    sizes = {name: values[name].value for name in ("num_images", "batch_size")}
    with locked_folder(values.output_dir, flag="output_dir") as folder:
        say(f"loading {values.model}")
        from benchmarks.measure.comparison import environment, fingerprint, load_task
        from benchmarks.output.results import Job, Results, run_jobs

        task = load_task(
            values.model,
            real=values.evaluation,
            evaluation=values.evaluation,
            preprocess=values.preprocess,
            real_limit=1,
            evaluation_limit=values.num_evaluation or None,
        )
        results = Results(folder, run=fingerprint(task, sizes), key=("source", "steps", "seed"))

        def missing(seed: int, recipe: str) -> list[int]:
            wanted = reference_steps if RECIPES[recipe].get("schedule") == "plateau" else steps
            return [count for count in wanted if not results.done(recipe, count, seed)]

        def done(seed: int, recipe: str) -> bool:
            return not missing(seed, recipe)

        def measured(seed: int, recipe: str) -> str:
            told = []
            for row in curve(task, recipe, seed=seed, steps=missing(seed, recipe), **sizes):
                results.add(row, {})
                told.append(f"{row['steps']} steps: gap {row['gap']:.4f}")
            return ", ".join(told)

        run_jobs(
            [
                Job(
                    f"seed {seed}, {recipe}",
                    (recipe,),
                    functools.partial(done, seed, recipe),
                    functools.partial(measured, seed, recipe),
                )
                for seed, recipe in itertools.product(range(values.seeds), recipes)
            ]
        )
        command, text = (
            shlex.join(["python", "-m", "benchmarks.convergence", *sys.argv[1:]]),
            summary(results.rows),
        )
        atomic_write(
            folder / "results.md",
            f"# Quality against steps\n\n{text}\n\n```\n{command}\n```\n\n{environment()}\n",
        )
        plot(results.rows, folder / "convergence.png")
        say(text)
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
