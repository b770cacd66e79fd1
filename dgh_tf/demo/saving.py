"""Writing a trained demo model as a small .keras file."""

from __future__ import annotations

import os
import pathlib
import tempfile
import zipfile
from typing import TYPE_CHECKING

from dgh_tf.common.files import atomic_path

if TYPE_CHECKING:
    import keras

_ZIP_EPOCH = (
    1980,
    1,
    1,
    0,
    0,
    0,
)  # the earliest date a zip can hold; metadata.json keeps the real one


def save_small(model: keras.Model, path: str | os.PathLike) -> None:
    """Saves an uncompiled Keras model with its archive compressed; keras.models.load_model reads it
    as any other.

    Keras stores its HDF5 weights uncompressed, and in a model of many small layers the padding
    between them is most of the file: the demo detector takes 1.6 MB so and 0.9 MB compressed.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain = pathlib.Path(folder) / "model.keras"
        model.save(plain)
        with (
            atomic_path(path) as temporary,
            zipfile.ZipFile(plain) as source,
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed,
        ):
            for name in source.namelist():
                packed.writestr(
                    zipfile.ZipInfo(name, _ZIP_EPOCH), source.read(name), zipfile.ZIP_DEFLATED
                )
