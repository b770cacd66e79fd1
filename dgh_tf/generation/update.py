"""The compiled step: one batch's canvases moved against the statistics of the whole set. The
loop only repeats it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dgh_tf.config import GenerationConfig
from dgh_tf.generation.distribution import exchange
from dgh_tf.generation.inputs import PLAIN_EVERY, Inputs, is_plain
from dgh_tf.generation.loss_scale import FIRST_SCALE, next_scale
from dgh_tf.generation.objective import (
    Observation,
    Problem,
    batch_moments,
    objective,
    reach,
)
from dgh_tf.generation.store import Slots
from dgh_tf.models.network import Network, Tapped
from dgh_tf.ops import losses
from dgh_tf.ops.radam import apply_radam, cosine

# Share of the steps that match statistics alone; the spread of outputs then says how far to stretch
# them.
MATCHING_SHARE = 0.3
SPREAD_MEMORY = 0.1  # weight of a batch in that spread's running mean
# A step's code: FINE, SKIPPED (it overflowed in float16 and moves nothing), the number of the first
# layer whose moments are not finite, or NOT_A_LAYER where all moments are but the loss is not.
FINE, SKIPPED, NOT_A_LAYER = -1, -2, 2**30


class Course(NamedTuple):
    """What runs may differ in that share a compiled step, as scalar tensors.

    Attributes:
      seed, steps, batches: int32, of the run; batches: how many make up the set.
      matching_steps: int32, how many steps match statistics alone.
      images, set_images: float32, that are generated, and that share the pooled statistics.
      stretch_weight: float32, the weight of one head's output loss.
    """

    seed: tf.Tensor
    steps: tf.Tensor
    batches: tf.Tensor
    matching_steps: tf.Tensor
    images: tf.Tensor
    set_images: tf.Tensor
    stretch_weight: tf.Tensor


class Turn(NamedTuple):
    """Which visit it is: step and batch, int32 scalars; scale: of the rate, with the schedule
    plateau, float32.
    """

    step: tf.Tensor
    batch: tf.Tensor
    scale: tf.Tensor


def course(
    config: GenerationConfig, *, batches: int, real: int, heads: int, has_statistics: bool
) -> Course:
    """The course of a run. real: how many real images join the set. heads: of the model."""
    matching_steps = config.steps
    if not has_statistics:
        matching_steps = 0  # the spread of the start images tells how far to stretch
    elif config.output_weight:
        matching_steps = max(1, int(MATCHING_SHARE * config.steps))
    whole = (config.seed, config.steps, batches, matching_steps)
    # heads share the weight equally, whatever their size and unit
    weight = config.output_weight / max(heads, 1)
    figures = (config.num_images, config.num_images + real, weight)
    return Course(
        *(tf.constant(value, tf.int32) for value in whole),
        *(tf.constant(value, tf.float32) for value in figures),
    )


class Carry(NamedTuple):
    """What steps hand on beside the records; equal on all replicas but for the loss scale.

    Attributes:
      totals: sum of all rows of the table, float64 so that a million updates lose nothing, [2,
        channels].
      spreads: under matched statistics, of each head, then the reach of each ranged layer; float32.
      sums, count: figures since the last report, and how many steps they are of.
      scale, good: of the loss in float16, and good steps since it last changed.
    """

    totals: tf.Tensor
    spreads: tf.Tensor
    sums: tf.Tensor
    count: tf.Tensor
    scale: tf.Tensor
    good: tf.Tensor


class Table(NamedTuple):
    """The table after a batch was looked at.

    Attributes:
      row: the batch's fresh row, without gradient; the old one where a moment is not finite.
      totals: sum of all rows, float64.
      spreads: mean spread of every head and ranged layer over all replicas, float32.
    """

    row: tf.Tensor
    totals: tf.Tensor
    spreads: tf.Tensor


class Gradient(NamedTuple):
    """What `Step.gradient` gives: of each input's canvases, the batch's row, the carry of the next
    step, and the step's code.
    """

    canvases: list[tf.Tensor]
    row: tf.Tensor
    carry: Carry
    code: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Progress:
    """Figures since the last report.

    Attributes:
      step: whole steps since the start.
      losses: means over batches, by name.
      rate: image-steps per second.
      save, stop: what `run`'s `due` asked for.
    """

    step: int
    losses: dict[str, float]
    rate: float
    save: bool = False
    stop: bool = False


class Step:
    """Everything a step closes over, compiled.

    `fill` and `gradient` are pure; `apply` moves a batch's variables, and `visit` is both for one
    replica.
    """

    def __init__(
        self, network: Network, problem: Problem, inputs: Inputs, *, replicas: int
    ) -> None:
        """replicas: of all processes together. What a `Course` tells is not the problem's."""
        self.network, self.problem, self.inputs = network, problem, inputs
        self.config, self.targets = problem.config, problem.targets
        self.replicas = replicas
        self.has_statistics = bool(network.layers)
        self.half = self.config.precision == "float16"
        spreads = [f"spread/{name}" for name in problem.heads]
        self.names = ["loss", "bn", "prior", "gradient", *spreads]
        self.fill = tf.function(self._fill, autograph=False, reduce_retracing=True)
        self.spread = tf.function(self._spread, autograph=False, reduce_retracing=True)
        self.visit = tf.function(self._visit, autograph=False)
        self.gradient = tf.function(self._gradient, autograph=False)
        self.apply = tf.function(self._apply, autograph=False)

    def first_carry(self, totals: np.ndarray, spreads: np.ndarray) -> Carry:
        """The carry before the first step.

        Args:
          totals: sums of the rows of the start images, float64 [2, channels].
          spreads: over the start images, float32 [heads and ranged layers]; 0 where matched
            statistics will tell them.
        """
        return Carry(
            totals=tf.constant(totals, tf.float64),
            spreads=tf.constant(spreads, tf.float32),
            sums=tf.zeros(len(self.names)),
            count=tf.constant(0.0),
            scale=tf.constant(FIRST_SCALE if self.half else 1.0),
            good=tf.constant(0.0),
        )

    def real_row(self, images: tf.Tensor, course: Course) -> tf.Tensor:
        """The table's row of real images, a constant to all batches, measured in float32 as `fill`
        does. images: float32 [n, *input shape] in model units, channels last.
        """
        share = _size(images) / course.set_images
        units = self.inputs.to_canvas([images])
        tapped = self.network.forward(self.inputs.to_model(units), folded=True)
        return share * batch_moments(tapped, units, self.problem)

    def _observe(self, units: list[tf.Tensor]) -> Observation:
        """A forward pass of images in canvas units."""
        images = self.inputs.to_model(units)
        tapped = self.network.forward(images, precision=self.config.precision, folded=True)
        calls = dict(reversed(tapped.calls))  # the first of a layer that is called twice
        reaches = [
            reach(calls[i], scale=scale, offset=offset)
            for i, (scale, offset) in self.problem.ranged.items()
        ]
        return Observation(
            moments=batch_moments(tapped, units, self.problem),
            tapped=tapped,
            spreads=[*(losses.output_spread(head.logits) for head in tapped.heads), *reaches],
        )

    def _fill(self, canvases: list[tf.Tensor], course: Course) -> tf.Tensor:
        """A batch's row of the table without gradient, for its finished images, in float32 whatever
        the precision of the steps.
        """
        share = _size(canvases[0]) / course.set_images
        units = self.inputs.finish(canvases)
        calls = self.network.normalized(self.inputs.to_model(units))
        seen = Tapped(calls, sums=[None] * len(calls), moves={}, heads=[])
        return share * batch_moments(seen, units, self.problem)

    def _spread(self, canvases: list[tf.Tensor], turn: Turn, course: Course) -> tf.Tensor:
        """A batch's share of every head's mean spread over the finished images that will be
        optimized, float32 [heads].
        """
        moving = self._moving(canvases[0], turn, course)
        total = tf.math.ceil(course.images / PLAIN_EVERY * (PLAIN_EVERY - 1))
        spreads = self._observe(self.inputs.finish(canvases)).spreads
        return tf.stack([tf.reduce_sum(moving * spread) for spread in spreads]) / total

    def _gradient(
        self,
        canvases: list[tf.Tensor],
        old_row: tf.Tensor,
        carry: Carry,
        turn: Turn,
        course: Course,
    ) -> Gradient:
        share = _size(canvases[0]) / course.set_images
        seed = tf.stack([course.seed, turn.step * course.batches + turn.batch])
        with tf.GradientTape() as tape:
            tape.watch(canvases)
            seen = self._observe(self.inputs.augment(canvases, seed=seed))
            table = self._renewed(seen, old_row, carry, share)
            value, metrics = objective(
                self._pooled(seen, table, share),
                seen,
                self.problem,
                limits=self._limits(carry, turn.step, course),
                size=share * course.set_images,
                set_images=course.set_images,
                stretch_weight=course.stretch_weight,
            )
            scaled = value * carry.scale if self.half else value
        gradients = tape.gradient(scaled, canvases)
        if self.half:
            gradients = [g / carry.scale for g in gradients]
        if not self.has_statistics:
            moving = self._moving(canvases[0], turn, course)
            gradients = [g * tf.reshape(moving, [-1, *[1] * (g.shape.rank - 1)]) for g in gradients]
        metrics["gradient"] = tf.linalg.global_norm(gradients)
        figures = tf.stack([metrics[name] for name in self.names])
        code = self._code(figures, seen)
        following = self._next_carry(
            carry, table, figures, code, matched=turn.step >= course.matching_steps
        )
        return Gradient(gradients, table.row, following, self._forgiven(code, following))

    def _moving(self, canvases: tf.Tensor, turn: Turn, course: Course) -> tf.Tensor:
        """1 for the images of a batch that are optimized, 0 for plain ones; float32 [batch]."""
        images = tf.cast(course.images, tf.int32)
        # batches are equal up to one, the larger ones first, see `batch_sizes`
        size, larger = images // course.batches, images % course.batches
        first = turn.batch * size + tf.minimum(turn.batch, larger)
        return tf.cast(~is_plain(first + tf.range(tf.shape(canvases)[0])), tf.float32)

    def _renewed(
        self, seen: Observation, old_row: tf.Tensor, carry: Carry, share: tf.Tensor
    ) -> Table:
        """The table with this batch's fresh row, and with those of the other replicas."""
        fresh = tf.stop_gradient(share * seen.moments)
        row = tf.where(tf.reduce_all(seen.finite), fresh, old_row)
        means = [tf.reduce_mean(spread) for spread in seen.spreads]
        change, spreads = exchange(row - old_row, means, replicas=self.replicas)
        return Table(row, carry.totals + tf.cast(change, tf.float64), spreads)

    def _pooled(self, seen: Observation, table: Table, share: tf.Tensor) -> tf.Tensor:
        """The moments to match, with the gradient of this batch's images."""
        if not self.config.pool_statistics:
            return seen.moments
        # the row counts in the totals already; in its place stand the moments, with their gradient
        return tf.cast(table.totals, tf.float32) - table.row + share * seen.moments

    def _limits(self, carry: Carry, step: tf.Tensor, course: Course) -> tf.Tensor:
        """The spread up to which each head is stretched and the largest reach of each layer, 0
        while statistics alone are matched.
        """
        heads = len(self.problem.heads)
        spreads, reaches = carry.spreads[:heads], carry.spreads[heads:]
        limits = self.config.stretch_limit * spreads
        if not self.config.stretch_limit:
            limits = tf.fill(tf.shape(spreads), math.inf)
        limits = tf.concat([limits, self.problem.reach * reaches], 0)
        return tf.where(step < course.matching_steps, 0.0, limits)

    def _code(self, figures: tf.Tensor, seen: Observation) -> tf.Tensor:
        """FINE, the number of the first layer whose moments are not finite, or NOT_A_LAYER."""
        finite = seen.finite
        first_bad = tf.reduce_min(tf.where(finite, NOT_A_LAYER, self.targets.layer))
        all_finite = tf.reduce_all(tf.math.is_finite(figures)) & tf.reduce_all(finite)
        return tf.where(all_finite, FINE, first_bad)

    def _next_carry(
        self, carry: Carry, table: Table, figures: tf.Tensor, code: tf.Tensor, *, matched: tf.Tensor
    ) -> Carry:
        # the first batch sets the running mean of spreads: any constant would carry a unit
        memory = tf.where(carry.spreads > 0.0, SPREAD_MEMORY, 1.0)
        known = matched | tf.reduce_any(~tf.math.is_finite(table.spreads))
        spreads = carry.spreads + memory * (table.spreads - carry.spreads)
        scale, good = carry.scale, carry.good
        if self.half:
            scale, good = next_scale(scale, good, finite=code == FINE)
        return Carry(
            totals=table.totals,
            spreads=tf.where(known, carry.spreads, spreads),
            sums=carry.sums + tf.where(code == FINE, figures, 0.0),
            count=carry.count + tf.cast(code == FINE, tf.float32),
            scale=scale,
            good=good,
        )

    def _forgiven(self, code: tf.Tensor, carry: Carry) -> tf.Tensor:
        """SKIPPED for a step that overflowed in float16, until the loss scale is used up."""
        if not self.half:
            return code
        return tf.where((code != FINE) & (carry.scale >= 1.0), SKIPPED, code)

    def _apply(self, slots: Slots, gradient: Gradient, turn: Turn, course: Course) -> tf.Tensor:
        """Moves a batch's canvases by RAdam, in place; a step that is not FINE moves none. The row
        is finite in either case. Returns whether the canvases moved.
        """
        scale = turn.scale
        if self.config.schedule == "cosine":
            scale = cosine(turn.step, steps=course.steps)
        rate = self.config.learning_rate * scale

        def move() -> bool:
            parts = (slots.canvases, slots.first, slots.second, gradient.canvases)
            for variable, first, second, change in zip(*parts, strict=True):
                apply_radam(
                    variable,
                    first,
                    second,
                    change,
                    step=turn.step,
                    rate=rate,
                    beta1=self.config.beta1,
                    beta2=self.config.beta2,
                )
            return True

        slots.row.assign(gradient.row)
        return tf.cond(gradient.code == FINE, move, lambda: False)

    def _visit(
        self, slots: Slots, carry: Carry, turn: Turn, course: Course
    ) -> tuple[Carry, tf.Tensor]:
        """gradient and apply, for one replica."""
        canvases = [tf.convert_to_tensor(v) for v in slots.canvases]
        row = tf.convert_to_tensor(slots.row)
        gradient = self._gradient(canvases, row, carry, turn, course)
        with tf.control_dependencies([self._apply(slots, gradient, turn, course)]):
            return gradient.carry, tf.identity(gradient.code)


def _size(images: tf.Tensor) -> tf.Tensor:
    """How many images a batch has, float32."""
    return tf.cast(tf.shape(images)[0], tf.float32)
