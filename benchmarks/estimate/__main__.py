"""How far the estimate of an integer file's agreement can be trusted: python -m
benchmarks.estimate.

Integer files of many models, schemes, algorithms and calibration sources are judged on held-out
generated images and measured on real ones. What the held-out images show is kept, so that another
rule is tried in seconds. Every model is left out in turn from the fit that predicts its files.

Example: python -m benchmarks.estimate --data=DIR --output_dir=out
"""

from __future__ import annotations

import pathlib

from absl import flags

from dgh_tf.common.console import run, say
from dgh_tf.common.files import locked_folder


def define_flags() -> None:
    flags.DEFINE_string(
        "models",
        str(pathlib.Path(__file__).with_name("models.json")),
        "The list of models, .json or .yaml, as benchmarks.suite takes. zoo.json beside the "
        "default is of networks that benchmarks.zoo trains, kept_back.json of models that had no "
        "part in the constants.",
    )
    flags.DEFINE_string("data", "", "What {data} stands for in the list's paths.")
    flags.DEFINE_list("only", [], "Names of the list's models; empty for all.")
    flags.DEFINE_string(
        "output_dir",
        None,
        "Folder of the rows; the same command again goes on with it, and lists of several commands "
        "share it.",
        required=True,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Of the rows to measure. Rows of several seeds may share a folder, and are told together.",
        lower_bound=0,
    )
    flags.DEFINE_bool("collect", True, "Measure the rows that the folder lacks.")
    flags.DEFINE_bool(
        "kept_back",
        False,
        "Tell the folder's rows by the constants of the code, instead of a fit of their own.",
    )


def main(argv: list[str]) -> int:
    """Measures what is missing, then prints the table and the constants of all that is there."""
    del argv
    values = flags.FLAGS
    from benchmarks.estimate import fit, rows
    from benchmarks.suite.plan import choose
    from tflite_export.conversion.server import start_worker

    entries = []
    if values.collect:  # refused before the folder is made
        entries = choose(values.models, data=values.data, only=values.only)
    with locked_folder(values.output_dir, flag="output_dir") as folder:
        (folder / "rows").mkdir(exist_ok=True)
        if entries:
            start_worker()
        for entry in entries:
            rows.collect(entry, folder, seed=values.seed)
        report = fit.kept_back if values.kept_back else fit.report
        say(report(list(rows.read_rows(folder))))
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
