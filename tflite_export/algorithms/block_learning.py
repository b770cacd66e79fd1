"""Optimizes one block of a float .tflite graph: the rounding of its weights, and its biases, so
that its output comes closest to float.

Rounding: `tflite_export.algorithms.adaround`. Activations are left in float at random: Wei et al.
2022, "QDrop".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dgh_tf.models.tflite.run import Graph, run
from tflite_export.algorithms import adaround
from tflite_export.algorithms.blocks import Values, outside

# Adam's, for choices and for biases in units of the channel's largest weight
_RATE, _BIAS_RATE = 0.2, 1e-3
_BETA = 8.0  # the penalty's first exponent: AdaRound's 20 is for thousands of steps
# first and last, against a reconstruction error of 1 for rounding to nearest: in the end all
# choices are made
_PENALTY = (1.0, 1000.0)
# images of a step: as many as have so many activations in the block, within these bounds. Early
# layers have few weights and thousands of positions of each image
_VALUES, _FEWEST, _MOST = 1_000_000, 4, 32


@dataclasses.dataclass(frozen=True)
class Block:
    """What is optimized in one span, by tensor index: weights in float, their floors and scales
    (shaped to broadcast to them), biases in float and the units they are learned in, smallest
    and largest integers.
    """

    span: range
    weights: Values
    floors: Values
    scales: Values
    biases: Values
    units: Values
    limits: dict[int, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Learned:
    """What was learned of a block, by tensor index: int8 integers of its weights, the float32
    weights that these stand for, and biases in float.
    """

    integers: Values
    weights: Values
    biases: Values


def _error(targets: Mapping[int, Any], outputs: Mapping[int, Any]) -> Any:
    """Sum over a block's outputs of the mean squared error over the mean squared target; a scalar
    tensor.
    """
    import tensorflow as tf

    return tf.add_n(
        [
            tf.reduce_mean(tf.square(outputs[i] - t)) / (tf.reduce_mean(tf.square(t)) + 1e-12)
            for i, t in targets.items()
        ]
    )


def _adam(
    variables: list[Any], gradients: list[Any], moments: list[Any], rates: list[Any], step: Any
) -> None:
    """One step of Adam (Kingma and Ba 2015, algorithm 1) in place; `moments` holds first and second
    ones in turn.
    """
    import tensorflow as tf

    for k, (variable, gradient, rate) in enumerate(zip(variables, gradients, rates, strict=True)):
        first = moments[2 * k].assign(0.9 * moments[2 * k] + 0.1 * gradient)
        second = moments[2 * k + 1].assign(0.999 * moments[2 * k + 1] + 0.001 * tf.square(gradient))
        variable.assign_sub(
            rate * first / (1.0 - 0.9**step) / (tf.sqrt(second / (1.0 - 0.999**step)) + 1e-8)
        )


def _dropping(observe: Callable, *, drop: float, seed: Any) -> Callable:
    """`observe` that leaves each element in float with probability `drop`."""
    import tensorflow as tf

    def watch(index: int, value: Any) -> Any:
        kept = tf.random.stateless_uniform(tf.shape(value), [seed[0] + index, seed[1]]) >= drop
        return tf.where(kept, observe(index, value), value)

    return watch if drop else observe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learning:
    """What holds for all blocks of one `block_reconstruction.reconstruct`, whose arguments these
    are.

    Attributes: nearest: (integers, scales) of rounding to nearest. limits: smallest and largest
      integers.
      floats: constants instead of the file's. observe: fake-quantizes activations. batch_size:
      images of each step; None for as many as suit the block.
    """

    graph: Graph
    nearest: Mapping[int, tuple[np.ndarray, np.ndarray]]
    limits: dict[int, tuple[int, int]]
    floats: Mapping[int, Any]
    observe: Callable
    steps: int
    batch_size: int | None
    drop: float


@dataclasses.dataclass(frozen=True)
class _Variables:
    """What is learned of a block, by tensor index: choices v of its weights, and shifts of its
    biases in their units.
    """

    choices: dict[int, Any]
    shifts: dict[int, Any]

    @property
    def all(self) -> list[Any]:
        return [*self.choices.values(), *self.shifts.values()]

    def rates(self, progress: Any) -> list[Any]:
        """Adam's. Biases settle; choices are settled by the penalty."""
        slower = 1.0 - progress
        return [_RATE] * len(self.choices) + [_BIAS_RATE * slower] * len(self.shifts)


def _variables(block: Block) -> _Variables:
    import tensorflow as tf

    return _Variables(
        {
            i: tf.Variable(adaround.initial_choice(w, block.scales[i]))
            for i, w in block.weights.items()
        },
        {i: tf.Variable(tf.zeros_like(unit)) for i, unit in block.units.items()},
    )


def _loss(
    learning: Learning,
    block: Block,
    variables: _Variables,
    feeds: Mapping[int, Any],
    targets: Mapping[int, Any],
    *,
    constants: Mapping[int, Any],
    observe: Callable,
    scale: float,
    progress: Any,
) -> Any:
    """The block's error, in units of `scale`, and the price of choices that are not made; a scalar
    tensor.
    """
    import tensorflow as tf

    size = sum(v.shape.num_elements() for v in variables.choices.values())
    beta, on = adaround.annealed_beta(progress, start=_BETA)
    soft = {
        i: adaround.soft_weights(
            v, floors=block.floors[i], scales=block.scales[i], limits=block.limits[i]
        )
        for i, v in variables.choices.items()
    }
    biases = {i: block.biases[i] + block.units[i] * shift for i, shift in variables.shifts.items()}
    outputs = run(
        learning.graph,
        feeds,
        constants={**constants, **soft, **biases},
        operators=block.span,
        observe=observe,
    )
    penalty = (
        tf.add_n([adaround.rounding_penalty(v, beta) for v in variables.choices.values()]) / size
    )
    return (
        _error(targets, outputs) / scale
        + on * _PENALTY[0] * (_PENALTY[1] / _PENALTY[0]) ** progress * penalty
    )


def _batch_size(graph: Graph, span: range) -> int:
    """Images of a step that suit a block."""
    seen = {*outside(graph, span)[0], *(i for p in span for i in graph.operators[p].outputs)}
    values = sum(math.prod(graph.tensors[i].shape[1:]) for i in seen)
    return min(max(_VALUES // max(values, 1), _FEWEST), _MOST)


def learn(
    learning: Learning,
    block: Block,
    *,
    constants: Mapping[int, Any],
    floats: Values,
    quantized: Values,
    targets: Values,
    scale: float,
    seed: int,
) -> Learned:
    """Optimizes the rounding of a block's weights, and its biases.

    Args:
      learning: what holds for all blocks of the model.
      block: what is optimized here.
      constants: of the blocks before, quantized, by tensor index.
      floats: what the block reads in float, by tensor index.
      quantized: the same as the quantized blocks before it give it.
      targets: what the block gives in float, by tensor index.
      scale: the error that counts as 1.
      seed: of the choice of images and of what stays in float at each step.
    """
    import tensorflow as tf

    variables, data = _variables(block), (floats, quantized, targets)
    moments = [tf.Variable(tf.zeros_like(v)) for v in variables.all for _ in range(2)]
    drop = learning.drop

    def step(number: tf.Tensor, *tensors: tf.Tensor) -> tf.Tensor:
        floats, quantized, targets = tf.nest.pack_sequence_as(data, tensors)
        feeds = {
            i: tf.where(
                tf.random.stateless_uniform(tf.shape(value), [seed + i, -1 - number]) < drop,
                floats[i],
                value,
            )
            if drop and i not in learning.graph.inputs
            else value
            for i, value in quantized.items()
        }
        progress = tf.cast(number / learning.steps, tf.float32)
        with tf.GradientTape() as tape:
            loss = _loss(
                learning,
                block,
                variables,
                feeds,
                targets,
                constants=constants,
                observe=_dropping(learning.observe, drop=drop, seed=(seed, number)),
                scale=scale,
                progress=progress,
            )
        gradients = tape.gradient(loss, variables.all)
        count = tf.cast(number + 1, tf.float32)
        _adam(variables.all, gradients, moments, variables.rates(progress), count)

    count, generator = len(next(iter(targets.values()))), np.random.default_rng(seed)
    batch_size = min(learning.batch_size or _batch_size(learning.graph, block.span), count)
    specs = [tf.TensorSpec((batch_size, *v.shape[1:]), tf.float32) for v in tf.nest.flatten(data)]
    traced = tf.function(step, autograph=False).get_concrete_function(
        tf.TensorSpec((), tf.int32), *specs
    )
    for number in range(learning.steps):
        chosen = np.sort(generator.choice(count, batch_size, replace=False))
        traced(tf.constant(number), *(tf.constant(v[chosen]) for v in tf.nest.flatten(data)))
    integers = {
        i: adaround.hard_integers(v.numpy(), floors=block.floors[i], limits=block.limits[i])
        for i, v in variables.choices.items()
    }
    return Learned(
        integers,
        {i: n * block.scales[i] for i, n in integers.items()},
        {i: block.biases[i] + block.units[i] * v.numpy() for i, v in variables.shifts.items()},
    )
