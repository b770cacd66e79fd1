"""How like real images calibration images are inside a model, layer by layer: python -m
benchmarks.structure.
"""

from __future__ import annotations

import dataclasses
import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.data.datasets import require_sets
from benchmarks.data.generation_flags import define_generation_flags
from benchmarks.data.sources import SOURCES, SOURCES_HELP, check_sources
from benchmarks.output import table
from benchmarks.output.names import name_of
from dgh_tf.common.console import run, say
from dgh_tf.common.files import atomic_write, locked_folder, sha256_array
from dgh_tf.common.help import MODEL_HELP
from dgh_tf.models.loading import require_model

FLAGS = flags.FLAGS
_REAL_POOL = 4  # real images are read up to so many times --num_images; half are the reference
COLUMNS = {
    "gram_gap": ("Gram gap", 3),
    "covariance_gap": ("covariance gap", 3),
    "share_pixels": ("between images: pixels", 3),
    "share_first": ("first layers", 3),
    "share_middle": ("middle layers", 3),
    "share_last": ("last layers", 3),
    "neighbour_difference": ("neighbour difference", 4),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Given:
    """Images that were made before. seed: counts the sets of one name."""

    name: str
    seed: int
    path: str
    images: np.ndarray

    @functools.cached_property
    def sha256(self) -> str:
        return sha256_array(self.images)


def define_flags() -> None:
    """Only when this runs as a command."""
    flags.DEFINE_string("model", "demo", MODEL_HELP)
    flags.DEFINE_string("signature", "", "Of a .tflite file with several: the key of the one.")
    flags.DEFINE_string(
        "real",
        "demo",
        "Real set, in the forms of benchmarks.calibration. One half is what all sources are "
        "compared with; the source real is drawn from the other half.",
    )
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of results.json (with every layer), results.md and structure.png.",
        required=True,
    )
    flags.DEFINE_list("sources", ["real", "synthetic", "start", "noise"], SOURCES_HELP)
    flags.DEFINE_list(
        "images",
        [],
        "Ready images in model input units, each as PATH or NAME=PATH: folders that generate left, "
        ".npy or .npz, such as those that benchmarks.calibration keeps. Several of one NAME count "
        "as its seeds. The first --num_images of each are measured.",
    )
    define_generation_flags()
    flags.DEFINE_string(
        "preprocess", "none", "Stored values to model input, as in benchmarks.calibration."
    )
    flags.DEFINE_string("data_dir", None, "Folder of TensorFlow Datasets.")


def named_paths(entries: list[str]) -> list[tuple[str, int, str]]:
    """(name, seed, path) of PATH or NAME=PATH entries: those of one name are its seeds 0, 1, ...

    Raises: ValueError for an entry without a path or a name, and for the name of a source, as flags
      or as tables have it.

    Example:
      >>> named_paths(["a=x.npz", "a=y.npz", "out/b.npz"])
      [('a', 0, 'x.npz'), ('a', 1, 'y.npz'), ('b', 0, 'out/b.npz')]
    """
    found: list[tuple[str, int, str]] = []
    for entry in entries:
        name, equals, path = entry.partition("=")
        name, path = (name, path) if equals else (Path(entry).stem, entry)
        if not name or not path or name_of(name) in map(name_of, SOURCES):
            raise ValueError(
                f"--images={','.join(entries)}: {entry!r} has no path, no name or that of a "
                "source. Write NAME=PATH,NAME=PATH."
            )
        found.append((name, sum(name == other for other, *_ in found), path))
    return found


def halves(real: np.ndarray, *, num_images: int, needed: bool) -> tuple[np.ndarray, np.ndarray]:
    """The real images in two disjoint halves, chosen at random but always the same: the reference,
    and those that sources may use.

    needed: whether `num_images` of the second half will be asked for.

    Raises: ValueError where there are too few.
    """
    order = np.random.default_rng(0).permutation(len(real))
    second = len(real) // 2
    if len(real) < 2:
        raise ValueError("The real set holds one image. Half of it is the reference: give more.")
    if needed and second < num_images:
        raise ValueError(
            f"The real set holds {len(real)} images. One half is the reference, and the other must "
            f"hold --num_images={num_images} for the source real. Give a larger set, lower "
            "--num_images or leave real out."
        )
    return real[np.sort(order[second:])], real[np.sort(order[:second])]


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def thirds(shares: list[float]) -> dict[str, float]:
    """The mean share of the first, the middle and the last third of the layers; nothing for fewer
    than three layers.

    Example:
      >>> thirds([0.5, 0.25, 0.125])
      {'share_first': 0.5, 'share_middle': 0.25, 'share_last': 0.125}
    """
    if len(shares) < 3:
        return {}
    parts = zip(("first", "middle", "last"), np.array_split(shares, 3), strict=True)
    return {f"share_{name}": float(np.mean(part)) for name, part in parts}


class Comparison:
    """A model with the reference that all sets of images are compared with."""

    def __init__(self, task: Any, reference: np.ndarray) -> None:
        from benchmarks.measure.structure import layers_of, structure_of
        from dgh_tf.models.tflite.batch import proven
        from dgh_tf.models.tflite.run import read_graph
        from tflite_export import to_float_tflite

        graph = proven(read_graph(to_float_tflite(task.model, images=reference[:1])), reference)
        self.layers = layers_of(graph)
        if not self.layers:
            raise ValueError(f"Model '{task.model.name}' has no convolution and no dense layer.")
        self._measure = functools.partial(structure_of, task.network, graph)
        say(f"measuring {len(reference)} real images, the reference")
        self._reference = self._measure(reference)
        if not any(moments.seconds.any() for moments in self._reference.moments):
            raise ValueError(
                f"Every layer of model '{task.model.name}' takes zeros alone from these real "
                "images, so that nothing can be compared with them. Are they in its units?"
            )

    def row(self, images: np.ndarray) -> dict[str, Any]:
        """The figures of a set of images [images, ...] in model input units."""
        from benchmarks.measure.structure import gaps_of
        from tflite_export.quality.accuracy_estimate import short

        found = self._measure(images)
        pairs = zip(found.moments, self._reference.moments, strict=True)
        gaps = [gaps_of(own, wanted) for own, wanted in pairs]
        return {
            "num_images": len(images),
            **{name: mean_of_known([gap[name] for gap in gaps]) for name in gaps[0]},
            "share_pixels": found.pixel_share,
            **thirds([share for _, share in found.shares]),
            "neighbour_difference": found.neighbour_difference,
            "layers": [
                {"layer": short(layer.name), "kind": layer.kind, **gap}
                for layer, gap in zip(self.layers, gaps, strict=True)
            ],
            "between_images": [{"layer": name, "share": share} for name, share in found.shares],
        }


def read_given(task: Any, entries: list[tuple[str, int, str]], *, most: int) -> list[Given]:
    """The images of --images, at most so many of each. Raises ValueError for what the model does
    not take.
    """
    from tflite_export.calibration.load import load_calibration
    from tflite_export.calibration.units import checked_images

    found = []
    for name, seed, path in entries:
        data = load_calibration(path, image_shape=task.real.shape[1:])
        arrays, warnings = checked_images(
            task.model,
            data.images,
            value_range=data.value_range,
            what=f"--images={path}",
            preprocess=None,
            input_range=None,
        )
        (images,) = arrays.values()
        if len(images) < most:
            warnings.append(
                f"--images={path} holds {len(images)} images, fewer than --num_images={most}: "
                "fewer are further from any reference by chance alone"
            )
        for text in warnings:
            say(f"warning: {text}")
        found.append(Given(name, seed, path, images[:most]))
    return found


def require_unchanged(results: Any, given: list[Given]) -> None:
    """Raises ValueError where a name already stands for other images in the folder."""
    for each in given:
        for row in results.rows:
            if (row["source"], row["seed"]) != (each.name, each.seed):
                continue
            if row["sha256"] != each.sha256:
                raise ValueError(
                    f"{results.folder} holds figures of other images named {each.name}, seed "
                    f"{each.seed}, than {each.path}. Give another NAME=PATH or --output_dir."
                )


def measure_missing(
    task: Any,
    results: Any,
    *,
    configs: list[Any],
    sources: list[str],
    given: list[Given],
    reference: np.ndarray,
) -> None:
    """Adds every row that is not there yet, a line each."""
    from benchmarks.measure.comparison import task_images
    from benchmarks.output.results import Job, run_jobs

    comparison = functools.cache(lambda: Comparison(task, reference))

    def measured(source: str, seed: int, images: np.ndarray, sha256: str | None) -> str:
        row = {"source": source, "seed": seed, **comparison().row(images), "sha256": sha256}
        results.add(row, {})
        return f"Gram gap {row['gram_gap']:.3f}"

    def of_source(source: str, config: Any) -> str:
        images, _ = task_images(task, source, config=config, folder=results.folder)
        return measured(source, config.seed, images, None)

    # all of the second half is one set, whatever the seed
    only = len(task.real) == configs[0].num_images
    jobs = [
        Job(
            f"{source} seed {config.seed}",
            ((source,),),
            functools.partial(results.done, source, config.seed),
            functools.partial(of_source, source, config),
        )
        for config in configs
        for source in sources
        if not (source == "real" and only and config.seed)
    ]
    jobs += [
        Job(
            f"{each.name} seed {each.seed}",
            (("images",),),
            functools.partial(results.done, each.name, each.seed),
            functools.partial(measured, each.name, each.seed, each.images, each.sha256),
        )
        for each in given
    ]
    run_jobs(jobs)


def write_report(results: Any, *, reference: int, command: str) -> str:
    """Writes results.md and structure.png; returns the table."""
    from benchmarks.measure.comparison import environment
    from benchmarks.output import plots

    rows = [{**row, "images": name_of(row["source"])} for row in results.rows]
    text = table.markdown(rows, by="images", columns=COLUMNS)
    gaps: dict[str, dict[str, float]] = {}
    for source in dict.fromkeys(row["source"] for row in rows):
        sets = [row["layers"] for row in rows if row["source"] == source]
        means = [
            mean_of_known([layer["gram_gap"] for layer in layers])
            for layers in zip(*sets, strict=True)
        ]
        gaps[source] = {
            f"{place}": float("nan") if mean is None else mean for place, mean in enumerate(means)
        }
    plots.layer_gaps(
        gaps,
        results.folder / "structure.png",
        layer="convolution or dense layer",
        gap="Gram gap to real images",
    )
    atomic_write(
        results.folder / "results.md",
        f"# Images inside the model\n\n{text}\n\nMean ± standard deviation over seeds; "
        f"{rows[0]['num_images']} images against {reference} real ones that are not among them. "
        "Gram gap: ||C - C_real|| / ||C_real|| with C = E[x x^T] of what a layer takes, mean over "
        "layers; covariance gap: the same around the means, whose error biases take off. Between "
        "images: share of the variance that lies between the images' means, of pixels and of the "
        "inputs of BatchNorm layers, by thirds. Neighbour difference: mean square over the "
        "variance of pixels.\n\n"
        f"```\n{command}\n```\n\n{environment()}\n",
    )
    return text


def main(argv: list[str]) -> int:
    """Refuses what can be refused, then measures what is missing."""
    del argv
    require_model(FLAGS.model, signature=FLAGS.signature)
    require_sets(preprocess=FLAGS.preprocess, real=FLAGS.real)
    sources = check_sources(FLAGS.sources)
    entries = named_paths(FLAGS.images)
    from tflite_export.calibration.load import load_calibration

    for _, _, path in entries:
        if not Path(path).exists():
            load_calibration(path)  # raises
    with locked_folder(FLAGS.output_dir, flag="output_dir") as folder:
        say(f"loading {FLAGS.model}")
        from benchmarks.measure.comparison import fingerprint, load_task, seeded_configs
        from benchmarks.output.results import Results

        settings, configs = seeded_configs(FLAGS)
        task = load_task(
            FLAGS.model,
            signature=FLAGS.signature,
            real=FLAGS.real,
            evaluation=None,
            preprocess=FLAGS.preprocess,
            input_range=FLAGS.input_range,
            input_kind=FLAGS.input_kind,
            real_limit=_REAL_POOL * FLAGS.num_images,
            data_dir=FLAGS.data_dir,
            sources=sources,
        )
        reference, other = halves(task.real, num_images=FLAGS.num_images, needed="real" in sources)
        results = Results(folder, run=fingerprint(task, settings))
        given = read_given(task, entries, most=FLAGS.num_images)
        require_unchanged(results, given)
        measure_missing(
            task._replace(real=other),
            results,
            configs=configs,
            sources=sources,
            given=given,
            reference=reference,
        )
        command = shlex.join(["python", "-m", "benchmarks.structure", *sys.argv[1:]])
        say("\n" + write_report(results, reference=len(reference), command=command))
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
