"""What images look like inside a model: second moments of the patches that every layer takes, and
how much of the variance lies between images.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dgh_tf.models.tflite.batch import proven
from dgh_tf.models.tflite.run import Graph, feeds_of, run
from dgh_tf.models.tflite.spec import spec_of
from tflite_export.simulation.fake_quant import channel_axes

if TYPE_CHECKING:
    from dgh_tf.models.network import Network

# Of larger layers a fixed random choice is measured, the same of every set of images
POSITIONS = 256  # of a layer's output, per image
ENTRIES = 2048  # of a patch
BATCH = 16
_ROUNDING = 1e-5  # of second moments: covariances below are what float32 leaves of nothing


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with constant weights in a graph, and what its patches are.

    Attributes:
      name: of its output.
      kind: of the operator.
      tensor: index of the activations that it takes.
      kernel, strides, dilations: (height, width); kernel None for a dense layer.
      same: whether the borders are padded with zeros so that no position is lost to the kernel.
      entries: how many values a dense layer takes at once: it may flatten more than the last axis.
    """

    name: str
    kind: str
    tensor: int
    kernel: tuple[int, int] | None
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    same: bool = False
    entries: int = 0


class Moments(NamedTuple):
    """Of the patches x that a layer takes: a block for each channel of a depthwise convolution,
    else one.

    means: E[x], float32 [blocks, entries]. seconds: E[x x^T], float32 [blocks, entries, entries].
    """

    means: np.ndarray
    seconds: np.ndarray

    @property
    def covariances(self) -> np.ndarray:
        """Like `seconds`, in float64."""
        means = np.asarray(self.means, np.float64)
        return self.seconds - means[:, :, None] * means[:, None, :]


@dataclasses.dataclass(frozen=True, eq=False)
class Structure:
    """A set of images inside a model.

    Attributes:
      moments: of the patches of each of `layers_of`.
      shares: by BN layer (a call of one) in order, see `between_share`.
      pixel_share: the same of the images themselves.
      neighbour_difference: see the function of this name; None for vectors.
    """

    moments: list[Moments]
    shares: list[tuple[str, float]]
    pixel_share: float
    neighbour_difference: float | None


def gram_gap(found: np.ndarray, wanted: np.ndarray) -> float:
    """||found - wanted||_F / ||wanted||_F of two arrays of one shape, in float64.

    The squared error that rounding weights by dW makes in a layer's output is tr(dW C dW^T) with C
    = E[x x^T] of the layer's patches: two sets of images with the same C ask for the same rounding.
    Where the bias takes the mean error off, C is the covariance of the patches.

    Example:
      >>> gram_gap(np.diag([3.0, 4.0]), np.diag([3.0, 0.0]))
      1.3333333333333333
    """
    wanted = np.asarray(wanted, np.float64)
    difference = np.linalg.norm((found - wanted).ravel())
    size = np.linalg.norm(wanted.ravel())
    return float(difference / size) if size else 0.0 if not difference else float("inf")


def gaps_of(found: Moments, wanted: Moments) -> dict[str, float | None]:
    """`gram_gap` of the second moments and of the covariances. None where those of the real images
    are nothing but rounding, as of a layer that takes the same from all of them.
    """
    size = np.linalg.norm(wanted.seconds.ravel())
    return {
        "gram_gap": gram_gap(found.seconds, wanted.seconds) if size else None,
        "covariance_gap": gram_gap(found.covariances, wanted.covariances)
        if np.linalg.norm(wanted.covariances.ravel()) > _ROUNDING * size
        else None,
    }


def between_share(means: np.ndarray, squares: np.ndarray) -> float:
    """Share of the variance that lies between the images' means: the mean over channels, those that
    never vary left out.

    Args:
      means: of every image and channel over positions, [images, channels].
      squares: the same of squares.

    Example: two images, all 1 and all 3, differ in nothing else:
      >>> between_share(np.array([[1.0], [3.0]]), np.array([[1.0], [9.0]]))
      1.0
    """
    means, squares = np.asarray(means, np.float64), np.asarray(squares, np.float64)
    total = squares.mean(axis=0) - means.mean(axis=0) ** 2
    varying = total > 1e-9 * np.maximum(squares.mean(axis=0), 1e-30)
    return float(np.mean(means.var(axis=0)[varying] / total[varying])) if varying.any() else 0.0


def neighbour_difference(images: np.ndarray) -> float | None:
    """Mean squared difference of neighbours along every axis but the last, over the mean variance
    of a channel. None for vectors, which have no neighbours.

    images: [images, ..., channels].
    """
    images = np.asarray(images, np.float64)
    differences = [np.diff(images, axis=axis) for axis in range(1, images.ndim - 1)]
    sizes = sum(d.size for d in differences)
    variance = float(np.mean(images.var(axis=tuple(range(images.ndim - 1)))))
    if not sizes or not variance:
        return None
    return sum(float(np.sum(d * d)) for d in differences) / sizes / variance


def layers_of(graph: Graph) -> list[Layer]:
    """The layers of a graph whose constant weights are quantized per channel, in order.

    A transposed convolution takes single positions, which it spreads.
    """
    weights, found = channel_axes(graph), []
    for operator in graph.operators:
        spec, options = spec_of(operator.kind), operator.options
        if spec.channel_axis is None or operator.inputs[1] not in weights:
            continue
        name = graph.tensors[operator.outputs[0]].name
        tensor = operator.inputs[spec.data_input]
        if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            height, width = np.asarray(graph.tensors[operator.inputs[1]].value).shape[1:3]
            strides = options["strideH"], options["strideW"]
            dilations = options["dilationHFactor"], options["dilationWFactor"]
            same = not options["padding"]
            kernel = int(height), int(width)
            found.append(Layer(name, operator.kind, tensor, kernel, strides, dilations, same))
        else:
            single = (1, 1) if operator.kind == "TRANSPOSE_CONV" else None
            entries = np.asarray(graph.tensors[operator.inputs[1]].value).shape[-1]
            found.append(Layer(name, operator.kind, tensor, single, entries=int(entries)))
    return found


def _chosen(total: int, most: int) -> np.ndarray:
    """At most so many of the numbers below `total`, sorted: always the same ones."""
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(0).choice(total, size=most, replace=False))


def patches(layer: Layer, x: np.ndarray, *, positions: int = POSITIONS) -> np.ndarray:
    """What a convolution takes at its output positions: [images, positions, kernel height * width,
    channels].

    Args:
      layer: the convolution.
      x: its input, [images, height, width, channels].
      positions: at most so many of its output, a fixed random choice.
    """
    assert layer.kernel is not None  # for the type checker
    reach, outputs, before = [], [], []
    for kernel, stride, dilation, size in zip(
        layer.kernel, layer.strides, layer.dilations, x.shape[1:3], strict=True
    ):
        span = (kernel - 1) * dilation + 1
        count = -(-size // stride) if layer.same else (size - span) // stride + 1
        missing = max((count - 1) * stride + span - size, 0) if layer.same else 0
        reach.append((missing // 2, missing - missing // 2))
        outputs.append(count)
        before.append(np.arange(kernel) * dilation)
    padded = np.pad(x, [(0, 0), *reach, (0, 0)])
    rows, columns = np.divmod(_chosen(outputs[0] * outputs[1], positions), outputs[1])
    rows = rows[:, None, None] * layer.strides[0] + before[0][:, None]
    columns = columns[:, None, None] * layer.strides[1] + before[1]
    found = padded[:, rows, columns]  # [images, positions, kernel height, kernel width, channels]
    return found.reshape(*found.shape[:2], -1, x.shape[-1])


def rows_of(layer: Layer, value: np.ndarray) -> np.ndarray:
    """The patches of a layer, float32 [blocks, patches, entries]. value: what the layer takes,
    [images, ...].
    """
    if layer.kernel is None:
        rows = value.reshape(-1, layer.entries)[None]
    else:
        found = patches(layer, value.reshape(-1, *value.shape[-3:]))
        if layer.kind == "DEPTHWISE_CONV_2D":
            rows = np.moveaxis(found, -1, 0).reshape(found.shape[-1], -1, found.shape[2])
        else:
            rows = found.reshape(1, -1, found.shape[2] * found.shape[3])
    return np.ascontiguousarray(rows[..., _chosen(rows.shape[-1], ENTRIES)], np.float32)


@functools.lru_cache(maxsize=1)  # all rows of a run ask about the same network: trace it once
def _image_moments(network: Network) -> Callable:
    """From inputs to (layer index, means, means of squares) of every BN layer's input, float64
    [images, channels] each.
    """
    import tensorflow as tf

    def moments(x: tf.Tensor) -> list[tuple[tf.Tensor, ...]]:
        found = []
        for index, value in network.normalized([x]):
            axis = network.layers[index].axis % value.shape.rank
            last = [*(i for i in range(value.shape.rank) if i != axis), axis]
            flat = tf.reshape(
                tf.cast(tf.transpose(value, last), tf.float64),
                [tf.shape(x)[0], -1, value.shape[axis]],
            )
            means = tf.reduce_mean(flat, 1), tf.reduce_mean(flat * flat, 1)
            found.append((tf.constant(index), *means))
        return found

    shape = tf.TensorSpec((None, *network.input_shapes[0]), tf.float32)
    return tf.function(moments, autograph=False).get_concrete_function(shape)


def _shares(network: Network, images: np.ndarray) -> list[tuple[str, float]]:
    """`between_share` of every BN layer's input. images: channels last."""
    import tensorflow as tf

    if not network.layers:
        return []
    batches = [
        _image_moments(network)(tf.constant(images[first : first + BATCH], tf.float32))
        for first in range(0, len(images), BATCH)
    ]
    shares = []
    for calls in zip(*batches, strict=True):
        means, squares = (np.concatenate([call[k].numpy() for call in calls]) for k in (1, 2))
        shares.append((network.layers[int(calls[0][0])].name, between_share(means, squares)))
    return shares


def _moments(graph: Graph, layers: list[Layer], images: np.ndarray) -> list[Moments]:
    """Of every layer's patches."""
    firsts: list[Any] = [0.0] * len(layers)
    seconds: list[Any] = [0.0] * len(layers)
    counts = [0] * len(layers)

    def note(index: int, value: Any) -> Any:
        for place, layer in enumerate(layers):
            if layer.tensor == index:
                rows = rows_of(layer, value.numpy())
                firsts[place] = firsts[place] + rows.sum(axis=1)
                seconds[place] = seconds[place] + np.swapaxes(rows, 1, 2) @ rows
                counts[place] += rows.shape[1]
        return value

    graph = proven(graph, images)
    for first in range(0, len(images), BATCH):
        run(graph, feeds_of(graph, images[first : first + BATCH]), observe=note)
    sums = zip(firsts, seconds, counts, strict=True)
    return [Moments(first / count, second / count) for first, second, count in sums]


def structure_of(network: Network, graph: Graph, images: np.ndarray) -> Structure:
    """A set of images inside a model of one input.

    Args:
      network: of the model.
      graph: the model's float file.
      images: float32 [images, ...] in the model's input units and layout.
    """
    seen = np.moveaxis(images, 1, -1) if network.channels_first[0] else images
    flat = seen.reshape(len(seen), -1, seen.shape[-1]).astype(np.float64)
    return Structure(
        _moments(graph, layers_of(graph), images),
        _shares(network, seen),
        between_share(flat.mean(axis=1), np.square(flat).mean(axis=1)),
        neighbour_difference(seen),
    )
