"""python -m dgh_tf.report: writes report.html of a finished run anew."""

from __future__ import annotations

import pathlib

from absl import flags

from dgh_tf.common import console
from dgh_tf.report.again import write_report


def main(argv: list[str]) -> int:
    """Writes report.html of a finished run anew, with the integer files that lie in its folder by
    now.
    """
    del argv
    folder = pathlib.Path(flags.FLAGS.output_dir)
    console.say(f"drawing the page of {folder}")
    page = write_report(folder)
    console.say(f"{folder / 'report.html'} written")
    for sentence in page.damaged:
        console.say(f"warning: {folder / sentence}; the page says so too.")
    return 0


def define_flags() -> None:
    flags.DEFINE_string("output_dir", None, "Folder of a finished run.", required=True)


if __name__ == "__main__":
    define_flags()
    console.run(main)
