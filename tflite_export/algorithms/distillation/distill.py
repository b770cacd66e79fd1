"""Quantization-aware distillation: a fake-quantized copy learns to answer as the float model
does, without labels.

The images may be generated: what is learned is the float model's own answer. The training is
TFMOT's, which takes only tf_keras models and turns its whole process to Keras 2: the model is
rebuilt (see `to_tf_keras`) and trained in a process of its own (see `worker`). BatchNorm is folded
into the weights before training, so no running statistics are left that generated images could
move; those that cannot be folded are frozen.

Four bits start from learned roundings (see `block_reconstruction`): rounding to nearest destroys a
depthwise network, and training then finds no way back.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dgh_tf.common import processes
from tflite_export.calibration.check import Images, check_calibration
from tflite_export.conversion.converter import ConversionError
from tflite_export.conversion.freeze import input_shapes, named_outputs, plain
from tflite_export.conversion.server import require_room

WEIGHT_BITS = {"int8": 8, "w4a8": 4}
# of Adam, in steps of the integer grid; at five times the first the weights of a small net no
# longer settle, and where roundings are learned already, the first unlearns them on images that are
# not many (MobileNetV1-0.25)
_RATES = {"int8": 0.01, "w4a8": 0.003}
_SHOWN_LINES = 8  # of the worker's stderr in an error


def distill(
    model: Any,
    images: Images,
    *,
    scheme: str = "w4a8",
    seed: int = 0,
    steps: int = 400,
    batch_size: int = 32,
    rate: float | None = None,
    augment: bool = True,
    head: str = "model",
    say: Callable[[str], None] | None = None,
    timeout: float | None = None,
) -> bytes:
    """Trains a model's quantized form on the model's own answers and converts it to full-integer
    TFLite at batch 1.

    Args:
      model: Keras 3 or tf_keras, functional or sequential. It is not changed.
      images: [number, ...input shape] in the model's input units, or a dict by input name. No
        labels are used.
      scheme: "int8", or "w4a8": packed 4-bit weights of convolution, depthwise and dense layers,
        8-bit activations.
      seed: of the order of images, their augmentation, and the roundings that "w4a8" starts from.
        The same seed gives the same bytes on the same machine.
      steps: of the training, not of the roundings; 0 or more.
      batch_size: images of each step of the training.
      rate: of Adam at its start, in steps of the integer grid; None for the scheme's.
      augment: flip and shift images of at least 16 pixels a side.
      head: "logits" leaves out a softmax or sigmoid at the outputs, which keep their names.
      say: gets a line of progress now and then, with the seconds left.
      timeout: seconds of the conversion to float and of the training; None waits for ever.
    Returns:
      The .tflite file's bytes, names of inputs and outputs as `to_tflite` gives them.
    Raises:
      ValueError: unknown scheme, bad images, or (LegacyError) a layer without a counterpart in
        tf_keras.
      ConversionError: a layer that TFMOT cannot quantize, or the worker failed, crashed or took too
        long.
    """
    if scheme not in WEIGHT_BITS:
        raise ValueError(
            f"Distillation has no scheme '{scheme}'; expected one of {', '.join(WEIGHT_BITS)}."
        )
    if steps < 0 or batch_size < 1:
        raise ValueError(
            f"Distillation needs steps >= 0 and batch_size >= 1, got {steps} and {batch_size}."
        )
    import tensorflow as tf
    import tf_keras

    from tflite_export.algorithms.distillation.to_tf_keras import to_tf_keras

    if isinstance(images, Mapping):
        images = {plain(name): array for name, array in images.items()}
    arrays = check_calibration(images, input_shapes=input_shapes(model, images))
    rebuilt = to_tf_keras(model, fold_batchnorm=True, split_heads=True)
    flat = tf_keras.Model(rebuilt.inputs, tf.nest.flatten(rebuilt.output), name=rebuilt.name)
    request = {
        "weight_bits": WEIGHT_BITS[scheme],
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "augment": augment,
        "rate": _RATES[scheme] if rate is None else rate,
        "head": head,
        "inputs": list(arrays),
        "outputs": list(named_outputs(model, model.output)),
    }
    with processes.temporary_folder() as folder:
        for i, array in enumerate(arrays.values()):
            np.save(folder / f"{i}.npy", array, allow_pickle=False)
        flat.save(folder / "model.keras")
        if scheme == "w4a8" and _round(
            flat, list(arrays.values()), seed=seed, say=say, timeout=timeout
        ):
            flat.save(folder / "start.keras")
        (folder / "request.json").write_text(json.dumps(request))
        return _run_worker(folder, say=say, timeout=timeout)


def _round(
    model: Any,
    arrays: list[np.ndarray],
    *,
    seed: int,
    say: Callable[[str], None] | None,
    timeout: float | None,
) -> bool:
    """Puts learned 4-bit roundings and biases into the model, in place; says so and returns False
    where they cannot be learned.

    arrays: images of every input. A kernel is known in the graph by its values. Dense kernels stay:
    TFMOT gives them one scale, learned roundings one per output.
    """
    from dgh_tf.models.tflite.spec import CHANNEL_AXIS
    from tflite_export.algorithms.block_reconstruction import learn_from_file
    from tflite_export.conversion.converter import to_float_tflite
    from tflite_export.simulation.fake_quant import along

    images = dict(zip(input_shapes(model), arrays, strict=True))
    try:
        graph, _, found = learn_from_file(
            to_float_tflite(model, images=images, timeout=timeout),
            images,
            weight_bits=4,
            narrow=True,  # as TFMOT's training is
            seed=seed,
            say=say,
        )
    except ValueError as error:
        if say:
            say(f"distillation starts from rounding to nearest: {error}")
        return False
    learned = [
        o
        for o in graph.operators
        if len(o.inputs) > 1 and o.inputs[1] in found.weights and o.kind != "FULLY_CONNECTED"
    ]
    for layer in model.layers:
        kernel, *bias = layer.get_weights() or [np.zeros(0)]
        for operator in learned:
            index, bias_index = (*operator.inputs, -1)[1:3]
            value, (integers, scales) = graph.tensors[index].value, found.weights[index]
            assert value is not None  # weights are constants
            alike = kernel.ndim > 1 and kernel.size == value.size
            if alike and np.array_equal(
                _as_kernel(value, kernel.shape, kind=operator.kind), kernel
            ):
                chosen = np.float32(integers) * along(
                    scales, axis=CHANNEL_AXIS[operator.kind], rank=integers.ndim
                )
                new = [found.biases[bias_index]] if bias and bias_index in found.biases else bias
                layer.set_weights([_as_kernel(chosen, kernel.shape, kind=operator.kind), *new])
                break
    return True


def _as_kernel(weights: np.ndarray, shape: tuple[int, ...], *, kind: str) -> np.ndarray:
    """Weights of an operator [out, height, width, in], or depthwise [1, height, width, out], as
    Keras holds them: channels last.
    """
    if kind == "DEPTHWISE_CONV_2D":
        return weights.reshape(shape)
    return np.moveaxis(weights.reshape(shape[-1], *shape[:-1]), 0, -1)


def _run_worker(
    folder: pathlib.Path, *, say: Callable[[str], None] | None, timeout: float | None
) -> bytes:
    """Runs the worker on a prepared folder, passes its progress on and returns the .tflite bytes.
    Raises ConversionError.
    """
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_USE_LEGACY_KERAS": "1",
    }

    def told(line: str) -> None:
        if say and line.startswith("distillation "):
            say(line)

    try:
        done = processes.run(
            "tflite_export.algorithms.distillation.worker",
            str(folder),
            timeout=timeout,
            environment=environment,
            on_line=told,
        )
    except TimeoutError:
        raise ConversionError(
            f"Distillation took more than {timeout:g} s and was stopped. Use fewer "
            "steps or a longer timeout."
        ) from None
    if done.code == 0:
        return (folder / "model.tflite").read_bytes()
    require_room(done.code, folder)
    error = folder / "error.txt"
    lines = [line for line in done.stderr.splitlines() if line.strip()][-_SHOWN_LINES:]
    text = (
        error.read_text()[:2000]
        if error.exists()
        else f"exit code {done.code}. Its last lines were:\n  " + "\n  ".join(lines)
    )
    raise ConversionError(f"Distillation could not be done: {text}")
