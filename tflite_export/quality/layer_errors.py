"""Which layers an integer file's error comes from: what each one adds to the logits.

The SQNR of a layer's own output tells little: noise is passed on, and much of it never reaches the
end. So each layer alone is quantized as the file quantizes it, all others stay in float, and the
error that arrives at the logits is the layer's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dgh_tf.common.subsets import spread
from dgh_tf.models.tflite.batch import proven
from dgh_tf.models.tflite.model import Operator, Tensor, TFLiteModel, read_model
from dgh_tf.models.tflite.run import Graph, feeds_of, read_graph, run
from dgh_tf.models.tflite.spec import CHANNEL_AXIS, spec_of
from tflite_export.calibration.check import Images
from tflite_export.quality.accuracy_estimate import FINE, UNKNOWN, sentence, short
from tflite_export.quality.candidates import relative_noise
from tflite_export.simulation.fake_quant import along
from tflite_export.targets.advice import layer_of
from tflite_export.tflite.edit import logits_of
from tflite_export.tflite.names import names_in

_IMAGES = 8  # each is run once for every layer
_WORK = 2e10  # multiplications in all, above which fewer images are run
_LEAST_IMAGES = 2
_LONG = 10_000  # operators run in all, above which only layers with weights are tried
# a layer is named where it adds so much of the logits' variance (30 dB), and so much of all that
# the layers add
_ADDED, _SHARE = 1e-3, 0.1
_CLIPPED = 0.01  # share of its values cut off, above which a layer's range is to blame
_MOST_NAMED = 3
_BY_SPREAD = ("SQUARED_DIFFERENCE", "SQRT", "RSQRT")  # of normalization layers


@dataclasses.dataclass(frozen=True)
class LayerError:
    """What one layer adds to the error of the logits.

    Attributes:
      tensor: that it makes, by its name in the file. operator: kind, or INPUT.
      layer: the Keras layer's name; None where the tensor's name does not tell.
      added: mean squared error of the logits over their variance with this layer alone quantized.
      weights: the same with its weights alone quantized; of the first three. four_bits: whether
        they have 4 bits. clipped: share of its float values that the file's range cuts off.
    """

    tensor: str
    operator: str
    layer: str | None
    added: float
    weights: float
    four_bits: bool
    clipped: float

    @property
    def what_to_do(self) -> str:
        """A sentence for who wants a better file."""
        if self.clipped > _CLIPPED:
            return (
                f"its range cuts off {self.clipped:.1%} of its values: calibrate with images made "
                "for this model, or with more of them"
            )
        if self.operator == "INPUT":
            return (
                "8 bits are few for the input's range: give the range that you know, bring "
                "channels to like ranges before the network, or use scheme int16x8"
            )
        if self.weights > 0.5 * self.added:
            if self.four_bits:
                return "its weights: keep them at 8 bits (scheme mixed), or use algorithm best"
            return "its weights: use algorithm equalization or reconstruction"
        if self.operator in _BY_SPREAD:
            return (
                "it divides by the spread of each image or place, of which 8 bits show the large "
                "ones alone; use scheme int16x8, or BatchNorm there"
            )
        more = ", or ReLU6 there" if self.operator in (*CHANNEL_AXIS, "ADD") else ""
        return f"its output: 8 bits are few for its range; use scheme int16x8{more}"

    def as_json(self) -> dict[str, Any]:
        """The figures for F.json."""
        return {**dataclasses.asdict(self), "do": self.what_to_do}


@dataclasses.dataclass(frozen=True)
class _Codes:
    """The integers of an activation: value = scale * (code - zero_point), code in least .. most."""

    scale: float
    zero_point: int
    least: int
    most: int

    def nearest(self, values: np.ndarray) -> np.ndarray:
        """The values that the codes can hold."""
        codes = np.rint(values.astype(np.float64) / self.scale) + self.zero_point
        codes = np.clip(codes, self.least, self.most)
        return ((codes - self.zero_point) * self.scale).astype(np.float32)

    def cut_off(self, values: np.ndarray) -> float:
        """Share of the values more than a step outside."""
        codes = values.astype(np.float64) / self.scale + self.zero_point
        return float(np.mean((codes < self.least - 1.01) | (codes > self.most + 1.01)))


@dataclasses.dataclass(frozen=True)
class _Part:
    """One operator, or an input, of the float graph as the file quantizes it.

    Attributes:
      weights: the name of its weights, empty where it has none. four_bits: whether the file's
        have 4 bits.
      constants: the file's, in float32 by index of the float tensor. outputs: by index of what it
        makes.
    """

    tensor: Tensor
    operator: str
    weights: str
    four_bits: bool
    constants: Mapping[int, np.ndarray]
    outputs: Mapping[int, _Codes]


def layer_errors(
    float_tflite: bytes | TFLiteModel,
    tflite: bytes | TFLiteModel,
    images: Images,
    *,
    layers: Sequence[str] = (),
) -> list[LayerError]:
    """Every layer that both files hold, those that add most first.

    Args:
      float_tflite: the model in float32.
      tflite: its integer file; tensors are followed by name. A file whose weights were scaled
        (equalization) or trained (distillation) cannot be followed.
      images: float32 [images, ...] in the model's input units, or a dict by input name; eight of
        them are run, fewer where the model is large.
      layers: the Keras model's layer names, to name layers by.
    Raises: ValueError: an operator that TensorFlow cannot run outside the file.

    Example:
      >>> layer_errors(float_tflite, tflite, images)[0].added
      0.031
    """
    model, graph = read_model(tflite), read_graph(float_tflite)
    parts = _parts(graph, model)
    if len(parts) * len(graph.operators) > _LONG:
        parts = [part for part in parts if part.weights] or parts
    probe = _Probe(graph, _few(graph, images, runs=len(parts)))
    errors = [
        LayerError(
            tensor=part.tensor.name,
            operator=part.operator,
            layer=_layer(part, layers),
            added=probe.error(part.constants, part.outputs),
            weights=0.0,
            four_bits=part.four_bits,
            clipped=probe.clipped(part.outputs),
        )
        for part in parts
    ]
    order = sorted(range(len(parts)), key=lambda k: -errors[k].added)
    for k in order[:_MOST_NAMED]:
        errors[k] = dataclasses.replace(errors[k], weights=probe.error(parts[k].constants, {}))
    return [errors[k] for k in order]


def stand_out(errors: Sequence[LayerError]) -> list[LayerError]:
    """Those of `layer_errors` to look at first: at most three. None where each adds little, or all
    add about as much.
    """
    least = max(_ADDED, _SHARE * sum(each.added for each in errors))
    return [each for each in errors if each.added >= least][:_MOST_NAMED]


def by_layer(errors: Sequence[LayerError]) -> list[LayerError]:
    """One for each Keras layer: its worst operator, with what all its operators add; those that add
    most first. A normalization layer has a dozen.
    """
    found: dict[str, LayerError] = {}
    for each in errors:
        name = each.layer or each.tensor
        first = found.get(name)
        added = first.added + each.added if first else each.added
        found[name] = dataclasses.replace(first or each, added=added)
    return sorted(found.values(), key=lambda each: -each.added)


def look_first(
    verdict: Mapping[str, Any],
    float_tflite: bytes | TFLiteModel,
    tflite: bytes | TFLiteModel,
    images: Images,
    *,
    layers: Sequence[str] = (),
) -> dict[str, Any]:
    """The verdict of `accuracy_estimate.judge` with what to do about a file that is not fine.

    Args:
      verdict: what `accuracy_estimate.judge` gave.
      float_tflite: as for `layer_errors`.
      tflite: as for `layer_errors`.
      images: as for `layer_errors`.
      layers: as for `layer_errors`.
    Returns: the verdict with "look_first" (rows of `LayerError.as_json`); reasons and sentence
      speak of these layers. Its "layers" have the Keras layer's name, where the tensor's tells.
    """
    named: list[LayerError] = []
    reasons = list(verdict["reasons"])
    if verdict["level"] not in (FINE, UNKNOWN):
        try:
            errors = by_layer(layer_errors(float_tflite, tflite, images, layers=layers))
        except ValueError:  # an operator that runs in LiteRT alone
            errors = []
        named, whole = stand_out(errors), sum(each.added for each in errors) or 1.0
        reasons += [
            f"{each.layer or short(each.tensor)} makes {each.added / whole:.0%} of the error: "
            f"{each.what_to_do}"
            for each in named
        ]
        if errors and not named:
            reasons.append(
                "no layer stands out, all add a little: use scheme int16x8 or another algorithm"
            )
    found = {
        **verdict,
        "reasons": reasons,
        "look_first": [each.as_json() for each in named],
        "layers": [{**row, "layer": layer_of(row["tensor"], layers)} for row in verdict["layers"]],
    }
    return {**found, "sentence": sentence(found)}


class _Probe:
    """The float graph on some images, and the same with a part of it quantized."""

    def __init__(self, graph: Graph, feeds: dict[int, np.ndarray]) -> None:
        names = zip(graph.input_names, graph.inputs, strict=True)
        self._graph = proven(graph, {name: feeds[index] for name, index in names})
        self._feeds = feeds
        self._ends = _ends(graph)
        self._values: dict[int, np.ndarray] = {}
        run(self._graph, feeds, observe=self._note, outputs=self._ends)

    def _note(self, index: int, value: Any) -> Any:
        self._values[index] = value.numpy()
        return value

    def error(self, constants: Mapping[int, np.ndarray], outputs: Mapping[int, _Codes]) -> float:
        """Mean squared error of the logits over their variance, mean over the heads."""

        def observe(index: int, value: Any) -> Any:
            if index in outputs:
                return outputs[index].nearest(value.numpy())
            return self._held(index, value)

        made = run(
            self._graph, self._feeds, constants=constants, observe=observe, outputs=self._ends
        )
        heads = [relative_noise(self._values[i], np.asarray(made[i])).mean() for i in self._ends]
        return float(np.mean(heads))

    def _held(self, index: int, value: Any) -> Any:
        """The value; what is infinite or undefined, as 1 / sqrt of a variance that rounds to 0, at
        the ends of what the float tensor reaches, as an integer tensor would hold it.
        """
        values = value.numpy()
        if values.dtype.kind != "f" or np.isfinite(values).all():
            return value
        seen = self._values[index]
        return np.nan_to_num(values, nan=seen.max(), posinf=seen.max(), neginf=seen.min())

    def clipped(self, outputs: Mapping[int, _Codes]) -> float:
        """Share of the float values that the codes cut off."""
        return max((codes.cut_off(self._values[i]) for i, codes in outputs.items()), default=0.0)


def _ends(graph: Graph) -> tuple[int, ...]:
    """Tensors that count: the logits of a classifier, else the outputs as they are."""
    (first, *more) = graph.outputs
    classes = not more and len(graph.tensors[first].shape) == 2
    return tuple(dict.fromkeys(logits_of(graph.model) if classes else graph.outputs))


def _parts(graph: Graph, integer: TFLiteModel) -> list[_Part]:
    """Everything that both files hold and that the integer file rounds anew."""
    theirs = {t.name: o for o in integer.operators for t in o.output_tensors}
    names = names_in(integer, graph.model)
    inputs = zip(integer.input_names, integer.inputs, strict=True)
    by_input = {name: _codes(integer.tensors[index]) for name, index in inputs}
    found = [
        _Part(graph.tensors[index], "INPUT", "", False, {}, {index: made})
        for name, index in zip(graph.input_names, graph.inputs, strict=True)
        if (made := by_input.get(name))
    ]
    for ours in graph.operators:
        other = theirs.get(names.get(ours.output_tensors[0].name, ""))
        if other is None or other.kind != ours.kind or spec_of(ours.kind).same_scale:
            continue
        codes = {
            our.index: each
            for our, their in zip(ours.output_tensors, other.output_tensors, strict=False)
            if (each := _codes(their))
        }
        constants = _constants(ours, other)
        if codes or constants:
            weights = ours.input_tensors[1] if ours.kind in CHANNEL_AXIS else None
            name = weights.name if weights else ""
            four = any(t is not None and t.dtype == "INT4" for t in other.input_tensors)
            found.append(_Part(ours.output_tensors[0], ours.kind, name, four, constants, codes))
    return found


def _layer(part: _Part, layers: Sequence[str]) -> str | None:
    """The Keras layer that has the weights, not what the converter folded or fused into it."""
    own = [path for path in part.weights.split(";") if path and "/batchnorm/" not in path]
    return layer_of(";".join([*own, part.tensor.name]), layers)


def _codes(tensor: Tensor) -> _Codes | None:
    if len(tensor.scales) != 1 or not tensor.scales[0] or not tensor.dtype.startswith("INT"):
        return None
    info = np.iinfo(tensor.dtype.lower())
    return _Codes(tensor.scales[0], tensor.zero_points[0], int(info.min), int(info.max))


def _constants(ours: Operator, theirs: Operator) -> dict[int, np.ndarray]:
    """The integer operator's constants as floats, by index of the float operator's."""
    found = {}
    for our, their in zip(ours.input_tensors, theirs.input_tensors, strict=False):
        if our is None or their is None or our.value is None or our.dtype != "FLOAT32":
            continue
        if their.value is None or not their.scales or their.shape != our.shape:
            continue
        rank, axis = len(their.shape), their.quantized_dimension
        scales, zeros = (
            along(np.asarray(each, np.float64), axis=axis, rank=rank)
            if len(their.scales) > 1
            else np.float64(each[0])
            for each in (their.scales, their.zero_points)
        )
        found[our.index] = ((their.value.astype(np.float64) - zeros) * scales).astype(np.float32)
    return found


def _few(graph: Graph, images: Images, *, runs: int) -> dict[int, np.ndarray]:
    """Some of the images, spread over the set: fewer where a run takes long."""
    feeds = feeds_of(graph, images)
    each = sum(map(_multiplications, graph.operators)) * max(1, runs)
    most = int(np.clip(_WORK // max(each, 1), _LEAST_IMAGES, _IMAGES))
    count = min(map(len, feeds.values()))
    chosen = spread(most, total=count)
    return {index: np.asarray(array[chosen], np.float32) for index, array in feeds.items()}


def _multiplications(operator: Operator) -> int:
    """Of one image, where it has weights; of other operators one for each value."""
    made = math.prod(operator.output_tensors[0].shape)
    if operator.kind not in CHANNEL_AXIS:
        return made
    weights = operator.input_tensors[1]
    assert weights is not None  # an operator without weights is not of this kind
    channels = weights.shape[CHANNEL_AXIS[operator.kind]]
    return made * math.prod(weights.shape) // max(channels, 1)
