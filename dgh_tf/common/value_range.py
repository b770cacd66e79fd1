"""Whether images lie in the range of values that a model takes, and what would bring them
there.

Images in the wrong units (bytes for a model of 0 to 1) give files and figures that look like a bad
model. What cannot be in the range is refused; what only looks odd is one warning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from dgh_tf.common.text import rounded

Bound = float | Sequence[float] | np.ndarray
OVERSHOOT = 0.05  # of the range's width: what resizing and rounding may add beyond it
# natural images fill most of the range; [0, 1] data for a [0, 255] model fills 0.004 of it
NARROWEST = 0.25
# The first BatchNorm layers' gap, beyond which they were not trained on such values: single
# spectrograms of DS-CNN reach 0.69, sets of 4 have 0.05; at twice or a hundredth of their values
# 0.71 and 0.79.
LARGEST_GAP = 0.7
CLEARLY = 1.5  # as many times closer, values fit the statistics clearly better
_STORED = ((0.0, 1.0), (-1.0, 1.0), (-0.5, 0.5), (0.0, 255.0), (-128.0, 127.0), (0.0, 65535.0))
_SAME = 1e-2  # of a mapping: next to doing nothing


@dataclasses.dataclass(frozen=True)
class KnownRange:
    """The values that a model takes.

    Attributes:
      low, high: one value, or one per channel.
      source: how it is known, for people.
      firm: the user or a layer says so, against found from statistics.
      guess: statistics without a convention behind them; never a reason to refuse data.
    """

    low: Bound
    high: Bound
    source: str
    firm: bool = True
    guess: bool = False


@dataclasses.dataclass(frozen=True)
class Placement:
    """How values lie in a range.

    Attributes:
      seen, expected: both as text, for example "0 .. 255".
      excess: how far values go beyond the range, as a share of its width; 0 inside.
      filled: share of the range that they span, of the best channel.
      one_half: whether all values are in the lower or all in the upper half.
      mapping: (scale, offset) that brings the stored values which these look like into the range;
        None where there is no plain one.
    """

    seen: str
    expected: str
    excess: float
    filled: float
    one_half: bool
    mapping: tuple[float, float] | None

    @property
    def odd(self) -> str:
        """Why values inside the range are suspicious; empty where they are not."""
        if self.filled < NARROWEST:
            return f"that fills {self.filled:.2g} of the range"
        return "all of it in one half of the range" if self.one_half else ""


def parse_pairs(text: str) -> list[tuple[float, float]] | None:
    """The range or ranges that a text gives: LOW,HIGH, or such a pair for every channel joined by
    semicolons. None where it is no list of finite numbers, the smaller first.

    Example: `parse_pairs("-16,16;-2000,2000") == [(-16.0, 16.0), (-2000.0, 2000.0)]`.
    """
    pairs = []
    for part in text.split(";"):
        try:
            low, high = map(float, part.split(","))
        except ValueError:
            return None
        if not (np.isfinite([low, high]).all() and low < high):
            return None
        pairs.append((low, high))
    return pairs


def span(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of every channel, [channels], of images [n, ..., channels]."""
    axes = tuple(range(images.ndim - 1))
    return images.min(axis=axes), images.max(axis=axes)


def place(low: np.ndarray, high: np.ndarray, *, valid_low: Bound, valid_high: Bound) -> Placement:
    """Where values from `low` to `high`, [channels] as `span` gives them, lie in a valid range.

    Raises: ValueError for a range without width.

    Example: bytes for a model of 0 to 1: `place(np.zeros(3), np.full(3, 255.0), valid_low=0,
    valid_high=1).mapping == (1 / 255, 0)`.
    """
    want_low, want_high = (np.asarray(bound, np.float64) for bound in (valid_low, valid_high))
    low, high = np.atleast_1d(low).astype(np.float64), np.atleast_1d(high).astype(np.float64)
    if want_low.size not in (1, low.size):
        # channels are not the last axis: compare all of them together
        low, high = low.min(keepdims=True), high.max(keepdims=True)
        want_low, want_high = want_low.min(), want_high.max()
    width = want_high - want_low
    if not np.all(width > 0):
        raise ValueError(
            f"The input range is {_text(want_low, want_high)}; expected low < high. Correct it."
        )
    middle = (want_low + want_high) / 2
    plain = want_low.size == 1
    excess = np.maximum((want_low - low) / width, (high - want_high) / width)
    seen, expected = _text(low, high), _text(want_low, want_high)
    worst = int(np.argmax(excess))
    if not plain and excess[worst] > 0:
        seen = f"{_text(low[worst], high[worst])} in channel {worst}"
        expected = f"{_text(want_low[worst], want_high[worst])} there"
    return Placement(
        seen=seen,
        expected=expected,
        excess=float(max(0.0, np.max(excess))),
        filled=float(np.max((high - low) / width)),
        one_half=bool(np.all(low >= middle) or np.all(high <= middle)),
        mapping=_mapping(float(low.min()), float(high.max()), want_low, want_high)
        if plain
        else None,
    )


def _text(low: np.ndarray, high: np.ndarray) -> str:
    return f"{float(np.min(low)):g} .. {float(np.max(high)):g}"


def _mapping(
    low: float, high: float, want_low: np.ndarray, want_high: np.ndarray
) -> tuple[float, float] | None:
    """From the narrowest of the usual forms of stored values that holds these, to the range."""
    holding = [
        (first, last)
        for first, last in _STORED
        if low >= first - OVERSHOOT * (last - first) and high <= last + OVERSHOOT * (last - first)
    ]
    if not holding:
        return None
    first, last = min(holding, key=lambda form: form[1] - form[0])
    scale = float(np.max(want_high) - np.min(want_low)) / (last - first)
    offset = float(np.min(want_low)) - scale * first
    return (
        None
        if abs(scale - 1) < _SAME and abs(offset) < _SAME * (last - first)
        else (
            scale,
            offset,
        )
    )


def remedy(placement: Placement, *, preprocess: str | None, input_range: str | None) -> str:
    """What to do, naming the flags of a command: None for one that it does not have.

    Args:
      placement: where the values lie, and the mapping that would put them right.
      preprocess: such as "--preprocess", or as it was given where the values are its result:
        "--preprocess=unit".
      input_range: such as "--input_range".
    """
    parts = []
    if preprocess and "=" in preprocess:
        parts.append(f"correct {preprocess}, which gave these values")
    elif preprocess and placement.mapping:
        scale, offset = placement.mapping
        parts.append(f"map it with {preprocess}={scale:.8g},{offset:.6g}")
    elif preprocess:
        parts.append(f"map it with {preprocess}")
    else:
        parts.append("give it in the units that the model was trained on")
    if input_range:
        parts.append(f"give {input_range}=LOW,HIGH if that range is wrong")
    text = "; or ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def check_units(
    images: np.ndarray,
    known: KnownRange | None,
    *,
    what: str,
    gap: Callable[[np.ndarray], float | None],
    preprocess: str | None,
    input_range: str | None,
) -> str | None:
    """A warning for images that look odd in a range, or None.

    Args:
      images: [n, ..., channels] in model units.
      known: the range, None where it is not known.
      what: the images' name for messages, such as "--real=x.npz".
      gap: asked only where values look wrong: how far the first BatchNorm layers' statistics of
        images are from the running statistics; None where the model cannot tell.
      preprocess: as `remedy` takes it.
      input_range: as `remedy` takes it.
    Raises: ValueError for images that cannot be in the range: beyond a firm one, or beyond one that
      was found from statistics, where the statistics of the images are not the model's either.
    """
    low, high = span(images)
    if known is None:
        found = gap(images)
        if found is None or found <= LARGEST_GAP:
            return None
        flag = "" if not preprocess else f" with {preprocess.split('=')[0]}=SCALE,OFFSET"
        return (
            f"{what} spans {_text(low, high)}, and the model's first BatchNorm layers were trained "
            f"on other values (gap {rounded(found)}, expected below {LARGEST_GAP}). If these are "
            f"the wrong units, map them{flag}."
        )
    placement = place(low, high, valid_low=known.low, valid_high=known.high)
    expected = f"the model takes {placement.expected} ({known.source})"
    do = remedy(placement, preprocess=preprocess, input_range=input_range)
    if placement.excess > OVERSHOOT:
        found = None if known.firm or known.guess else gap(images)
        if known.firm or (found is not None and found > LARGEST_GAP):
            raise ValueError(f"{what} spans {placement.seen}, but {expected}. {do}")
        pair = f"{rounded(low.min(), digits=4)},{rounded(high.max(), digits=4)}"
        flag = f": give {input_range}={pair}" if input_range else ""
        return (
            f"{what} spans {placement.seen}, but {expected}. That range is "
            f"{'a guess' if known.guess else 'told from statistics'}, and too small if these are "
            f"the right units{flag}."
        )
    if placement.odd and not _known_values(images, placement, gap):
        return f"{what} spans {placement.seen}: {placement.odd}; {expected}. {do}"
    return None


def _known_values(
    images: np.ndarray, placement: Placement, gap: Callable[[np.ndarray], float | None]
) -> bool:
    """Whether the model's statistics know the values as they are, and no better when mapped."""
    found = gap(images)
    if found is None or found > LARGEST_GAP:
        return False
    if placement.mapping is None:
        return True
    scale, offset = placement.mapping
    mapped = gap(images * np.float32(scale) + np.float32(offset))
    return mapped is None or mapped * CLEARLY >= found
