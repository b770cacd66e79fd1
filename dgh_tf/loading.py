"""keras: from a model's name or path to a Keras 3 model. Nothing is deserialized into code unless the user says so."""
from __future__ import annotations

import hashlib
import pathlib
import zipfile

from dgh_tf.files import sha256_file

DEMO_FOLDER = pathlib.Path(__file__).parent / "demo"
DEMOS = {"demo": DEMO_FOLDER / "demo.keras", "demo_detector": DEMO_FOLDER / "demo_detector.keras"}


def model_path(spec: str) -> pathlib.Path:
    """The file or folder behind a model spec. Raises FileNotFoundError naming what is accepted."""
    path = DEMOS.get(spec, pathlib.Path(spec))
    if not path.exists():
        raise FileNotFoundError(f"No model at {str(path)!r}. Give demo, demo_detector, the path of a .keras or .h5 file or of a "
                                "SavedModel folder, or keras:NAME for a model of keras.applications.")
    return path


def model_sha256(spec: str) -> str:
    """Hex sha256 of the model's file (of its name for keras:NAME): what a run is tied to."""
    if spec.startswith("keras:"):
        return hashlib.sha256(spec.encode()).hexdigest()
    return sha256_file(model_path(spec))


def load_model(spec: str, *, weights: str = "imagenet", allow_unsafe_deserialization: bool = False):
    """Loads a model without compiling it.

    Args:
      spec: demo | demo_detector | path to .keras, .h5 or SavedModel | keras:NAME (a function of keras.applications).
      weights: for keras:NAME only: 'imagenet' (downloads) or 'none' (random).
      allow_unsafe_deserialization: lets a file bring Python code (Lambda layers). Off unless you trust the file.
    Returns: a Keras 3 model.
    Raises: FileNotFoundError; ValueError when the file is not a model or cannot be read safely.
    """
    if spec.startswith("keras:"):
        return _application(spec.removeprefix("keras:"), weights)
    path = model_path(spec)
    if path.is_dir():
        raise ValueError(f"{path} is a folder. A SavedModel holds a graph, and its BatchNorm layers cannot be told from it; "
                         "pass the .keras or .h5 file it was exported from.")
    head = path.open("rb").read(8)
    if head[:4] == b"PK\x03\x04":
        return _load_keras(path, allow_unsafe_deserialization)
    if head == b"\x89HDF\r\n\x1a\n":
        return _load_h5(path, allow_unsafe_deserialization)
    hint = "It is a TFLite model: BatchNorm is folded into its convolutions. " if head[4:] == b"TFL3" else ""
    raise ValueError(f"{path} is neither a .keras archive nor an HDF5 file. {hint}Pass the Keras model as trained.")


def _load_keras(path: pathlib.Path, unsafe: bool):
    import keras

    try:
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json") if "config.json" in archive.namelist() else b""
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is a damaged .keras archive ({error}). Save or copy the model again.") from error
    if b"keras_cv" in config:
        import keras_cv  # noqa: F401 - registers its layers with Keras
    return _checked_load(lambda: keras.models.load_model(path, compile=False, safe_mode=not unsafe), path)


def _load_h5(path: pathlib.Path, unsafe: bool):
    import keras

    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
        """Reads Keras 2 configs: they carry `groups`, which Keras 3 has dropped (it is always 1)."""

        def __init__(self, *args, groups=1, **kwargs):
            super().__init__(*args, **kwargs)

    objects = {"DepthwiseConv2D": DepthwiseConv2D}
    return _checked_load(lambda: keras.models.load_model(path, compile=False, safe_mode=not unsafe, custom_objects=objects), path)


def _checked_load(load, path: pathlib.Path):
    try:
        return load()
    except Exception as error:  # Keras raises whatever a broken file provokes: KeyError, TypeError, struct.error ...
        text = " ".join(str(error).split())
        if "unsafe" in text or "Lambda" in text:
            raise ValueError(f"{path} holds Python code (a Lambda layer). Loading it would run that code. If you trust the file, "
                             "give --allow_unsafe_deserialization; else rebuild the model without Lambda.") from error
        raise ValueError(f"Keras could not load {path}: {text[:400]}") from error


def _application(name: str, weights: str):
    import keras

    builder = getattr(keras.applications, name, None)
    if not callable(builder) or not name[:1].isupper():
        names = [n for n in dir(keras.applications) if n[:1].isupper()]
        raise ValueError(f"keras.applications has no model {name!r}. It has: {', '.join(names)}.")
    if weights not in ("imagenet", "none"):
        raise ValueError(f"--weights must be imagenet or none, got {weights!r}.")
    try:
        return builder(weights=None if weights == "none" else weights)
    except Exception as error:
        raise ValueError(f"The {weights} weights of {name} could not be had ({error}). They are downloaded once; "
                         "check the network, or give --weights=none for random ones.") from error
