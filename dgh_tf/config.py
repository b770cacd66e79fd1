"""Every setting of a generation run in one flat frozen dataclass; the command's flags are
derived from it.

Errors write a setting as name=value, as one gives it in Python; commands show it as the flag
--name=value.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from dgh_tf.common.range_text import check_range_text

OneRange: TypeAlias = str | Sequence[float] | Sequence[Sequence[float]]
RangeSetting: TypeAlias = OneRange | Mapping[str, OneRange] | None
SizeSetting: TypeAlias = str | Sequence[int] | None
KINDS = {int: "a whole number (int)", float: "a number", bool: "True or False", str: "a text"}


class Settings(TypedDict, total=False):
    """The settings of `GenerationConfig` as keyword arguments, but for strategy, which may also be
    an object there.
    """

    num_images: int
    batch_size: int
    steps: int
    seed: int
    input_range: RangeSetting
    input_kind: str
    image_size: SizeSetting
    learning_rate: float
    beta1: float
    beta2: float
    schedule: str
    bn_weight: float
    std_weight: float
    output_weight: float
    stretch_limit: float
    prior_weight: float
    pool_statistics: bool
    use_statistics: bool
    augment: bool
    flip: str
    start: str
    precision: str


def _setting(
    default: Any,
    help_text: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    choices: Sequence[str] = (),
) -> Any:
    """A field with its bounds: at least `least`, above `above` and below `below`, all finite."""
    limits = {"least": least, "above": above, "below": below, "choices": choices}
    return dataclasses.field(default=default, metadata={"help": help_text, **limits})


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """Settings of one run. Lengths and rates are in canvas units, in which the model's valid input
    range is [-1, 1].

    A range is a pair (LOW, HIGH), one pair per channel, the name of a convention, or for several
    inputs a dict of such by input name; a size is a pair (HEIGHT, WIDTH). Both may be given as the
    command takes them, and are kept so: "0,255", "224,224".

    Raises: TypeError for a value of another kind, ValueError for one out of bounds, naming the
      setting.

    Example:
      >>> import dgh_tf
      >>> config = dgh_tf.GenerationConfig(num_images=16, input_range=(0, 255))
      >>> config.num_images, config.input_range
      (16, '0,255')
    """

    num_images: int = _setting(
        64, "Images to generate; their pooled statistics are one joint problem.", least=1
    )
    batch_size: int = _setting(
        32,
        "Images on a replica at once. Memory grows with it; the result hardly depends on it.",
        least=1,
    )
    steps: int = _setting(100, "Optimizer steps of every image.", least=1)
    seed: int = _setting(
        0,
        "Start images, flips, crops and batch order follow from it and the step alone.",
        least=0,
        below=2**31,
    )
    input_range: RangeSetting = _setting(
        "",
        "Valid input range LOW,HIGH of the model, or a convention such as unit, byte, symmetric, "
        "imagenet; in quotes LOW,HIGH;LOW,HIGH with a pair for every channel, and for several "
        "inputs NAME:RANGE;NAME:RANGE. Empty: read from the model's layers, else found from the "
        "first statistics.",
    )
    input_kind: str = _setting(
        "auto",
        "What the inputs are: image, spectrogram, sequence, vector; auto tells it from the shape.",
        choices=("auto", "image", "spectrogram", "sequence", "vector"),
    )
    image_size: SizeSetting = _setting(
        "", "HEIGHT,WIDTH for a model whose spatial size is dynamic."
    )
    learning_rate: float = _setting(0.1, "Peak step size in canvas units.", above=0)
    beta1: float = _setting(
        0.8, "Weight of the past in RAdam's mean of gradients.", least=0, below=1
    )
    beta2: float = _setting(
        0.9,
        "The same for their squares; a run is 100 steps, and longer memories lag "
        "behind falling gradients.",
        least=0,
        below=1,
    )
    schedule: str = _setting(
        "cosine",
        "cosine (to zero) or plateau (halve when the loss stalls, as the references do).",
        choices=("cosine", "plateau"),
    )
    use_statistics: bool = _setting(
        True,
        "Match the BatchNorm statistics that the model has; off: generate as for a model without.",
    )
    bn_weight: float = _setting(1.0, "Weight of the BatchNorm statistics loss.", least=0)
    std_weight: float = _setting(
        1.0, "Weight of the standard deviations against the means in that loss.", least=0
    )
    output_weight: float = _setting(
        0.03,
        "Weight of output stretching, relative to each head's own spread; 0 turns it off.",
        least=0,
    )
    stretch_limit: float = _setting(
        2.25,
        "Stretch outputs up to this times their spread under matched statistics; 0: no limit.",
        least=0,
    )
    prior_weight: float = _setting(
        1.0, "Weight of the image's own pseudo-statistics; 0 turns them off.", least=0
    )
    pool_statistics: bool = _setting(
        True, "Match statistics of the whole set; off: of each batch alone."
    )
    augment: bool = _setting(
        True, "Larger canvas, smoothing, flip and crop; off: optimize the images directly."
    )
    flip: str = _setting(
        "auto",
        "Mirror images left-right: auto (images with three channels), on or off.",
        choices=("auto", "on", "off"),
    )
    start: str = _setting(
        "leaves",
        "Start images: leaves (overlapping discs), noise (spectrum of photographs) or white noise. "
        "Signals: the spectrum that the first layer knows, leaves also with spikes, steps, "
        "oscillations and onsets.",
        choices=("leaves", "noise", "white"),
    )
    precision: str = _setting(
        "float32",
        "Of the network in the steps: float32, bfloat16 or float16. Sums of statistics, losses and "
        "images stay float32, and so does the network in the first table and in the gaps that a "
        "run ends with.",
        choices=("float32", "bfloat16", "float16"),
    )
    strategy: str = _setting(
        "one",
        "one device, mirrored (all devices of this machine) or multi_worker (TF_CONFIG).",
        choices=("one", "mirrored", "multi_worker"),
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            object.__setattr__(self, field.name, _checked(field, given))
        if not self.bn_weight + self.output_weight + self.prior_weight:
            raise ValueError(
                "bn_weight=0, output_weight=0 and prior_weight=0 leave nothing to optimize. Give "
                "at least one of them a weight."
            )


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """The value as the config keeps it. Raises TypeError or ValueError, naming the setting."""
    if field.name == "input_range":
        return range_text(value)
    if field.name == "image_size":
        return _size_text(value)
    value = _typed(field, value)
    limits = field.metadata
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value not in limits["choices"]:
            raise ValueError(
                f"{field.name}={value}: expected one of {', '.join(limits['choices'])}."
            )
        return value
    least, above, below = limits["least"], limits["above"], limits["below"]
    if not (math.isfinite(value) and value >= least and above < value < below):
        bounds = [
            f"{word} {bound:.12g}"
            for word, bound in (("at least", least), ("above", above), ("below", below))
            if math.isfinite(bound)
        ]
        raise ValueError(f"{field.name}={value}: expected a number {' and '.join(bounds)}.")
    return value


def _typed(field: dataclasses.Field, value: Any) -> Any:
    """The value as Python's own int, float, bool or str. numpy's numbers count as numbers."""
    kind = type(field.default)
    is_bool = isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")
    if kind is bool and is_bool:
        return bool(value)
    if kind is str and isinstance(value, str):
        return value
    if kind is int and not is_bool and hasattr(value, "__index__"):
        return operator.index(value)
    if kind is float and not is_bool and not isinstance(value, str) and hasattr(value, "__float__"):
        return float(value)
    raise TypeError(
        f"{field.name}={value!r}: expected {KINDS[kind]}, such as {field.default!r}; got "
        f"{type(value).__name__}."
    )


def range_text(value: RangeSetting) -> str:
    """An input range as the command takes it: (0, 255) is "0,255", [(-16, 16), (-2000, 2000)], a
    pair per channel, "-16,16;-2000,2000", {"left": "byte"} "left:byte".

    Raises: TypeError for what is no range, ValueError for a pair that is none and a text that names
      no convention.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        check_range_text(value)
        return value
    if isinstance(value, Mapping):
        return ";".join(f"{name}:{range_text(one)}" for name, one in value.items())
    parts = list(value) if isinstance(value, Iterable) else []
    several = any(isinstance(part, Iterable) and not isinstance(part, str) for part in parts)
    return ";".join(map(_pair_text, parts)) if several else _pair_text(value)


def _pair_text(value: Any) -> str:
    expected = "(LOW, HIGH), a list of such pairs, or a convention such as 'unit'"
    low, high = _pair("input_range", value, expected, float)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"input_range={value!r}: expected two finite numbers (LOW, HIGH), the smaller first."
        )
    return ",".join(str(int(v)) if v.is_integer() else repr(v) for v in (low, high))


def parse_image_size(value: SizeSetting) -> tuple[int, int]:
    """(HEIGHT, WIDTH) in pixels, a pair or 'HEIGHT,WIDTH', as two ints. Raises TypeError or
    ValueError for anything else.
    """
    if isinstance(value, str):
        try:
            height, width = (int(part) for part in value.split(","))
        except ValueError:
            height = width = 0
    else:
        height, width = _pair("image_size", value, "(HEIGHT, WIDTH)", operator.index)
    if height < 1 or width < 1:
        raise ValueError(
            f"image_size={value}: expected HEIGHT,WIDTH in pixels, for example image_size=224,224."
        )
    return height, width


def _size_text(value: SizeSetting) -> str:
    if value is None or value == "":
        return ""
    height, width = parse_image_size(value)
    return value if isinstance(value, str) else f"{height},{width}"


def _pair(name: str, value: Any, expected: str, number: Any) -> tuple[Any, Any]:
    """Two numbers of any sequence, such as a tuple, list or array."""
    try:
        first, second = (number(part) for part in value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}={value!r}: expected {expected}.") from error
    return first, second
