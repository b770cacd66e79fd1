"""Ranges of model inputs, and the conventions in which people feed images to networks."""

from __future__ import annotations

import dataclasses

import numpy as np

from dgh_tf.common.range_text import CONVENTIONS, SIGNAL_CONVENTIONS, pairs_of
from dgh_tf.common.text import rounded
from dgh_tf.common.value_range import KnownRange

ALIKE = 0.75  # share of their union that two ranges have in common when either will do


@dataclasses.dataclass(frozen=True)
class InputRange:
    """Valid range of one input. low, high: float or one float per channel. prior_std: of natural
    inputs, canvas units.

    fitted: no convention stands behind it, so that real images may show it to be wider.
    firm: the user or a layer says that nothing lies outside of it.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    source: str  # how it was found, for people and the manifest
    prior_std: float = 0.5  # photographs: about a quarter of the range (ImageNet: 0.226 of 1)
    fitted: bool = False
    firm: bool = False

    @property
    def guess(self) -> str:
        """What to say of a range that nobody gave and no convention stands behind; else empty."""
        if not self.fitted:
            return ""
        low, high = rounded(min(self.low), digits=4), rounded(max(self.high), digits=4)
        return (
            f"the input range {low} to {high} was guessed: give --input_range=LOW,HIGH, "
            "such as the sensor's full scale, if you know it"
        )

    def known(self) -> KnownRange:
        """The range as checks of data take it."""
        how = self.source.split(" (")[0]  # without every candidate's gap
        return KnownRange(self.low, self.high, how, firm=self.firm, guess=self.fitted)

    def as_dict(self) -> dict:
        return {
            "low": list(self.low),
            "high": list(self.high),
            "found": self.source,
            "guessed": self.fitted,
        }


def widened(valid: InputRange, images: np.ndarray, *, source: str) -> InputRange:
    """A range that holds `images`, [n, ..., channels] in model units, too; their spread in model
    units stays what it was. Only for fitted ranges, which have one pair.
    """
    low, high = min(*valid.low, float(images.min())), max(*valid.high, float(images.max()))
    if (low, high) == (min(valid.low), max(valid.high)):
        return valid
    std = valid.prior_std * (max(valid.high) - min(valid.low)) / (high - low)
    return dataclasses.replace(
        valid,
        low=(low,),
        high=(high,),
        prior_std=std,
        source=f"{valid.source}; widened to hold {source}",
    )


def describe_conventions(*, signal: bool = False) -> str:
    """Every convention with its range, for messages: 'byte (0 to 255), unit (0 to 1), ...'."""
    known = SIGNAL_CONVENTIONS if signal else CONVENTIONS

    def words(low: np.ndarray | float, high: np.ndarray | float) -> str:
        return f"{rounded(np.min(low), digits=4)} to {rounded(np.max(high), digits=4)}"

    return ", ".join(f"{name} ({words(*bounds)})" for name, bounds in known.items())


def parse_input_range(text: str, *, channels: int, signal: bool = False) -> InputRange:
    """'LOW,HIGH', 'LOW,HIGH;LOW,HIGH' with a pair for every channel, or the name of a convention.
    Raises ValueError naming these forms.

    signal: whether the input is no picture; then the conventions of signals come first.
    """
    source = "the setting input_range"
    if signal and text in SIGNAL_CONVENTIONS:
        return signal_convention(text, source=source)
    if text in CONVENTIONS:
        return convention(text, channels=channels, source=source)
    names = [*SIGNAL_CONVENTIONS, *CONVENTIONS] if signal else [*CONVENTIONS]
    pairs = pairs_of(text, names=names)
    if len(pairs) not in (1, channels):
        many = f", or {channels}, one for each channel" if channels > 1 else ""
        raise ValueError(
            f"input_range={text} holds {len(pairs)} pairs; this input takes one LOW,HIGH{many}. "
            "Give as many."
        )
    lows, highs = zip(*pairs, strict=True)
    return InputRange(lows, highs, source, firm=True)


def signal_convention(name: str, *, source: str) -> InputRange:
    """A convention's range for signals."""
    low, high = SIGNAL_CONVENTIONS[name]
    std = 2.0 / (high - low) if name == "standard" else 0.5
    return InputRange((low,), (high,), source, std)


def convention(name: str, *, channels: int, source: str) -> InputRange:
    """A convention's range. Raises ValueError for one of three channels where there are others."""
    low, high = (np.atleast_1d(bound) for bound in CONVENTIONS[name])
    if len(low) not in (1, channels):
        raise ValueError(
            f"input_range={name} is for three channels; this input has {channels}. Give LOW,HIGH."
        )
    return InputRange(
        tuple(map(float, low)),
        tuple(map(float, high)),
        source,
        1 / 2.7 if name == "standard" else 0.5,
    )


def alike(first: str, second: str) -> bool:
    """Whether two conventions differ so little that either will do: by ALIKE, in every channel."""
    (low, high), (other_low, other_high) = CONVENTIONS[first], CONVENTIONS[second]
    common = np.minimum(high, other_high) - np.maximum(low, other_low)
    return bool(
        np.min(common / (np.maximum(high, other_high) - np.minimum(low, other_low))) >= ALIKE
    )
