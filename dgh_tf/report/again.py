"""Report.html of a finished run, written anew with the integer files that were made since."""

from __future__ import annotations

import pathlib

from dgh_tf.common import run_folder
from dgh_tf.report.page import Page, run_command, write_page


def write_report(folder: str | pathlib.Path) -> Page:
    """Writes report.html of a finished run anew.

    It shows the integer files that lie in the folder by now, and those beside it that convert made
    together with the folder.

    Args:
      folder: of `generate_to`, the command generate, or convert without --calibration.
    Returns: what the page shows; `damaged` has a sentence for every .json that cannot be read.
    Raises: ValueError where the folder holds no finished run, or a damaged one.

    Example:
      >>> write_report("images").headline
    """
    folder = pathlib.Path(folder)
    manifest = run_folder.finished_manifest(folder)
    try:
        return write_page(
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
