"""What the user asked for, beside the settings of the images."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Request:
    """The flags of generate that say where a run's parts come from and how it goes on.

    Attributes:
      model, weights, signature, allow_unsafe_deserialization: see `loading.load_model`.
      real_hint: a file or folder of real images, or None.
      memory_bytes: for records; more are streamed through a file.
      checkpoint_seconds: between checkpoints. wait_seconds: for other workers.
      tensorboard: whether to write summaries. command: as the user gave it.
      loaded: the model, where it is loaded already, also as `Prepared`.
      page: whether to draw report.html at the end.
    """

    model: str
    weights: str
    signature: str
    allow_unsafe_deserialization: bool
    real_hint: str | None
    memory_bytes: int
    checkpoint_seconds: float
    wait_seconds: float
    tensorboard: bool
    command: str
    loaded: Any = None
    page: bool = True
