"""The model that a caller of the Python functions means."""

from __future__ import annotations

import os
from typing import Any

from dgh_tf.models.batches import with_any_batch
from dgh_tf.models.loading import load_model


def given_model(model: Any) -> Any:
    """A Keras model as it is, or where it fixes the size of its batch one that does not; the path
    of one (text or pathlib.Path), or a name such as demo, is loaded by `load_model`.

    Raises: TypeError for anything else; what `load_model` and `with_any_batch` raise.
    """
    if isinstance(model, str | os.PathLike):
        return load_model(os.fspath(model))
    if not callable(getattr(model, "_flatten_layers", None)):
        raise TypeError(
            f"model: expected a Keras model, or the path of one; got {type(model).__name__}."
        )
    return with_any_batch(model)
