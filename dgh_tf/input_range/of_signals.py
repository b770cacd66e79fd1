"""The valid range of a signal from the mean and power that the first layers tell of it.

A convention that fits is preferred: it holds what real data reach, and statistics do not tell
tails. Everything else gets a free range, widened towards symmetry and far tails, and said to be a
guess. A range that is too wide costs a little resolution; one that is too narrow cuts real peaks.
"""

from __future__ import annotations

import numpy as np

from dgh_tf.common.text import rounded
from dgh_tf.input_range.conventions import InputRange, describe_conventions, signal_convention
from dgh_tf.input_range.from_statistics import LARGEST_GAP, first_gap, free_fit
from dgh_tf.models.network import Network
from dgh_tf.ops.kinds import Signal
from dgh_tf.ops.signals import Spectrum, draw_signal, natural_spectrum

TAILS = 6.0  # deviations of a column that a free range holds
PROBES = 64  # signals whose statistics must be those of the model
_PROBE_VALUES = 2**22  # of all probes; long signals get fewer
_LEAST_PROBES = 8


def signal_range(network: Network, signal: Signal, spectrum: Spectrum | None) -> InputRange:
    """The valid range of a model's only input, which is a signal.

    spectrum: as the first filters tell it; None where no layer is linear in the input, then signals
      of the procedural families are scaled until the first statistics fit.
    Raises: ValueError, asking for input_range, where the statistics leave it open.
    """
    gap = first_gap(network)
    size = signal.length * signal.columns
    count = int(np.clip(_PROBE_VALUES // size, _LEAST_PROBES, PROBES))
    generators = [np.random.default_rng([0, i]) for i in range(count)]

    def drawn(known: Spectrum) -> np.ndarray:
        values = [draw_signal(signal, known, generator=g) for g in generators]
        return signal.to_input(np.stack(values)).astype(np.float32)

    if spectrum is None:
        mean, std, found = free_fit(gap, drawn(natural_spectrum(signal)))
        means, stds = np.full(signal.columns, mean), np.full(signal.columns, std)
        how = "procedural signals scaled to the first BatchNorm statistics"
    else:
        means, stds = spectrum.mean, spectrum.std
        found = gap(drawn(spectrum)) if spectrum.gap is None else spectrum.gap
        how = "the power that the first filters saw"
    figures = {"mean": means.mean(), "deviation": _total(means, stds), "gap": found}
    told = ", ".join(f"{name} {rounded(figure)}" for name, figure in figures.items())
    if not found <= LARGEST_GAP:
        raise ValueError(
            f"The input range could not be told from the first BatchNorm statistics: {signal.kind} "
            f"signals of the best {told} do not give them. Give input_range=LOW,HIGH, such as the "
            "sensor's full scale in the units that the model was trained in, or one of "
            f"{describe_conventions(signal=True)}. If the input is no {signal.kind}, give "
            "input_kind=image, spectrogram, sequence or vector."
        )
    name = fitting_convention(means, stds)
    if name:
        return signal_convention(name, source=f"first BatchNorm statistics: {name} ({how}: {told})")
    return free_range(means, stds, source=f"first BatchNorm statistics, a free fit ({how}: {told})")


def _total(means: np.ndarray, stds: np.ndarray) -> float:
    """Deviation of all values from their common mean."""
    return float(np.sqrt(np.mean(stds**2) + means.var()))


def fitting_convention(means: np.ndarray, stds: np.ndarray) -> str | None:
    """The convention whose values have such means and deviations, [columns] each.

    Values within [0, 1] of mean m have at most the variance m (1 - m), and those within [-1, 1] at
    most 1 - m^2. Where both are possible, the wider range is taken.

    Example: `fitting_convention(np.zeros(1), np.ones(1)) == "standard"`.
    """
    mean, std = float(means.mean()), _total(means, stds)
    if abs(mean) <= 0.2 and 0.8 <= std <= 1.25:
        return "standard"
    inside = np.all((means - stds > -0.05) & (means + stds < 1.05))
    if mean >= std and std**2 <= mean * (1 - mean) and std > 0.02 and inside:
        return "unit"
    if 0.02 < std <= 0.8 and std**2 <= 1 - mean**2 and np.all(np.abs(means) + stds < 1.05):
        return "symmetric"
    if 500 <= std <= 20000 and abs(mean) <= 0.2 * 32768:
        return "int16"
    if -75 <= mean <= -15 and 4 <= std <= 30 and mean - 2 * std >= -90 and mean + 2 * std <= 0:
        return "decibels"
    return None


def free_range(means: np.ndarray, stds: np.ndarray, *, source: str) -> InputRange:
    """The range of values that follow no convention: TAILS deviations of every column, as far below
    zero as above where values lie on both sides of it.
    """
    low, high = float(np.min(means - TAILS * stds)), float(np.max(means + TAILS * stds))
    if np.min(means - stds) < 0 < np.max(means + stds):
        high = max(-low, high)
        low = -high
    std = 2.0 * _total(means, stds) / (high - low)
    return InputRange((low,), (high,), source, prior_std=std, fitted=True)
