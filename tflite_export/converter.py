"""keras: a Keras model becomes .tflite bytes: frozen here at batch 1, converted in a process of its own.

Freezing a concrete function first keeps the batch fixed and the graph small on Keras 3 and tf_keras alike, and it
leaves no Keras in the worker. The converter is C++ that can crash; there it takes only the worker with it.
"""
from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tflite_export import warm
from tflite_export.calibration import Images, check_calibration
from tflite_export.rewriting import in_order
from tflite_export.worker import SCHEMES

_SHOWN_LINES = 8  # of the worker's stderr in an error


class ConversionError(ValueError):
    """TensorFlow's converter refused the model, crashed or took too long."""


def plain(name: str) -> str:
    """A name that TensorFlow signatures accept unchanged: ASCII letters, digits and underscores, the first no underscore."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return f"x{name}" if name.startswith("_") else name


def _is_functional(model: Any) -> bool:
    """Whether the model knows its symbolic inputs; subclassed models do not."""
    return bool(getattr(model, "inputs", None))


def _symbolic_input(model: Any) -> Any:
    """The model's symbolic input: a tensor, list or dict. Sequential models loaded and never called have only `inputs`."""
    return model.input if hasattr(model, "input") else model.inputs[0]


def input_shapes(model: Any, images: Images | None = None) -> dict[str, tuple[int | None, ...]]:
    """Shapes without the batch axis by input name, in the model's order.

    Args:
      model: a Keras 3 or tf_keras model.
      images: read for the names and shapes of a subclassed model, which declares none.
    Raises:
      ValueError: an input that is not float, inputs of one name in the file, or a subclassed model without images.
    """
    import tensorflow as tf

    if _is_functional(model):
        tensors = tf.nest.flatten(_symbolic_input(model))
        for tensor in tensors:
            if not tf.as_dtype(tensor.dtype).is_floating:
                raise ValueError(
                    f"Input '{tensor.name}' of model '{model.name}' takes {tf.as_dtype(tensor.dtype).name}; expected a "
                    "float input, such as an image. Export the part of the model behind that input."
                )
        shapes = {plain(tensor.name): tuple(tensor.shape[1:]) for tensor in tensors}
        if len(shapes) < len(tensors):
            raise ValueError(f"Inputs {', '.join(t.name for t in tensors)} of model '{model.name}' would have the same name in the file. "
                             "Rename them so that they differ in letters or digits.")
        return shapes
    if images is None:
        raise ValueError(
            f"Model '{model.name}' is subclassed and declares no inputs, so their shapes are unknown. Pass images."
        )
    arrays = images if isinstance(images, Mapping) else {"input": images}
    return {name: tuple(np.shape(array)[1:]) for name, array in arrays.items()}


def named_outputs(model: Any, outputs: Any) -> dict[str, Any]:
    """Outputs as named in the .tflite file: dict keys (path joined by _), layer names of a list, 'output' for a single one."""
    if isinstance(outputs, Mapping):
        named = {}
        for key in sorted(outputs):
            inner = named_outputs(None, outputs[key])
            named |= {plain(str(key)) if len(inner) == 1 else plain(f"{key}_{n}"): t for n, t in inner.items()}
        return named
    if not isinstance(outputs, (list, tuple)):
        return {"output": outputs}
    if len(outputs) == 1:
        return named_outputs(model, outputs[0])
    names = [plain(n) for n in getattr(model, "output_names", None) or []]
    if len(set(names)) != len(outputs) or any(isinstance(o, (Mapping, list, tuple)) for o in outputs):
        names = [f"output_{i}" for i in range(len(outputs))]
    named = {}
    for name, output in zip(names, outputs, strict=True):
        inner = named_outputs(None, output)
        named |= {name if len(inner) == 1 else f"{name}_{n}": t for n, t in inner.items()}
    return named


def _as_called(names: list[str], tensors: Sequence[Any]) -> Any:
    """A subclassed model's argument from the names that dgh_tf gives its inputs: input; input_0, input_1, ... of a list; keys of a dict."""
    if names == ["input"]:
        return tensors[0]
    return list(tensors) if names == [f"input_{i}" for i in range(len(names))] else dict(zip(names, tensors, strict=True))


@contextlib.contextmanager
def _unrolled(model: Any) -> Iterator[None]:
    """Recurrent layers written out step by step while the model is traced: TensorFlow's converter crashes on their loops."""
    layers = [layer for layer in model._flatten_layers() if getattr(layer, "unroll", None) is False]
    settings = {"unroll": True, "_could_use_gpu_kernel": False}  # the latter is tf_keras's: true, it calls a loop whatever unroll says
    before = [(layer, name, getattr(layer, name)) for layer in layers for name in settings if hasattr(layer, name)]
    for layer, name, _ in before:
        setattr(layer, name, settings[name])
    try:
        yield
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)


def save_frozen(model: Any, folder: str | os.PathLike, *, shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """Saves `model` with its weights as constants and batch 1 to a SavedModel; returns the output names in the model's order.

    The signature serving_default takes float32 [1, ...shape] by input name and gives a dict by output name.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    order: list[str] = []

    def named(*tensors):
        functional = _is_functional(model)
        packed = tf.nest.pack_sequence_as(_symbolic_input(model), tensors) if functional else _as_called(list(shapes), tensors)
        outputs = named_outputs(model, model(packed, training=False))
        order[:] = outputs
        return {name: tf.convert_to_tensor(output) for name, output in outputs.items()}

    specs = [tf.TensorSpec((1, *shape), tf.float32, name=name) for name, shape in shapes.items()]
    with _unrolled(model):
        traced = tf.function(named, autograph=False).get_concrete_function(*specs)
    names = sorted(traced.structured_outputs)  # the frozen function's outputs are flat, in this order
    frozen = convert_variables_to_constants_v2(traced)

    def signature(*tensors):
        # identity: a name of its own for every output, also when two outputs are one tensor
        return {name: tf.identity(value) for name, value in zip(names, frozen(*tensors), strict=True)}

    module = tf.Module()
    module.signature = tf.function(signature, autograph=False, input_signature=specs)
    # SiLU's custom gradient captures tensors that a frozen graph does not hold; inference needs no gradient
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, str(folder), signatures=module.signature, options=options)
    return order


def run_worker(folder: str | os.PathLike, *, timeout: float | None = None) -> bytes:
    """Runs tflite_export.worker on a prepared folder (see there) and returns the .tflite bytes.

    Args:
      timeout: seconds after which the worker is killed; None waits for ever.
    Raises:
      ConversionError: the worker failed, was killed by a signal or took too long; the text has its last lines.
    """
    folder = pathlib.Path(folder)
    try:
        code, stderr = warm.run(folder, timeout=timeout)
    except TimeoutError:
        raise ConversionError(
            f"The TFLite converter took more than {timeout:g} s and was stopped. Use fewer calibration images or a "
            "longer timeout."
        ) from None
    if code == 0:
        return (folder / "model.tflite").read_bytes()
    noise = ("I0000", "W0000", "WARNING: All log messages")  # of TensorFlow's start
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith(noise)][-_SHOWN_LINES:]
    tail = "Its last lines were:\n  " + "\n  ".join(lines) if lines else "It printed nothing."
    if code < 0:
        name = signal.Signals(-code).name
        raise ConversionError(
            f"The TFLite converter crashed with {name}; expected a model. Bad calibration data, an operator it cannot "
            f"quantize or too little memory are the usual causes. {tail}"
        )
    error = folder / "error.txt"
    text = error.read_text()[:2000] if error.exists() else f"exit code {code}. {tail}"
    raise ConversionError(f"The TFLite converter could not convert the model: {text}")


def _in_float32(model: Any) -> Any:
    """The model with float32 layers: the converter has no kernels for half precision. Raises ValueError where it cannot be rebuilt."""
    from dgh_tf.loading import in_float32

    try:
        return in_float32(model)
    except Exception as error:  # a subclass's from_config can fail in any way
        raise ValueError(f"Model '{model.name}' computes in half precision and cannot be rebuilt in float32 ({type(error).__name__}). "
                         "Build it with the dtype policy float32 and give it the same weights with set_weights.") from error


def _convert(model: Any, shapes: Mapping[str, Sequence[int]], arrays: Mapping[str, np.ndarray], scheme: str | None,
             timeout: float | None) -> bytes:
    with tempfile.TemporaryDirectory(prefix="tflite_export_") as name:
        folder = pathlib.Path(name)
        for i, array in enumerate(arrays.values()):
            np.save(folder / f"{i}.npy", array, allow_pickle=False)
        (folder / "request.json").write_text(json.dumps({"scheme": scheme, "inputs": list(arrays)}))
        outputs = save_frozen(_in_float32(model), folder / "model", shapes=shapes)
        return in_order(run_worker(folder, timeout=timeout), inputs=list(shapes), outputs=outputs)


def to_tflite(model: Any, images: Images, *, scheme: str = "int8", timeout: float | None = None) -> bytes:
    """Converts a model to full-integer TFLite at batch 1.

    Args:
      model: Keras 3 or tf_keras model; functional, sequential or subclassed, any number of float inputs and outputs.
      images: calibration images [number, ...input shape] in the model's input units, or a dict by input name.
      scheme: "int8" (int8 weights and activations), "int16x8" (int8 weights, int16 activations) or "w4a8" (packed INT4
        weights of convolutions, depthwise and dense layers, rounded to nearest with scales of least squared error; int8
        activations). Inputs and outputs of the file have the activations' type.
      timeout: seconds for the converter; None waits for ever.
    Returns:
      The .tflite file's bytes. Its signature serving_default keeps the names of inputs and outputs; a character that
      is not an ASCII letter, digit or underscore becomes an underscore. Inputs and outputs stand in the model's order.
    Raises:
      ValueError: unknown scheme or bad calibration images (see `check_calibration`).
      ConversionError: the converter failed or crashed.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"Unknown scheme '{scheme}'; expected one of {', '.join(SCHEMES)}.")
    if isinstance(images, Mapping):
        images = {plain(name): array for name, array in images.items()}
    arrays = check_calibration(images, input_shapes=input_shapes(model, images))
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    tflite = _convert(model, shapes, arrays, scheme, timeout)
    return tflite if scheme != "w4a8" else _four_bit(tflite, _convert(model, shapes, {}, None, timeout))


def _four_bit(tflite: bytes, float_tflite: bytes) -> bytes:
    """The int8 file with its weights rounded to 4 bits from the float file's."""
    from tflite_export.rewriting import CHANNEL_AXIS, FOUR_BIT_VERSION, float_weights, integer_weights, with_integers
    from tflite_export.simulator import quantize_weights

    present = integer_weights(tflite)
    weights = {
        name: quantize_weights(values, axis=CHANNEL_AXIS[kind], weight_bits=4, rule="mse")
        for name, (kind, values) in float_weights(float_tflite).items()
        if kind in FOUR_BIT_VERSION and name in present and present[name][0].shape == values.shape
    }
    if not weights:
        raise ValueError(
            f"The model has no weights that can be 4 bits; expected at least one of {', '.join(FOUR_BIT_VERSION)} with "
            "constant weights. Use --scheme=int8."
        )
    return with_integers(tflite, weights=weights, weight_bits=4)


def to_tflite_with_ranges(
    float_tflite: bytes,
    *,
    ranges: Mapping[int, tuple[float, float]],
    constants: Mapping[int, np.ndarray] | None = None,
    weights: Mapping[int, tuple[np.ndarray, np.ndarray]] | None = None,
    weight_bits: int = 8,
    timeout: float | None = None,
) -> bytes:
    """A float .tflite file becomes a full-integer one with exactly these ranges, biases and integers.

    Args:
      float_tflite: of `to_float_tflite`; tensor indices below are those of its `read_graph`.
      ranges: (low, high) of every input and activation in the model's units, from `ranges.collect_ranges`.
      constants: float weights and biases to use instead of the file's (equalized, bias-corrected).
      weights: (integers, scales) to use instead of the converter's rounding, as `simulator.quantize_weights` makes them.
      weight_bits: of `weights`: 8 (INT8 tensors) or 4 (packed INT4; operators without a kernel for it stay at 8).
      timeout: seconds for the converter; None waits for ever.
    Returns:
      The .tflite bytes with int8 activations, inputs and outputs. 16-bit activations have no such path.
    Raises:
      ValueError: constants or integers that do not fit (see `rewriting.with_integers`).
      ConversionError: the quantizer failed or crashed.
    """
    from tflite_export.graph import read_graph
    from tflite_export.rewriting import CHANNEL_AXIS, FOUR_BIT_VERSION, with_constants, with_integers, with_ranges

    with tempfile.TemporaryDirectory(prefix="tflite_export_") as name:
        folder = pathlib.Path(name)
        calibrated = with_ranges(with_constants(float_tflite, constants=constants or {}), ranges=ranges)
        (folder / "calibrated.tflite").write_bytes(calibrated)
        (folder / "request.json").write_text(json.dumps({"scheme": "int8", "inputs": []}))
        tflite = run_worker(folder, timeout=timeout)
    graph, split = read_graph(float_tflite), {weight_bits: {}, 8: {}}
    for o in graph.operators:
        if o.kind in CHANNEL_AXIS and o.inputs[1] in (weights or {}):
            split[weight_bits if o.kind in FOUR_BIT_VERSION else 8][graph.tensors[o.outputs[0]].name] = weights[o.inputs[1]]
    for bits, named in split.items():
        tflite = with_integers(tflite, weights=named, weight_bits=bits) if named else tflite
    return tflite


def to_float_tflite(model: Any, *, images: Images | None = None, timeout: float | None = None) -> bytes:
    """Converts a model to a float32 TFLite file at batch 1, as a reference for the integer one.

    Args:
      images: read only for shapes the model does not declare: axes of any size, and subclassed models.
    Raises:
      ValueError: such a shape is needed and `images` is None.
      ConversionError: the converter failed or crashed.
    """
    shapes = input_shapes(model, images)
    if images is not None:
        given = images if isinstance(images, Mapping) else {next(iter(shapes)): images}
        shapes = {plain(name): tuple(np.shape(array)[1:]) for name, array in given.items()}
    if any(size is None for shape in shapes.values() for size in shape):
        raise ValueError(f"Model '{model.name}' has inputs of any size: {shapes}. Pass images to fix the size.")
    return _convert(model, shapes, {}, None, timeout)
