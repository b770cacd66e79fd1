"""What the first layers' running statistics say of a signal: its mean and power spectrum.

A convolution or dense layer in front of a BatchNorm layer is a bank of filters, and the running
statistics say how much power every filter saw on average in training; behind a ReLU they say it of
normal values that were cut at 0. Powers of waves that explain
all of them are the signal's own, as far as the filters can tell; where they cannot, a 1/f spectrum
stands.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dgh_tf.common.quiet import without_retracing_warnings
from dgh_tf.models.batchnorm import BatchNorm
from dgh_tf.models.first_layers import first_outputs
from dgh_tf.models.hooks import without_relu
from dgh_tf.models.network import Network
from dgh_tf.ops.kinds import Signal
from dgh_tf.ops.signals import Atoms, Spectrum, fit_powers, make_atoms

_LAYERS = 4  # BN layers looked at for those that filter the input
_MOST_VALUES = 2**26  # of one input for every column; beyond it nothing is estimated
_LINEAR = 1e-3  # of a response: what rounding may add where a layer is linear
_VALUES = 2**22  # of inputs fed at a time
_RARE = 0.7  # deviations that a mean may lie below 0: of less than a quarter of the values, those
# above 0 are outliers and say little of the rest
_RIDGE = 0.02  # of the mean eigenvalue: holds the mean where filters hardly see it
# Deviations of the strongest column in half ranges: a full scale that is hardly used, and values
# spread evenly over all of it
_LIKELY_SHARE = (0.05, 0.577)
_LEAST_SHARE = 0.05  # of a filter's variance that is left when the mean's own pattern is taken off


@dataclasses.dataclass(frozen=True)
class Filters:
    """Filters that BN layers see an input through: response(input) - offset is linear in it."""

    respond: Callable[[np.ndarray], np.ndarray]  # [n, *shape] to [n, positions, filters]
    offset: np.ndarray  # [positions, filters]
    mean: np.ndarray  # [filters], what training saw
    variance: np.ndarray
    rectified: bool = False  # whether training saw them behind a ReLU


@without_retracing_warnings()
def estimate_spectrum(network: Network, signal: Signal, *, number: int = 0) -> Spectrum | None:
    """The mean and powers of input `number`, or None where no layer sees it through filters alone.

    Where no BN layer tells what training saw, the filters' outputs are taken to have mean 0 and
    variance 1: so a BN layer leaves them that is folded into the weights, but for a gain and a
    shift that training moves little. Then `within` must settle the scale.
    """
    if signal.columns**2 * signal.length > _MOST_VALUES:
        return None
    filters = _find_filters(network, number) if network.layers else _first_filters(network, number)
    if filters is None:
        return None
    mean, pattern = _fit_mean(filters, signal)
    atoms = make_atoms(signal)
    gains = _gains(filters, signal, atoms)
    observed = np.maximum(filters.variance - pattern, _LEAST_SHARE * filters.variance)
    seeing = gains.sum(1) > 1e-6 * gains.sum(1).max()
    alive = seeing & (observed > 1e-6 * np.median(observed))
    if not alive.any():
        return None
    power = fit_powers(gains[alive], observed[alive], atoms.prior)
    gap = None
    if filters.rectified:  # channels that were silent in training would count any value as far off
        plane = np.broadcast_to(mean, (1, signal.length, signal.columns))
        seen = filters.respond(signal.to_input(plane))[0].mean(axis=0)
        levels = (seen - filters.mean)[alive] ** 2 / filters.variance[alive]
        gap = float(np.mean(levels + (np.sqrt(gains[alive] @ power / observed[alive]) - 1.0) ** 2))
    return Spectrum(mean, power, atoms, fitted=True, gap=gap)


def _find_filters(network: Network, number: int) -> Filters | None:
    """Those in front of the first BN layer that is linear in the input, or behind the ReLU of such
    ones; None without one.
    """
    layers = network.layers[:_LAYERS]
    if not layers:
        return None
    plain = _trace(network, number)
    shape = network.input_shapes[number]
    chosen = _linear(plain, shape)
    if chosen:
        return _as_filters(plain, layers[chosen[0]], shape, index=chosen[0])
    with without_relu(network.model):
        passing = _trace(network, number)
    if 0 not in _linear(passing, shape):
        return None
    probe = tf.constant(np.random.default_rng(1).standard_normal((2, *shape)), tf.float32)
    behind, before = plain(probe)[0].numpy(), passing(probe)[0].numpy()
    if np.abs(behind - np.maximum(before, 0.0)).max() > _LINEAR * np.abs(before).max():
        return None
    return _as_filters(passing, layers[0], shape, index=0, rectified=True)


def _first_filters(network: Network, number: int) -> Filters | None:
    """The last of the first layers that is linear in the input: what follows it, an activation or a
    normalization, is made for its outputs.
    """
    shapes = network.input_shapes

    def outputs(values: tf.Tensor) -> list[tf.Tensor]:
        given = [tf.zeros((tf.shape(values)[0], *shape)) for shape in shapes]
        given[number] = values
        return first_outputs(network, given, most=_LAYERS)

    signature = tf.TensorSpec((None, *shapes[number]), tf.float32)
    function = tf.function(outputs, autograph=False).get_concrete_function(signature)
    chosen = _linear(function, shapes[number])
    if not chosen:
        return None
    respond = _responses(function, index=chosen[-1])
    offset = respond(np.zeros((1, *shapes[number])))[0]
    count = offset.shape[-1]
    return Filters(respond, offset, np.zeros(count), np.ones(count))


def within(spectrum: Spectrum, *, low: float, high: float) -> Spectrum:
    """A spectrum that weights alone tell, brought into the range low .. high: columns whose mean
    lies outside go to the middle, and the strongest column has a likely share of the range.
    """
    half = (high - low) / 2.0
    inside = (low < spectrum.mean) & (spectrum.mean < high)
    share = float(spectrum.std.max()) / half
    scale = float(np.clip(share, *_LIKELY_SHARE)) / share
    return dataclasses.replace(
        spectrum,
        mean=np.where(inside, spectrum.mean, low + half),
        power=spectrum.power * scale**2,
    )


def _trace(network: Network, number: int) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """From input `number`, all others 0, to what the first BN layers take: float32 [n, positions,
    channels] each.
    """
    layers, shapes = network.layers[:_LAYERS], network.input_shapes

    def calls(values: tf.Tensor) -> list[tf.Tensor]:
        given = [tf.zeros((tf.shape(values)[0], *shape)) for shape in shapes]
        given[number] = values
        first: dict[int, tf.Tensor] = {}
        for index, x in network.forward(given).calls:
            first.setdefault(index, x)
        return [
            _by_channel(first[index], axis=layers[index].axis)
            for index in range(len(layers))
            if index in first
        ]

    signature = tf.TensorSpec((None, *shapes[number]), tf.float32)
    return tf.function(calls, autograph=False).get_concrete_function(signature)


def _as_filters(
    function: Callable,
    bn: BatchNorm,
    shape: tuple[int, ...],
    *,
    index: int,
    rectified: bool = False,
) -> Filters:
    mean, variance = (np.asarray(value, np.float64) for value in (bn.mean, bn.variance))
    kept = np.ones(len(mean), bool)
    if rectified:
        mean, variance, kept = before_relu(mean, variance)

    every = _responses(function, index=index)

    def respond(values: np.ndarray) -> np.ndarray:
        return every(values)[..., kept]

    offset = respond(np.zeros((1, *shape)))[0]
    return Filters(respond, offset, mean[kept], variance[kept], rectified)


def _responses(function: Callable, *, index: int) -> Callable[[np.ndarray], np.ndarray]:
    """What call number `index` gives, a part of the values at a time: float64 [n, positions,
    filters].
    """

    def respond(values: np.ndarray) -> np.ndarray:
        at_once = max(1, _VALUES // int(np.prod(values.shape[1:])) // 16)
        parts = [
            function(tf.constant(values[i : i + at_once], tf.float32))[index].numpy()
            for i in range(0, len(values), at_once)
        ]
        return np.concatenate(parts).astype(np.float64)

    return respond


def before_relu(
    mean: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance of normal values of which ReLU has made the given ones, and where they can
    be told: not of channels that are hardly ever above 0. All [channels].

    Of normal values with mean m = t s and deviation s, ReLU gives the mean s (p(t) + t P(t)) and
    the mean square s^2 ((1 + t^2) P(t) + t p(t)), p and P the normal density and distribution. The
    mean's square over the mean square rises with t alone.
    """
    grid = np.linspace(-_RARE, 40.0, 4001)
    density = np.exp(-0.5 * grid**2) / np.sqrt(2.0 * np.pi)
    below = 0.5 * (1.0 + np.vectorize(math.erf)(grid / np.sqrt(2.0)))
    first, second = density + grid * below, (1.0 + grid**2) * below + grid * density
    squares = mean**2 + variance
    ratio = mean**2 / np.maximum(squares, 1e-30)
    told = (mean > 0) & (ratio > (first**2 / second)[0])
    t = np.interp(ratio, first**2 / second, grid)
    std = mean / np.interp(t, grid, first)
    return t * std, std**2, told


def _by_channel(x: tf.Tensor, *, axis: int) -> tf.Tensor:
    """[n, positions, channels] of a BN layer's input."""
    order = [*(i for i in range(x.shape.rank) if i != axis), axis]
    x = tf.cast(tf.transpose(x, order), tf.float32)
    return tf.reshape(x, [tf.shape(x)[0], -1, x.shape[-1]])


def _linear(function: Callable, shape: tuple[int, ...]) -> list[int]:
    """Which of the calls respond to a sum by the sum of their responses."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 1, *shape))
    fed = np.concatenate([np.zeros((1, *shape)), first, second, first - 3.0 * second])
    found = []
    for index, part in enumerate(function(tf.constant(fed, tf.float32))):
        zero, one, two, both = part.numpy().astype(np.float64)
        wanted = (one - zero) - 3.0 * (two - zero)
        largest = np.abs(wanted).max()
        if largest > 0 and np.abs(both - zero - wanted).max() <= _LINEAR * largest:
            found.append(index)
    return found


def _fit_mean(filters: Filters, signal: Signal) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every column, and the variance over positions that it alone gives each filter."""
    scale = np.sqrt(np.maximum(filters.variance, 1e-12))
    units = np.zeros((signal.columns, signal.length, signal.columns))
    units[np.arange(signal.columns), :, np.arange(signal.columns)] = 1.0
    seen = filters.respond(signal.to_input(units)) - filters.offset
    weights = seen.mean(1).T / scale[:, None]
    wanted = (filters.mean - filters.offset.mean(0)) / scale
    level = 0.0  # bands, unlike sensors, have much of their mean in common
    if signal.kind == "spectrogram":
        common = weights.sum(axis=1)
        level = common @ wanted / (common @ common + 1e-12)
        wanted = wanted - common * level
    square = weights.T @ weights
    ridge = _RIDGE * np.trace(square) / signal.columns
    mean = level + np.linalg.solve(square + ridge * np.eye(signal.columns), weights.T @ wanted)
    return mean, (np.einsum("k,kpc->pc", mean, seen) + filters.offset).var(axis=0)


def _gains(filters: Filters, signal: Signal, atoms: Atoms) -> np.ndarray:
    """Power that every filter passes of each atom at power 1, [filters, atoms]."""
    at_once = max(1, _VALUES // (2 * signal.length * signal.columns))
    parts = []
    for start in range(0, len(atoms.prior), at_once):
        waves = atoms.waves(signal, slice(start, start + at_once))
        seen = filters.respond(signal.to_input(waves)) - filters.offset
        parts.append((seen**2).reshape(len(waves) // 2, -1, seen.shape[-1]).mean(1))
    return np.concatenate(parts).T
