"""The comparison of calibration sources on one model: load, measure row by row, report."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.data import datasets
from benchmarks.data.choice import part_of
from benchmarks.data.sources import GENERATED, calibration_images, kept, require_fitting
from benchmarks.measure.scoring import FLOAT, Outputs, Truth, scorer
from benchmarks.output import table
from benchmarks.output.names import name_of
from benchmarks.output.results import Job, Results, figures_of, run_jobs
from dgh_tf.common.console import say
from dgh_tf.common.files import atomic_write, sha256_array
from dgh_tf.common.machine import describe
from dgh_tf.common.quiet import held_stderr
from dgh_tf.common.value_range import KnownRange, check_units
from dgh_tf.models.tflite_model import float_file

if TYPE_CHECKING:
    from dgh_tf.config import GenerationConfig
    from dgh_tf.models.network import Network
    from tflite_export.quantization import Quantized

COLUMNS = {
    "top1": ("top-1", 3),
    "map": ("mAP", 3),
    "agreement": ("agreement", 3),
    "predicted_agreement": ("agreement predicted", 3),
    "kib": ("KiB", 1),
    "iou": ("IoU", 3),
    "sqnr_db": ("SQNR, dB", 2),
    "mse": ("MSE", 7),
    "range_coverage": ("range coverage", 3),
    "range_ratio": ("range ratio", 2),
    "logits_spread": ("logits spread", 1),
    "generation_seconds": ("seconds", 1),
    "quantization_seconds": ("seconds to quantize", 1),
}
# tells the rows of one table apart
KEY = ("source", "scheme", "algorithm", "head", "max_kib", "seed")


class Combination(NamedTuple):
    """Where the images come from and what makes an integer file of them. max_kib: of scheme mixed,
    the largest size.
    """

    source: str
    scheme: str
    algorithm: str
    head: str
    max_kib: float | None = None

    @property
    def recipe(self) -> str:
        """Scheme, algorithm and size in words."""
        size = "" if self.max_kib is None else f" in {self.max_kib:g} KiB"
        return f"{self.scheme} {self.algorithm}{size}"


class Task(NamedTuple):
    """One model with its data, loaded: all that a row needs.

    bounds: low and high of the valid input range. noise_bounds: those of uniform noise where they
    are others.
    """

    model: Any
    network: Network
    bounds: tuple[np.ndarray, np.ndarray]
    real: np.ndarray
    x: np.ndarray
    truth: Truth
    reference: Outputs
    score: Callable[[Outputs], dict[str, float]]
    float_scores: dict[str, float]
    chose: bool = False  # whether a choice, such as an argmax, was taken off the model's end
    noise_bounds: tuple[np.ndarray, np.ndarray] | None = None


def load_task(
    model: str,
    *,
    real: str,
    evaluation: str | None,
    signature: str = "",
    preprocess: str = "none",
    input_range: str = "",
    input_kind: str = "auto",
    real_limit: int | None = None,
    evaluation_limit: int | None = None,
    part: str = "all",
    data_dir: str | None = None,
    sources: Sequence[str] = (),
) -> Task:
    """Loads a model and its sets and runs the float model.

    Args:
      model: what `dgh_tf.load_model` takes.
      real: set of real images, as the flag --real of benchmarks.calibration names it.
      evaluation: set to score on, in the same forms. None where nothing is scored: the real set
        stands in, and its labels need not be the model's.
      signature: of a .tflite file with several, the key of the one to take.
      preprocess: mapping from stored values to model units, as the flag of this name.
      input_range: LOW,HIGH or a convention; empty where the model tells it.
      input_kind: auto, or what the inputs are, see `network_ranges`.
      real_limit: most real images to read, None for all.
      evaluation_limit: most evaluation images to read, None for all.
      part: of the evaluation images, one of choice.PARTS.
      data_dir: folder of TensorFlow Datasets, None for its own.
      sources: of calibration images that will be asked for.
    Raises: ValueError, FileNotFoundError for models and sets that cannot be used, and for a source
      that cannot give the model's input.
    """
    from benchmarks.measure.evaluation import float_outputs
    from dgh_tf.input_range.find import known_inputs
    from dgh_tf.models.network import Network

    loaded, chose = _model_of_one_input(model, signature=signature)
    read = functools.partial(
        datasets.load,
        input_shape=tuple(loaded.inputs[0].shape[1:]),
        preprocess=preprocess,
        data_dir=data_dir,
        demo=model,
    )
    real_x, real_truth = read(real, role="real", limit=real_limit)
    x, truth, scored = real_x, real_truth, evaluation is not None
    if evaluation is not None:
        x, truth = part_of(*read(evaluation, role="evaluation", limit=evaluation_limit), part=part)
    network = Network(loaded)
    (known,) = known_inputs(network, text=input_range, kind=input_kind)
    require_fitting(sources, shape=tuple(real_x.shape[1:]), kind=known.kind)
    found = known.valid
    say(f"input range: {found.low} .. {found.high} ({found.source})")
    sets = {} if evaluation is None else {f"--evaluation={evaluation}": x}
    if real != evaluation:  # a command may take one set for both
        sets = {f"--real={real}": real_x, **sets}
    _require_units(network, found.known(), sets, preprocess=preprocess)
    reference = float_outputs(loaded, x)
    score, how = scorer(loaded, x, truth if scored else None, reference=reference)
    if scored:
        say(how)
    float_scores = {
        f"float_{name}": value for name, value in score(reference).items() if name in FLOAT
    }
    shape = (-1, 1, 1) if network.channels_first[0] else (-1,)
    low, high = (np.array(bound, np.float32).reshape(shape) for bound in (found.low, found.high))
    return Task(
        model=loaded,
        network=network,
        bounds=(low, high),
        real=real_x,
        x=x,
        truth=truth,
        reference=reference,
        score=score,
        float_scores=float_scores,
        chose=chose,
    )


def _model_of_one_input(model: str, *, signature: str) -> tuple[Any, bool]:
    """The model without a choice at its end, and whether there was one. Raises ValueError for
    several inputs.
    """
    from dgh_tf import load_model
    from dgh_tf.models.choices import without_choices

    whole = load_model(model, signature=signature)
    loaded = without_choices(whole)
    if loaded is not whole:
        say(f"measured before the choice at its end, at {', '.join(loaded.output_names)}")
    if len(loaded.inputs) != 1:
        raise ValueError(
            f"Model '{loaded.name}' has {len(loaded.inputs)} inputs; this comparison takes models "
            "with one."
        )
    return loaded, loaded is not whole


def _require_units(
    network: Network, known: KnownRange, sets: Mapping[str, np.ndarray], *, preprocess: str
) -> None:
    """Warns of images that look odd in the model's range. Raises ValueError for wrong units.

    sets: by the flag that gave them. preprocess: the value of that flag.
    """
    from dgh_tf.models.first_statistics import first_gap

    for what, images in sets.items():
        text = check_units(
            np.moveaxis(images, 1, -1) if network.channels_first[0] else images,
            known,
            what=what,
            gap=lambda values: first_gap(network.model, network.own_layout([values])),
            preprocess="--preprocess" if preprocess == "none" else f"--preprocess={preprocess}",
            input_range="--input_range",
        )
        if text:
            say(f"warning: {text}")


def measure(
    task: Task,
    images: np.ndarray,
    combination: Combination,
    *,
    config: GenerationConfig,
    reference: Outputs,
) -> tuple[dict[str, Any], dict]:
    """Makes an integer file from the images and compares it with `reference`. Returns the row and
    the file's tensor ranges.
    """
    from benchmarks.measure.evaluation import evaluate, logits_spread, tensor_ranges
    from tflite_export import ConversionError, IntegerError, to_float_tflite
    from tflite_export.conversion.errors import explained
    from tflite_export.quantization import quantize

    try:
        made = quantize(
            task.model,
            images,
            scheme=combination.scheme,
            algorithm=combination.algorithm,
            head=_head(task, combination.head),
            seed=config.seed,
            max_kib=combination.max_kib,
            generated=combination.source != "real",
        )
    except (ConversionError, IntegerError) as error:
        float_tflite = to_float_tflite(task.model, images=images[:1])
        raise explained(error, float_tflite=float_tflite, scheme=combination.scheme) from error
    row = {
        **combination._asdict(),
        "seed": config.seed,
        "num_images": len(images),
        "used": made.notes["algorithm"],
        **_of_mixed(made),
        **evaluate(made.tflite, task.x, reference=reference, score=task.score),
        **task.float_scores,
        **logits_spread(task.network, images),
        "quantization_seconds": made.notes["seconds"],
    }
    return row, tensor_ranges(made.tflite)


def _of_mixed(made: Quantized) -> dict[str, float]:
    """What the choice of bits of scheme mixed was about: the file's size in KiB, and the agreement
    expected of it.
    """
    if "mixed" not in made.notes:
        return {}
    found, agreement = {"kib": len(made.tflite) / 1024}, made.notes["mixed"]["file"]["agreement"]
    return found if agreement is None else {**found, "predicted_agreement": agreement}


def _head(task: Task, asked: str) -> str:
    """The head to ask `quantize` for: the logits are there where a choice among them was taken off
    and no softmax stands before it.
    """
    from tflite_export import to_float_tflite
    from tflite_export.tflite.edit import left_to_cut

    if asked == "model" or not task.chose:
        return asked
    return left_to_cut(asked, to_float_tflite(task.model, images=task.x[:1]), chose=True)


def seeded_configs(values: Any) -> tuple[dict[str, Any], list[Any]]:
    """The settings of generation that the flags give, and a GenerationConfig of them for each seed.

    Args:
      values: a command's flags: num_images, steps, batch_size, input_range, input_kind and seeds.
    """
    from dgh_tf import GenerationConfig

    names = ("num_images", "steps", "batch_size", "input_range", "input_kind")
    settings = {name: values[name].value for name in names}
    return settings, [GenerationConfig(seed=seed, **settings) for seed in range(values.seeds)]


def fingerprint(task: Task, settings: dict[str, Any]) -> str:
    """12 hex digits of the settings, the model's weights and the data: what rows must share to
    stand in one table.
    """
    truth = (
        [*task.truth.values()]
        if isinstance(task.truth, dict)
        else []
        if task.truth is None
        else [task.truth]
    )
    file = float_file(task.model)
    architecture = task.model.to_json() if file is None else hashlib.sha256(file).hexdigest()
    arrays = [task.real, task.x, *truth, *task.model.get_weights()]
    text = json.dumps(
        [settings, architecture, [sha256_array(array) for array in arrays]], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def combinations(
    schemes: list[str], algorithms: list[str], *, head: str, max_kib: list[str] | None = None
) -> list[Combination]:
    """Every scheme with every algorithm, sources left open; scheme mixed with every size. Raises
    ValueError where one does not fit the other, or is named twice.
    """
    from tflite_export.algorithms.by_name import check_algorithm

    if (
        not schemes
        or not algorithms
        or len(set(schemes)) < len(schemes)
        or len(set(algorithms)) < len(algorithms)
    ):
        raise ValueError(
            f"--scheme={','.join(schemes)} --algorithm={','.join(algorithms)}: "
            "expected at least one of each, none twice."
        )
    for scheme in schemes:
        for algorithm in algorithms:
            check_algorithm(algorithm, scheme=scheme, head=head)
    sizes = _sizes(max_kib or [])
    if bool(sizes) != ("mixed" in schemes):
        raise ValueError(
            f"--scheme={','.join(schemes)} --max_kib={','.join(max_kib or [])}: --max_kib "
            "names the sizes in KiB of --scheme=mixed. Give both or neither."
        )
    return [
        Combination("", scheme, algorithm, head, size)
        for scheme in schemes
        for algorithm in algorithms
        for size in (sizes if scheme == "mixed" else [None])
    ]


def _sizes(texts: list[str]) -> list[float]:
    """Sizes in KiB. Raises ValueError for what is none, and for one named twice."""
    try:
        sizes = [float(text) for text in texts]
    except ValueError:
        sizes = [0.0]
    if any(not 0 < size < float("inf") for size in sizes) or len(set(sizes)) < len(sizes):
        raise ValueError(f"--max_kib={','.join(texts)}: expected sizes in KiB above 0, none twice.")
    return sizes


def measure_missing(
    task: Task,
    results: Results,
    *,
    configs: list[Any],
    sources: list[str],
    chosen: list[Combination],
) -> None:
    """Adds every row that is not there yet, with a line each and an estimate of the time left.

    Generated images are kept in the folder, so that all schemes and algorithms calibrate on the
    same.
    """
    reference = functools.cache(
        lambda: float_logits(task) if _head(task, chosen[0].head) == "logits" else task.reference
    )

    def measured(config: GenerationConfig, each: Combination) -> str:
        images, seconds = task_images(task, each.source, config=config, folder=results.folder)
        row, ranges = measure(task, images, each, config=config, reference=reference())
        steps = config.steps if seconds else None
        spent = seconds and round(seconds, 2)
        results.add({**row, "steps": steps, "generation_seconds": spent}, ranges)
        return figures_of(row)

    run_jobs(
        [
            Job(
                f"{each.source} {each.recipe} seed {config.seed}",
                (each[:3],),
                functools.partial(results.done, *each, config.seed),
                functools.partial(measured, config, each),
            )
            for config in configs
            for source in sources
            for each in (combination._replace(source=source) for combination in chosen)
        ]
    )


def float_logits(task: Task) -> Outputs:
    """What the float model's softmax and sigmoid take on the evaluation set, by output name."""
    from tflite_export import Runner, to_float_tflite
    from tflite_export.tflite.edit import without_softmax

    with held_stderr():  # LiteRT announces its delegate
        outputs = Runner(without_softmax(to_float_tflite(task.model, images=task.x[:1]))).predict(
            task.x
        )
    return outputs if isinstance(outputs, dict) else {next(iter(task.reference)): outputs}


def task_images(
    task: Task, source: str, *, config: GenerationConfig, folder: pathlib.Path
) -> tuple[np.ndarray, float | None]:
    """`calibration_images` of a task; generated ones are kept in the folder."""

    def make() -> tuple[np.ndarray, float | None]:
        return calibration_images(
            source,
            model=task.model,
            real=task.real,
            config=config,
            bounds=task.bounds,
            noise_bounds=task.noise_bounds,
        )

    return (
        kept(folder / "images" / f"{source}-{config.seed}.npz", make)
        if source in GENERATED
        else make()
    )


def environment() -> str:
    """One line: machine and versions."""
    packages = ("tensorflow", "keras", "ai-edge-litert", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    machine = describe()
    return f"{machine}; Python {platform.python_version()}, {versions}"


def _combination(row: dict[str, Any]) -> Combination:
    return Combination(
        row["source"], row["scheme"], row["algorithm"], row["head"], row.get("max_kib")
    )


def write_report(results: Results, *, command: str) -> str:
    """Writes results.md and the plots; returns the table."""
    from benchmarks.output import plots

    folder, first = results.folder, results.rows[0]
    recipes = [_combination(row).recipe for row in results.rows]
    several = list(dict.fromkeys(recipes))
    rows = [
        {**row, "calibration": name_of(row["source"]) + (f", {recipe}" if len(several) > 1 else "")}
        for recipe, row in sorted(
            zip(recipes, results.rows, strict=True), key=lambda pair: several.index(pair[0])
        )
    ]
    heads = {
        name: (f"SQNR {name.removeprefix('sqnr_db/')}, dB", 2)
        for name in first
        if name.startswith("sqnr_db/")
    }
    text = table.markdown(rows, by="calibration", columns=COLUMNS | heads)
    how = (
        f"scheme {first['scheme']}, algorithm {first['algorithm']}"
        if len(several) == 1
        else "scheme and algorithm as named"
    )
    how = f"full integer, {how}{', files end at the logits' if first['head'] == 'logits' else ''}"
    float_scores = {name: first[f"float_{name}"] for name in FLOAT if f"float_{name}" in first}
    known = "".join(
        f"; float {COLUMNS[name][0]} {value:.3f}" for name, value in float_scores.items()
    )
    agreement = "Agreement is with the float model's choices; " if "agreement" in first else ""
    atomic_write(
        folder / "results.md",
        f"# Calibration sources\n\n{text}\n\nMean ± standard deviation over seeds; "
        f"{first['num_images']} calibration images{known}; {how}. {agreement}MSE and "
        "SQNR are of the model's outputs as "
        "they "
        f"are{', over all heads unless one is named' if heads else ''}.\n\n"
        f"```\n{command}\n```\n\n{environment()}\n",
    )
    panels = {
        "top1": "top-1",
        "map": "COCO mAP",
        "agreement": "agreement with float",
        "sqnr_db": "SQNR of outputs, dB",
    }
    panels |= {name: heading for name, (heading, _) in heads.items()}
    plots.scores(
        [{**row, "source": row["calibration"]} for row in rows],
        folder / "scores.png",
        reference=float_scores,
        columns={name: label for name, label in panels.items() if name in first},
    )
    if len({row.get("max_kib") for row in rows}) > 1:
        plots.sizes([row for row in rows if row["scheme"] == "mixed"], folder / "sizes.png")
    rest = (*_combination(first)[1:], 0)
    real = results.ranges("real", *rest)
    names = dict.fromkeys(row["source"] for row in rows if row["source"] != "real")
    if real and names:
        others = {name: results.ranges(name, *rest) for name in names}
        plots.range_ratios(real, others, folder / "ranges.png")
    return text
