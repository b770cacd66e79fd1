"""keras: from a model's name or path to a Keras 3 model. Nothing is deserialized into code unless
the user says so.
"""

from __future__ import annotations

import hashlib
import pathlib
import zipfile

import numpy as np

from dgh_tf.common.files import require_reasonable_zip, sha256_file
from dgh_tf.models.keras2 import load_keras2, saved_by_keras2

DEMO_FOLDER = pathlib.Path(__file__).parents[1] / "demo"
DEMOS = {"demo": DEMO_FOLDER / "demo.keras", "demo_detector": DEMO_FOLDER / "demo_detector.keras"}
_TRIAL_IMAGES = 8  # noise images that give a random model its running statistics


def model_path(spec: str) -> pathlib.Path:
    """The file or folder behind a model spec. Raises FileNotFoundError naming what is accepted."""
    path = DEMOS.get(spec, pathlib.Path(spec))
    if not spec.strip() or not path.exists():
        raise FileNotFoundError(
            f"No model at {str(path)!r}. Give demo, demo_detector, the path of a "
            ".keras or .h5 file or of a "
            "SavedModel folder, or keras:NAME for a model of keras.applications."
        )
    return path


def model_sha256(spec: str, *, weights: str = "imagenet") -> str:
    """Hex sha256 of the model's file (for keras:NAME of its name and weights): what a run is tied
    to.
    """
    if spec.startswith("keras:"):
        return hashlib.sha256(f"{spec} {weights}".encode()).hexdigest()
    return sha256_file(model_path(spec))


def load_model(spec: str, *, weights: str = "imagenet", allow_unsafe_deserialization: bool = False):
    """Loads a model without compiling it.

    Args:
      spec: demo | demo_detector | path to .keras, .h5 or SavedModel, of Keras 3 or Keras 2 |
        keras:NAME (a function of
        keras.applications).
      weights: for keras:NAME only: 'imagenet' (downloads) or 'none' (random, for trials).
      allow_unsafe_deserialization: lets a file bring Python code (Lambda layers). Off unless you
        trust the file.
    Returns: a Keras 3 model.
    Raises: FileNotFoundError; ValueError when the file is not a model or cannot be read safely.
    """
    if spec.startswith("keras:"):
        return _application(spec.removeprefix("keras:"), weights)
    path = model_path(spec)
    _require_model(path)
    unsafe = allow_unsafe_deserialization
    return _checked(
        lambda: in_float32(
            load_keras2(path, unsafe=unsafe)
            if saved_by_keras2(path)
            else _load_keras3(path, unsafe)
        ),
        path,
        unsafe,
    )


def in_float32(model):
    """The model itself, or where layers compute in half precision (mixed_float16 and the like) one
    that does so in float32.

    The weights are the same; TFLite's integers are made from float32 alone.
    """
    half = ("float16", "bfloat16")
    if not any(getattr(layer, "compute_dtype", None) in half for layer in model._flatten_layers()):
        return model

    def rewritten(config):
        if isinstance(config, dict):
            return {key: rewritten(value) for key, value in config.items()}
        if isinstance(config, list | tuple):
            return type(config)(map(rewritten, config))
        return (
            "float32"
            if isinstance(config, str) and config.removeprefix("mixed_") in half
            else config
        )

    rebuilt = type(model).from_config(rewritten(model.get_config()))
    if not rebuilt.built:
        rebuilt.build(model.input_shape)
    rebuilt.set_weights([np.asarray(weight, np.float32) for weight in model.get_weights()])
    return rebuilt


def _require_model(path: pathlib.Path) -> None:
    """Raises ValueError for what is no Keras model file, saying what it seems to be."""
    if path.is_dir():
        if not (path / "saved_model.pb").exists():
            raise ValueError(
                f"{path} is a folder without saved_model.pb, so it is no SavedModel. "
                "Give the path of the model in it."
            )
        if not (path / "keras_metadata.pb").exists():
            raise ValueError(
                f"{path} is a SavedModel without keras_metadata.pb: it holds a graph, "
                "as model.export writes it, and its "
                "BatchNorm layers cannot be told from that. Pass the .keras or .h5 "
                "file it was exported from."
            )
        return
    if not path.is_file():  # reading a pipe or a device may never end
        raise ValueError(
            f"{path} is no regular file. Give the path of a .keras or .h5 file, or of "
            "a SavedModel folder."
        )
    with path.open("rb") as file:
        head = file.read(8)
    if head == b"\x89HDF\r\n\x1a\n":
        return
    if head[:4] == b"PK\x03\x04":
        _require_whole(path)
        return
    hint = (
        "It is a TFLite model: BatchNorm is folded into its convolutions. "
        if head[4:] == b"TFL3"
        else ""
    )
    raise ValueError(
        f"{path} is neither a .keras archive nor an HDF5 file. {hint}Pass the Keras "
        "model as it was trained."
    )


def _require_whole(path: pathlib.Path) -> None:
    require_reasonable_zip(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged, names = archive.testzip(), archive.namelist()
    except Exception as error:  # zipfile's, zlib's and other errors of a damaged archive
        raise ValueError(
            f"{path} is a damaged .keras archive ({error}). Save or copy the model again."
        ) from error
    if damaged:
        raise ValueError(
            f"{path} is a damaged .keras archive (in {damaged}). Save or copy the model again."
        )
    if "config.json" not in names:
        raise ValueError(
            f"{path} is a zip file without config.json, so it is no .keras model. "
            "Save the model with model.save."
        )


def _load_keras3(path: pathlib.Path, unsafe: bool):
    import keras

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            config = archive.read("config.json")
        if b"keras_cv" in config:
            import keras_cv  # noqa: F401 - registers its layers with Keras
    return keras.models.load_model(path, compile=False, safe_mode=not unsafe)


def _checked(load, path: pathlib.Path, unsafe: bool):
    """load(), with whatever goes wrong as one ValueError: a broken file provokes any kind of error
    in Keras.
    """
    try:
        return load()
    except Exception as error:
        text = " ".join(str(error).split()).rstrip(".")
    if "OpLambda" in text:
        raise ValueError(
            f"{path} uses a TensorFlow function as a layer that has no counterpart "
            f"here ({text[:200]}). Build the "
            "model in Keras 3 from its code, give it the old weights with "
            "set_weights, and save that."
        )
    if not unsafe and ("Lambda" in text or "lambda" in text or "unsafe" in text):
        raise ValueError(
            f"{path} holds Python code (a Lambda layer); loading it would run that "
            "code. If you trust the file, "
            "give --allow_unsafe_deserialization; else build the model without "
            "Lambda and save it again."
        )
    if "Could not locate class" in text or "Unknown layer" in text:
        raise ValueError(
            f"{path} has layers of a class that Keras does not know: {text[:300]}. "
            "Import the code that defines and "
            "registers it and call dgh_tf.generate_images(model) from Python."
        )
    raise ValueError(f"Keras could not load {path}: {text[:400]}.")


def _application(name: str, weights: str):
    import keras

    builder = getattr(keras.applications, name, None)
    if not callable(builder) or not name[:1].isupper():
        names = [n for n in dir(keras.applications) if n[:1].isupper()]
        raise ValueError(f"keras.applications has no model {name!r}. It has: {', '.join(names)}.")
    if weights not in ("imagenet", "none"):
        raise ValueError(f"--weights must be imagenet or none, got {weights!r}.")
    if weights == "none":
        return _with_random_weights(builder(weights=None))
    try:
        return builder(weights=weights)
    except Exception as error:
        raise ValueError(
            f"The ImageNet weights of {name} could not be had ({error}). They are downloaded once; "
            "check the network, or give --weights=none for random ones."
        ) from error


def _with_random_weights(model):
    """The model with fixed random weights and, as if trained, the running statistics of noise
    images.

    Without them it would be refused as untrained. The same each time, so that an interrupted run
    can go on.
    """
    from dgh_tf.models.batchnorm import batchnorm_layers

    rng = np.random.default_rng(0)
    for variable in model.weights:
        shape = tuple(variable.shape)
        if len(shape) > 1:
            fan_in = np.prod(shape[:2]) if "depthwise" in variable.path else np.prod(shape[:-1])
            variable.assign(
                rng.normal(0.0, np.sqrt(2.0 / fan_in), shape).astype(np.float32)
            )  # He et al. 2015
    norms = batchnorm_layers(model)
    momenta = [layer.momentum for layer in norms]
    shape = tuple(side or 224 for side in model.inputs[0].shape[1:])
    declared = any(
        type(layer).__name__ in ("Rescaling", "Normalization") for layer in model._flatten_layers()
    )
    noise = np.clip(rng.normal(0.0, 0.5, (_TRIAL_IMAGES, *shape)), -1.0, 1.0).astype(np.float32)
    for layer in norms:
        layer.momentum = 0.0
    model((noise + 1.0) * 127.5 if declared else noise, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    return model
