"""From a model's name or path to a Keras 3 model. Nothing is deserialized into code unless
the user says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from dgh_tf.common.files import sha256_file
from dgh_tf.models.allowed import require_allowed, require_bounded
from dgh_tf.models.batches import with_any_batch
from dgh_tf.models.files import ModelFile, is_tflite, read_model_file
from dgh_tf.models.keras2 import load_keras2
from dgh_tf.models.limits import require_reasonable_activations, weights_limited
from dgh_tf.models.tflite_model import load_tflite

if TYPE_CHECKING:
    import keras

DEMO_FOLDER = pathlib.Path(__file__).parents[1] / "demo"
DEMOS = {name: DEMO_FOLDER / f"{name}.keras" for name in ("demo", "demo_detector", "demo_signal")}
_TRIAL_IMAGES = 8  # noise images that give a random model its running statistics


def model_path(spec: str) -> pathlib.Path:
    """The file or folder behind a model spec. Raises FileNotFoundError naming what is accepted."""
    path = DEMOS.get(spec, pathlib.Path(spec))
    try:
        str(path).encode()
    except UnicodeEncodeError:  # of a name that is bytes; the manifest and report hold text alone
        raise ValueError(
            f"The name of the model {str(path)!a} is not UTF-8, so that no report could name it. "
            "Rename the file."
        ) from None
    if not spec.strip() or not path.exists():
        raise FileNotFoundError(
            f"No model at {str(path)!r}. Give demo, demo_detector, demo_signal, the path of a "
            ".keras, .h5 or float .tflite file or of a "
            "SavedModel folder, or keras:NAME for a model of keras.applications."
        )
    return path


def require_model(spec: str, *, signature: str = "") -> None:
    """Refuses a model spec with nothing behind it, without TensorFlow: what a command asks before
    it starts. Raises as `model_path` does, and ValueError for a signature of what has none.
    """
    path = None if spec.startswith("keras:") else model_path(spec)
    if signature and (path is None or not is_tflite(path)):
        raise ValueError(f"--signature={signature} is for .tflite files; {path or spec} is none.")


def model_sha256(spec: str, *, weights: str = "imagenet", signature: str = "") -> str:
    """Hex sha256 of the model's file (for keras:NAME of its name and weights, for a signature asked
    for of both): what a run is tied to.
    """
    if spec.startswith("keras:"):
        return hashlib.sha256(f"{spec} {weights}".encode()).hexdigest()
    digest = sha256_file(model_path(spec))
    return hashlib.sha256(f"{digest} {signature}".encode()).hexdigest() if signature else digest


def load_model(
    spec: str | os.PathLike[str],
    *,
    weights: str = "imagenet",
    allow_unsafe_deserialization: bool = False,
    signature: str = "",
) -> keras.Model:
    """Loads a model without compiling it.

    Args:
      spec: demo | demo_detector | demo_signal | path to .keras, .h5 or SavedModel, of Keras 3 or
        Keras 2, or to a float .tflite | keras:NAME (a function of keras.applications).
      weights: for keras:NAME only: 'imagenet' (downloads) or 'none' (random, for trials).
      allow_unsafe_deserialization: lets a file bring Python code (Lambda layers). Off unless you
        trust the file.
      signature: of a .tflite file with several, the key of the one to take.
    Returns: a Keras 3 model; of a .tflite file one that computes what the file does.
    Raises: FileNotFoundError; ValueError when the file is not a model or cannot be read safely.

    Example:
      >>> load_model("demo").output_shape
      (None, 10)
    """
    spec = os.fspath(spec)
    require_model(spec, signature=signature)
    if spec.startswith("keras:"):
        return _application(spec.removeprefix("keras:"), weights)
    path, unsafe = model_path(spec), allow_unsafe_deserialization
    if is_tflite(path):
        return load_tflite(path, signature=signature)
    file = read_model_file(path)
    if unsafe:
        require_bounded(file.config, path=str(path))
    else:
        require_allowed(file.config, path=str(path), custom=_registered)
    load = load_keras2 if file.keras2 else _load_keras3
    return with_any_batch(_checked(lambda: in_float32(load(file, unsafe=unsafe)), path))


def in_float32(model: Any) -> keras.Model:
    """The model itself, or where layers compute in half or double precision (mixed_float16, float64
    and the like) one that does so in float32.

    The weights are the same; TFLite's integers are made from float32 alone.
    """
    others = ("float16", "bfloat16", "float64")
    if not any(
        getattr(layer, "compute_dtype", None) in others for layer in model._flatten_layers()
    ):
        return model

    def rewritten(config: Any) -> Any:
        if isinstance(config, dict):
            return {key: rewritten(value) for key, value in config.items()}
        if isinstance(config, list | tuple):
            return type(config)(map(rewritten, config))
        return (
            "float32"
            if isinstance(config, str) and config.removeprefix("mixed_") in others
            else config
        )

    rebuilt = type(model).from_config(rewritten(model.get_config()))
    if not rebuilt.built:
        rebuilt.build(model.input_shape)
    rebuilt.set_weights([np.asarray(weight, np.float32) for weight in model.get_weights()])
    return rebuilt


def _load_keras3(file: ModelFile, *, unsafe: bool) -> keras.Model:
    import keras

    if "keras_cv" in json.dumps(file.config):
        import keras_cv  # noqa: F401 - registers its layers with Keras
    with weights_limited(file.values):
        model = keras.models.load_model(file.path, compile=False, safe_mode=not unsafe)
    if not unsafe:
        require_reasonable_activations(model)
    return model


def _registered(name: str) -> bool:
    """Whether the program itself registered a class or function of this name with Keras 2 or 3."""
    import keras

    libraries = ("keras", "tf_keras", "keras_cv")
    # a program that registers something has imported the library: its import takes a while
    generations = [keras, *filter(None, [sys.modules.get("tf_keras")])]
    found = [generation.utils.get_registered_object(name) for generation in generations]
    return any(
        item is not None and str(getattr(item, "__module__", "")).split(".")[0] not in libraries
        for item in found
    )


def _checked(load: Callable[[], keras.Model], path: pathlib.Path) -> keras.Model:
    """load(), with whatever goes wrong as one ValueError: a broken file provokes any kind of error
    in Keras.
    """
    try:
        return load()
    except Exception as error:
        text = " ".join(str(error).split()).rstrip(".")
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if "OpLambda" in text:
        raise ValueError(
            f"{path} uses a TensorFlow function as a layer that has no counterpart "
            f"here ({text[:200]}). Build the "
            "model in Keras 3 from its code, give it the old weights with "
            "set_weights, and save that."
        )
    if "Could not locate class" in text or "Unknown layer" in text:
        raise ValueError(
            f"{path} has layers of a class that Keras does not know: {text[:300]}. "
            "Import the code that defines and "
            "registers it and call dgh_tf.generate_images(model) from Python."
        )
    raise ValueError(f"Keras could not load {path}: {text[:400]}.")


def _application(name: str, weights: str) -> keras.Model:
    import keras

    builder = getattr(keras.applications, name, None)
    if not callable(builder) or not name[:1].isupper():
        names = [n for n in dir(keras.applications) if n[:1].isupper()]
        raise ValueError(f"keras.applications has no model {name!r}. It has: {', '.join(names)}.")
    if weights not in ("imagenet", "none"):
        raise ValueError(f"weights={weights}: expected imagenet or none.")
    if weights == "none":
        return _with_random_weights(builder(weights=None))
    try:
        return builder(weights=weights)
    except Exception as error:
        raise ValueError(
            f"The ImageNet weights of {name} could not be had ({error}). They are downloaded once; "
            "check the network, or give weights=none for random ones."
        ) from error


def _with_random_weights(model: keras.Model) -> keras.Model:
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
