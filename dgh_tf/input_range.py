"""keras: the valid range of a model's inputs: from its own layers, from the user, or from the first running statistics.

The last way shows the model noise with the spectrum of photographs in every common convention and asks which one comes
closest to what the first BN layers saw in training.
"""
from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from dgh_tf.heads import upstream
from dgh_tf.images import is_image, start_canvas
from dgh_tf.losses import moment_gap
from dgh_tf.network import Network, batchnorm_layers, kernel_layers, record_calls
from dgh_tf.objective import layer_rows
from dgh_tf.optimizer import cosine, radam

IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CAFFE_MEAN = np.array([103.939, 116.779, 123.68])  # blue, green, red
CONVENTIONS = {
    "byte": (0.0, 255.0), "unit": (0.0, 1.0), "symmetric": (-1.0, 1.0),
    "imagenet": (-IMAGENET_MEAN / IMAGENET_STD, (1.0 - IMAGENET_MEAN) / IMAGENET_STD),
    "caffe": (-CAFFE_MEAN, 255.0 - CAFFE_MEAN),
}
FIRST_LAYERS = 2  # BN layers compared: deeper ones say more of content than of range
MARGIN = 1.15  # the runner-up's gap over the winner's must be at least this
CONVENTION_FIT = 4.0  # a convention is taken when its gap is at most this times the free fit's ...
CONVENTION_GAP = 0.35  # ... or below this in itself
PROBES = 16  # noise images per candidate
CONTRASTS = (0.35, 0.5, 0.65)  # standard deviations tried for each convention, as a share of half its range
FREE_FIT_GAP = 0.5  # a free fit worse than this explains nothing
PROBE_STEPS = 60


@dataclasses.dataclass(frozen=True)
class InputRange:
    """Valid range of one input. low, high: float or one float per channel. prior_std: of natural inputs, canvas units."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    source: str  # how it was found, for people and the manifest
    prior_std: float = 0.5  # photographs: about a quarter of the range (ImageNet: 0.226 of 1)

    def as_dict(self) -> dict:
        return {"low": list(self.low), "high": list(self.high), "found": self.source}


def parse_input_range(text: str, *, channels: int) -> InputRange:
    """'LOW,HIGH' or the name of a convention. Raises ValueError naming both forms."""
    if text in CONVENTIONS:
        return _convention(text, channels, "--input_range")
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"--input_range takes LOW,HIGH (two finite numbers, the smaller first) or one of "
                         f"{', '.join(CONVENTIONS)}; got {text!r}.")
    return InputRange((low,), (high,), "--input_range")


def find_input_range(network: Network, *, text: str = "") -> list[InputRange]:
    """The valid range of every input, in order.

    Args: text: one range for all inputs, or NAME:RANGE;NAME:RANGE; inputs that it does not name keep what their layers declare.
    Raises: ValueError when no way gives a clear answer; it asks for --input_range.
    """
    channels, names = [shape[-1] for shape in network.input_shapes], network.input_names
    given = _by_input(text, names)
    ranges = [parse_input_range(given[name], channels=c) if name in given else None for name, c in zip(names, channels, strict=True)]
    if None in ranges:
        ranges = [valid or declared for valid, declared in zip(ranges, _declared_by_layers(network), strict=True)]
    unknown = [name for name, valid in zip(names, ranges, strict=True) if valid is None]
    if unknown and len(names) > 1:
        example = ";".join(f"{name}:LOW,HIGH" for name in unknown)
        raise ValueError(f"Model {network.model.name!r} has {len(names)} inputs ({', '.join(names)}), and no Rescaling or Normalization "
                         f"layer tells the range of {', '.join(unknown)}. Give --input_range=LOW,HIGH for all, or "
                         f"--input_range=\"{example}\".")
    return [_from_statistics(network, channels[0])] if unknown else ranges


def _by_input(text: str, names: list[str]) -> dict[str, str]:
    """The text of each input's range by name. Raises ValueError for a name that is no input or stands twice."""
    if ":" not in text:
        return dict.fromkeys(names, text) if text else {}
    pairs = [part.strip().rpartition(":") for part in text.split(";") if part.strip()]
    given = {name.strip(): valid.strip() for name, _, valid in pairs}
    wrong = sorted(set(given) - set(names))
    if wrong or len(given) < len(pairs):
        raise ValueError(f"--input_range={text} names {', '.join(wrong) or 'an input twice'}; the model's inputs are {', '.join(names)}. "
                         "Give NAME:LOW,HIGH for each, joined by semicolons.")
    return given


def _convention(name: str, channels: int, source: str) -> InputRange:
    low, high = (np.atleast_1d(bound) for bound in CONVENTIONS[name])
    if len(low) not in (1, channels):
        raise ValueError(f"--input_range={name} is for three channels; this input has {channels}. Give LOW,HIGH.")
    return InputRange(tuple(map(float, low)), tuple(map(float, high)), source)


def _declared_by_layers(network: Network) -> list[InputRange | None]:
    """For every input the range that its Rescaling or Normalization layer maps to the network's units; None without one.

    Such a layer declares the range of the one input that it is fed from, and only where no layer with weights comes before.
    """
    scalings = [layer for layer in network.model._flatten_layers() if type(layer).__name__ in ("Rescaling", "Normalization")]
    found: list[InputRange | None] = [None] * len(network.input_shapes)
    if not scalings:
        return found
    weighted = [*batchnorm_layers(network.model), *kernel_layers(network.model)]

    def trace(*inputs):
        with record_calls([*scalings, *weighted]) as recorded:
            network.outputs(list(inputs))
        learned = {y.ref() for layer, _, y in recorded if layer not in scalings}
        for layer, x, _ in recorded:
            before = upstream([x])
            fed = [i for i, tensor in enumerate(inputs) if tensor.ref() in before]
            if layer in scalings and len(fed) == 1 and found[fed[0]] is None and not before & learned:
                found[fed[0]] = _declared(layer)

    specs = [tf.TensorSpec((None, *shape), tf.float32) for shape in network.input_shapes]
    tf.function(trace, autograph=False).get_concrete_function(*specs)
    return found


def _declared(layer) -> InputRange | None:
    if type(layer).__name__ == "Rescaling":
        scale = float(np.max(np.asarray(layer.scale)))
        high = 255.0 if scale < 0.1 else 1.0  # 1/255 and 1/127.5 take bytes, larger ones what is already in [0, 1]
        return InputRange((0.0,), (high,), f"layer {layer.name!r} (Rescaling by {scale:.4g})")
    if layer.invert:
        return None
    mean, std = np.ravel(np.asarray(layer.mean)), np.sqrt(np.ravel(np.asarray(layer.variance)))
    fits = [(abs(std.mean() - 0.25 * top) / top, top) for top in (1.0, 255.0) if 0 < mean.mean() < top]
    if fits and min(fits)[0] < 0.2:
        return InputRange((0.0,), (min(fits)[1],), f"layer {layer.name!r} (Normalization)")
    low, high = mean - 3 * std, mean + 3 * std
    return InputRange(tuple(map(float, low)), tuple(map(float, high)), f"layer {layer.name!r} (mean +- 3 std)", 1 / 3)


def _from_statistics(network: Network, channels: int) -> InputRange:
    shape = network.input_shapes[0]
    gap = _gap_function(network, layers=FIRST_LAYERS)
    image = is_image(shape)
    noise = np.stack([start_canvas(shape, index=i, seed=0, std=1.0, start="noise") for i in range(PROBES)])
    gaps = {}
    for name in CONVENTIONS:
        low, high = (np.asarray(bound, np.float32) for bound in CONVENTIONS[name])
        if low.size in (1, channels):
            gaps[name] = min(gap(np.clip(c * noise, -1, 1) * (high - low) / 2 + (high + low) / 2) for c in CONTRASTS)
    ranked = sorted(gaps, key=gaps.get)
    best, second = ranked[:2]
    listed = ", ".join(f"{name} {gaps[name]:.3g}" for name in ranked)
    margin = gaps[second] / max(gaps[best], 1e-9)
    mean, std, free = _free_fit(gap, noise)
    if image and gaps[best] <= max(CONVENTION_GAP, CONVENTION_FIT * free):
        if margin < MARGIN:
            raise ValueError(f"The input range is ambiguous: the first BatchNorm statistics fit {best} and {second} about equally "
                             f"(gaps {listed}). Give --input_range={best} or --input_range=LOW,HIGH.")
        return _convention(best, channels, f"first BatchNorm statistics: {best}, {margin:.3g} times closer than {second} (gaps {listed})")
    if free > FREE_FIT_GAP or (image and free > 0.5 * gaps[best]):
        raise ValueError(f"The input range could not be told from the first BatchNorm statistics (gaps {listed}, "
                         f"free fit {free:.3g}). Give --input_range=LOW,HIGH.")
    return _probe(network, mean + std * noise, std, f"free fit {free:.3g}; conventions: {listed}")


def _probe(network: Network, start: np.ndarray, std: float, gaps: str) -> InputRange:
    """The range of inputs that follow no convention: what the values of a few samples become when nothing bounds them
    and they are optimized for the statistics of all BN layers."""
    value_and_gradient = _gap_function(network, layers=len(network.layers), gradient=True)
    x = tf.constant(start, tf.float32)
    first = second = tf.zeros_like(x)
    for step in range(PROBE_STEPS):
        rate = 0.5 * std * cosine(tf.constant(step), steps=PROBE_STEPS)
        change, first, second = radam(value_and_gradient(x)[1], first, second, step=tf.constant(step), rate=rate)
        x += change
    low, high = float(np.min(x)), float(np.max(x))
    low, high = low - 0.5 * (high - low), high + 0.5 * (high - low)  # a few samples never show the tails
    source = f"first BatchNorm statistics, then samples matched to all of them without bounds (gaps: {gaps})"
    return InputRange((low,), (high,), source, prior_std=float(2 * np.std(x) / (high - low)))


def _gap_function(network: Network, *, layers: int, gradient: bool = False):
    """Images -> mean gap of the first `layers` BN layers, a float; with gradient: (gap, its gradient) as tensors."""
    targets = network.layers[:layers]

    def gap(images):
        rows = layer_rows([(i, x) for i, x in network.forward([images]).calls if i < layers], targets)
        return tf.reduce_mean([moment_gap(row, mean=bn.mean, variance=bn.variance, epsilon=bn.epsilon)
                               for row, bn in zip(rows, targets, strict=True)])

    def with_gradient(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            value = gap(images)
        return value, tape.gradient(value, images)

    if gradient:
        return tf.function(with_gradient, autograph=False)
    plain = tf.function(gap, autograph=False)
    return lambda images: float(plain(tf.constant(images, tf.float32)))


def _free_fit(gap, noise: np.ndarray) -> tuple[float, float, float]:
    """mean, std and gap of the best mean + std * noise: coarse grid in log std, then shrinking coordinate steps."""
    # mean first: with hardly any noise, only the means of the first layer matter
    def value(mean, std):
        return gap(mean + std * noise)

    candidates = [(value(offset * std, std), offset * std, std) for std in 10.0 ** np.arange(-2.0, 2.6, 0.5)
                  for offset in (-2.0, -1.0, 0.0, 1.0, 2.0)]
    best, mean, std = min(candidates)
    width = 1.0
    for _ in range(12):
        trials = [(value(m, s), m, s) for m, s in ((mean + width * std, std), (mean - width * std, std),
                                                   (mean, std * (1 + width)), (mean, std / (1 + width)))]
        if min(trials)[0] < best:
            best, mean, std = min(trials)
        else:
            width /= 2
    return float(mean), float(std), float(best)
