"""What an integer file will cost on real data, told without any: python -m benchmarks.verdict.

Example: python -m benchmarks.verdict --model=model.keras --tflite=model.tflite
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from absl import flags

from benchmarks.measure.evidence import HELD_OUT_SEED, held_out_images
from benchmarks.output import table
from dgh_tf.common.console import run, say
from dgh_tf.common.convergence import Convergence, judge_convergence
from dgh_tf.common.files import atomic_write, require_writable
from dgh_tf.common.help import MODEL_HELP
from dgh_tf.models.loading import require_model
from dgh_tf.models.tflite.model import TFLiteModel, read_model

# mean gap of statistics, above which images are not what the model was trained on (see
# docs/experiments/verdict.md)
MOST_GAP = 0.5
# outputs' spread over that of unstretched images, below which images do not exercise the outputs
LEAST_STRETCH = 1.2


def define_flags() -> None:
    flags.DEFINE_string(
        "model",
        None,
        MODEL_HELP,
        required=True,
    )
    flags.DEFINE_string("signature", "", "Of a .tflite file with several: the key of the one.")
    flags.DEFINE_string(
        "tflite", None, "The integer .tflite file made from the model.", required=True
    )
    flags.DEFINE_list(
        "images",
        [],
        "Folders that generate left (one or several seeds), .npy or .npz: generated "
        "images that did not "
        "calibrate the file. Empty: made here.",
    )
    flags.DEFINE_string("output", None, "A .json file for all figures.")
    flags.DEFINE_integer("num_images", 32, "Images of each kind and seed made here.", lower_bound=2)
    flags.DEFINE_integer(
        "seeds", 1, "Seeds of images made here: --seed and those after it.", lower_bound=1
    )
    flags.DEFINE_integer("steps", 100, "Optimizer steps of images made here.", lower_bound=1)
    flags.DEFINE_integer(
        "seed",
        HELD_OUT_SEED,
        "First seed of images made here; another than the calibration images'.",
        lower_bound=0,
    )
    flags.DEFINE_string(
        "input_range",
        "",
        "Valid input range LOW,HIGH or a convention; empty: found from the model.",
    )


def doubts(network: Any, images: Any, *, unstretched: Any) -> list[str]:
    """Why images cannot judge a file; empty where they can.

    Args:
      network: a dgh_tf.models.network.Network.
      images: to be checked.
      unstretched: images of the same model with matched statistics and outputs as they come.
    Returns: sentences. Images far from the running statistics (noise, wrong units) and images that
      leave the outputs no wider than unstretched ones do are found; nothing here tells good images
      from better ones.
    """
    from benchmarks.measure.evaluation import logits_spread
    from benchmarks.measure.gaps import statistics_gaps

    found = []
    gaps = list(statistics_gaps(network, images).values())
    gap = float(np.mean(gaps)) if gaps else 0.0  # a model without statistics cannot tell noise so
    if gap > MOST_GAP:
        found.append(
            f"their statistics are far from the model's (mean gap {gap:.2g}, expected "
            f"below {MOST_GAP:g}): noise, or the "
            "wrong units"
        )
    if not isinstance(images, dict):
        spread, other = (
            float(np.mean(list(logits_spread(network, x).values()))) for x in (images, unstretched)
        )
        if spread < LEAST_STRETCH * other:
            found.append(
                f"they leave the outputs narrow (spread {spread:.3g}; images without "
                f"stretching have {other:.3g})"
            )
    return found


def farthest(network: Any, sets: Iterable[Any]) -> Convergence | None:
    """How near the worst of several sets of images came to the model's statistics; None for a model
    without.

    network: a dgh_tf.models.network.Network.
    """
    from benchmarks.measure.gaps import statistics_gaps

    found = [statistics_gaps(network, images) for images in sets]
    judged = [judge_convergence(gaps) for gaps in found if gaps]
    return max(judged, key=lambda each: each.mean_gap, default=None)


def _given(names: list[str], *, image_shape: Any) -> dict[str, Any]:
    from tflite_export.calibration.load import load_calibration

    return {name: load_calibration(name, image_shape=image_shape) for name in names}


def _read(path: pathlib.Path) -> TFLiteModel:
    try:
        return read_model(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"--tflite={path}: {error}") from error


def _one_of_each(model: TFLiteModel) -> Any:
    """Images of the file's own shapes, which fix those that a model leaves open."""
    arrays = {
        name: np.zeros(model.tensors[index].shape, np.float32)
        for name, index in zip(model.input_names, model.inputs, strict=True)
    }
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def _usable(
    given: dict[str, Any], network: Any, *, unstretched: Any, known: str | None
) -> tuple[dict[str, Any], list[str]]:
    """The given images that can judge the file, by name, and a sentence for each set that cannot.

    known: sha256 of the images that calibrated the file, where its proof tells it.
    """
    used: dict[str, Any] = {}
    notes = []
    for name, source in given.items():
        why = doubts(network, source.images, unstretched=unstretched)
        if source.sha256 == known:
            why.append("they calibrated this file")
        if why:
            notes.append(f"{name} is not used to judge: {'; '.join(why)}.")
        else:
            used[f"given, {name}"] = source.images
    return used, notes


def main(argv: list[str]) -> int:
    """Prints the verdict; exit code 0 whatever it is."""
    del argv
    values = flags.FLAGS
    path = pathlib.Path(values.tflite)
    if not path.is_file():
        raise FileNotFoundError(
            f"--tflite={path}: no such file. Make it with python -m tflite_export.convert."
        )
    require_model(values.model, signature=values.signature)
    data = _read(path)
    if values.output:
        require_writable(values.output, flag="output")
    for name in values.images:
        if not pathlib.Path(name).exists():
            _given([name], image_shape=None)  # raises
    say(f"loading {values.model}")
    from dgh_tf import GenerationConfig, Prepared, load_model
    from dgh_tf.models.batchnorm import has_statistics
    from dgh_tf.models.choices import without_choices
    from dgh_tf.models.network import Network
    from tflite_export import to_float_tflite
    from tflite_export.conversion.freeze import input_shapes
    from tflite_export.proof import calibrated_on
    from tflite_export.quality.held_out import estimate
    from tflite_export.quality.layer_comparison import require_same_ends
    from tflite_export.targets.advice import layer_names

    # a file ends before a choice, so it is compared there
    model = without_choices(load_model(values.model, signature=values.signature))
    given = _given(values.images, image_shape=next(iter(input_shapes(model).values())))
    config = GenerationConfig(
        num_images=values.num_images, steps=values.steps, input_range=values.input_range
    )
    float_tflite = read_model(to_float_tflite(model, images=_one_of_each(data)))
    require_same_ends(float_tflite, data)
    seeds = range(values.seed, values.seed + values.seeds)
    prepared = Prepared(model)  # all sets share its range and its traces
    sets = "1 set" if len(seeds) == 1 else f"{len(seeds)} sets"

    def made(kind: str) -> dict[str, Any]:
        say(
            f"making {sets} of {config.num_images} images "
            f"{'without' if kind == 'unstretched' else 'with'} output stretching"
        )
        with warnings.catch_warnings():  # the verdict itself says so
            warnings.filterwarnings("ignore", message="The images did not converge")
            return {
                f"{kind}, seed {seed}": held_out_images(prepared, config, kind=kind, seed=seed)
                for seed in seeds
            }

    others = made("unstretched")
    unstretched, network = next(iter(others.values())), Network(model)
    used, notes = _usable(given, network, unstretched=unstretched, known=calibrated_on(path))
    for note in notes:
        say(note)
    stretched = {} if used else made("stretched")
    told = estimate(
        float_tflite,
        data,
        {**used, **stretched, **others},
        same_inside=True,
        layers=layer_names(model),
        statistics=has_statistics(model),
        convergence=farthest(network, [*stretched.values(), *others.values()]),
    ).verdict
    judged = {"file": path.name, "sha256": hashlib.sha256(data.data).hexdigest()}
    result = {**judged, **told, "notes": notes}
    if values.output:
        atomic_write(values.output, json.dumps(result, indent=1) + "\n")
    say(table_of(result))
    say(result["sentence"])
    return 0


def table_of(result: dict[str, Any]) -> str:
    """The figures by kind of images, and the reasons, as text."""
    lines = []
    for name, kind in result["kinds"].items():
        agreement = "-" if "agreement" not in kind else f"{kind['agreement']:.3f}"
        lines += [
            [
                name,
                kind["images"],
                agreement,
                f"{kind['noise']:.3f}" if "noise" in kind else "-",
                head,
                f"{figures['sqnr_db']:.1f}",
                f"{figures['mse']:.3g}",
            ]
            for head, figures in kind["heads"].items()
        ]
    headings = [
        "images",
        "number",
        "agreement",
        "noise of the logits",
        "output",
        "SQNR, dB",
        "squared error",
    ]
    text = table.grid(lines, headings)
    return "\n".join([text, "", *(f"- {reason}" for reason in result["reasons"])])


def command() -> None:
    """The command as a console script starts it."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
