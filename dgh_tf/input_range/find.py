"""The valid range of a model's inputs: from the user, from the model's own layers, or from
its first running statistics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dgh_tf.common.range_text import by_input
from dgh_tf.config import RangeSetting, SizeSetting, parse_image_size, range_text
from dgh_tf.input_range.conventions import (
    InputRange,
    describe_conventions,
    parse_input_range,
)
from dgh_tf.input_range.first_filters import estimate_spectrum, within
from dgh_tf.input_range.from_statistics import range_from_statistics
from dgh_tf.input_range.kind import input_signals
from dgh_tf.input_range.of_signals import signal_range
from dgh_tf.models.declared_range import DeclaredRange, declared_ranges
from dgh_tf.models.given import given_model
from dgh_tf.models.network import Network
from dgh_tf.ops.kinds import Signal
from dgh_tf.ops.signals import Spectrum, natural_spectrum


def find_input_range(
    model: Any,
    *,
    input_range: RangeSetting = "",
    image_size: SizeSetting = None,
    input_kind: str = "auto",
) -> list[InputRange]:
    """The valid range of every input of a model, in order, as `generate_images` finds it.

    Args:
      model: a Keras model, or the path of one.
      input_range: what is known already: a pair (LOW, HIGH), one per channel, the name of a
        convention, or a dict of such by input name.
      image_size: (HEIGHT, WIDTH) of a model whose spatial size is dynamic.
      input_kind: image, spectrogram, sequence or vector; auto tells it from the shape.
    Raises: TypeError for what is no model, ValueError when no way gives a clear answer.

    Example:
      >>> import dgh_tf
      >>> found = dgh_tf.find_input_range("demo")[0]
      >>> found.low, found.high
      ((-1.0,), (1.0,))
    """
    size = None if image_size in (None, "") else parse_image_size(image_size)
    network = Network(given_model(model), image_size=size)
    return network_ranges(network, text=range_text(input_range), kind=input_kind)


@dataclasses.dataclass(frozen=True)
class KnownInput:
    """What is known of one input before anything is generated.

    Attributes:
      valid: its range.
      signal: what it is where it is no picture.
      spectrum: of a signal, in model units.
    """

    valid: InputRange
    signal: Signal | None = None
    spectrum: Spectrum | None = None

    @property
    def kind(self) -> str:
        return self.signal.kind if self.signal else "image"


def known_inputs(network: Network, *, text: str = "", kind: str = "auto") -> list[KnownInput]:
    """The kind, the range and the spectrum of every input, in order.

    Args:
      network: the model.
      text: as `network_ranges` takes it.
      kind: as `input_signals` takes it.
    Raises: ValueError when no way gives a clear answer; it asks for input_range.
    """
    signals = input_signals(network, kind=kind)
    if kind == "auto" and any(signals) and _is_stored(network, text):
        signals = input_signals(network, kind=kind, stored=True)
    spectra = [
        estimate_spectrum(network, signal, number=number) if signal else None
        for number, signal in enumerate(signals)
    ]
    ranges = _ranges(network, text, signals, spectra)
    if not network.layers:
        spectra = [
            spectrum and within(spectrum, low=min(valid.low), high=max(valid.high))
            for spectrum, valid in zip(spectra, ranges, strict=True)
        ]
    return [
        KnownInput(valid, signal, _spectrum(signal, valid, spectrum) if signal else None)
        for valid, signal, spectrum in zip(ranges, signals, spectra, strict=True)
    ]


def _spectrum(signal: Signal, valid: InputRange, fitted: Spectrum | None) -> Spectrum:
    if fitted is None:
        return _natural(signal, valid)
    if signal.kind != "spectrogram" and len(valid.low) == signal.columns > 1:
        return fitted.within(np.array(valid.low), np.array(valid.high))
    return fitted


def _is_stored(network: Network, text: str) -> bool:
    """Whether the only input is said to be bytes, by the user or by a Rescaling layer."""
    if len(network.input_shapes) != 1:
        return False
    if text:
        return text in ("byte", "signed", "0,255")
    (found,) = declared_ranges(network.model, shapes=network.input_shapes, call=network.outputs)
    return found is not None and found.firm and found.high == (255.0,)


def _natural(signal: Signal, valid: InputRange) -> Spectrum:
    """A spectrum for signals of which only the range is known."""
    low, high = np.array(valid.low), np.array(valid.high)
    if signal.kind == "spectrogram":  # its columns are bands; channels share them
        low, high = low.mean(keepdims=True), high.mean(keepdims=True)
    return natural_spectrum(signal, mean=(low + high) / 2, std=(high - low) / 2 * valid.prior_std)


def network_ranges(network: Network, *, text: str = "", kind: str = "auto") -> list[InputRange]:
    """The valid range of every input, in order.

    Args:
      network: the model.
      text: one range for all inputs, or NAME:RANGE;NAME:RANGE, where a range may be a pair for
        every channel, LOW,HIGH;LOW,HIGH; inputs that it does not name keep what their layers
        declare.
      kind: as `input_signals` takes it.
    Raises: ValueError when no way gives a clear answer; it asks for input_range.
    """
    return [found.valid for found in known_inputs(network, text=text, kind=kind)]


def _ranges(
    network: Network,
    text: str,
    signals: Sequence[Signal | None],
    spectra: Sequence[Spectrum | None],
) -> list[InputRange]:
    channels, names = [shape[-1] for shape in network.input_shapes], network.input_names
    given = _by_input(text, names)
    # a signal's range follows the columns it is drawn in: no other axis can have pairs of its own
    ranges = [
        parse_input_range(
            given[name],
            channels=c if signal is None or signal.columns == c else 1,
            signal=signal is not None,
        )
        if name in given
        else None
        for name, c, signal in zip(names, channels, signals, strict=True)
    ]
    if None in ranges:
        declared = declared_ranges(network.model, shapes=network.input_shapes, call=network.outputs)
        ranges = [
            valid or (_input_range(found) if found else None)
            for valid, found in zip(ranges, declared, strict=True)
        ]
    unknown = [name for name, valid in zip(names, ranges, strict=True) if valid is None]
    if unknown and len(names) > 1:
        example = ";".join(f"{name}:LOW,HIGH" for name in unknown)
        raise ValueError(
            f"Model {network.model.name!r} has {len(names)} inputs "
            f"({', '.join(names)}), and no Rescaling or Normalization "
            f"layer tells the range of {', '.join(unknown)}. Give "
            "input_range=LOW,HIGH for all, or "
            f'input_range="{example}".'
        )
    if unknown and not network.layers:
        raise ValueError(
            f"The range of input {unknown[0]!r} of model {network.model.name!r} is unknown: no "
            "Rescaling or Normalization layer tells it, and there are no BatchNorm statistics that "
            f"could. Give input_range=LOW,HIGH or one of "
            f"{describe_conventions(signal=signals[0] is not None)}."
        )
    if unknown and signals[0] is not None:
        return [signal_range(network, signals[0], spectra[0])]
    return [range_from_statistics(network)] if unknown else [valid for valid in ranges if valid]


def _by_input(text: str, names: list[str]) -> dict[str, str]:
    """The text of each input's range by name. Raises ValueError for a name that is no input or
    stands twice.
    """
    if ":" not in text:
        return dict.fromkeys(names, text) if text else {}
    parts = by_input(text)
    given = dict(parts)
    wrong = sorted(set(given) - set(names))
    if wrong or len(given) < len(parts):
        raise ValueError(
            f"input_range={text} names {', '.join(wrong) or 'an input twice'}; the "
            f"model's inputs are {', '.join(names)}. "
            "Give NAME:LOW,HIGH for each, joined by semicolons."
        )
    return given


def _input_range(found: DeclaredRange) -> InputRange:
    return InputRange(found.low, found.high, found.source, found.prior_std, firm=found.firm)
