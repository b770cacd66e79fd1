"""How close generated images come to training images, against how close unseen real ones do:
python -m benchmarks.privacy.
"""

from __future__ import annotations

import json
import pathlib
import shlex
import sys
from typing import Any

import numpy as np
from absl import flags

from benchmarks.data.datasets import require_sets
from benchmarks.output import table
from dgh_tf.common.console import run, say
from dgh_tf.common.files import atomic_write, make_folder
from dgh_tf.models.loading import require_model
from tflite_export.calibration.load import load_calibration

SPACES = {"pixels": "pixels, as they are", "shifted": "pixels, the best of 50 shifts and mirrors"}


def define_flags() -> None:
    """Only when this runs as a command."""
    flags.DEFINE_string(
        "model", "demo", "demo, a .keras or .h5 file, a SavedModel folder, or keras:NAME."
    )
    flags.DEFINE_string(
        "training",
        "demo",
        "Images that trained the model: .npz, a folder by class, tfds:NAME, or demo.",
    )
    flags.DEFINE_string("unseen", "demo", "Real images that did not, in the same forms.")
    flags.DEFINE_string(
        "generated", None, "Folder that generate left, or an .npy file; none: made here."
    )
    flags.DEFINE_string("output_dir", None, "Folder of privacy.json and privacy.md.", required=True)
    flags.DEFINE_string(
        "preprocess", "none", "Stored values to model input, as in benchmarks.calibration."
    )
    flags.DEFINE_integer(
        "num_images",
        128,
        "Images of each kind whose nearest training image is looked for.",
        lower_bound=2,
    )
    flags.DEFINE_integer("steps", 100, "Optimizer steps of images made here.", lower_bound=1)
    flags.DEFINE_integer(
        "seed", 0, "Seed of images made here, and of the choice of real ones.", lower_bound=0
    )


def nearest(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Root mean squared difference of each query to its nearest reference, in the values' units;
    float64 [queries].
    """
    from sklearn.metrics import pairwise_distances_argmin_min

    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (queries, references))
    return pairwise_distances_argmin_min(a, b)[1] / np.sqrt(a.shape[1])


def normalized(images: np.ndarray) -> np.ndarray:
    """Images [N, ...] with mean 0 and standard deviation 1 each: brightness and contrast cannot
    hide a copy.
    """
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return (flat / np.maximum(flat.std(axis=1, keepdims=True), 1e-9)).reshape(images.shape)


def shifted_nearest(queries: np.ndarray, references: np.ndarray, *, reach: int = 2) -> np.ndarray:
    """`nearest` over shifts of up to `reach` pixels each way, with and without mirroring, of the
    common middle [N, H, W, C].
    """
    middle = references[:, reach:-reach, reach:-reach]
    best = np.full(len(queries), np.inf)
    for mirrored in (queries, queries[:, :, ::-1]):
        for y in range(2 * reach + 1):
            for x in range(2 * reach + 1):
                part = mirrored[:, y : y + middle.shape[1], x : x + middle.shape[2]]
                best = np.minimum(best, nearest(normalized(part), normalized(middle)))
    return best


def compare(training: np.ndarray, others: dict[str, np.ndarray]) -> list[dict]:
    """Rows of nearest-neighbour distances to the training images, by space and kind of images.

    Args:
      training: float [N, H, W, C] or any shape (then without shifts).
      others: kind -> the same; "unseen" is the measure.
    Returns: {"space", "kind", "images", "nearest", "p5", "median", "closer_than_unseen"}: the least
      distance, its 5 per cent quantile, its median, and the share of images closer than the closest
      unseen one.
    """
    rows = []
    spaces = {"pixels": lambda kind: nearest(normalized(others[kind]), normalized(training))}
    if training.ndim == 4 and min(training.shape[1:3]) >= 12:
        spaces["shifted"] = lambda kind: shifted_nearest(others[kind], training)
    for space, measure in spaces.items():
        found = {kind: measure(kind) for kind in others}
        for kind, distances in found.items():
            rows.append(
                {
                    "space": space,
                    "kind": kind,
                    "images": len(distances),
                    "nearest": float(distances.min()),
                    "p5": float(np.percentile(distances, 5)),
                    "median": float(np.median(distances)),
                    "closer_than_unseen": float(np.mean(distances < found["unseen"].min())),
                }
            )
    return rows


def main(argv: list[str]) -> int:
    """Measures, prints and writes."""
    del argv
    values = flags.FLAGS
    require_model(values.model)
    require_sets(preprocess=values.preprocess, training=values.training, unseen=values.unseen)
    if values.generated and not pathlib.Path(values.generated).exists():
        load_calibration(values.generated)  # raises
    folder = make_folder(values.output_dir, flag="output_dir")
    say(f"loading {values.model}")
    from benchmarks.data import datasets
    from benchmarks.measure.comparison import environment
    from dgh_tf import GenerationConfig, generate_images, load_model

    model = load_model(values.model)
    shared: dict[str, Any] = {
        "input_shape": tuple(model.inputs[0].shape[1:]),
        "preprocess": values.preprocess,
        "data_dir": None,
        "demo": values.model,
    }
    training, _ = datasets.load(values.training, role="real", limit=None, **shared)
    unseen, _ = datasets.load(values.unseen, role="evaluation", limit=values.num_images, **shared)
    if values.generated:
        generated = np.asarray(load_calibration(values.generated).images)[: values.num_images]
    else:
        say(f"making {values.num_images} images")
        config = GenerationConfig(
            num_images=values.num_images, steps=values.steps, seed=values.seed
        )
        generated = np.asarray(generate_images(model, config, verbose=0))
    noise = (
        np.random.default_rng(values.seed)
        .uniform(training.min(), training.max(), generated.shape)
        .astype(np.float32)
    )
    # a copy of training images with a little noise shows that the measure would see a leak
    rng = np.random.default_rng(values.seed)
    picked = training[rng.permutation(len(training))[: len(unseen)]]
    leak = picked + rng.normal(scale=0.25 * picked.std(), size=picked.shape).astype(np.float32)
    others = {"unseen": unseen, "generated": generated, "noise": noise, "noisy copies": leak}
    rows = compare(training, others)
    command = shlex.join(["python", "-m", "benchmarks.privacy", *sys.argv[1:]])
    text = f"{table_of(rows)}\n\nAgainst {len(training)} training images.\n"
    atomic_write(folder / "privacy.json", json.dumps(rows, indent=1) + "\n")
    atomic_write(
        folder / "privacy.md",
        f"# Nearest training images\n\n{text}\n```\n{command}\n```\n\n{environment()}\n",
    )
    say(text)
    return 0


def table_of(rows: list[dict]) -> str:
    """The rows as a markdown table."""
    lines = [
        [
            SPACES[row["space"]],
            row["kind"],
            row["images"],
            f"{row['nearest']:.3f}",
            f"{row['p5']:.3f}",
            f"{row['median']:.3f}",
            f"{row['closer_than_unseen']:.0%}",
        ]
        for row in rows
    ]
    headings = [
        "distance in",
        "images",
        "number",
        "least",
        "5 %",
        "median",
        "closer than the closest unseen",
    ]
    return table.grid(lines, headings, left=2)


if __name__ == "__main__":
    define_flags()
    run(main)
