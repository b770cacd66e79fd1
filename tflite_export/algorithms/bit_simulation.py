"""What files of one model keep and weigh with some of their weights at 4 bits and the rest at 8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dgh_tf.common.quiet import held_stderr
from dgh_tf.models.tflite.batch import proven
from dgh_tf.models.tflite.model import TFLiteModel, read_model
from dgh_tf.models.tflite.run import feeds_of, read_graph, run
from dgh_tf.models.tflite.spec import (
    CHANNEL_AXIS,
)
from tflite_export.algorithms.equalization import correct_biases, own_bias
from tflite_export.algorithms.outside_converter import outside_converter
from tflite_export.calibration.check import few_images
from tflite_export.calibration.hold_out import hold_back
from tflite_export.conversion.converter import to_tflite_with_ranges, with_chosen_weights
from tflite_export.quality.accuracy_estimate import decibels
from tflite_export.quality.agreement import REAL, STRETCHED, features_of, predict
from tflite_export.quality.candidates import (
    before_softmax,
    outputs_of,
    relative_noise,
    soft,
)
from tflite_export.simulation.fake_quant import (
    along,
    channel_axes,
    fake_quantizer,
    integer_constants,
    quantized_constants,
)
from tflite_export.simulation.ranges import collect_ranges
from tflite_export.tflite.edit import logits_of
from tflite_export.tflite.interpreter import Runner

_CHUNK = 32  # images at once
_SMALLEST = 8  # of fewer images all both calibrate and measure


class Simulation:
    """The float graph up to its logits with 8-bit activations, on images that calibrate nothing.

    Args:
      images: that calibrate. held: that measure; each also counts at half contrast.
      rule: of the activations' ranges, see `collect_ranges`.
      statistics: whether the model has running statistics, see `agreement.predict`.
    Attributes:
      ranges: by tensor index. nearest: (integers, scales) of 4 bits by index of the weights.
    """

    def __init__(
        self,
        model: TFLiteModel,
        images: Mapping[str, np.ndarray],
        held: Mapping[str, np.ndarray],
        *,
        rule: str,
        generated: bool = True,
    ) -> None:
        with outside_converter():
            self.graph = proven(read_graph(model), images)
            self.ranges = collect_ranges(self.graph, images, rule=rule)
        self._observe = fake_quantizer(self.graph, ranges=self.ranges)
        self._generated = generated
        self._logits = tuple(dict.fromkeys(logits_of(self.graph.model)))
        few = few_images(images)
        eight = quantized_constants(self.graph, weight_bits=8, rule="mse")
        biases = {
            o.inputs[2]: self.graph.tensors[o.inputs[2]].value
            for place, o in enumerate(self.graph.operators)
            if own_bias(self.graph, place) >= 0
        }
        corrected = correct_biases(self.graph, few, ranges=self.ranges, constants=eight)
        self._eight = {**biases, **eight, **corrected}
        self.nearest = integer_constants(self.graph, weight_bits=4, rule="mse")
        axes = channel_axes(self.graph)
        self._four = {
            i: integers * along(scales, axis=axes[i], rank=integers.ndim)
            for i, (integers, scales) in self.nearest.items()
        }
        self._shifts = self._mean_errors(few)
        both = {n: np.concatenate([x, soft(np.asarray(x))]) for n, x in held.items()}
        self._feeds = feeds_of(self.graph, both)
        self._wanted = self._run({}, None)

    def _mean_errors(self, images: Mapping[str, np.ndarray]) -> dict[int, dict[int, np.ndarray]]:
        """Mean error per channel that 4-bit weights make at their own output, by index of the
        weights and of the bias to take it off.
        """
        readers: dict[int, list[int]] = {}
        for place, operator in enumerate(self.graph.operators):
            if operator.kind in CHANNEL_AXIS and operator.inputs[1] in self._four:
                readers.setdefault(operator.inputs[0], []).append(place)
        found: dict[int, dict[int, np.ndarray]] = {}

        def observe(index: int, value: Any) -> Any:
            for place in readers.get(index, []):
                operator, bias = self.graph.operators[place], own_bias(self.graph, place)
                weights = operator.inputs[1]
                if bias < 0:
                    continue
                difference = self._four[weights] - self._eight[weights]
                made = run(
                    self.graph,
                    {index: value},
                    constants={weights: difference, bias: np.zeros_like(self._eight[bias])},
                    operators=range(place, place + 1),
                    outputs=operator.outputs,
                    fused_activations=False,
                )[operator.outputs[0]].numpy()
                error = made.mean(axis=tuple(range(made.ndim - 1)))
                found.setdefault(weights, {})[bias] = error
            return value

        run(self.graph, feeds_of(self.graph, images), observe=observe)
        return found

    def _run(self, constants: Mapping[int, Any], observe: Any) -> list[np.ndarray]:
        parts: list[list[np.ndarray]] = []
        for start in range(0, len(next(iter(self._feeds.values()))), _CHUNK):
            feeds = {i: x[start : start + _CHUNK] for i, x in self._feeds.items()}
            made = run(
                self.graph, feeds, constants=constants, observe=observe, outputs=self._logits
            )
            parts.append([made[i].numpy() for i in self._logits])
        return [np.concatenate(each) for each in zip(*parts, strict=True)]

    def outputs(self, layers: Iterable[int]) -> list[np.ndarray]:
        """Logits with these weights, by tensor index, at 4 bits and all others at 8."""
        constants = dict(self._eight)
        for index in layers:
            constants[index] = self._four[index]
            for bias, error in self._shifts.get(index, {}).items():
                constants[bias] = constants[bias] - error
        return self._run(constants, self._observe)

    def noise(self, outputs: list[np.ndarray]) -> float:
        """Squared error over the variance of the float logits, mean over the heads."""
        return _noise(self._wanted, outputs)

    def agreement(self, outputs: list[np.ndarray]) -> float | None:
        """Expected agreement with the float model; None without classes."""
        return _agreement(self._wanted, outputs, generated=self._generated)


def _noise(wanted: list[np.ndarray], outputs: list[np.ndarray]) -> float:
    pairs = zip(wanted, outputs, strict=True)
    return float(np.mean([relative_noise(want, got).mean() for want, got in pairs]))


def _agreement(
    wanted: list[np.ndarray], outputs: list[np.ndarray], *, generated: bool
) -> float | None:
    """By the rule of the verdict, on the images as they are: the first half, the others are the
    same at half contrast. They are like those that calibrate: generated ones make a model surer
    than real ones do.
    """
    want = wanted[0].reshape(len(wanted[0]), -1)
    if len(outputs) > 1 or want.shape[1] < 2 or want.shape[1] != wanted[0].shape[-1]:
        return None
    whole = len(want) // 2
    shown = features_of(want[:whole], outputs[0].reshape(want.shape)[:whole])
    return predict({STRETCHED if generated else REAL: shown}).agreement


def set_apart(
    images: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(images that calibrate, images that measure), by input name."""
    return hold_back(images, smallest=_SMALLEST)


def measured(
    float_tflite: bytes, tflite: bytes, images: Mapping[str, np.ndarray], *, generated: bool = True
) -> dict[str, float | None]:
    """What a finished file keeps on the images that `allocate` measured on, run by LiteRT: "bytes",
    "sqnr_db" of its logits, "agreement" to expect (None without classes).
    """
    _, held = set_apart(images)
    both = {n: np.concatenate([x, soft(np.asarray(x))]) for n, x in held.items()}
    with held_stderr():  # LiteRT announces its delegate
        want, got = (
            list(outputs_of(Runner(before_softmax(each)), both).values())
            for each in (float_tflite, tflite)
        )
    sqnr_db = float(decibels(np.ones(()), np.asarray(_noise(want, got))))
    return {
        "bytes": len(tflite),
        "sqnr_db": round(sqnr_db, 2),
        "agreement": _agreement(want, got, generated=generated),
    }


class Sizes:
    """Bytes of the real file with some layers at 4 bits. Only the file itself knows its padding."""

    def __init__(self, float_tflite: bytes, simulation: Simulation, timeout: float | None) -> None:
        self._float, self._four = read_model(float_tflite), simulation.nearest
        self._eight = integer_constants(simulation.graph, weight_bits=8, rule="mse")
        made = to_tflite_with_ranges(self._float, ranges=simulation.ranges, timeout=timeout)
        self._file = read_model(made)

    def of(self, layers: Iterable[int]) -> int:
        """Bytes with these weights, by tensor index, at 4 bits."""
        bits = dict.fromkeys(layers, 4)
        weights = {i: self._four[i] if i in bits else self._eight[i] for i in self._four}
        made = with_chosen_weights(self._file, self._float, weights=weights, weight_bits=bits)
        return len(made.data)
