"""The valid range of an input from the first running statistics of its model.

The model is shown noise with the spectrum of photographs, dark and bright, weak and strong, in
every common convention, and the one that comes closest to what the first BN layers saw in training
is taken.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dgh_tf.common.range_text import CONVENTIONS
from dgh_tf.common.text import rounded
from dgh_tf.input_range.conventions import InputRange, alike, convention
from dgh_tf.models.network import Network
from dgh_tf.ops.canvas import start_canvas
from dgh_tf.ops.kinds import LEAST_IMAGE_SIDE
from dgh_tf.ops.layer_moments import layer_moments
from dgh_tf.ops.losses import moment_gap
from dgh_tf.ops.radam import cosine, radam

FIRST_LAYERS = 2  # BN layers compared: deeper ones say more of content than of range
MARGIN, POOR_MARGIN = (
    1.15,
    2.0,
)  # the runner-up's gap over the winner's must be at least this; where the winner fits poorly, more
CONVENTION_FIT = 4.0  # a convention is taken when its gap is at most this times the free fit's ...
CONVENTION_GAP = 0.35  # ... or below this in itself
PROBES, LEAST_PROBES, PROBE_PIXELS = (
    16,
    4,
    16 * 96 * 96,
)  # noise images per candidate, fewer where large ones hold as many pixels
# Mean of a training set as a share of the range (photographs: 0.4 to 0.5), and the factor on the
# gap of rarer ones: dark sets (digits, X-rays) are common, bright ones are not.
BRIGHTNESSES = {0.1: 1.25, 0.2: 1.1, 0.35: 1.0, 0.5: 1.0, 0.65: 1.5, 0.8: 2.0}
CONTRASTS = (
    0.35,
    0.5,
    0.65,
)  # standard deviations tried for each convention, as a share of half its range
LARGEST_GAP = 0.5  # a fit worse than this explains nothing
PROBE_STEPS = 60
PROBE_BETAS = {"beta1": 0.9, "beta2": 0.99}


def range_from_statistics(network: Network) -> InputRange:
    """The valid range of a model's only input. Raises ValueError, asking for input_range, where the
    statistics leave it open.
    """
    shape = network.input_shapes[0]
    gap = first_gap(network)
    image = len(shape) == 3 and min(shape[:2]) >= LEAST_IMAGE_SIDE  # of any number of bands
    probes = (
        min(PROBES, max(LEAST_PROBES, PROBE_PIXELS // int(np.prod(shape[:2])))) if image else PROBES
    )
    noise = np.stack(
        [start_canvas(shape, index=i, seed=0, std=1.0, start="noise") for i in range(probes)]
    )
    gaps = {
        name: _convention_gap(gap, noise, name)
        for name, (low, _) in CONVENTIONS.items()
        if np.size(low) in (1, shape[-1])
    }
    ranked = sorted(gaps, key=lambda name: gaps[name])
    best, second = ranked[0], next(name for name in ranked if not alike(name, ranked[0]))
    listed = ", ".join(f"{name} {rounded(gaps[name])}" for name in ranked)
    margin = gaps[second] / max(gaps[best], 1e-9)
    fits = image and gaps[best] <= CONVENTION_GAP  # in itself: the free fit can say nothing more
    if not fits:
        mean, std, free = free_fit(gap, noise)
        fits = image and gaps[best] <= min(LARGEST_GAP, CONVENTION_FIT * free)
    if fits:
        if margin < (MARGIN if gaps[best] <= CONVENTION_GAP else POOR_MARGIN):
            raise ValueError(
                "The input range is ambiguous: the first BatchNorm statistics fit "
                f"{best} and {second} about equally "
                f"(gaps {listed}). Give input_range={best} or input_range=LOW,HIGH."
            )
        found = (
            f"first BatchNorm statistics: {best}, {rounded(margin)} times closer than {second} "
            f"(gaps {listed})"
        )
        return convention(best, channels=shape[-1], source=found)
    if free > LARGEST_GAP or (image and free > 0.5 * gaps[best]):
        raise ValueError(
            "The input range could not be told from the first BatchNorm statistics "
            f"(gaps {listed}, "
            f"free fit {rounded(free)}). Give input_range=LOW,HIGH."
        )
    return _probe(
        network, mean + std * noise, std, f"free fit {rounded(free)}; conventions: {listed}"
    )


def _convention_gap(gap: Callable, noise: np.ndarray, name: str) -> float:
    """The least gap of noise in a convention over the brightness and contrast that training sets
    have.
    """
    low, high = (np.asarray(bound, np.float32) for bound in CONVENTIONS[name])
    known = name == "standard"  # mean 0 and standard deviation 1 by its very definition
    tried = {0.5: 1.0} if known else BRIGHTNESSES
    return min(
        factor
        * gap(
            np.clip(contrast * noise + 2 * brightness - 1, -1, 1) * (high - low) / 2
            + (high + low) / 2
        )
        for brightness, factor in tried.items()
        for contrast in ((1 / 2.7,) if known else CONTRASTS)
    )


def _probe(network: Network, start: np.ndarray, std: float, gaps: str) -> InputRange:
    """The range of inputs that follow no convention: what the values of a few samples become when
    nothing bounds them and they are optimized for the statistics of all BN layers.
    """
    value_and_gradient = _gap_function(network, layers=len(network.layers), gradient=True)
    x = tf.constant(start, tf.float32)
    first = second = tf.zeros_like(x)
    for step in range(PROBE_STEPS):
        rate = 0.5 * std * cosine(tf.constant(step), steps=PROBE_STEPS)
        change, first, second = radam(
            value_and_gradient(x)[1],
            first,
            second,
            step=tf.constant(step),
            rate=rate,
            **PROBE_BETAS,
        )
        x += change
    low, high = float(np.min(x)), float(np.max(x))
    low, high = (
        low - 0.5 * (high - low),
        high + 0.5 * (high - low),
    )  # a few samples never show the tails
    source = (
        "first BatchNorm statistics, then samples matched to all of them without bounds "
        f"(gaps: {gaps})"
    )
    return InputRange(
        (low,), (high,), source, prior_std=float(2 * np.std(x) / (high - low)), fitted=True
    )


def first_gap(network: Network) -> Callable[[np.ndarray], float]:
    """Images of the only input, in model units, channels last -> mean gap of the first BN layers'
    statistics.
    """
    return _gap_function(network, layers=FIRST_LAYERS)


def _gap_function(network: Network, *, layers: int, gradient: bool = False) -> Callable:
    """Images -> mean gap of the first `layers` BN layers, a float; with gradient: (gap, its
    gradient) as tensors.
    """
    targets = network.layers[:layers]
    calls = (lambda x: network.forward(x).calls) if gradient else network.normalized

    def gap(images: tf.Tensor) -> tf.Tensor:
        rows = layer_moments([(i, x) for i, x in calls([images]) if i < layers], targets)
        return tf.reduce_mean(
            [
                moment_gap(row, mean=bn.mean, variance=bn.variance, epsilon=bn.epsilon)
                for row, bn in zip(rows, targets, strict=True)
            ]
        )

    def with_gradient(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            value = gap(images)
        return value, tape.gradient(value, images)

    if gradient:
        return tf.function(with_gradient, autograph=False)
    plain = tf.function(gap, autograph=False)
    return lambda images: float(plain(tf.constant(images, tf.float32)))


def free_fit(gap: Callable[[np.ndarray], float], noise: np.ndarray) -> tuple[float, float, float]:
    """mean, std and gap of the best mean + std * noise: coarse grid in log std, then shrinking
    coordinate steps.
    """

    # mean first: with hardly any noise, only the means of the first layer matter
    def value(mean: float, std: float) -> float:
        return gap(mean + std * noise)

    candidates = [
        (value(offset * std, std), offset * std, std)
        for std in 10.0 ** np.arange(-2.0, 2.6, 0.5)
        for offset in (-2.0, -1.0, 0.0, 1.0, 2.0)
    ]
    best, mean, std = min(candidates)
    width = 1.0
    for _ in range(12):
        trials = [
            (value(m, s), m, s)
            for m, s in (
                (mean + width * std, std),
                (mean - width * std, std),
                (mean, std * (1 + width)),
                (mean, std / (1 + width)),
            )
        ]
        if min(trials)[0] < best:
            best, mean, std = min(trials)
        else:
            width /= 2
    return float(mean), float(std), float(best)
