"""Which layers of a mixed file keep 8-bit weights, chosen from calibration images alone.

Each layer is tried at 4 bits with all others at 8, on images that calibrate nothing. Its price is
the noise that it adds to the logits, for each byte that it saves. The cheapest layer goes to 4 bits
first, then the next. Dong et al. 2020, "HAWQ-V2", and Cai et al. 2020, "ZeroQ", choose by such a
price too.

Noises of single layers add up nearly, and bytes do exactly, so the choice is a knapsack: for a size
it is solved by counting up the bytes to save. The curve takes the cheapest layer per byte first.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dgh_tf.models.tflite.model import TFLiteModel, read_model
from dgh_tf.models.tflite.spec import (
    CHANNEL_AXIS,
    FOUR_BIT_VERSION,
)
from tflite_export.algorithms.bit_simulation import Simulation, Sizes, measured, set_apart
from tflite_export.quality.accuracy_estimate import (
    decibels,
    short,
)

DEFAULT_SAVING = 0.75  # of the bytes that 4 bits everywhere save, where no limit is given
_SHOWN = 12  # rows of the printed table
_POINTS = 24  # of the curve at most
_COUNTED = 4096  # steps in which the bytes to save are counted


@dataclasses.dataclass(frozen=True)
class Limit:
    """What the file must meet: at most so many KiB (1024 bytes), or at least such a predicted
    agreement with the float model, 0..1. Where both are None the file saves three
    quarters of the bytes that 4 bits everywhere would save.
    """

    max_kib: float | None = None
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        if self.max_kib is not None and self.min_agreement is not None:
            raise ValueError(
                "max_kib and min_agreement are two limits for one choice: the smallest file of an "
                "agreement, or the best file of a size. Give one of the two."
            )
        if self.max_kib is not None and not 0 < self.max_kib < float("inf"):
            raise ValueError(f"max_kib={self.max_kib:g}: expected a size above 0 KiB.")
        if self.min_agreement is not None and not 0 < self.min_agreement <= 1:
            raise ValueError(
                f"min_agreement={self.min_agreement:g}: expected a share above 0 and up to 1, "
                "such as 0.9."
            )


@dataclasses.dataclass(frozen=True)
class Layer:
    """Weights that can have 4 bits.

    Attributes:
      index: of the tensor in the float file. name: of the first operator's output that reads it.
      kind: of that operator. weights: their number. protected: a depthwise layer or the first one:
        few bytes, much noise, so these leave 8 bits last.
      noise: that 4 bits here alone add, as a share of the logits' variance.
      bits: chosen, 8 or 4.
    """

    index: int
    name: str
    kind: str
    weights: int
    protected: bool
    noise: float = 0.0
    bits: int = 8

    @property
    def saved(self) -> int:
        """Bytes that 4 bits save."""
        return self.weights // 2

    @property
    def bytes(self) -> int:
        """Bytes of the weights as chosen."""
        return self.weights if self.bits == 8 else self.weights - self.saved


@dataclasses.dataclass(frozen=True)
class Point:
    """One file of the curve, predicted with weights rounded to nearest and corrected biases.

    Attributes: layers: with 4 bits. bytes: of the whole file. sqnr_db: of the logits. agreement:
      expected with the float model, 0..1; None for a model without classes.
    """

    layers: int
    bytes: int
    sqnr_db: float
    agreement: float | None


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The choice: `layers` in the order in which they leave 8 bits; `curve`: sizes against
    predictions, from all at 8 bits to all at 4; `point`: of the choice; `images`: that measured.
    """

    layers: tuple[Layer, ...]
    curve: tuple[Point, ...]
    point: Point
    images: int

    @property
    def bits(self) -> dict[int, int]:
        """Bits of the weights by tensor index of the float file; what is not named has 8."""
        return {layer.index: layer.bits for layer in self.layers}

    def larger(self) -> Allocation | None:
        """The choice of the curve's next larger file; None where all weights have 8 bits."""
        points = [each for each in self.curve if each.layers < self.point.layers]
        if not points:
            return None
        layers = tuple(
            dataclasses.replace(each, bits=4 if place < points[-1].layers else 8)
            for place, each in enumerate(self.layers)
        )
        return dataclasses.replace(self, layers=layers, point=points[-1])

    def as_json(self) -> dict[str, Any]:
        """The choice and the curve for F.json."""
        return {
            "point": dataclasses.asdict(self.point),
            "layers": [
                {
                    "layer": each.name,
                    "operator": each.kind,
                    "bits": each.bits,
                    "bytes": each.bytes,
                    "noise": each.noise,
                }
                for each in self.layers
            ],
            "curve": [dataclasses.asdict(point) for point in self.curve],
            "images": self.images,
        }

    def lines(self) -> list[str]:
        """The choice as a table, largest layers first, and one line on the whole."""
        rows = sorted(self.layers, key=lambda each: -each.weights)
        shown = [("layer", "bits", "bytes")]
        shown += [(short(each.name), str(each.bits), f"{each.bytes:,}") for each in rows[:_SHOWN]]
        wide = [max(len(row[k]) for row in shown) for k in range(3)]
        text = [f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c:>{wide[2]}}" for a, b, c in shown]
        rest = rows[_SHOWN:]
        if rest:
            four = sum(each.bits == 4 for each in rest)
            text.append(
                f"and {len(rest)} more, {four} of them at 4 bits, "
                f"{sum(each.bytes for each in rest):,} bytes"
            )
        point = self.point
        told = "" if point.agreement is None else f", agreement {point.agreement:.3f}"
        text.append(
            f"mixed: {point.layers} of {len(rows)} layers at 4 bits, {point.bytes / 1024:.1f} KiB "
            f"({self.curve[-1].bytes / 1024:.1f} with all at 4, {self.curve[0].bytes / 1024:.1f} "
            f"with all at 8); rounded to nearest they keep {point.sqnr_db:.1f} dB{told}"
        )
        return text


def layers_of(model: TFLiteModel) -> list[Layer]:
    """Constant weights that have 4-bit kernels wherever they are read, in order of execution."""
    readers: dict[int, list[Any]] = {}
    for operator in model.operators:
        if operator.kind in CHANNEL_AXIS and model.tensors[operator.inputs[1]].value is not None:
            readers.setdefault(operator.inputs[1], []).append(operator)
    found = []
    for place, (index, users) in enumerate(readers.items()):
        if all(user.kind in FOUR_BIT_VERSION for user in users):
            size = int(np.prod(model.tensors[index].shape))
            protected = place == 0 or any(user.kind == "DEPTHWISE_CONV_2D" for user in users)
            name = users[0].output_tensors[0].name
            found.append(Layer(index, name, users[0].kind, size, protected))
    return found


def ordered(layers: list[Layer]) -> list[Layer]:
    """In the order in which layers leave 8 bits: least noise for each byte saved first, protected
    ones behind all others.
    """
    return sorted(layers, key=lambda each: (each.protected, each.noise / max(each.saved, 1)))


def least_noise(layers: list[Layer], *, to_save: int) -> list[Layer]:
    """Which layers go to 4 bits to save at least so many bytes with the least noise in sum.
    Protected ones only where all others do not save enough. All layers where none of it is enough.
    """
    free = [each for each in layers if not each.protected]
    left = to_save - sum(each.saved for each in free)
    if left <= 0:
        return _knapsack(free, to_save=to_save)
    return free + _knapsack([each for each in layers if each.protected], to_save=left)


def _knapsack(layers: list[Layer], *, to_save: int) -> list[Layer]:
    """By the least noise that saves so many bytes with the first layers alone, for 1, 2, ... layers
    and every number of bytes, counted in `_COUNTED` steps. What a layer saves is rounded down to
    such steps, lest too little is saved.
    """
    if to_save <= 0:
        return []
    unit = max(1, to_save // _COUNTED)
    steps = np.arange(-(-to_save // unit) + 1)
    least, taken = np.where(steps > 0, np.inf, 0.0), []
    for layer in layers:
        noise = least[np.maximum(steps - layer.saved // unit, 0)] + layer.noise
        taken.append((noise < least) & (steps > 0))
        least = np.minimum(noise, least)
    if np.isinf(least[-1]):
        return layers
    chosen, step = [], int(steps[-1])
    for layer, takes in zip(reversed(layers), reversed(taken), strict=True):
        if takes[step]:
            chosen.append(layer)
            step = max(step - layer.saved // unit, 0)
    return chosen[::-1]


def allocate(
    float_tflite: bytes,
    images: Mapping[str, np.ndarray],
    *,
    limit: Limit,
    rule: str = "mse",
    generated: bool = True,
    say: Callable[[str], None] | None = None,
    timeout: float | None = None,
) -> Allocation:
    """Chooses 4 or 8 bits for the weights of each layer.

    Args:
      float_tflite: of `to_float_tflite`, each operator with a bias of its own.
      images: float32 [images, ...] by input name, in the model's input units. One of 4 measures and
        calibrates nothing here, where there are enough.
      limit: what the file must meet.
      rule: of the activations' ranges.
      generated: whether the images are; real ones have narrower margins.
      say: takes lines of progress and the choice.
      timeout: seconds of the conversion.
    Raises:
      ValueError: a limit that no choice meets, with what can be reached, or a model without
        weights that can have 4 bits.
    """
    model = read_model(float_tflite)
    layers = layers_of(model)
    if not layers:
        raise ValueError(
            "The model has no weights that can be 4 bits; expected at least one of "
            f"{', '.join(FOUR_BIT_VERSION)} with constant weights. Use --scheme=int8."
        )
    rest, held = set_apart(images)
    simulation = Simulation(model, rest, held, rule=rule, generated=generated)
    sizes = Sizes(float_tflite, simulation, timeout)
    top = limit_bytes(limit, eight=sizes.of([]), four=sizes.of(each.index for each in layers))
    if say is not None:
        say(f"mixed: trying each of {len(layers)} layers at 4 bits")
    floor = simulation.noise(simulation.outputs([]))
    noises = [
        max(simulation.noise(simulation.outputs([each.index])) - floor, 0.0) for each in layers
    ]
    layers = ordered(
        [dataclasses.replace(each, noise=noise) for each, noise in zip(layers, noises, strict=True)]
    )
    places = np.unique(np.linspace(0, len(layers), min(len(layers) + 1, _POINTS)).round())
    curve = tuple(_point(layers[: int(k)], simulation, sizes) for k in places)
    if top is not None:
        chosen = _fitting(layers, sizes, top)
    else:
        chosen = layers[: _least(curve, limit).layers]
    found = Allocation(
        tuple(dataclasses.replace(each, bits=4 if each in chosen else 8) for each in layers),
        curve,
        _point(chosen, simulation, sizes),
        len(next(iter(held.values()))),
    )
    if say is not None:
        for line in found.lines():
            say(line)
    return found


def limit_bytes(limit: Limit, *, eight: int, four: int) -> int | None:
    """Bytes that the file may take; None where the limit is of agreement.

    Args:
      limit: what the file must meet.
      eight: bytes of the file with all weights at 8 bits.
      four: bytes of the file with all weights at 4 bits.
    Raises: ValueError for a size below `four`.
    """
    if limit.min_agreement is not None:
        return None
    if limit.max_kib is None:
        return eight - int(DEFAULT_SAVING * (eight - four))
    if limit.max_kib * 1024 < four:
        raise ValueError(
            f"max_kib={limit.max_kib:g} cannot be met: the smallest file of this model takes "
            f"{np.ceil(four / 102.4) / 10:.1f} KiB, with all weights at 4 bits (at 8 bits "
            f"{eight / 1024:.1f}). Give at least that."
        )
    return int(limit.max_kib * 1024)


def _least(curve: tuple[Point, ...], limit: Limit) -> Point:
    """The last point of the curve before the agreement falls below the limit. Raises ValueError
    where there is none.
    """
    asked = limit.min_agreement
    if asked is None or curve[0].agreement is None:
        raise ValueError(
            "min_agreement asks for classes to agree on, which this model does not have. Give "
            "max_kib."
        )
    kept = list(
        itertools.takewhile(
            lambda each: each.agreement is not None and each.agreement >= asked, curve
        )
    )
    if not kept:
        raise ValueError(
            f"min_agreement={asked:g} cannot be met: with all weights at 8 bits the predicted "
            f"agreement is {curve[0].agreement:.3f}. Ask for less, or use --scheme=int16x8."
        )
    return kept[-1]


def _point(layers: list[Layer], simulation: Simulation, sizes: Sizes) -> Point:
    indices = [each.index for each in layers]
    outputs = simulation.outputs(indices)
    sqnr_db = float(decibels(np.ones(()), np.asarray(simulation.noise(outputs))))
    return Point(len(layers), sizes.of(indices), round(sqnr_db, 2), simulation.agreement(outputs))


def _fitting(layers: list[Layer], sizes: Sizes, top: int) -> list[Layer]:
    """`least_noise` whose real file takes at most `top` bytes."""
    to_save = sizes.of([]) - top
    for _ in layers:
        chosen = least_noise(layers, to_save=to_save)
        over = sizes.of(each.index for each in chosen) - top
        if over <= 0:
            return chosen
        to_save += over  # padding took what the packing saved
    return layers


def quantize_mixed(
    model: bytes,
    arrays: dict[str, np.ndarray],
    limit: Limit,
    *,
    rule: str,
    generated: bool,
    make: Callable[..., tuple[str, bytes, dict[str, Any]]],
    say: Callable[[str], None] | None,
    timeout: float | None,
) -> tuple[str, bytes, dict[str, Any]]:
    """(algorithm, file, notes) with bits chosen per layer, by `make(weight_bits=...)`.

    The choice predicts files of weights rounded to nearest. Where the algorithm's own file stays
    below the agreement asked for, the next larger choice is taken. Raises ValueError where none
    is left, or the file is larger than asked.
    """
    import tensorflow as tf

    limits = dataclasses.asdict(limit)
    try:
        found = allocate(
            model,
            arrays,
            limit=limit,
            rule=rule,
            generated=generated,
            say=say,
            timeout=timeout,
        )
    except tf.errors.OpError as error:
        raise ValueError(
            "Scheme mixed cannot try the layers of this model: TensorFlow "
            "cannot run a part of it outside the converter. Use scheme int8."
        ) from error
    while True:
        name, tflite, notes = make(weight_bits=found.bits)
        kept = measured(model, tflite, arrays, generated=generated)
        notes = {**notes, "mixed": {**limits, **found.as_json(), "file": kept}}
        if limit.max_kib is not None and len(tflite) > limit.max_kib * 1024:
            raise ValueError(
                f"The file takes {len(tflite) / 1024:.1f} KiB, more than max_kib="
                f"{limit.max_kib:g}. Give a size a little smaller, or another algorithm."
            )
        agreement = kept["agreement"]
        if say:
            told = "" if agreement is None else f", predicted agreement {agreement:.3f}"
            say(f"mixed by {name}: the file keeps {kept['sqnr_db']:.1f} dB of the logits{told}")
        if limit.min_agreement is None or agreement is None or agreement >= limit.min_agreement:
            return name, tflite, notes
        larger = found.larger()
        if larger is None:
            raise ValueError(
                f"min_agreement={limit.min_agreement:g} cannot be met: with all weights at 8 bits "
                f"the file's predicted agreement is {agreement:.3f}. Ask for less, or use another "
                "algorithm."
            )
        found = larger
        if say:
            say(f"below {limit.min_agreement:g}: again with {found.point.layers} layers at 4 bits")
