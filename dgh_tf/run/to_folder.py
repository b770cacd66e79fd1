"""A resumable run in a folder, in one call."""

from __future__ import annotations

import pathlib
from typing import Any

from dgh_tf.common import run_folder
from dgh_tf.common.files import locked_folder
from dgh_tf.config import GenerationConfig
from dgh_tf.run.begin import begin
from dgh_tf.run.meeting import read_job
from dgh_tf.run.request import Request

_MEMORY_BYTES = 4 * 2**30  # larger sets are streamed, as the command does by default
_CHECKPOINT_SECONDS = 30.0


def generate_to(  # noqa: PLR0913 - the options of one command
    folder: str | pathlib.Path,
    *,
    model: str | pathlib.Path,
    config: GenerationConfig | None = None,
    weights: str = "imagenet",
    signature: str = "",
    allow_unsafe_deserialization: bool = False,
    loaded: Any = None,
    flag: str = "folder",
    command: str = "",
    page: bool = True,
) -> run_folder.Images:
    """Generates calibration images into a folder, as `python -m dgh_tf.generate` does.

    The folder is the cache: a finished run of the same model and settings is read, an unfinished
    one goes on from its last checkpoint. Call it in the main thread: a signal saves the run first.

    Args:
      folder: made where it is missing.
      model: what `load_model` takes: a name such as demo, or a path.
      config: settings; the defaults where None.
      weights: see `load_model`.
      signature: see `load_model`.
      allow_unsafe_deserialization: see `load_model`.
      loaded: what `load_model` gave for this model, so that it is not loaded again; as `Prepared`,
        calls share what does not depend on the settings.
      flag: the option that gave the folder, for messages.
      command: for the report.
      page: whether to draw report.html, which `write_report` draws at any time.
    Returns: float32 [num_images, *input shape] in the model's input units, memory-mapped; a dict by
      input name for several inputs.
    Raises:
      ValueError: the folder holds a run of another model or other settings, or a setting cannot
        work. FloatingPointError: the loss diverged.
      console.Interrupted: a signal came; the same call goes on from there.

    Example:
      >>> images = generate_to("images", model="demo", config=GenerationConfig(num_images=16))
    """
    from dgh_tf.models.loading import model_sha256

    config = config or GenerationConfig()
    request = Request(
        model=str(model),
        weights=weights,
        signature=signature,
        allow_unsafe_deserialization=allow_unsafe_deserialization,
        real_hint=None,
        memory_bytes=_MEMORY_BYTES,
        checkpoint_seconds=_CHECKPOINT_SECONDS,
        wait_seconds=0.0,
        tensorboard=False,
        command=command or f"dgh_tf.generate_to({str(folder)!r}, model={str(model)!r})",
        loaded=loaded,
        page=page,
    )
    if config.strategy == "multi_worker":
        raise ValueError("One call is one process; run python -m dgh_tf.generate on every worker.")
    sha256 = model_sha256(str(model), weights=weights, signature=signature)
    with locked_folder(folder, flag=flag) as locked:
        try:
            begin(request, locked, config, sha256, job=read_job(config.strategy), output_dir=folder)
        except run_folder.OtherRunError as error:
            raise ValueError(
                f"{error.text} Give the same settings, delete that folder, or give another {flag}."
            ) from error
        return run_folder.load_images(locked)
