"""A Keras model becomes .tflite bytes: frozen here at batch 1, converted in a process of its
own.

Freezing a concrete function first keeps the batch fixed and the graph small on Keras 3 and tf_keras
alike, and it leaves no Keras in the worker. The converter is C++ that can crash; there it takes
only the worker with it.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgh_tf.common import processes
from dgh_tf.models.tflite.model import TFLiteModel, read_model
from dgh_tf.models.tflite.spec import CHANNEL_AXIS, FOUR_BIT_VERSION
from dgh_tf.models.tflite_model import float_file
from tflite_export.calibration.check import Images, check_calibration
from tflite_export.conversion import server
from tflite_export.conversion.freeze import (
    collected,
    file_names,
    in_float32,
    input_shapes,
    plain,
    save_frozen,
)
from tflite_export.simulation.fake_quant import WeightBits, bits_at
from tflite_export.tflite.edit import (
    float_weights,
    in_order,
    integer_weights,
    same_operators,
    with_constants,
    with_integers,
    with_own_biases,
    with_ranges,
)
from tflite_export.tflite.integer_kernels import with_integer_kernels
from tflite_export.tflite.names import with_short_names
from tflite_export.tflite.schemes import find_scheme

_SHOWN_LINES = 8  # of the worker's stderr in an error


class ConversionError(ValueError):
    """TensorFlow's converter refused the model, crashed or took too long."""


def run_worker(folder: str | os.PathLike, *, timeout: float | None = None) -> bytes:
    """Runs tflite_export.conversion.worker on a prepared folder (see there) and returns the .tflite
    bytes.

    Args:
      folder: holds what the worker reads; model.tflite is written there.
      timeout: seconds after which the worker is killed; None waits for ever.
    Raises:
      ConversionError: the worker failed, was killed by a signal or took too long; the text has its
        last lines.
    """
    folder = pathlib.Path(folder)
    try:
        code, stderr = server.run(folder, timeout=timeout)
    except TimeoutError:
        raise ConversionError(
            f"The TFLite converter took more than {timeout:g} s and was stopped. Use "
            "fewer calibration images or a "
            "longer timeout."
        ) from None
    if code == 0:
        return (folder / "model.tflite").read_bytes()
    server.require_room(code, folder)
    noise = ("I0000", "W0000", "WARNING: All log messages")  # of TensorFlow's start
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith(noise)][
        -_SHOWN_LINES:
    ]
    tail = "Its last lines were:\n  " + "\n  ".join(lines) if lines else "It printed nothing."
    if code < 0:
        name = signal.Signals(-code).name
        raise ConversionError(
            f"The TFLite converter crashed with {name}; expected a model. Bad "
            "calibration data, an operator it cannot "
            f"quantize or too little memory are the usual causes. {tail}"
        )
    error = folder / "error.txt"
    text = error.read_text()[:2000] if error.exists() else f"exit code {code}. {tail}"
    raise ConversionError(f"The TFLite converter could not convert the model: {text}")


def _convert(
    model: Any,
    shapes: Mapping[str, Sequence[int]],
    arrays: Mapping[str, np.ndarray],
    *,
    scheme: str | None,
    timeout: float | None,
    examples: Mapping[str, np.ndarray] | None = None,
    apart: bool = False,
) -> bytes:
    """arrays: what calibrates the file. examples: images for a file that nothing calibrates. apart:
    whether the model is known to treat each image by itself.
    """
    with processes.temporary_folder() as folder:
        names = list(file_names(list(arrays), side="input"))
        for i, array in enumerate(arrays.values()):
            np.save(folder / f"{i}.npy", array, allow_pickle=False)
        (folder / "request.json").write_text(json.dumps({"scheme": scheme, "inputs": names}))
        shown = None if apart else arrays or examples or {}
        outputs = save_frozen(
            in_float32(model),
            folder / "model",
            shapes=shapes,
            images=shown,
            activation_bits=16 if scheme and find_scheme(scheme).io_dtype == "int16" else 8,
        )
        made = run_worker(folder, timeout=timeout)
    return in_order(
        with_integer_kernels(made),
        inputs=file_names(list(shapes), side="input"),
        outputs=file_names(outputs, side="output"),
    ).data


def to_tflite(
    model: Any, images: Images, *, scheme: str = "int8", timeout: float | None = None
) -> bytes:
    """Converts a model to full-integer TFLite at batch 1.

    Args:
      model: Keras 3 or tf_keras model; functional, sequential or subclassed, any number of float
        inputs and outputs.
      images: calibration images [number, ...input shape] in the model's input units, or a dict by
        input name. A list of images, a tf.data.Dataset, a generator or a representative_dataset
        function will do as well.
      scheme: "int8" (int8 weights and activations), "int16x8" (int8 weights, int16 activations) or
        "w4a8" (packed INT4 weights of convolutions, depthwise and dense layers, rounded to nearest
        with scales of least squared error; int8 activations). Inputs and outputs of the file have
        the activations' type.
      timeout: seconds for the converter; None waits for ever.
    Returns:
      The .tflite file's bytes. Its signature serving_default keeps the names of inputs and outputs,
      of any script; a space or a sign becomes an underscore, and of two outputs that would have one
      name the second gets a number. Inputs and outputs stand in the model's order.
    Raises:
      ValueError: unknown scheme or bad calibration images (see `check_calibration`).
      TypeError: something that holds no images.
      ConversionError: the converter failed or crashed.
    """
    find_scheme(scheme)
    if scheme == "mixed":
        raise ValueError(
            "Scheme mixed chooses the bits of each layer by a limit. Use quantize(model, images, "
            "scheme='mixed', max_kib=...)."
        )
    if float_file(model) is not None:
        raise ValueError(
            f"Model '{model.name}' is a .tflite file, which TensorFlow's converter does not start "
            "from. Use quantize(model, images, algorithm='minmax')."
        )
    images = collected(model, images)
    arrays = check_calibration(images, input_shapes=input_shapes(model, images))
    return convert_checked(model, arrays, scheme=scheme, timeout=timeout)


def convert_checked(
    model: Any,
    arrays: Mapping[str, np.ndarray],
    *,
    scheme: str,
    timeout: float | None = None,
    float_tflite: bytes | None = None,
) -> bytes:
    """`to_tflite` for arrays that `check_calibration` gave.

    Args:
      model: Keras 3 or tf_keras model.
      arrays: float32 [images, ...] by input name, in the model's input units.
      scheme: a name that `find_scheme` knows.
      timeout: seconds of each conversion; None waits for ever.
      float_tflite: the model's file of `to_float_tflite`, where it is made already: w4a8 takes the
        weights from it, and the model has been found to treat each image by itself.
    """
    shapes = {name: array.shape[1:] for name, array in arrays.items()}
    apart = float_tflite is not None
    tflite = _convert(model, shapes, arrays, scheme=scheme, timeout=timeout, apart=apart)
    if find_scheme(scheme).weight_bits == 8:
        return tflite
    float_tflite = float_tflite or _convert(
        model, shapes, {}, scheme=None, timeout=timeout, apart=True
    )
    return _four_bit(tflite, float_tflite)


def _four_bit(tflite: bytes, float_tflite: bytes) -> bytes:
    """The int8 file with its weights rounded to 4 bits from the float file's."""
    from tflite_export.simulation.fake_quant import quantize_weights

    made, source = read_model(tflite), read_model(float_tflite)
    names, present = same_operators(source, made), integer_weights(made)
    weights = {}
    for name, (kind, values) in float_weights(source).items():
        other, axis = names.get(name, name), CHANNEL_AXIS[kind]
        fits = other in present and present[other][0].shape == values.shape
        if kind in FOUR_BIT_VERSION and fits:
            weights[other] = quantize_weights(values, axis=axis, weight_bits=4, rule="mse")
    if not weights:
        raise ValueError(
            "The model has no weights that can be 4 bits; expected at least one of "
            f"{', '.join(FOUR_BIT_VERSION)} with "
            "constant weights. Use --scheme=int8."
        )
    return with_short_names(with_integers(made, weights=weights, weight_bits=4)).data


def to_tflite_with_ranges(
    float_tflite: bytes | TFLiteModel,
    *,
    ranges: Mapping[int, tuple[float, float]],
    constants: Mapping[int, np.ndarray] | None = None,
    weights: Mapping[int, tuple[np.ndarray, np.ndarray]] | None = None,
    weight_bits: WeightBits = 8,
    timeout: float | None = None,
) -> bytes:
    """A float .tflite file becomes a full-integer one with exactly these ranges, biases and
    integers.

    Args:
      float_tflite: of `to_float_tflite`; tensor indices below are those of its `read_model`.
      ranges: (low, high) of every input and activation in the model's units, from
        `ranges.collect_ranges`.
      constants: float weights and biases to use instead of the file's (equalized, bias-corrected).
      weights: (integers, scales) to use instead of the converter's rounding, as
        `fake_quant.quantize_weights` makes them.
      weight_bits: of `weights`, one for all or by tensor index: 8 (INT8 tensors) or 4 (packed INT4;
        operators without a kernel for it stay at 8).
      timeout: seconds for the converter; None waits for ever.
    Returns:
      The .tflite bytes with int8 activations, inputs and outputs. 16-bit activations have no such
      path.
    Raises:
      ValueError: constants or integers that do not fit (see `edit.with_integers`).
      ConversionError: the quantizer failed or crashed.
    """
    with processes.temporary_folder() as folder:
        changed = with_constants(float_tflite, constants=constants or {})
        (folder / "calibrated.tflite").write_bytes(with_ranges(changed, ranges=ranges).data)
        (folder / "request.json").write_text(json.dumps({"scheme": "int8", "inputs": []}))
        tflite = run_worker(folder, timeout=timeout)
    return with_chosen_weights(
        with_integer_kernels(tflite), float_tflite, weights=weights or {}, weight_bits=weight_bits
    ).data


def with_chosen_weights(
    tflite: bytes | TFLiteModel,
    float_tflite: bytes | TFLiteModel,
    *,
    weights: Mapping[int, tuple[np.ndarray, np.ndarray]],
    weight_bits: WeightBits,
) -> TFLiteModel:
    """The int8 file with other integers, and short names; `weights` and `weight_bits` by tensor
    index of the float file, as `to_tflite_with_ranges` takes them.
    """
    made, source = read_model(tflite), read_model(float_tflite)
    names = same_operators(source, made)
    split: dict[int, dict[str, Any]] = {}
    for o in source.operators:
        if o.kind in CHANNEL_AXIS and o.inputs[1] in weights:
            bits = bits_at(weight_bits, o.inputs[1]) if o.kind in FOUR_BIT_VERSION else 8
            name = o.output_tensors[0].name
            split.setdefault(bits, {})[names.get(name, name)] = weights[o.inputs[1]]
    for bits, named in sorted(split.items()):
        made = with_integers(made, weights=named, weight_bits=bits)
    return with_short_names(made) if split else made


def to_float_tflite(
    model: Any, *, images: Images | None = None, timeout: float | None = None
) -> bytes:
    """Converts a model to a float32 TFLite file at batch 1, as a reference for the integer one.

    Every operator with weights has a bias of its own there (see `with_own_biases`).

    Args:
      model: Keras 3 or tf_keras model; one that `load_model` made of a .tflite file is that file.
      images: read only for shapes the model does not declare: axes of any size, and subclassed
        models.
      timeout: seconds of the conversion; None waits for ever.
    Raises:
      ValueError: such a shape is needed and `images` is None.
      ConversionError: the converter failed or crashed.
    """
    file = float_file(model)
    if file is not None:
        return with_own_biases(file).data
    images = None if images is None else collected(model, images)
    shapes: dict[str, tuple[Any, ...]] = dict(input_shapes(model, images))
    arrays: dict[str, Any] = {}
    if images is not None:
        given = images if isinstance(images, Mapping) else {next(iter(shapes)): images}
        arrays = {plain(name): np.asarray(array) for name, array in given.items()}
        shapes = {name: array.shape[1:] for name, array in arrays.items()}
    if any(size is None for shape in shapes.values() for size in shape):
        raise ValueError(
            f"Model '{model.name}' has inputs of any size: {shapes}. Pass images to fix the size."
        )
    return with_own_biases(
        _convert(model, shapes, {}, scheme=None, timeout=timeout, examples=arrays)
    ).data
