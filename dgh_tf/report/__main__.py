"""cli: python -m dgh_tf.report: writes report.html of a finished run anew."""

from __future__ import annotations

import json
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
    manifest = run_folder.read_manifest(folder)
    if manifest is None:
        raise ValueError(
            f"{folder} holds no finished run (no manifest.json). Run python -m "
            "dgh_tf.generate with this folder."
        )
    lines = (
        (folder / "metrics.jsonl").read_text().splitlines()
        if (folder / "metrics.jsonl").exists()
        else []
    )
    try:
        write_page(
            folder,
            manifest=manifest,
            metrics=[json.loads(line) for line in lines],
            command=run_command(manifest),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder}: manifest.json, metrics.jsonl or a .json of a file beside them "
            "does not hold what a run writes there "
            f"({type(error).__name__}: {error}). Generate the images again."
        ) from error
    console.say(f"{folder / 'report.html'} written")
    return 0


def _define_flags() -> None:
    flags.DEFINE_string("output_dir", None, "Folder of a finished run.", required=True)


if __name__ == "__main__":
    _define_flags()
    console.run(main)
