"""What the first layers' running statistics say of a signal: its mean and power spectrum.

A convolution or dense layer in front of a BatchNorm layer is a bank of filters, and the running
statistics say how much power every filter saw on average in training. Powers of waves that explain
all of them are the signal's own, as far as the filters can tell; where they cannot, a 1/f spectrum
stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dgh_tf.common.quiet import without_retracing_warnings
from dgh_tf.models.network import Network
from dgh_tf.ops.kinds import Signal
from dgh_tf.ops.signals import Atoms, Spectrum, fit_powers, make_atoms

_LAYERS = 4  # BN layers looked at for those that filter the input
_MOST_VALUES = 2**26  # of one input for every column; beyond it nothing is estimated
_LINEAR = 1e-3  # of a response: what rounding may add where a layer is linear
_VALUES = 2**22  # of inputs fed at a time
_RIDGE = 0.02  # of the mean eigenvalue: holds the mean where filters hardly see it
_LEAST_SHARE = 0.05  # of a filter's variance that is left when the mean's own pattern is taken off


@dataclasses.dataclass(frozen=True)
class Filters:
    """Filters that BN layers see an input through: response(input) - offset is linear in it."""

    respond: Callable[[np.ndarray], np.ndarray]  # [n, *shape] to [n, positions, filters]
    offset: np.ndarray  # [positions, filters]
    mean: np.ndarray  # [filters], what training saw
    variance: np.ndarray


@without_retracing_warnings()
def estimate_spectrum(network: Network, signal: Signal, *, number: int = 0) -> Spectrum | None:
    """The mean and powers of input `number`, or None where no BN layer sees it through filters
    alone.
    """
    if signal.columns**2 * signal.length > _MOST_VALUES:
        return None
    filters = _find_filters(network, number)
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
    return Spectrum(mean, power, atoms, fitted=True)


def _find_filters(network: Network, number: int) -> Filters | None:
    """Those in front of the first BN layer that is linear in the input; None without one."""
    layers = network.layers[:_LAYERS]
    shapes = network.input_shapes
    if not layers:
        return None

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

    function = tf.function(calls, autograph=False)
    chosen = _linear(function, shapes[number])
    if not chosen:
        return None
    one = chosen[0]
    responses = tf.function(
        lambda values: calls(values)[one],
        autograph=False,
    )

    def respond(values: np.ndarray) -> np.ndarray:
        at_once = max(1, _VALUES // int(np.prod(values.shape[1:])) // 16)
        parts = [
            responses(tf.constant(values[i : i + at_once], tf.float32)).numpy()
            for i in range(0, len(values), at_once)
        ]
        return np.concatenate(parts).astype(np.float64)

    bn = layers[one]
    offset = respond(np.zeros((1, *shapes[number])))[0]
    variance = np.asarray(bn.variance, np.float64)
    return Filters(respond, offset, np.asarray(bn.mean, np.float64), variance)


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
    square = weights.T @ weights
    ridge = _RIDGE * np.trace(square) / signal.columns
    mean = np.linalg.solve(square + ridge * np.eye(signal.columns), weights.T @ wanted)
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
