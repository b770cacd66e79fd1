"""Learned rounding of a float .tflite graph, block by block, so that each block gives what
it gave in float.

Li et al. 2021, "BRECQ", section 3: blocks rather than layers or the whole network, in order, each
fed with what the quantized blocks before it give. How one block is optimized:
`tflite_export.algorithms.block_learning`. What mean error is left is then taken off the biases
(`tflite_export.algorithms.equalization`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dgh_tf.models.tflite.batch import proven
from dgh_tf.models.tflite.run import Graph, feeds_of, read_graph
from dgh_tf.models.tflite.spec import CHANNEL_AXIS
from tflite_export.algorithms.block_learning import Block, Learned, Learning, learn
from tflite_export.algorithms.blocks import Values, advance, find_blocks, outside
from tflite_export.algorithms.equalization import correct_span
from tflite_export.algorithms.outside_converter import outside_converter
from tflite_export.algorithms.views import first_with_views, other_views, views_of
from tflite_export.calibration.check import few_images
from tflite_export.simulation.fake_quant import (
    WeightBits,
    along,
    bits_of_weights,
    channel_axes,
    fake_quantizer,
    integer_constants,
    integer_limits,
    quantized_constants,
)
from tflite_export.simulation.ranges import Ranges, collect_ranges


class Reconstruction(NamedTuple):
    """`weights`: (int8 integers, float32 scales [channels]) and `biases`: float32, both by tensor
    index; `errors`: per block (operators, relative squared error of rounding to nearest, of the
    learned rounding).
    """

    weights: dict[int, tuple[np.ndarray, np.ndarray]]
    biases: dict[int, np.ndarray]
    errors: list[tuple[range, float, float]]


def _mean_error(targets: Values, outputs: Values, made: list[int]) -> float:
    """`_error` over all images."""
    return float(
        sum(
            np.mean(np.square(outputs[i] - targets[i])) / (np.mean(np.square(targets[i])) + 1e-12)
            for i in made
        )
    )


def _block(learning: Learning, span: range, *, done: Mapping[int, Any]) -> Block:
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
            units[bias] = nearest[index][1] * np.float32(learning.limits[index][1])
    return Block(span, weights, floors, scales, biases, units, learning.limits)


def _solve(
    learning: Learning,
    block: Block,
    *,
    before: Values,
    inputs: Values,
    plain: Values,
    wanted: Values,
    fixed: Mapping[int, Any],
    seed: int,
) -> Learned:
    """What is learned of a block, the mean error taken off its biases. `before`,
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
    learned = learn(
        learning,
        block,
        constants=fixed,
        floats=plain_in,
        quantized=quantized_in,
        targets=wanted,
        scale=scale,
        seed=seed,
    )
    corrected = correct_span(
        graph,
        block.span,
        plain_in,
        quantized_in,
        constants={**fixed, **learned.weights, **learned.biases},
        float_constants=learning.floats,
        watch=observe,
    )
    return dataclasses.replace(learned, biases={**learned.biases, **corrected})


def _spans(
    graph: Graph, *, max_layers: int, steps: int, batch_size: int | None, drop: float
) -> list[range]:
    """`find_blocks`. Raises ValueError for a graph without weights, or options out of range."""
    spans = find_blocks(graph, max_layers=max_layers)
    least = 1 if batch_size is None else batch_size
    if not spans or steps < 1 or not 0 <= drop < 1 or least < 1:
        raise ValueError(
            "Reconstruction needs a model with constant weights (this one has "
            f"{len(channel_axes(graph))}), "
            f"steps and batch size of at least 1 (got {steps}, {batch_size}) and drop "
            f"from 0 to below 1 (got {drop})."
        )
    return spans


def _told(found: Reconstruction, *, blocks: int, seconds: float) -> str:
    """The line of the last block that was learned, of so many, after so many seconds."""
    done = len(found.errors)
    _, to_nearest, learned = found.errors[-1]
    return (
        f"block {done}/{blocks}: error {to_nearest:.2e} with rounding to nearest, {learned:.2e} "
        f"learned; about {seconds / done * (blocks - done):.0f} s left"
    )


def _joined(
    learning: Learning,
    start: int,
    views: Values,
    values: tuple[Values, Values],
    fixed: Mapping[int, Any],
) -> tuple[Values, Values]:
    """`values`, what the operators before `start` give in float and quantized, and behind them what
    these make of `views`.
    """
    graph, before = learning.graph, range(start)
    in_float = advance(graph, before, views, constants=learning.floats, observe=None)
    quantized = advance(graph, before, views, constants=fixed, observe=learning.observe)
    plain, inputs = values
    return (
        {i: np.concatenate([value, in_float[i]]) for i, value in plain.items()},
        {i: np.concatenate([value, quantized[i]]) for i, value in inputs.items()},
    )


def reconstruct(
    graph: Graph,
    images: np.ndarray | Mapping[str, np.ndarray],
    *,
    ranges: Ranges,
    weight_bits: WeightBits = 8,
    activation_bits: int = 8,
    rule: str = "mse",
    narrow: bool = False,
    constants: Mapping[int, Any] | None = None,
    steps: int = 300,
    batch_size: int | None = None,
    views: int = 1,
    drop: float = 0.5,
    max_layers: int = 4,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> Reconstruction:
    """Learns the rounding of all weights, and the biases, so that each block gives what it gives in
    float.

    Args:
      graph: from `read_graph`.
      images: float32 [images, ...] in the model's input units, or a dict by input name.
      ranges: of `collect_ranges`, by tensor index; the activations' quantization while learning.
      weight_bits: of all weights, or by tensor index; 2 to 8.
      activation_bits: 8 or 16.
      rule: of the weights' scales at the start, see `fake_quant.quantize_weights`.
      narrow: whether the smallest integer is left out, see `fake_quant.integer_limits`.
      constants: floats instead of the file's (equalized weights, corrected biases).
      steps: of Adam, per block.
      batch_size: images of each step; None for as many as suit the block, 4 to 32.
      views: of each image, which must be a picture; see `views.views_of`. Blocks learn on all of
        them where these fit into memory.
      drop: share of activations left in float at each step (QDrop); 0 for none.
      max_layers: see `find_blocks`.
      seed: of all that is drawn at random.
      say: takes a line per block.
    Returns: what `to_tflite_with_ranges` takes as weights and (merged into constants) biases. The
      same for the same seed.
    Raises: ValueError for a graph without weights, or options out of range.
    """
    spans = _spans(graph, max_layers=max_layers, steps=steps, batch_size=batch_size, drop=drop)
    graph = proven(graph, images)
    floats, start = dict(constants or {}), time.perf_counter()
    bits = bits_of_weights(graph, weight_bits)
    learning = Learning(
        graph=graph,
        nearest=integer_constants(
            graph, weight_bits=weight_bits, rule=rule, narrow=narrow, constants=floats
        ),
        limits={i: integer_limits(each, narrow=narrow) for i, each in bits.items()},
        floats=floats,
        observe=fake_quantizer(graph, ranges=ranges, activation_bits=activation_bits),
        steps=steps,
        batch_size=batch_size,
        drop=drop,
    )
    fixed = quantized_constants(graph, constants=floats, weights=learning.nearest)
    found = Reconstruction({}, {}, [])
    targets = {i: np.asarray(v, np.float32) for i, v in feeds_of(graph, images).items()}
    inputs, plain = dict(targets), dict(targets)
    count = views * len(next(iter(plain.values())))
    first = first_with_views(graph, spans, images=count) if views > 1 else len(spans)
    for place, span in enumerate(spans):
        if place == first:
            more = other_views(plain, views=views, seed=seed)
            targets, inputs = _joined(learning, span.start, more, (targets, inputs), fixed)
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
        if say:
            say(_told(found, blocks=len(spans), seconds=time.perf_counter() - start))
    return found


def _next_inputs(
    learning: Learning,
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
        learned = _solve(
            learning,
            block,
            before=before,
            inputs=inputs,
            plain=plain,
            wanted=wanted,
            fixed=fixed,
            seed=seed,
        )
        changed = {**learned.weights, **learned.biases}
        after = advance(graph, span, inputs, constants={**fixed, **changed}, observe=observe)
        learned_error = _mean_error(wanted, after, made)
        if learned_error < to_nearest:
            found.weights.update(
                {i: (n, learning.nearest[i][1]) for i, n in learned.integers.items()}
            )
            found.biases.update(learned.biases)
            fixed.update(changed)
            plain = after
        else:
            found.weights.update({i: learning.nearest[i] for i in block.weights})
    found.errors.append((span, to_nearest, learned_error))
    return plain


def learn_rounding(
    graph: Graph, images: Mapping[str, np.ndarray], *, ranges: Ranges, **options: Any
) -> Reconstruction:
    """`reconstruct` on as many images as memory holds, with other views of them where they are
    pictures. ranges: of least squared error over all images.
    """
    few = few_images(images)
    views = views_of(graph, count=len(next(iter(few.values()))))
    return reconstruct(graph, few, ranges=ranges, views=views, **options)


class LearnedFile(NamedTuple):
    """A float file's graph, the ranges of its tensors, and what was learned of its weights."""

    graph: Graph
    ranges: Ranges
    found: Reconstruction


def learn_from_file(tflite: bytes, images: Mapping[str, np.ndarray], **options: Any) -> LearnedFile:
    """`learn_rounding` of a float file, with ranges of least squared error.

    Args:
      tflite: from `float_start` or `to_float_tflite`.
      images: float32 [images, ...] by input name, in the model's input units.
      **options: of `reconstruct`.
    Raises: OutsideError for a graph that does not run; what `reconstruct` raises.
    """
    with outside_converter():
        graph = proven(read_graph(tflite), images)
        ranges = collect_ranges(graph, images, rule="mse")
    return LearnedFile(graph, ranges, learn_rounding(graph, images, ranges=ranges, **options))
