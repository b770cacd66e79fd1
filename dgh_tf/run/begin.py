"""Begins a run in its folder, goes on with it, or finds it finished: all that comes before
TensorFlow starts.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib

from dgh_tf.common import console, run_folder
from dgh_tf.config import GenerationConfig
from dgh_tf.run.meeting import Job, meet
from dgh_tf.run.request import Request


def begin(
    request: Request,
    folder: pathlib.Path,
    config: GenerationConfig,
    sha256: str,
    *,
    job: Job,
    output_dir: str | os.PathLike,
) -> None:
    """Makes the run in its folder, goes on with it, or says that it is finished. Workers meet
    before they start TensorFlow.

    Args:
      request: where the run's parts come from and how it goes on.
      folder: of the run, locked by this process.
      config: settings of the run.
      sha256: of the model.
      job: the workers, and which of them this process is.
      output_dir: the folder as the user gave it, which all workers must share.
    Raises: ValueError for a folder with another run.
    """
    identity = run_folder.run_identity(sha256, config, real_hint=request.real_hint)
    if _is_finished(folder, config, identity, job):
        return
    run_folder.clean(folder, worker=job.index, finished=False)
    shared = {
        **identity,
        "output_dir": os.path.normpath(output_dir),
        "tensorflow": importlib.metadata.version("tensorflow"),
        "keras": importlib.metadata.version("keras"),
        "workers": job.names(range(len(job.addresses))),
    }
    meet(job, shared, wait_seconds=request.wait_seconds, say=console.say)
    if request.loaded is None:
        console.say(f"loading {request.model}")
    from dgh_tf.run import session

    session.run(request, folder, config, identity, job)
    run_folder.clean(folder, worker=job.index, finished=True)


def _is_finished(folder: pathlib.Path, config: GenerationConfig, identity: dict, job: Job) -> bool:
    """Whether the folder holds this run, whole; says so. Raises ValueError for another run."""
    manifest = run_folder.read_manifest(folder)
    if manifest is None:
        return False
    # of a finished run the number of replicas is no longer asked
    replicas = {"replicas": manifest["identity"].get("replicas")}
    run_folder.require_same(manifest["identity"], {**identity, **replicas}, folder)
    run_folder.load_images(folder)
    run_folder.clean(folder, worker=job.index, finished=True)
    console.say(
        f"{folder} is finished: {config.num_images} images, sha256 {manifest['images_sha256']}."
    )
    return True
