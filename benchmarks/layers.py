"""The error of every layer under several calibrations side by side, worst layers first: python
-m benchmarks.layers.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags

from benchmarks.output import table
from dgh_tf.common.console import run, say
from dgh_tf.common.files import atomic_write, require_writable
from dgh_tf.common.help import MODELS
from dgh_tf.common.subsets import spread
from dgh_tf.models.loading import require_model


def define_flags() -> None:
    """Only when this runs as a command: other commands may import this file."""
    flags.DEFINE_string(
        "model",
        None,
        f"{MODELS}, or keras:NAME.",
        required=True,
    )
    flags.DEFINE_list(
        "calibrations",
        None,
        "Calibration data to compare, by comma: folders that generate left, .npy, "
        ".npz or folders of "
        "images, each as PATH or NAME=PATH. A file is made with each.",
        required=True,
    )
    flags.DEFINE_string(
        "images",
        None,
        "Images that all files are measured on, in the same forms; real ones where "
        "you have them. Empty: "
        "the first calibration's own.",
    )
    flags.DEFINE_list(
        "preprocess",
        ["1", "0"],
        "SCALE,OFFSET for image files and arrays: input = stored value * SCALE + OFFSET.",
    )
    flags.DEFINE_string("scheme", "int8", "As in tflite_export.convert.")
    flags.DEFINE_string("algorithm", "minmax", "As in tflite_export.convert.")
    flags.DEFINE_integer(
        "num_images", 64, "At most so many images are measured, evenly spread.", lower_bound=1
    )
    flags.DEFINE_integer("rows", 15, "So many of the worst layers are printed.", lower_bound=1)
    flags.DEFINE_string(
        "output",
        None,
        "A .json file for all layers; in a generate folder, its report.html shows it.",
    )


def named_sources(entries: list[str]) -> dict[str, str]:
    """{name: path} of PATH or NAME=PATH entries. Raises ValueError for fewer than one, or for a
    name given twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        name, path = (name, path) if equals else (pathlib.PurePath(entry).stem or entry, entry)
        if not name or not path or name in found:
            raise ValueError(
                f"--calibrations={','.join(entries)}: {entry!r} has no path, or its "
                f"name {name!r} is taken. "
                "Write NAME=PATH,NAME=PATH."
            )
        found[name] = path
    if not found:
        raise ValueError("--calibrations names nothing. Give one or several of PATH or NAME=PATH.")
    return found


def compare(
    model: Any,
    calibrations: Mapping[str, Any],
    images: Any,
    *,
    scheme: str = "int8",
    algorithm: str = "minmax",
) -> list[dict[str, Any]]:
    """The layers of one file per calibration, measured on the same images.

    Args:
      model: Keras model, left unchanged.
      calibrations: by name, images [number, ...] in the model's input units.
      images: to measure on, in the same form as those of one calibration.
      scheme: one of tflite_export.tflite.schemes.SCHEMES.
      algorithm: one of tflite_export.algorithms.by_name.NAMES.
    Returns: as tflite_export.quality.accuracy_estimate.side_by_side, the worst layers first.
    Raises: ValueError as tflite_export.quantization.quantize.
    """
    from tflite_export import to_float_tflite
    from tflite_export.quality.accuracy_estimate import layers, side_by_side
    from tflite_export.quality.layer_comparison import gather
    from tflite_export.quantization import quantize

    reference, found = to_float_tflite(model, images=images), {}
    for name, data in calibrations.items():
        say(f"making a file with {name}")
        found[name] = layers(
            gather(
                reference, quantize(model, data, scheme=scheme, algorithm=algorithm).tflite, images
            )
        )
    return side_by_side(found)


def table_of(rows: list[dict[str, Any]], *, most: int) -> str:
    """The worst layers as a markdown table: per file SQNR in dB and the share of values cut off."""
    from tflite_export.quality.accuracy_estimate import short

    names = list(rows[0]["files"]) if rows else []
    lines = [
        [
            short(row["tensor"]),
            row["operator"],
            *(
                text
                for name in names
                for text in (
                    f"{row['files'][name]['sqnr_db']:.1f}",
                    f"{row['files'][name]['clipped']:.2%}",
                )
            ),
        ]
        for row in rows[:most]
    ]
    head = ["tensor", "operator", *(text for name in names for text in (f"{name}, dB", "cut off"))]
    return table.grid(lines, head, left=2)


def main(argv: list[str]) -> int:
    """Checks, converts once per calibration, prints the worst layers."""
    del argv
    from tflite_export.algorithms.by_name import check_algorithm
    from tflite_export.calibration.load import load_calibration

    values = flags.FLAGS
    require_model(values.model)
    sources = named_sources(values.calibrations)
    if check_algorithm(values.algorithm, scheme=values.scheme) == "equalization":
        raise ValueError(
            "--algorithm=equalization scales the tensors between layers, so their "
            "errors against the model say nothing. "
            "Use another algorithm here."
        )
    output = pathlib.Path(values.output) if values.output else None
    if output and require_writable(output, flag="output").suffix != ".json":
        raise ValueError(f"--output={output} does not end in .json. Give F.json.")
    try:
        scale, offset = map(float, values.preprocess)
    except ValueError:
        raise ValueError(
            f"--preprocess={','.join(values.preprocess)} is not two numbers. Write it "
            "as --preprocess=1.0,0.0."
        ) from None
    for path in filter(None, [*sources.values(), values.images]):
        if not pathlib.Path(path).exists():
            load_calibration(path)  # raises
    say(f"loading {values.model}")
    from dgh_tf import load_model
    from dgh_tf.models.choices import without_choices
    from tflite_export.calibration.units import checked_images
    from tflite_export.conversion.freeze import input_shapes

    model = without_choices(load_model(values.model))
    shape = next(iter(input_shapes(model).values()))

    given = "--preprocess"
    if (scale, offset) != (1.0, 0.0):
        given += f"={','.join(values.preprocess)}"

    def loaded(path: str, flag: str) -> Any:
        data = load_calibration(path, image_shape=shape, scale=scale, offset=offset)
        images, warnings = checked_images(
            model,
            data.images,
            value_range=data.value_range,
            what=f"--{flag}={path}",
            preprocess=given,
            input_range=None,
        )
        for text in warnings:
            say(f"warning: {text}")
        return images

    data = {name: loaded(path, "calibrations") for name, path in sources.items()}
    images = loaded(values.images, "images") if values.images else next(iter(data.values()))
    count = len(next(iter(images.values())))
    chosen = spread(values.num_images, total=count)
    rows = compare(
        model,
        data,
        {name: array[chosen] for name, array in images.items()},
        scheme=values.scheme,
        algorithm=values.algorithm,
    )
    if output:
        told = {
            "images": values.images or next(iter(sources.values())),
            "scheme": values.scheme,
            "algorithm": values.algorithm,
        }
        atomic_write(output, json.dumps({"layers_compared": rows, **told}, indent=1) + "\n")
    say(table_of(rows, most=values.rows))
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
