"""Learned rounding of a float .tflite graph, block by block, so that each block gives what
it gave in float.

Li et al. 2021, "BRECQ", section 3: blocks rather than layers or the whole network, in order, each
fed with what the quantized blocks before it give. Wei et al. 2022, "QDrop": the quantization of
activations is dropped at random while the weights are learned. The rounding itself is AdaRound's
(tflite_export.rounding). Biases are learned along; what mean error the roundings leave is taken off
them afterwards (tflite_export.equalization).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dgh_tf.models.tflite.batch import proven
from dgh_tf.models.tflite.run import Graph, feeds_of, run
from dgh_tf.models.tflite.spec import CHANNEL_AXIS
from tflite_export.algorithms import adaround
from tflite_export.algorithms.blocks import Values, advance, find_blocks, outside
from tflite_export.algorithms.equalization import correct_span
from tflite_export.calibration.check import few_images
from tflite_export.simulation.fake_quant import (
    WeightBits,
    along,
    bits_of_weights,
    channel_axes,
    fake_quantizer,
    integer_constants,
    quantized_constants,
)
from tflite_export.simulation.ranges import Ranges, collect_ranges

# Adam's, for choices and for biases in units of the channel's largest weight
_RATE, _BIAS_RATE = 0.2, 1e-3
_BETA = 8.0  # the penalty's first exponent: AdaRound's 20 is for thousands of steps
# first and last, against a reconstruction error of 1 for rounding to nearest: in the end all
# choices are made
_PENALTY = (1.0, 1000.0)


class Reconstruction(NamedTuple):
    """`weights`: (int8 integers, float32 scales [channels]) and `biases`: float32, both by tensor
    index; `errors`: per block (operators, relative squared error of rounding to nearest, of the
    learned rounding).
    """

    weights: dict[int, tuple[np.ndarray, np.ndarray]]
    biases: dict[int, np.ndarray]
    errors: list[tuple[range, float, float]]


class _Block(NamedTuple):
    """What is optimized in one span, by tensor index: weights in float, their floors and scales
    (shaped to broadcast to them), biases in float and the units they are learned in, largest
    integers.
    """

    span: range
    weights: Values
    floors: Values
    scales: Values
    biases: Values
    units: Values
    limits: dict[int, int]


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


def _mean_error(targets: Values, outputs: Values, made: list[int]) -> float:
    """`_error` over all images."""
    return float(
        sum(
            np.mean(np.square(outputs[i] - targets[i])) / (np.mean(np.square(targets[i])) + 1e-12)
            for i in made
        )
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
class _Run:
    """What holds for all blocks of one `reconstruct`, whose arguments these are.

    Attributes: nearest: (integers, scales) of rounding to nearest. limits: largest integers.
      floats: constants instead of the file's. observe: fake-quantizes activations.
    """

    graph: Graph
    nearest: Mapping[int, tuple[np.ndarray, np.ndarray]]
    limits: dict[int, int]
    floats: Mapping[int, Any]
    observe: Callable
    steps: int
    batch_size: int
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


def _variables(block: _Block) -> _Variables:
    import tensorflow as tf

    return _Variables(
        {
            i: tf.Variable(adaround.initial_choice(w, block.scales[i]))
            for i, w in block.weights.items()
        },
        {i: tf.Variable(tf.zeros_like(unit)) for i, unit in block.units.items()},
    )


def _loss(
    learning: _Run,
    block: _Block,
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
            v, floors=block.floors[i], scales=block.scales[i], limit=block.limits[i]
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


def _learn(
    learning: _Run,
    block: _Block,
    *,
    constants: Mapping[int, Any],
    floats: Values,
    quantized: Values,
    targets: Values,
    scale: float,
    seed: int,
) -> tuple[Values, Values]:
    """Optimizes a block's choices v and biases; returns both. The block's inputs are given twice:
    in float and quantized.
    """
    import tensorflow as tf

    variables, data = _variables(block), (floats, quantized, targets)
    moments = [tf.Variable(tf.zeros_like(v)) for v in variables.all for _ in range(2)]
    drop = learning.drop

    def step(number, *tensors):
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
    batch_size = min(learning.batch_size, count)
    specs = [tf.TensorSpec((batch_size, *v.shape[1:]), tf.float32) for v in tf.nest.flatten(data)]
    traced = tf.function(step, autograph=False).get_concrete_function(
        tf.TensorSpec((), tf.int32), *specs
    )
    for number in range(learning.steps):
        chosen = np.sort(generator.choice(count, batch_size, replace=False))
        traced(tf.constant(number), *(tf.constant(v[chosen]) for v in tf.nest.flatten(data)))
    return {i: v.numpy() for i, v in variables.choices.items()}, {
        i: block.biases[i] + block.units[i] * v.numpy() for i, v in variables.shifts.items()
    }


def _block(learning: _Run, span: range, *, done: Mapping[int, Any]) -> _Block:
    """The span's own weights and biases: constants that earlier blocks chose, or that other
    operators share, stay.
    """
    graph, nearest, floats = learning.graph, learning.nearest, learning.floats
    axes, uses = channel_axes(graph), [i for o in graph.operators for i in o.inputs]
    weights, floors, scales, biases, units = {}, {}, {}, {}, {}
    for operator in (graph.operators[p] for p in span):
        index = (
            operator.inputs[1]
            if operator.kind in CHANNEL_AXIS and operator.inputs[1] in axes
            else None
        )
        if index is None or index in done:
            continue
        weights[index] = np.asarray(floats.get(index, graph.tensors[index].value), np.float32)
        scales[index] = along(nearest[index][1], axis=axes[index], rank=weights[index].ndim)
        floors[index] = np.floor(weights[index] / scales[index])
        bias = (
            operator.inputs[-1]
            if len(operator.inputs) == (4 if operator.kind == "TRANSPOSE_CONV" else 3)
            else -1
        )
        if (
            bias >= 0
            and graph.tensors[bias].value is not None
            and uses.count(bias) == 1
            and operator.kind != "TRANSPOSE_CONV"
        ):
            biases[bias] = np.asarray(floats.get(bias, graph.tensors[bias].value), np.float32)
            units[bias] = nearest[index][1] * np.float32(learning.limits[index])
    return _Block(span, weights, floors, scales, biases, units, learning.limits)


def _solve(
    learning: _Run,
    block: _Block,
    *,
    before: Values,
    inputs: Values,
    plain: Values,
    wanted: Values,
    fixed: Mapping[int, Any],
    seed: int,
) -> tuple[Values, Values]:
    """Integers of a block's weights and its biases, learned, the mean error taken off. `before`,
    `inputs`: what it reads in float and quantized; `plain`, `wanted`: what it gives rounded to
    nearest and in float.
    """
    graph, observe = learning.graph, learning.observe
    read, made = outside(graph, block.span)
    in_float = advance(
        graph, block.span, inputs, constants={**fixed, **block.weights}, observe=observe
    )
    scale = (
        _mean_error(in_float, plain, made) or 1.0
    )  # of rounding to nearest alone: the error counts in its units
    plain_in, quantized_in = ({i: v[i] for i in read} for v in (before, inputs))
    choices, biases = _learn(
        learning,
        block,
        constants=fixed,
        floats=plain_in,
        quantized=quantized_in,
        targets=wanted,
        scale=scale,
        seed=seed,
    )
    integers = {
        i: adaround.hard_integers(v, floors=block.floors[i], limit=block.limits[i])
        for i, v in choices.items()
    }
    learned = {**{i: n * block.scales[i] for i, n in integers.items()}, **biases}
    biases |= correct_span(
        graph,
        block.span,
        plain_in,
        quantized_in,
        constants={**fixed, **learned},
        float_constants=learning.floats,
        watch=observe,
    )
    return integers, biases


def _spans(
    graph: Graph, *, max_layers: int, steps: int, batch_size: int, drop: float
) -> list[range]:
    """`find_blocks`. Raises ValueError for a graph without weights, or options out of range."""
    spans = find_blocks(graph, max_layers=max_layers)
    if not spans or steps < 1 or not 0 <= drop < 1 or batch_size < 1:
        raise ValueError(
            "Reconstruction needs a model with constant weights (this one has "
            f"{len(channel_axes(graph))}), "
            f"steps and batch size of at least 1 (got {steps}, {batch_size}) and drop "
            f"from 0 to below 1 (got {drop})."
        )
    return spans


def reconstruct(
    graph: Graph,
    images: np.ndarray | Mapping[str, np.ndarray],
    *,
    ranges: Ranges,
    weight_bits: WeightBits = 8,
    activation_bits: int = 8,
    rule: str = "mse",
    constants: Mapping[int, Any] | None = None,
    steps: int = 300,
    batch_size: int = 16,
    drop: float = 0.5,
    max_layers: int = 4,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Reconstruction:
    """Learns the rounding of all weights, and the biases, so that each block gives what it gives in
    float.

    Args:
      graph: of `read_graph`. images: float32 [images, ...] in the model's input units, or a dict by
        input name.
      ranges: of `collect_ranges`, by tensor index; the activations' quantization while learning.
      rule: of the weights' scales, see `simulator.quantize_weights`.
      constants: floats instead of the file's (equalized weights, corrected biases).
      steps, batch_size: Adam steps per block, on so many images each. max_layers: see
        `find_blocks`.
      drop: share of activations left in float at each step (QDrop); 0 for none. say: takes a line
        per block.
    Returns: what `to_tflite_with_ranges` takes as weights and (merged into constants) biases. The
      same for the same seed.
    Raises: ValueError for a graph without weights, or options out of range.
    """
    spans = _spans(graph, max_layers=max_layers, steps=steps, batch_size=batch_size, drop=drop)
    graph = proven(graph, images)
    floats, start = dict(constants or {}), time.perf_counter()
    bits = bits_of_weights(graph, weight_bits)
    learning = _Run(
        graph=graph,
        nearest=integer_constants(graph, weight_bits=weight_bits, rule=rule, constants=floats),
        limits={i: 2 ** (each - 1) - 1 for i, each in bits.items()},
        floats=floats,
        observe=fake_quantizer(graph, ranges=ranges, activation_bits=activation_bits),
        steps=steps,
        batch_size=batch_size,
        drop=drop,
    )
    fixed = quantized_constants(graph, constants=floats, weights=learning.nearest)
    found = Reconstruction({}, {}, [])
    targets = {i: np.asarray(v, np.float32) for i, v in feeds_of(graph, images).items()}
    inputs = dict(targets)
    for place, span in enumerate(spans):
        before, targets = targets, advance(graph, span, targets, constants=floats, observe=None)
        inputs = _next_inputs(
            learning,
            span,
            found,
            fixed,
            before=before,
            inputs=inputs,
            targets=targets,
            seed=seed * 1000 + place,
        )
        _, to_nearest, learned_error = found.errors[-1]
        left = (time.perf_counter() - start) / (place + 1) * (len(spans) - place - 1)
        if say:
            say(
                f"block {place + 1}/{len(spans)}: error {to_nearest:.2e} with rounding "
                f"to nearest, {learned_error:.2e} learned; "
                f"about {left:.0f} s left"
            )
    return found


def _next_inputs(
    learning: _Run,
    span: range,
    found: Reconstruction,
    fixed: dict[int, Any],
    *,
    before: Values,
    inputs: Values,
    targets: Values,
    seed: int,
) -> Values:
    """Learns one block, and returns what the quantized graph gives up to there. `found` and `fixed`
    take what was learned, where it is better than rounding to nearest.
    """
    graph, observe = learning.graph, learning.observe
    block = _block(learning, span, done=found.weights)
    made = outside(graph, span)[1]
    wanted = {i: targets[i] for i in made}
    plain = advance(graph, span, inputs, constants=fixed, observe=observe)
    to_nearest = learned_error = _mean_error(wanted, plain, made)
    if block.weights:
        integers, biases = _solve(
            learning,
            block,
            before=before,
            inputs=inputs,
            plain=plain,
            wanted=wanted,
            fixed=fixed,
            seed=seed,
        )
        learned = {**{i: n * block.scales[i] for i, n in integers.items()}, **biases}
        after = advance(graph, span, inputs, constants={**fixed, **learned}, observe=observe)
        learned_error = _mean_error(wanted, after, made)
        nearest, better = learning.nearest, learned_error < to_nearest
        found.weights.update(
            {i: (integers[i], nearest[i][1]) if better else nearest[i] for i in integers}
        )
        if better:
            found.biases.update(biases)
            fixed.update(learned)
            plain = after
    found.errors.append((span, to_nearest, learned_error))
    return plain


def learn_rounding(
    graph: Graph, images: Mapping[str, np.ndarray], **options: Any
) -> tuple[Ranges, Reconstruction]:
    """Ranges of least squared error over all images, and `reconstruct` within them on as many as
    memory holds.
    """
    graph = proven(graph, images)
    ranges = collect_ranges(graph, images, rule="mse")
    return ranges, reconstruct(graph, few_images(images), ranges=ranges, **options)
