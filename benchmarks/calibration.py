"""Real against generated against noise as calibration data, several seeds: python -m
benchmarks.calibration.
"""

from __future__ import annotations

import shlex
import sys

import numpy as np
from absl import flags

from benchmarks.data.choice import PART_HELP, PARTS
from benchmarks.data.datasets import require_sets
from benchmarks.data.generation_flags import define_generation_flags
from benchmarks.data.sources import SOURCES_HELP, check_sources
from benchmarks.measure.comparison import (
    KEY,
    combinations,
    fingerprint,
    load_task,
    measure_missing,
    seeded_configs,
    write_report,
)
from benchmarks.output.results import Results
from dgh_tf.common.console import run, say
from dgh_tf.common.files import locked_folder
from dgh_tf.common.help import MODEL_HELP
from dgh_tf.common.value_range import parse_pairs
from dgh_tf.models.loading import require_model
from tflite_export.conversion.server import start_worker

FLAGS = flags.FLAGS

# real images are drawn from at most this many times --num_images, lest huge sets are read whole
_REAL_POOL = 4


def define_flags() -> None:
    flags.DEFINE_string(
        "model",
        "demo",
        MODEL_HELP,
    )
    flags.DEFINE_string("signature", "", "Of a .tflite file with several: the key of the one.")
    flags.DEFINE_string(
        "real",
        "demo",
        "Real set: .npz with x and y (or x alone), a folder by class, a COCO set (folder with "
        "annotations.json, or the .json file), tfds:NAME[/split], or demo: the embedded "
        "model's own.",
    )
    flags.DEFINE_string("evaluation", "demo", "Evaluation set, in the same forms.")
    flags.DEFINE_string(
        "output_dir", None, "Folder of results.json, results.md and the plots.", required=True
    )
    flags.DEFINE_list("sources", ["real", "synthetic", "noise", "gaussian"], SOURCES_HELP)
    define_generation_flags()
    flags.DEFINE_string(
        "preprocess",
        "none",
        "Stored values to model input: SCALE,OFFSET for x * SCALE + OFFSET, or "
        "none, unit, symmetric, imagenet, caffe.",
    )
    flags.DEFINE_string(
        "noise_range",
        "",
        "Range of uniform noise: LOW,HIGH (or a pair for every channel), or real for the lowest "
        "and highest value of --real; empty: the valid input range.",
    )
    flags.DEFINE_list(
        "scheme", ["int8"], "Some of int8, int16x8, w4a8, mixed; one table holds all."
    )
    flags.DEFINE_list(
        "max_kib",
        [],
        "Sizes in KiB of --scheme=mixed: a row for each, and a picture of size against agreement, "
        "true and predicted.",
    )
    flags.DEFINE_list(
        "algorithm",
        ["minmax"],
        "Some of tflite_export's algorithms: best, minmax, mse, percentile, bias_correction, "
        "equalization, reconstruction, distillation, ai_edge; docs/guide/algorithms.md describes "
        "them.",
    )
    flags.DEFINE_enum(
        "head",
        "model",
        ["model", "logits"],
        "logits: files end before a softmax or sigmoid at the end.",
    )
    flags.DEFINE_integer(
        "num_evaluation", 0, "At most so many evaluation images; 0 for all.", lower_bound=0
    )
    flags.DEFINE_enum("part", "all", list(PARTS), PART_HELP)
    flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")


def noise_pairs(text: str) -> list[tuple[float, float]]:
    """The pairs that --noise_range gives, none for "real". Raises ValueError for any other text."""
    pairs = [] if text == "real" else parse_pairs(text)
    if pairs is None:
        raise ValueError(
            f"--noise_range={text}: expected LOW,HIGH (two finite numbers, the smaller first), "
            "such a pair for every channel joined by semicolons, or real."
        )
    return pairs


def noise_bounds(text: str, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Low and high of uniform noise as --noise_range gives them, [1] or [channels] each.

    Args:
      text: the flag.
      real: the real images, [number, ..., channels].
    Raises: ValueError for what is no range.
    """
    pairs = noise_pairs(text) or [(float(real.min()), float(real.max()))]
    if len(pairs) not in (1, real.shape[-1]):
        raise ValueError(
            f"--noise_range={text} holds {len(pairs)} pairs; the images have {real.shape[-1]} "
            "channels. Give one pair for all, or one for each."
        )
    low, high = np.array(pairs, np.float32).T
    return low, high


def main(argv: list[str]) -> int:
    require_model(FLAGS.model, signature=FLAGS.signature)
    require_sets(preprocess=FLAGS.preprocess, real=FLAGS.real, evaluation=FLAGS.evaluation)
    if FLAGS.noise_range:
        noise_pairs(FLAGS.noise_range)
    sources, chosen = (
        check_sources(FLAGS.sources),
        combinations(FLAGS.scheme, FLAGS.algorithm, head=FLAGS.head, max_kib=FLAGS.max_kib),
    )
    settings, configs = seeded_configs(FLAGS)
    with locked_folder(FLAGS.output_dir, flag="output_dir") as folder:
        say(f"loading {FLAGS.model}")
        start_worker()
        task = load_task(
            FLAGS.model,
            signature=FLAGS.signature,
            real=FLAGS.real,
            evaluation=FLAGS.evaluation,
            preprocess=FLAGS.preprocess,
            input_range=FLAGS.input_range,
            input_kind=FLAGS.input_kind,
            real_limit=_REAL_POOL * FLAGS.num_images,
            evaluation_limit=FLAGS.num_evaluation or None,
            part=FLAGS.part,
            data_dir=FLAGS.data_dir,
            sources=sources,
        )
        if "real" in sources and len(task.real) < FLAGS.num_images:
            raise ValueError(
                f"--real={FLAGS.real} holds {len(task.real)} images, fewer than --num_images="
                f"{FLAGS.num_images}. Give a larger set or fewer images."
            )
        if FLAGS.noise_range:
            settings["noise_range"] = FLAGS.noise_range
            task = task._replace(noise_bounds=noise_bounds(FLAGS.noise_range, task.real))
        results = Results(folder, run=fingerprint(task, settings), key=KEY)
        measure_missing(task, results, configs=configs, sources=sources, chosen=chosen)
        command = shlex.join(["python", "-m", "benchmarks.calibration", *sys.argv[1:]])
        say("\n" + write_report(results, command=command))
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
