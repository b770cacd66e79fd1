"""Runs a float and an integer .tflite file side by side in LiteRT and measures every
activation tensor.

Files made from one frozen graph have the same names for their tensors; one that was trained
(distillation) is known by its inputs, outputs and logits alone. Intermediate tensors are kept,
which needs the built-in
kernels: XNNPACK computes them in places of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgh_tf.common.convergence import Convergence
from dgh_tf.common.subsets import spread
from dgh_tf.models.tflite.model import Tensor, TFLiteModel, plain, read_model
from tflite_export.calibration.check import Images
from tflite_export.quality.accuracy_estimate import (
    UNKNOWN,
    Evidence,
    judge,
    not_converged,
    not_judged,
)
from tflite_export.quality.layer_errors import look_first
from tflite_export.tflite.edit import logits_of, without_softmax
from tflite_export.tflite.interpreter import LiteRTInterpreter, dequantize, quantize
from tflite_export.tflite.names import names_in

_MOST_IMAGES = 64  # of the calibration set are run again for its verdict
_OTHERS = (
    "these calibration images were not generated for this model, so what the file does on them may "
    "say nothing about real inputs. python -m benchmarks.verdict judges it with images of its own."
)


class _Traced:
    """A file that keeps every tensor: feed one image, read any tensor as float."""

    def __init__(self, model: TFLiteModel) -> None:
        self.model = model
        self.interpreter = LiteRTInterpreter(model, kernels="builtin", keep_tensors=True)

    def run(self, image: Mapping[str, np.ndarray]) -> None:
        inputs = self.interpreter.inputs
        self.interpreter.run({name: quantize(image[name], inputs[name]) for name in inputs})

    def read(self, tensor: Tensor) -> np.ndarray:
        codes = self.interpreter.read(tensor.index)
        scale = (tensor.scales[0], tensor.zero_points[0]) if tensor.scales else (0.0, 0)
        detail = {"dtype": codes.dtype, "quantization": scale}
        return dequantize(codes, detail).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class _Compared:
    """One activation in both files. `operator`: the float file's that makes it, or INPUT."""

    operator: str
    reference: Tensor
    integer: Tensor


@dataclasses.dataclass(frozen=True)
class _Head:
    """One output of a file, and what its softmax or sigmoid takes; both are one tensor where there
    is none.
    """

    output: Tensor
    logits: Tensor


def _activations(
    reference: TFLiteModel, integer: TFLiteModel, ends: Mapping[Tensor, Tensor]
) -> list[_Compared]:
    """The inputs and every float activation that both files hold, in order.

    ends: the integer file's tensor by the float file's, of inputs, outputs and logits; all others
    are found by name.
    """
    if len(reference.subgraphs) > 1 or len(integer.subgraphs) > 1:
        raise ValueError(
            "The model has control flow (several subgraphs), whose tensors cannot be "
            "followed. There is no verdict for it."
        )
    by_name = {t.name: t for o in integer.operators for t in o.output_tensors}
    names = names_in(integer, reference)
    inputs = [reference.tensors[i] for i in reference.inputs]
    found = [_Compared("INPUT", tensor, ends[tensor]) for tensor in inputs]
    for operator in reference.operators:
        for tensor in operator.output_tensors:
            other = ends.get(tensor) or by_name.get(names.get(tensor.name, ""))
            if tensor.dtype == "FLOAT32" and other is not None:
                found.append(_Compared(operator.kind, tensor, other))
    return found


def _heads(model: TFLiteModel) -> dict[str, _Head]:
    """By the output's name."""
    places = zip(model.output_names, model.outputs, logits_of(model), strict=True)
    return {
        name: _Head(model.tensors[output], model.tensors[logits]) for name, output, logits in places
    }


def _same_heads(
    reference: TFLiteModel, integer: TFLiteModel
) -> tuple[TFLiteModel, dict[str, tuple[_Head, _Head]]]:
    """The float file, without its softmax and sigmoid where the integer file ends at the logits;
    and the heads of both, by the output's name.
    """
    ours, theirs = _heads(reference), _heads(integer)
    if any(
        ours[name].output is not ours[name].logits and theirs[name].output is theirs[name].logits
        for name in ours
    ):
        reference = without_softmax(reference)
        ours = _heads(reference)
    return reference, {name: (ours[name], theirs[name]) for name in ours}


def require_same_ends(float_tflite: bytes | TFLiteModel, tflite: bytes | TFLiteModel) -> None:
    """Raises ValueError where the two files' inputs and outputs have other names: they are of
    different models, or made elsewhere.
    """
    reference, integer = read_model(float_tflite), read_model(tflite)
    if set(integer.input_names) != set(reference.input_names) or (
        set(integer.output_names) != set(reference.output_names)
    ):
        raise ValueError(
            f"The file has inputs {', '.join(integer.input_names)} and outputs "
            f"{', '.join(integer.output_names)}, the model "
            f"{', '.join(reference.input_names)} and {', '.join(reference.output_names)}. "
            "Give the model that the file was made "
            "from, and a file that tflite_export made: tensors are followed by name."
        )


def gather(
    float_tflite: bytes | TFLiteModel, tflite: bytes | TFLiteModel, images: Images
) -> Evidence:
    """Runs both files on every image and compares all their activation tensors.

    Args:
      float_tflite: of `to_float_tflite`.
      tflite: the integer file of the same model; one that ends at the logits is compared with the
        float file's logits.
      images: float32 [images, ...] in the model's input units, or a dict by input name.
    Raises:
      ValueError: the files are of different models, or the images do not fit them.
    """
    reference, integer = read_model(float_tflite), read_model(tflite)
    require_same_ends(reference, integer)
    reference, heads = _same_heads(reference, integer)
    arrays = (
        {plain(k): v for k, v in images.items()}
        if isinstance(images, Mapping)
        else {reference.input_names[0]: images}
    )
    ours, theirs = _inputs(reference), _inputs(integer)
    wanted = {name: tensor.shape[1:] for name, tensor in ours.items()}
    given = {name: tuple(np.shape(array)[1:]) for name, array in arrays.items()}
    if given != wanted:
        raise ValueError(
            f"The images have the shapes {given}, the model takes {wanted}. Give "
            "images made for this model."
        )
    ends = {ours[name]: theirs[name] for name in ours}  # the integer file's by the float file's
    for our, their in heads.values():
        ends |= {our.logits: their.logits, our.output: their.output}
    compared = _activations(reference, integer, ends)
    return _measured(_Traced(reference), _Traced(integer), arrays, compared, heads)


def _inputs(model: TFLiteModel) -> dict[str, Tensor]:
    """Input tensors by their public names."""
    pairs = zip(model.input_names, model.inputs, strict=True)
    return {name: model.tensors[index] for name, index in pairs}


def _measured(
    reference: _Traced,
    integer: _Traced,
    arrays: Mapping[str, np.ndarray],
    compared: list[_Compared],
    heads: Mapping[str, tuple[_Head, _Head]],
) -> Evidence:
    count = len(next(iter(arrays.values())))
    limits = np.array([each.integer.limits or (-np.inf, np.inf) for each in compared])
    low, high, signal, noise, clipped = np.zeros((5, count, len(compared)))
    ends = ("reference", "outputs", "float_logits", "logits")
    values: dict[str, dict[str, list[np.ndarray]]] = {
        end: {name: [] for name in heads} for end in ends
    }
    for i in range(count):
        image = {name: np.asarray(array[i : i + 1], np.float32) for name, array in arrays.items()}
        reference.run(image)
        integer.run(image)
        for j, each in enumerate(compared):
            a, b = reference.read(each.reference), integer.read(each.integer)
            # softmax ends a step below 1
            step = (limits[j, 1] - limits[j, 0]) / 255 if np.isfinite(limits[j, 0]) else 0.0
            outside = (a < limits[j, 0] - 1.01 * step) | (a > limits[j, 1] + 1.01 * step)
            low[i, j], high[i, j] = a.min(), a.max()
            signal[i, j], noise[i, j] = np.sum(a * a), np.sum((a - b) ** 2)
            clipped[i, j] = np.mean(outside)
        for name, (ours, theirs) in heads.items():
            # without the file's batch axis of 1
            values["reference"][name].append(reference.read(ours.output)[0])
            values["outputs"][name].append(integer.read(theirs.output)[0])
            values["float_logits"][name].append(reference.read(ours.logits)[0])
            values["logits"][name].append(integer.read(theirs.logits)[0])
    stacked = {end: {name: np.stack(parts) for name, parts in values[end].items()} for end in ends}
    return Evidence(
        names=[each.reference.name for each in compared],
        kinds=[each.operator for each in compared],
        limits=limits,
        low=low,
        high=high,
        signal=signal,
        noise=noise,
        clipped=clipped,
        reference=stacked["reference"],
        outputs=stacked["outputs"],
        float_logits=stacked["float_logits"],
        logits=stacked["logits"],
    )


def calibration_verdict(
    float_tflite: bytes | TFLiteModel,
    tflite: bytes | TFLiteModel,
    images: Images,
    *,
    generated: bool,
    same_inside: bool = True,
    layers: Sequence[str] = (),
    statistics: bool = True,
    convergence: Convergence | None = None,
) -> dict[str, Any]:
    """The verdict that the calibration images themselves allow, for F.json: the best case, since
    they set the file's ranges.

    Args:
      float_tflite: the same model in float32, with the same outputs.
      tflite: the integer file.
      images: that calibrated it: float32 [images, ...] in the model's input units, or a dict by
        input name.
      generated: whether the images were generated for this model. Others may be noise, which judges
        nothing; the level is then "unknown".
      same_inside: whether tensors between the layers hold what the float model's hold; equalization
        scales them, so that their errors against it say nothing and are left out.
      layers: the Keras model's layer names.
      statistics: whether it has running statistics.
      convergence: of generated images. Where it is poor the images are no better than noise, and
        the level is "unknown".
    Returns: as `accuracy_estimate.judge`, from at most 64 images spread over the set.
    """

    def some(array: np.ndarray) -> np.ndarray:
        return np.asarray(array[spread(_MOST_IMAGES, total=len(array))], np.float32)

    chosen = (
        {name: some(a) for name, a in images.items()}
        if isinstance(images, Mapping)
        else some(images)
    )
    try:
        evidence = gather(float_tflite, tflite, chosen)
    except ValueError as error:
        return {
            "level": UNKNOWN,
            "sentence": f"No verdict: {str(error).splitlines()[0]}",
            "reasons": [],
            "held_out": False,
        }
    result = judge({"calibration": evidence}, held_out=False, statistics=statistics)
    if convergence is not None and convergence.level == "poor":
        result = not_judged(result, not_converged(convergence))
    elif not generated:
        result = not_judged(result, _OTHERS)
    if same_inside:
        return look_first(result, float_tflite, tflite, chosen, layers=layers)
    return {**result, "layers": []}
