"""Signals from a power spectrum and a procedural family: what dead leaves are to pictures.

A signal is a matrix [length, columns]: a sequence's sensors or a spectrogram's bands beside each
other. Its power is split over atoms: waves along time in a single column, and for spectrograms
waves across all bands, too. The powers say how strong each rhythm is; a procedural family (spikes,
steps, damped oscillations, harmonic combs with onsets) says how the rhythms stand to each other,
which is what makes edges, bursts and peaks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dgh_tf.ops.kinds import Signal

TIME_WAVES, BAND_WAVES = 9, 6  # frequencies on each axis, evenly spaced by their logarithm
OFFSET = 0.25  # waves in the whole length: the slow part, with the level of a signal
COLUMN_SHARE = 0.3  # of power that a spectrogram holds in single bands, before anything is known
# Of the logarithm of a signal's strength: of sequences as of photographs' contrast; of spectrograms
# more, since each has quiet and loud sounds, whose rare peaks set the ranges of the first layers.
CONTRAST_SPREAD = 0.3
SOUND_SPREAD = 0.5
LARGEST_STD, UNKNOWN_STD = 0.6, 0.5  # of half a range: uniform values have 0.58
# Of every column in canvas units, so that one optimizer rate serves all: its default of 0.1 moves a
# column by 0.6 deviations.
CANVAS_STD = 1 / 6


@dataclasses.dataclass(frozen=True)
class Atoms:
    """The waves that a signal's power is split over.

    Attributes:
      time, band: frequency of each along both axes, waves per sample, float64 [atoms].
      column: the only column it lives in, or -1 for all; int64 [atoms].
      prior: the power it has before anything is known, float64 [atoms], of sum 1 for each column.
    """

    time: np.ndarray
    band: np.ndarray
    column: np.ndarray
    prior: np.ndarray

    def waves(self, signal: Signal, chosen: slice) -> np.ndarray:
        """Some of the atoms at power 1, in two phases each: float64 [2 * n, length, columns]."""
        time = np.arange(signal.length)[:, None]
        band = np.arange(signal.columns)[None]
        drawn = []
        for f, g, column in zip(
            self.time[chosen], self.band[chosen], self.column[chosen], strict=True
        ):
            for phase in (0.0, np.pi / 2):
                wave = np.sqrt(2.0) * np.cos(2 * np.pi * (f * time + g * band) + phase)
                if signal.length == 1:
                    wave = np.ones((1, signal.columns))
                drawn.append(wave if column < 0 else wave * (band == column))
        return np.stack(drawn)


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """What is known of a signal's values in model units.

    Attributes:
      mean: of every column, float64 [columns].
      power: of every atom, float64 [atoms].
      fitted: whether a model's statistics tell it.
      gap: how far it is from what filters saw behind a ReLU, as `moment_gap` counts it; None where
        the layers' own statistics can judge.
    """

    mean: np.ndarray
    power: np.ndarray
    atoms: Atoms
    fitted: bool = False
    gap: float | None = None

    @property
    def std(self) -> np.ndarray:
        """Of every column, float64 [columns]."""
        columns = len(self.mean)
        alone = self.atoms.column >= 0
        own = np.bincount(self.atoms.column[alone], weights=self.power[alone], minlength=columns)
        return np.sqrt(own + self.power[~alone].sum())

    def within(self, low: np.ndarray, high: np.ndarray) -> Spectrum:
        """Of columns that lie in ranges of their own, [columns] each: a column beside a far larger
        one is hardly seen by the filters, and its fitted power can be many times what it can be.
        """
        half, middle = (high - low) / 2, (high + low) / 2
        too_wide = self.std > LARGEST_STD * half
        mean = np.where(too_wide, middle, np.clip(self.mean, low, high))
        shrunk = np.where(too_wide, UNKNOWN_STD * half / self.std, 1.0)
        alone = self.atoms.column >= 0
        power = self.power * np.where(alone, shrunk[self.atoms.column] ** 2, 1.0)
        return dataclasses.replace(self, mean=mean, power=power)


def make_atoms(signal: Signal) -> Atoms:
    """The atoms of signals of this size."""

    def frequencies(length: int, most: int) -> np.ndarray:
        if length < 2:
            return np.zeros(0)
        counts = np.unique(np.round(np.geomspace(1, max(1, length // 2), most)))
        return counts / length

    length, columns = signal.length, signal.columns
    along = np.concatenate([[OFFSET / length], frequencies(length, TIME_WAVES)])
    if length == 1:
        along = np.zeros(1)
    rows: list[tuple[float, float, int, float]] = []
    across = signal.kind == "spectrogram"
    share = COLUMN_SHARE if across else 1.0
    falloff = 1.0 / (along * length + 1.0)
    for column in range(columns):
        parts = share * falloff / falloff.sum()
        rows += [(f, 0.0, column, part) for f, part in zip(along, parts, strict=True)]
    if across:
        turns = [0.0, *(s * g for g in frequencies(columns, BAND_WAVES) for s in (1, -1))]
        waves = [(f, g) for f in along for g in turns]
        weights = np.array([1.0 / (f * length + abs(g) * columns + 1.0) for f, g in waves])
        weights *= (1.0 - COLUMN_SHARE) / weights.sum()
        rows += [(f, g, -1, weight) for (f, g), weight in zip(waves, weights, strict=True)]
    time, band, prior = (np.array([row[i] for row in rows]) for i in (0, 1, 3))
    return Atoms(time, band, np.array([row[2] for row in rows]), prior)


def natural_spectrum(
    signal: Signal, *, mean: float | np.ndarray = 0.0, std: float | np.ndarray = 1.0
) -> Spectrum:
    """A spectrum that falls as 1/f, for signals of which nothing is known.

    mean, std: of all columns, or one for each; a spectrogram takes one std.
    """
    atoms = make_atoms(signal)
    means, stds = (np.broadcast_to(value, signal.columns) for value in (mean, std))
    return Spectrum(means.astype(float), stds[atoms.column] ** 2 * atoms.prior, atoms)


def fit_powers(
    gains: np.ndarray, observed: np.ndarray, prior: np.ndarray, *, rounds: int = 400
) -> np.ndarray:
    """Powers of atoms that explain what filters have seen, float64 [atoms], never negative.

    Multiplicative updates (Lucy 1974, Lee and Seung 2001) lower the divergence between observed and
    explained power, all filters alike, and stay near the prior where the filters cannot tell.

    Args:
      gains: power that a filter passes of each atom at power 1, [filters, atoms].
      observed: power that each filter has seen, [filters], above 0.
      prior: powers expected before anything is seen, [atoms]; only their ratios count.
      rounds: updates to make.
    """
    relative = gains / observed[:, None]
    power = prior / np.median(relative @ prior)
    total = np.maximum(relative.sum(0), 1e-12 * relative.sum(0).max())
    for _ in range(rounds):
        power = power * (relative.T @ (1.0 / np.maximum(relative @ power, 1e-30))) / total
    return power


def draw_signal(
    signal: Signal, spectrum: Spectrum, *, generator: np.random.Generator, family: bool = True
) -> np.ndarray:
    """A signal with the mean and the powers of `spectrum`, float64 [length, columns] in its units.

    family: with the phases of a procedural signal; False: with independent ones, which makes
      Gaussian noise of that spectrum.
    """
    atoms, length, columns = spectrum.atoms, signal.length, signal.columns

    def phases() -> np.ndarray:
        if family:
            return procedural(signal, generator=generator)
        return generator.standard_normal((length, columns))

    if length == 1:
        std = np.sqrt(spectrum.power[np.argsort(atoms.column)])
        return spectrum.mean + std * generator.standard_normal((1, columns))
    spread = SOUND_SPREAD if signal.kind == "spectrogram" else CONTRAST_SPREAD
    # less its square, for a mean power of 1
    contrast = np.exp(spread * generator.standard_normal() - spread**2)
    alone = atoms.column >= 0
    # one list of frequencies for every column, in order
    power = spectrum.power[alone].reshape(columns, -1).T
    values = _waves_along(atoms.time[: len(power)] * length, power, phases(), generator)
    if not alone.all():  # other phases: powers of waves in step would not add up
        across = np.where(alone, 0.0, spectrum.power)
        values = values + _waves_across(atoms, across, phases(), generator)
    level = values.mean(axis=0)
    return spectrum.mean + level + contrast * (values - level)


def _waves_along(
    counts: np.ndarray, power: np.ndarray, plane: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """The power of every atom in a column, [atoms of a column, columns], spread evenly over the
    frequencies that lie nearest to it; phases of `plane`. counts: waves in the length, ascending.
    """
    length, columns = plane.shape
    every = np.arange(1, length // 2 + 1)
    steps = counts[1:]  # the first one is the level
    if len(steps) == 0:
        return np.sqrt(power[:1]) * generator.standard_normal((1, columns))
    edges = np.sqrt(steps[1:] * steps[:-1])
    owner = np.searchsorted(edges, every)
    share = power[1:][owner] / np.bincount(owner, minlength=len(steps))[owner][:, None]
    phases = np.angle(np.fft.fft(plane - plane.mean(0), axis=0)[every])
    spectrum = np.zeros((length, columns), complex)
    spectrum[every] = np.sqrt(2.0 * share) * np.exp(1j * phases) * length
    level = np.sqrt(power[0]) * generator.standard_normal(columns)
    return np.fft.ifft(spectrum, axis=0).real + level


def _waves_across(
    atoms: Atoms, power: np.ndarray, plane: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """The same of waves across all columns."""
    length, columns = plane.shape
    rows, turns = np.arange(length // 2 + 1), np.round(np.fft.fftfreq(columns) * columns)

    def place(counts: np.ndarray) -> np.ndarray:
        return np.sign(counts) * np.log1p(np.abs(counts))

    chosen = np.flatnonzero(power)
    along, across = place(atoms.time[chosen] * length), place(atoms.band[chosen] * columns)
    distance = (place(rows)[:, None, None] - along) ** 2 + (
        place(turns)[None, :, None] - across
    ) ** 2
    owner = distance.argmin(axis=-1)
    share = (power[chosen] / np.maximum(1, np.bincount(owner.ravel(), minlength=len(chosen))))[
        owner
    ]
    phases = np.angle(np.fft.fft2(plane - plane.mean())[: len(rows)])
    spectrum = np.zeros((length, columns), complex)
    spectrum[: len(rows)] = np.sqrt(2.0 * share) * np.exp(1j * phases) * (length * columns)
    flat = np.sqrt(share[0, 0]) * generator.standard_normal()
    spectrum[0, 0] = flat * length * columns
    return np.fft.ifft2(spectrum).real


def procedural(signal: Signal, *, generator: np.random.Generator) -> np.ndarray:
    """A signal of one of the procedural families, of any scale: float64 [length, columns]."""
    if signal.kind == "spectrogram":
        return _sounds(signal.length, signal.columns, generator)
    draw = (_walk, _damped, _spikes, _steps, _harmonics)[generator.integers(5)]
    events = draw(signal.length, generator)
    lags = generator.integers(0, max(1, signal.length // 16), signal.columns)
    signs = generator.choice([-1.0, 1.0], signal.columns)
    own = generator.standard_normal((signal.length, signal.columns))
    spread = events.std() or 1.0
    shared = np.stack([np.roll(events, lag) for lag in lags], axis=-1) * signs
    return shared / spread + 0.1 * own


def _walk(length: int, generator: np.random.Generator) -> np.ndarray:
    return np.cumsum(generator.standard_normal(length))


def _events(length: int, generator: np.random.Generator) -> np.ndarray:
    """Starts of events: beats with a jitter of their own."""
    period = max(4.0, length / generator.uniform(1.5, 12.0))
    count = int(length / period) + 2
    starts = generator.uniform(0, period) + period * np.arange(count)
    starts += 0.05 * period * generator.standard_normal(count)
    return starts[starts < length]


def _damped(length: int, generator: np.random.Generator) -> np.ndarray:
    time, values = np.arange(length), np.zeros(length)
    for start in _events(length, generator):
        after = np.maximum(time - start, 0.0)
        rate = generator.uniform(2.0, 12.0) / length
        rhythm = np.exp(generator.uniform(np.log(4.0 / length), np.log(0.4)))
        ring = np.exp(-rate * after) * np.sin(2 * np.pi * rhythm * after)
        values += generator.uniform(0.3, 1.0) * ring
    return values


def _spikes(length: int, generator: np.random.Generator) -> np.ndarray:
    """Beats as of a heart: a sharp peak, a counter-stroke and a slow wave behind it."""
    time, values = np.arange(length), np.zeros(length)
    width = max(0.7, length * generator.uniform(0.002, 0.02))
    sign = generator.choice([-1.0, 1.0])
    for start in _events(length, generator):
        high = generator.uniform(0.7, 1.3)
        values += high * np.exp(-0.5 * ((time - start) / width) ** 2)
        values -= 0.3 * high * np.exp(-0.5 * ((time - start - 2.5 * width) / width) ** 2)
        values += 0.25 * np.exp(-0.5 * ((time - start - 12 * width) / (4 * width)) ** 2)
    return sign * values


def _steps(length: int, generator: np.random.Generator) -> np.ndarray:
    edges = np.sort(generator.integers(0, length, generator.integers(1, 9)))
    levels = generator.standard_normal(len(edges) + 1)
    return levels[np.searchsorted(edges, np.arange(length), side="right")]


def _harmonics(length: int, generator: np.random.Generator) -> np.ndarray:
    time, values = np.arange(length), np.zeros(length)
    base = np.exp(generator.uniform(np.log(2.0 / length), np.log(0.1)))
    for number in range(1, 9):
        if number * base < 0.5:
            phase = generator.uniform(0, 2 * np.pi)
            values += np.cos(2 * np.pi * number * base * time + phase) / number
    return values * (1.0 + 0.5 * np.sin(2 * np.pi * time * generator.uniform(1, 4) / length))


def _sounds(length: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Loudness of a few sounds over time and bands, as a logarithm: each begins at once, dies away,
    and is a comb of harmonics under formants or a broad noise; over a floor of noise.
    """
    time, band = np.arange(length)[:, None], np.arange(columns)[None] / columns
    loud = np.full((length, columns), 0.02)
    for _ in range(generator.integers(1, 6)):
        start, decay = generator.uniform(-0.2, 1.0) * length, generator.uniform(1.0, 8.0) / length
        after = time - start
        shape = np.where(after < 0, 0.0, np.exp(-decay * np.maximum(after, 0)))
        centres, widths = generator.uniform(0, 1, 3), generator.uniform(0.03, 0.3, 3)
        heights = generator.uniform(0.2, 1.0, 3)
        formants = sum(
            h * np.exp(-0.5 * ((band - c) / w) ** 2)
            for h, c, w in zip(heights, centres, widths, strict=True)
        )
        if generator.random() < 0.6:
            base, glide = generator.uniform(2.0, 8.0), generator.uniform(-0.5, 0.5)
            ripple = np.cos(2 * np.pi * base * (band + glide * after / length))
            formants = formants * (1.0 + 0.9 * ripple)
        loud += shape * formants * generator.uniform(0.2, 1.0)
    return np.log(loud) + 0.3 * generator.standard_normal((length, columns))


class CanvasUnits(NamedTuple):
    """How a signal stands on its canvas: arrays [1, *input shape] in units where the valid range is
    [-1, 1].

    Attributes:
      offset, scale: the signal is offset + scale * canvas.
      reach: how far from the offset it may go; infinite where only the range bounds it.
    """

    offset: np.ndarray
    scale: np.ndarray
    reach: np.ndarray


def drawn(canvas: tf.Tensor, units: CanvasUnits) -> tf.Tensor:
    """offset + scale * canvas, clipped to [-1, 1] and to the reach; clipping passes its gradient
    on. Float32.
    """
    low = np.maximum(units.offset - units.reach, -1.0).astype(np.float32)
    high = np.minimum(units.offset + units.reach, 1.0).astype(np.float32)

    @tf.custom_gradient
    def clipped(values: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return tf.minimum(tf.maximum(values, low), high), lambda upstream: upstream

    return clipped(
        tf.constant(units.offset, tf.float32) + tf.constant(units.scale, tf.float32) * canvas
    )
