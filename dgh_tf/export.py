"""python -m dgh_tf.export: the images of a run as a calibration set of another quantizer.

Flags are defined only when this runs as a command.
"""

from __future__ import annotations

import pathlib

from absl import flags

from dgh_tf.calibration_sets import source
from dgh_tf.calibration_sets.formats import FORMATS, export
from dgh_tf.common import console
from dgh_tf.common.files import require_new_folder

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("images", None, "Folder of a finished dgh_tf.generate run.")
    flags.DEFINE_enum(
        "format",
        None,
        list(FORMATS),
        "; ".join(f"{name}: {each.tools}" for name, each in FORMATS.items()) + ".",
    )
    flags.DEFINE_string("output", None, "The folder to write; it must not exist or be empty.")
    flags.DEFINE_list(
        "input_names",
        [],
        "The inputs' names in the file that the tool quantizes, by comma, where they differ from "
        "the Keras model's.",
    )
    flags.mark_flags_as_required(["images", "format", "output"])


def main(argv: list[str]) -> int:
    """Refuses what can be refused, then writes the folder whole."""
    del argv
    output = require_new_folder(FLAGS.output, flag="output")
    found = source.load(pathlib.Path(FLAGS.images), names=FLAGS.input_names)
    described = export(found, output, form=FLAGS.format)
    console.say(
        f"{described['images']} images in {output} for {described['for']}: {described['how']}"
    )
    for each in described["inputs"]:
        low, high = (", ".join(f"{value:g}" for value in each[end]) for end in ("low", "high"))
        units = f"values from {low} to {high}"
        if "mean" in each:
            units = (
                f"bytes 0 to 255; set the tool's mean to {each['mean']} and std to {each['std']}, "
                f"so that the model gets {units}"
            )
        console.say(f"input {each['name']} {each['shape']}: {units}")
    return 0


if __name__ == "__main__":
    define_flags()
    console.run(main)
