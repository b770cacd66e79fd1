"""python -m dgh_tf.report: writes report.html of a finished run anew."""

from __future__ import annotations

import pathlib

from absl import flags

from dgh_tf.common import console
from dgh_tf.report.page import run_command, write_page


def main(argv: list[str]) -> int:
    """Writes report.html of a finished run anew, with the integer files that lie in its folder by
    now.
    """
    from dgh_tf.common import run_folder

    del argv
    folder = pathlib.Path(flags.FLAGS.output_dir)
    manifest = run_folder.finished_manifest(folder)
    try:
        page = write_page(
            folder,
            manifest=manifest,
            metrics=run_folder.read_metrics(folder),
            command=run_command(manifest),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: manifest.json, metrics.jsonl or the images do not hold what a run writes "
            f"there ({type(error).__name__}: {error}). Generate the images again."
        ) from error
    console.say(f"{folder / 'report.html'} written")
    for sentence in page.damaged:
        console.say(f"warning: {folder / sentence}; the page says so too.")
    return 0


def _define_flags() -> None:
    flags.DEFINE_string("output_dir", None, "Folder of a finished run.", required=True)


if __name__ == "__main__":
    _define_flags()
    console.run(main)
