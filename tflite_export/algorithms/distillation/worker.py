"""The process in which tensorflow-model-optimization trains a fake-quantized copy of a model
to answer as the model does.

`python -m tflite_export.algorithms.distillation.worker FOLDER`. FOLDER/request.json says what to do
(see `Request`); beside it lie FOLDER/model.keras (tf_keras, BatchNorm folded), FOLDER/start.keras
where training starts from other weights than the model's, and one FOLDER/<n>.npy of images per
input.
Progress goes to standard output, a line at a time. Leaves FOLDER/model.tflite, or FOLDER/error.txt
with the exception's text.

A process of its own because importing TFMOT turns tf.keras to Keras 2 for good.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

from tflite_export.conversion.worker import main

_LINES = 10  # of progress in a run


@dataclasses.dataclass(frozen=True)
class Request:
    """What to train.

    weight_bits: 8 or 4. steps, batch_size, rate: of Adam; the rate falls along a cosine. seed: of
    order and augmentation.
    augment: flip and shift images. head: "logits" ends the file before a softmax or sigmoid.
    outputs: names of the outputs in the .tflite file, in the model's order.
    """

    weight_bits: int
    steps: int
    batch_size: int
    rate: float
    seed: int
    augment: bool
    head: str
    outputs: list[str]
    inputs: list[str]


def quantized(model: Any, *, weight_bits: int) -> Any:
    """The model with TFMOT's fake quantization of weights, activations, input and output; see
    `quantizers`.

    Raises: ValueError naming a layer that cannot be quantized.
    """
    import tensorflow_model_optimization as tfmot
    import tf_keras

    from tflite_export.algorithms.distillation import quantizers as own

    api = tfmot.quantization.keras
    configs = {
        layer.name: own.config_for(layer, weight_bits=weight_bits)
        for layer in model.layers
        if not isinstance(layer, tf_keras.layers.InputLayer)
    }
    with api.quantize_scope({"LayerConfig": own.LayerConfig}):
        annotated = tf_keras.models.clone_model(
            model,
            clone_function=lambda layer: api.quantize_annotate_layer(
                layer.__class__.from_config(layer.get_config()), configs[layer.name]
            ),
        )
        annotated.set_weights(model.get_weights())
        try:
            return api.quantize_apply(annotated, own.Scheme(), quantized_layer_name_prefix="")
        except RuntimeError as error:
            raise ValueError(
                f"TFMOT cannot quantize this model: {error} Replace the layer, or use "
                "another algorithm."
            ) from error


@contextlib.contextmanager
def _observing() -> Iterator[None]:
    """Inside, TFMOT's quantizers change nothing: those of weights do nothing, those of activations
    widen their range.

    TFMOT starts every range at -6 .. 6 and moves it by a thousandth per step: thousands of steps
    before it fits.
    """
    from tensorflow_model_optimization.python.core.quantization.keras import quant_ops

    names = ("MovingAvgQuantize", "AllValuesQuantize", "LastValueQuantize")
    kept = {name: getattr(quant_ops, name) for name in names}

    def observe(
        inputs: tf.Tensor, min_var: tf.Variable, max_var: tf.Variable, **_: Any
    ) -> tf.Tensor:
        import tensorflow as tf

        min_var.assign(tf.minimum(min_var, tf.reduce_min(inputs)))
        max_var.assign(tf.maximum(max_var, tf.reduce_max(inputs)))
        return inputs

    try:
        quant_ops.MovingAvgQuantize = quant_ops.AllValuesQuantize = observe
        quant_ops.LastValueQuantize = lambda inputs, *_, **__: inputs
        yield
    finally:
        for name, function in kept.items():
            setattr(quant_ops, name, function)


def calibrate(student: Any, batches: Iterator[list[Any]]) -> list[np.ndarray]:
    """Sets the activations' ranges to what `batches` (lists of tensors, one per input) reach;
    returns the float outputs by batch.
    """
    for variable in student.weights:
        if variable.name.split(":")[0].endswith(("_min", "_max")) and not variable.shape.rank:
            variable.assign(0.0)  # TFLite's ranges hold zero
    with _observing():
        return [student(batch, training=True) for batch in batches]


def clip_to_grid(student: Any, *, weight_bits: int) -> None:
    """Clips kernels to the range per channel that costs them least at `weight_bits`; TFMOT's scale
    is the largest weight.

    The same search as `fake_quant.quantize_weights` with rule "mse".
    """
    from tflite_export.simulation.fake_quant import quantize_weights

    for layer in student.layers:
        for kernel, quantizer, _ in getattr(layer, "_weight_vars", []):
            flat = kernel.numpy().reshape(quantizer.flat_shape(kernel.shape))
            _, scales = quantize_weights(flat, axis=3, weight_bits=weight_bits, rule="mse")
            limit = scales * (2 ** (weight_bits - 1) - 1)
            kernel.assign(np.clip(flat, -limit, limit).reshape(kernel.shape))


def set_weight_ranges(student: Any) -> None:
    """Sets the kernels' ranges to those of the weights as they are; in training they are one step
    behind.
    """
    for layer in student.layers:
        for kernel, quantizer, variables in getattr(layer, "_weight_vars", []):
            quantizer(kernel, True, weights=variables)


def logits_model(model: Any) -> Any:
    """The model up to its logits: a softmax or sigmoid at an output is left out."""
    import tf_keras

    outputs = []
    for tensor in model.outputs:
        layer = tensor.node.layer
        inner = getattr(layer, "layer", layer)
        kind = type(inner).__name__
        last = kind == "Softmax" or (
            kind == "Activation" and inner.activation.__name__ in ("softmax", "sigmoid")
        )
        outputs.append(tensor.node.keras_inputs[0] if last else tensor)
    return tf_keras.Model(model.inputs, outputs)


def _augmented(batch: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Images [n, height, width, channels] shifted by up to an eighth (mirrored at the edge), half
    of them flipped; others as they are.
    """
    out = []
    for images in batch:
        if images.ndim == 4 and min(images.shape[1:3]) >= 16:
            pad = [max(1, side // 8) for side in images.shape[1:3]]
            wide = np.pad(images, [(0, 0), (pad[0],) * 2, (pad[1],) * 2, (0, 0)], mode="reflect")
            top, left = (rng.integers(0, 2 * p + 1) for p in pad)
            images = wide[:, top : top + images.shape[1], left : left + images.shape[2]]
            images = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images[:, :, ::-1], images)
        out.append(np.ascontiguousarray(images, np.float32))
    return out


def grid_units(student: Any, variables: list[Any], *, weight_bits: int) -> list[np.ndarray]:
    """What one step of the integer grid is for every variable: float32, broadcastable to it.

    Kernels: their scale per channel. Biases have no such grid; a step is taken as large compared
    with their root mean square as a step of a kernel is compared with its largest weight.
    """
    limit, units = 2 ** (weight_bits - 1) - 1, {}
    for layer in student.layers:
        for kernel, quantizer, _ in getattr(layer, "_weight_vars", []):
            largest = np.abs(kernel.numpy()).max(
                axis=tuple(range(kernel.shape.rank - quantizer.channel_axes)), keepdims=True
            )
            units[kernel.ref()] = np.maximum(largest, 1e-3 * largest.max() + 1e-12) / limit
    rest = {
        v.ref(): (np.sqrt(np.mean(np.square(v.numpy()))) or 1.0) / limit
        for v in variables
        if v.ref() not in units
    }
    return [np.asarray((units | rest)[v.ref()], np.float32) for v in variables]


def _adam(
    variables: list[Any], units: list[np.ndarray], *, first: float = 0.9, second: float = 0.999
) -> Callable[..., None]:
    """Adam (Kingma and Ba 2015, algorithm 1) whose rate is in steps of the integer grid.

    Folded weights differ by orders of magnitude between layers and channels; one rate for all ruins
    the smallest ones.
    """
    import tensorflow as tf

    slots = [(tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v))) for v in variables]

    def update(gradients: list[tf.Tensor], rate: tf.Tensor, number: tf.Tensor) -> None:
        for variable, unit, (mean, square), g in zip(
            variables, units, slots, gradients, strict=True
        ):
            g = g * unit  # the gradient in grid steps
            mean.assign(first * mean + (1 - first) * g)
            square.assign(second * square + (1 - second) * g * g)
            move = (mean / (1 - first**number)) / (tf.sqrt(square / (1 - second**number)) + 1e-8)
            variable.assign_sub(rate * unit * move)

    return update


def train(student: Any, teacher: Any, arrays: list[np.ndarray], request: Request) -> None:
    """Adam on the squared error of the logits, every output's divided by the variance of the
    teacher's. No labels.
    """
    import tensorflow as tf

    rng = np.random.default_rng(request.seed)
    count = len(arrays[0])
    size = min(request.batch_size, count)
    spread = [
        float(np.var(output)) or 1.0
        for output in _as_list(teacher.predict(arrays, batch_size=size, verbose=0))
    ]
    variables = student.trainable_variables
    update = _adam(variables, grid_units(student, variables, weight_bits=request.weight_bits))

    @tf.function(reduce_retracing=True)
    def step(batch: list[tf.Tensor], rate: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        targets = _as_list(teacher(batch, training=False))
        with tf.GradientTape() as tape:
            answers = _as_list(student(batch, training=True))
            loss = tf.add_n(
                [
                    tf.reduce_mean(tf.square(a - t)) / s
                    for a, t, s in zip(answers, targets, spread, strict=True)
                ]
            )
        update(tape.gradient(loss, variables), rate, number)
        return loss

    started, every, order, recent = (
        time.monotonic(),
        max(1, request.steps // _LINES),
        np.array([], int),
        [],
    )
    for number in range(1, request.steps + 1):
        if len(order) < size:
            order = np.concatenate([order, rng.permutation(count)])
        chosen, order = order[:size], order[size:]
        batch = [array[np.sort(chosen)] for array in arrays]
        rate = request.rate * (1 + math.cos(math.pi * (number - 1) / request.steps)) / 2
        recent.append(
            float(
                step(
                    _augmented(batch, rng) if request.augment else batch,
                    tf.constant(rate),
                    tf.constant(float(number)),
                )
            )
        )
        if number % every == 0 or number == 1:
            left = (time.monotonic() - started) / number * (request.steps - number)
            print(
                f"distillation step {number}/{request.steps}: squared error "
                f"{np.mean(recent):.3g} of the logits' variance, "
                f"about {left:.0f} s left",
                flush=True,
            )
            recent = []


def _as_list(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def run(folder: pathlib.Path) -> bytes:
    """Returns the .tflite bytes for the request in `folder`."""
    request = Request(**json.loads((folder / "request.json").read_text()))
    import tensorflow_model_optimization  # noqa: F401 - first, so that all of TensorFlow sees one Keras
    import tf_keras

    tf_keras.utils.set_random_seed(request.seed % 2**32)
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    model, start = (
        tf_keras.models.load_model(folder / "model.keras", compile=False),
        folder / "start.keras",
    )
    arrays = [
        np.load(folder / f"{i}.npy", mmap_mode="r", allow_pickle=False)
        for i in range(len(request.inputs))
    ]
    student = quantized(
        tf_keras.models.load_model(start, compile=False) if start.exists() else model,
        weight_bits=request.weight_bits,
    )
    student.trainable = True
    _freeze_batchnorm(student)
    size = request.batch_size
    calibrate(
        student,
        ([np.asarray(a[i : i + size]) for a in arrays] for i in range(0, len(arrays[0]), size)),
    )
    clip_to_grid(student, weight_bits=request.weight_bits)
    train(logits_model(student), logits_model(model), arrays, request)
    set_weight_ranges(student)
    return convert(student, folder, request)


def _freeze_batchnorm(student: Any) -> None:
    """BatchNorm that could not be folded runs on its statistics and does not update them, also with
    training=True.
    """
    for layer in student.layers:
        inner = getattr(layer, "layer", layer)
        if type(inner).__name__ in ("BatchNormalization", "SyncBatchNormalization"):
            inner.trainable = False


def convert(student: Any, folder: pathlib.Path, request: Request) -> bytes:
    """The trained model as .tflite bytes; its fake quantization gives the converter every range."""
    import tensorflow as tf
    import tf_keras

    from tflite_export.conversion.freeze import file_names, save_frozen
    from tflite_export.tflite.edit import in_order

    ends = logits_model(student).outputs if request.head == "logits" else student.outputs
    deployed = tf_keras.Model(student.inputs, dict(zip(request.outputs, ends, strict=True)))
    shapes = {
        name: tuple(np.load(folder / f"{i}.npy", mmap_mode="r").shape[1:])
        for i, name in enumerate(request.inputs)
    }
    save_frozen(deployed, folder / "trained", shapes=shapes)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "trained"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    made = in_order(
        converter.convert(),
        inputs=file_names(request.inputs, side="input"),
        outputs=file_names(request.outputs, side="output"),
    )
    return made.data


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main(sys.argv, run))
