"""Models saved by Keras 2 (tf_keras), rebuilt as Keras 3 models that give the same outputs.

Built by tf_keras from the config that was checked, given the file's numbers, written as HDF5, its
config rewritten where Keras 3 reads it differently, read by Keras 3, compared.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dgh_tf.common.processes import temporary_folder
from dgh_tf.models.allowed import FUNCTION_LAYERS, MODELS
from dgh_tf.models.batches import with_any_batch
from dgh_tf.models.files import Kind, ModelFile
from dgh_tf.models.keras2_functions import as_function_layer, function_layer
from dgh_tf.models.limits import DYNAMIC_SIDE, require_reasonable_activations, weights_limited

if TYPE_CHECKING:
    import keras


# of outputs, relative to the largest: float32 in another order of operations stays far below
TOLERANCE = 1e-3
HALF_TOLERANCE = (
    5e-2  # the same where the model computed with the 8 bits of bfloat16 or the 11 of float16
)
# what Keras 2 writes because of its class hierarchy, without effect there, and Keras 3 constructors
# have no argument for
INHERITED = (
    {
        kind: ["groups"]
        for kind in (
            "DepthwiseConv1D",
            "DepthwiseConv2D",
            "Conv1DTranspose",
            "Conv2DTranspose",
            "Conv3DTranspose",
        )
    }
    | {
        kind: ["groups", "kernel_initializer", "kernel_regularizer", "kernel_constraint"]
        for kind in ("SeparableConv1D", "SeparableConv2D")
    }
    | {
        kind: ["time_major"]
        for kind in ("RNN", "SimpleRNN", "GRU", "LSTM", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
    }
)


def load_keras2(file: ModelFile, *, unsafe: bool) -> keras.Model:
    """The Keras 3 form of a Keras 2 model.

    Args:
      file: what the file holds; its config is an allowed one unless `unsafe`.
      unsafe: whether the file may bring Python code.
    Raises: ValueError when it has layers or values that Keras 3 does not reproduce.
    """
    import keras
    import tf_keras

    with weights_limited(file.values):
        reference = (
            tf_keras.models.load_model(file.path, compile=False, safe_mode=False)
            if unsafe
            else _as_saved(file)
        )
    if not unsafe:
        require_reasonable_activations(reference)
    reference = with_any_batch(reference)
    with temporary_folder() as folder:
        rewritten = folder / "model.h5"
        try:
            with (
                warnings.catch_warnings(),
                _without_tensorflow_warnings(),
            ):  # that HDF5 is an old format: here it is the one both generations read
                warnings.simplefilter("ignore")
                reference.save(rewritten, save_format="h5", include_optimizer=False)
        except NotImplementedError as error:
            raise ValueError(
                f"it is the subclassed model {type(reference).__name__!r}, which only "
                "its own Python code can build again. "
                "Build it in Python and call dgh_tf.generate_images(model)"
            ) from error
        _rewrite(rewritten)
        known = {
            "TFOpLambda": function_layer(),
            "Functional": keras.Model,
        }  # Keras knows the latter at the outer levels only
        model = keras.models.load_model(
            rewritten, custom_objects=known, compile=False, safe_mode=not unsafe
        )
    if not model.built or not getattr(
        model, "inputs", None
    ):  # Sequential loses the shape of its input layer
        model.build(reference.input_shape)
    _require_equal(reference, model)
    return model


def _as_saved(file: ModelFile) -> Any:
    """The tf_keras model of an allowed config with the file's weights. tf_keras reads nothing of
    the file but numbers: its own loaders follow modules, run functions and initialize resources.
    """
    import h5py
    import tf_keras
    from tf_keras.src.saving import saving_lib
    from tf_keras.src.saving.legacy import hdf5_format

    model = tf_keras.models.model_from_config(_plain(file.config))
    if not model.built:
        built = file.config.get("build_config") or {}
        shape = built.get("input_shape") or file.config["config"].get("build_input_shape")
        model.build(_plain(shape))
    if file.kind is Kind.ARCHIVE:
        saving_lib.load_weights_only(model, file.path)
    elif file.kind is Kind.HDF5:
        with h5py.File(file.path, "r") as stored:
            hdf5_format.load_weights_from_hdf5_group(stored["model_weights"], model)
    else:
        status = model.load_weights(str(file.path / "variables" / "variables"))
        status.assert_existing_objects_matched()
        status.expect_partial()  # what only training needs is not read, and nothing to be told of
    return model


def _plain(config: Any) -> Any:
    """A config without what tf_keras could import or compile by: each class is found by its name
    alone, among tf_keras's own and those the program registered.
    """
    if isinstance(config, list):
        return [_plain(item) for item in config]
    if not isinstance(config, dict):
        return config
    kind = config.get("class_name")
    if kind in ("__tuple__", "TensorShape"):
        return [_plain(item) for item in config["items"]]
    if kind == "__ellipsis__":
        return Ellipsis
    if kind == "function":
        return config["config"]
    if kind is None:
        return {key: _plain(value) for key, value in config.items()}
    left_out = ("module", "registered_name", "build_config", "compile_config")
    kept = {key: _plain(value) for key, value in config.items() if key not in left_out}
    registered = config.get("registered_name")
    return {**kept, "class_name": registered if ">" in (registered or "") else kind}


@contextlib.contextmanager
def _without_tensorflow_warnings() -> Iterator[None]:
    """Holds back that a model's metrics are not built yet: nothing here trains or measures it."""
    logger = logging.getLogger("tensorflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _rewrite(file: pathlib.Path) -> None:
    import h5py

    with h5py.File(file, "r+") as h5:
        h5.attrs["model_config"] = json.dumps(as_keras3(json.loads(h5.attrs["model_config"])))


def _graph_as_keras3(model: dict) -> dict:
    """The graph of a model whose layers are as Keras 3 has them."""
    model["layers"] = [
        as_function_layer(layer) if layer["class_name"] in FUNCTION_LAYERS else layer
        for layer in model["layers"]
    ]
    _renumber(model)
    for ends in ("input_layers", "output_layers"):
        # one tensor, not a list of one: what comes after it takes no list
        if len(model.get(ends, [])) == 1:
            model[ends] = model[ends][0]
    names = [layer["config"]["name"] for layer in model["layers"]]
    slashed = {name for name in names if "/" in name}
    return _without_slashes(model, slashed) if slashed else model


def as_keras3(config: Any) -> Any:
    """A Keras 2 config as Keras 3 reads it: a changed copy.

    The differences: inherited arguments (see above); SyncBatchNormalization is
    BatchNormalization(synchronized=True); random augmentation, which takes other arguments and does
    nothing in inference; policies of half precision, which become float32; TensorFlow functions as
    layers; slashes in names; and a model used as a layer counts its own graph as node 0 in Keras 2,
    so its first use is node 1 there and node 0 in Keras 3.
    """
    if isinstance(config, list):
        return [as_keras3(item) for item in config]
    if not isinstance(config, dict):
        return config
    config = {key: as_keras3(value) for key, value in config.items()}
    inner, kind = config.get("config"), config.get("class_name")
    if kind == "Policy":
        return "float32"
    if isinstance(inner, dict):
        if str(kind).startswith("Random"):
            kept = {
                key: value for key, value in inner.items() if key in ("name", "batch_input_shape")
            }
            config["class_name"], config["config"] = "Activation", {**kept, "activation": "linear"}
        for name in INHERITED.get(kind, ()):
            inner.pop(name, None)
        if (
            isinstance(inner.get("axis"), list)
            and len(inner["axis"]) == 1
            and "BatchNormalization" in str(kind)
        ):
            inner["axis"] = inner["axis"][0]
        if kind == "SyncBatchNormalization":
            config["class_name"], config["config"] = (
                "BatchNormalization",
                {**inner, "synchronized": True},
            )
        if kind in MODELS and "layers" in inner:
            config["config"] = _graph_as_keras3(inner)
    return config


def _without_slashes(item: Any, names: set[str]) -> Any:
    """A config with '_' for '/' in the layers' `names`, wherever they stand: Keras 3 allows no
    slash there.
    """
    if isinstance(item, dict):
        return {key: _without_slashes(value, names) for key, value in item.items()}
    if isinstance(item, list):
        return [_without_slashes(value, names) for value in item]
    return item.replace("/", "_") if isinstance(item, str) and item in names else item


def _renumber(graph: dict) -> None:
    nested = {layer["config"]["name"] for layer in graph["layers"] if layer["class_name"] in MODELS}

    def visit(item: Any) -> None:
        if (
            isinstance(item, list)
            and len(item) >= 3
            and isinstance(item[0], str)
            and isinstance(item[1], int)
        ):
            if item[0] in nested:
                item[1] -= 1
        elif isinstance(item, list | dict):
            for value in item.values() if isinstance(item, dict) else item:
                visit(value)

    visit([layer.get("inbound_nodes", []) for layer in graph["layers"]])
    visit(graph.get("output_layers", []))


def _require_equal(reference: Any, model: keras.Model) -> None:
    """Raises ValueError where outputs on noise differ by more than rounding."""
    import tensorflow as tf

    from dgh_tf.models.network import call_model

    half = any(
        getattr(layer, "compute_dtype", None) in ("float16", "bfloat16")
        for layer in reference._flatten_layers()
    )
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    rng = np.random.default_rng(0)
    tensors = [
        rng.normal(size=(2, *(side or DYNAMIC_SIDE for side in t.shape[1:]))).astype(np.float32)
        for t in reference.inputs
    ]
    expected, actual = (tf.nest.flatten(call_model(m, tensors)) for m in (reference, model))
    for a, b in zip(expected, actual, strict=True):
        gap = float(
            np.max(np.abs(np.float32(a) - np.float32(b)))
            / max(float(np.max(np.abs(np.float32(a)))), 1e-6)
        )
        if not gap <= tolerance:
            raise ValueError(
                f"rebuilt in Keras 3 its outputs differ by {gap:.3g} of their size. "
                "Rebuild it there from its own code"
            )
