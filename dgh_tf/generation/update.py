"""state: the compiled step: one batch's canvases moved against the statistics of the whole set. The
loop only repeats it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import tensorflow as tf

from dgh_tf.config import GenerationConfig
from dgh_tf.generation.distribution import exchange
from dgh_tf.generation.objective import Targets, batch_moments, objective
from dgh_tf.generation.store import Slots
from dgh_tf.models.network import Network, Tapped
from dgh_tf.ops import canvas as image_ops
from dgh_tf.ops import losses
from dgh_tf.ops.radam import apply_radam, cosine

# of the steps match statistics alone; the spread of outputs then says how far to stretch them
MATCHING_SHARE = 0.3
SPREAD_MEMORY = 0.1  # weight of a batch in that spread's running mean
FIRST_SCALE, LARGEST_SCALE, GROWTH_STEPS = (
    2.0**12,
    2.0**16,
    100.0,
)  # of the loss in float16: doubled after so many good steps
FINE = (
    -1
)  # a step's code; else the number of the first layer whose moments are not finite, or NOT_A_LAYER
NOT_A_LAYER = 2**30


class Carry(NamedTuple):
    """What steps hand on beside the records; equal on all replicas but for the loss scale.

    totals: sum of all rows of the table, float64 so that a million updates lose nothing, [2,
      channels]. spreads: each
    head's spread under matched statistics [heads]. sums, count: figures since the last report.
    scale, good: of the loss in
    float16, and steps since it last changed.
    """

    totals: tf.Tensor
    spreads: tf.Tensor
    sums: tf.Tensor
    count: tf.Tensor
    scale: tf.Tensor
    good: tf.Tensor


@dataclasses.dataclass(frozen=True)
class Progress:
    """Figures since the last report: means over batches; rate in image-steps per second; what
    `run`'s `due` asked for.
    """

    step: int
    losses: dict[str, float]
    rate: float
    save: bool = False
    stop: bool = False


class Step:
    """Everything a step closes over. `gradient` is pure; `visit` also moves the batch's
    variables.
    """

    def __init__(
        self,
        network: Network,
        config: GenerationConfig,
        *,
        layers,
        targets: Targets,
        ranges,
        layouts,
        sizes: list[int],
        set_images: int,
        replicas: int,
        head_names: list[str],
    ):
        """set_images: generated and real images together, over which statistics are pooled."""
        self.network, self.config, self.layers, self.targets = network, config, layers, targets
        self.ranges, self.layouts, self.replicas, self.sizes = ranges, layouts, replicas, sizes
        self.set_images = float(set_images)
        self.matching_steps = (
            max(1, int(MATCHING_SHARE * config.steps)) if config.output_weight else config.steps
        )
        self.names = ["loss", "bn", "prior", "gradient", *(f"spread/{name}" for name in head_names)]
        self.fill = tf.function(self._fill, autograph=False, reduce_retracing=True)
        self.visit = tf.function(self._visit, autograph=False)
        self.gradient = tf.function(self._gradient, autograph=False)
        self.apply = tf.function(self._apply, autograph=False)

    def first_carry(self, totals) -> Carry:
        """The carry before the first step. totals: of the start images, float64 [2, channels]."""
        scale = FIRST_SCALE if self.config.precision == "float16" else 1.0
        return Carry(
            tf.constant(totals, tf.float64),
            tf.zeros(len(self.names) - 4),
            tf.zeros(len(self.names)),
            tf.constant(0.0),
            tf.constant(scale),
            tf.constant(0.0),
        )

    def _observe(self, units: list[tf.Tensor]) -> tuple[tf.Tensor, Tapped]:
        """Moments of a batch [2, channels] for images in canvas units, and the traced network."""
        inputs = [
            image_ops.to_model(u, low=r.low, high=r.high)
            for u, r in zip(units, self.ranges, strict=True)
        ]
        tapped = self.network.forward(inputs, precision=self.config.precision)
        return batch_moments(tapped, units, self.layers, self.targets), tapped

    def _share(self, batch: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.constant(self.sizes)[batch], tf.float32) / self.set_images

    def _fill(self, canvases: list[tf.Tensor], batch: tf.Tensor) -> tf.Tensor:
        """A batch's row of the table without gradient, for its finished images."""
        units = [
            image_ops.finish(c, layout) for c, layout in zip(canvases, self.layouts, strict=True)
        ]
        return self._share(batch) * self._observe(units)[0]

    def real_row(self, images: tf.Tensor) -> tf.Tensor:
        """The table's row of real images, a constant to all batches. images: float32 [n, *input
        shape] in model units, channels last.
        """
        units = [image_ops.to_canvas(images, low=self.ranges[0].low, high=self.ranges[0].high)]
        return tf.cast(tf.shape(images)[0], tf.float32) / self.set_images * self._observe(units)[0]

    def _gradient(
        self,
        canvases: list[tf.Tensor],
        old_row: tf.Tensor,
        carry: Carry,
        step: tf.Tensor,
        batch: tf.Tensor,
    ):
        """Gradients of one batch's canvases, its fresh row, the new carry and the step's code; see
        FINE.
        """
        config, share = self.config, self._share(batch)
        seed = tf.stack([config.seed, step * len(self.sizes) + batch])
        with tf.GradientTape() as tape:
            tape.watch(canvases)
            units = [
                image_ops.augment(c, layout, seed=seed)
                for c, layout in zip(canvases, self.layouts, strict=True)
            ]
            moments, tapped = self._observe(units)
            spreads = [losses.output_spread(head.logits) for head in tapped.heads]
            finite = tf.math.is_finite(tf.reduce_sum(tf.abs(moments), 0))
            row = tf.where(tf.reduce_all(finite), tf.stop_gradient(share * moments), old_row)
            change, heads = exchange(
                row - old_row, [tf.reduce_mean(s) for s in spreads], replicas=self.replicas
            )
            totals = carry.totals + tf.cast(change, tf.float64)
            pooled = moments
            if (
                config.pool_statistics
            ):  # the row counts in the totals already; put in its place, moments carry the gradient
                pooled = tf.cast(totals, tf.float32) - row + share * moments
            limit = (
                config.stretch_limit * carry.spreads
                if config.stretch_limit
                else tf.fill(tf.shape(carry.spreads), math.inf)
            )
            value, metrics = objective(
                pooled,
                tapped,
                spreads,
                layers=self.layers,
                targets=self.targets,
                config=config,
                limits=tf.where(step < self.matching_steps, 0.0, limit),
                size=share * self.set_images,
                set_images=self.set_images,
            )
            scaled = value * carry.scale if config.precision == "float16" else value
        gradients = tape.gradient(scaled, canvases)
        if config.precision == "float16":
            gradients = [g / carry.scale for g in gradients]
        metrics["gradient"] = tf.linalg.global_norm(gradients)
        figures = tf.stack([metrics[name] for name in self.names])
        bad = tf.reduce_min(tf.where(finite, NOT_A_LAYER, self.targets.layer))
        code = tf.where(
            tf.reduce_all(tf.math.is_finite(figures)) & tf.reduce_all(finite), FINE, bad
        )
        memory = tf.where(
            carry.spreads > 0.0, SPREAD_MEMORY, 1.0
        )  # the first batch sets it: any constant would carry a unit
        known = (step >= self.matching_steps) | tf.reduce_any(~tf.math.is_finite(heads))
        carry = Carry(
            totals,
            tf.where(known, carry.spreads, carry.spreads + memory * (heads - carry.spreads)),
            carry.sums + tf.where(code == FINE, figures, 0.0),
            carry.count + tf.cast(code == FINE, tf.float32),
            *self._rescale(carry, code),
        )
        return gradients, row, carry, self._forgiven(code, carry)

    def _rescale(self, carry: Carry, code: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if self.config.precision != "float16":
            return carry.scale, carry.good
        grown = carry.good + 1.0 >= GROWTH_STEPS
        scale = tf.where(
            code == FINE,
            tf.where(grown, tf.minimum(2.0 * carry.scale, LARGEST_SCALE), carry.scale),
            0.5 * carry.scale,
        )
        return scale, tf.where((code == FINE) & ~grown, carry.good + 1.0, 0.0)

    def _forgiven(self, code: tf.Tensor, carry: Carry) -> tf.Tensor:
        """In float16 a step that overflowed is left out and the loss scaled down: FINE - 1 until
        the scale is used up.
        """
        if self.config.precision != "float16":
            return code
        return tf.where((code != FINE) & (carry.scale >= 1.0), FINE - 1, code)

    def _apply(
        self,
        slots: Slots,
        gradients: list[tf.Tensor],
        row: tf.Tensor,
        code: tf.Tensor,
        step: tf.Tensor,
        scale: tf.Tensor,
    ):
        """Moves a batch's canvases by RAdam, in place; a step that is not FINE moves none. The row
        is finite in either case.
        """
        rate = self.config.learning_rate * (
            cosine(step, steps=self.config.steps) if self.config.schedule == "cosine" else scale
        )

        def move():
            for variable, first, second, gradient in zip(
                slots.canvases, slots.first, slots.second, gradients, strict=True
            ):
                apply_radam(
                    variable,
                    first,
                    second,
                    gradient,
                    step=step,
                    rate=rate,
                    beta1=self.config.beta1,
                    beta2=self.config.beta2,
                )
            return True

        slots.row.assign(row)
        return tf.cond(code == FINE, move, lambda: False)

    def _visit(
        self, slots: Slots, carry: Carry, step: tf.Tensor, batch: tf.Tensor, scale: tf.Tensor
    ) -> tuple[Carry, tf.Tensor]:
        """gradient and apply, for one replica."""
        canvases = [tf.convert_to_tensor(v) for v in slots.canvases]
        gradients, row, carry, code = self._gradient(
            canvases, tf.convert_to_tensor(slots.row), carry, step, batch
        )
        with tf.control_dependencies([self._apply(slots, gradients, row, code, step, scale)]):
            return carry, tf.identity(code)
