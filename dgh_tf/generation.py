"""state: the custom training loop. Canvases and a table of moments (batch x BN channels) under a tf.distribute strategy.

The set is one joint problem: the table is all that batches know of each other. A step recomputes one batch's row with
gradient, pools it with all other rows as constants, and moves that batch's canvases. With several replicas each takes
its own batch; the fresh rows are exchanged in one all-reduce and images never leave their replica.
"""
from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dgh_tf import images as image_ops
from dgh_tf import losses
from dgh_tf.config import GenerationConfig, parse_image_size
from dgh_tf.input_range import find_input_range
from dgh_tf.losses import output_spread
from dgh_tf.moments import Moments, merge
from dgh_tf.network import Network, Tapped
from dgh_tf.objective import flatten, layer_rows, objective, other_rows, pseudo_statistics, replace_rows
from dgh_tf.optimizer import cosine, plateau, radam
from dgh_tf.replicas import batch_sizes, exchange, make_strategy

CHUNK_SECONDS = 2.0  # one compiled call lasts about this long: progress, signals and checkpoints happen between calls

LONGEST_CHUNK = 256  # steps
MATCHING_SHARE = 0.3  # of the steps match statistics alone; the spread of outputs then says how far to stretch them
SPREAD_MEMORY = 0.1  # weight of a batch in that spread's running mean


class State(NamedTuple):
    """All that a run is, as numpy arrays: what a checkpoint holds.

    canvases, first, second: per input [batches, largest batch, *canvas shape] (short batches padded with zeros).
    means, m2s: the table, [batches, channels of all BN layers]. spreads: each head's
    spread under matched statistics [heads]. step: steps done. plateau: (scale, best loss, waited).
    """

    canvases: list[np.ndarray]
    first: list[np.ndarray]
    second: list[np.ndarray]
    means: np.ndarray
    m2s: np.ndarray
    spreads: np.ndarray
    step: int
    plateau: tuple[float, float, int]


@dataclasses.dataclass(frozen=True)
class Progress:
    """Figures of the steps since the last report: means over batches; rate in image-steps per second."""

    step: int
    losses: dict[str, float]
    rate: float


class Generator:
    """One generation run on one model."""

    def __init__(self, model, config: GenerationConfig, *, strategy: tf.distribute.Strategy | None = None):
        """Prepares a run; long work starts with `run`. Raises ValueError for models and settings that cannot work."""
        self.config = config
        self.strategy = strategy or make_strategy(config.strategy)
        self.network = Network(model, image_size=parse_image_size(config.image_size) if config.image_size else None)
        self.ranges = find_input_range(self.network, text=config.input_range)
        self.layouts = [image_ops.choose_layout(s, augment=config.augment, flip=config.flip) for s in self.network.input_shapes]
        self.sizes = batch_sizes(config, self.strategy.num_replicas_in_sync)
        self.layers = [*self.network.layers, *map(pseudo_statistics, self.ranges, self.network.input_shapes)]
        self.matching_steps = max(1, int(MATCHING_SHARE * config.steps)) if config.output_weight else config.steps
        self.priors = [float(image_ops.is_image(shape)) for shape in self.network.input_shapes]
        self.head_names: list[str] = []
        self._counts: np.ndarray | None = None
        self._fill = tf.function(self._fill_replica, autograph=False)
        self._chunk = tf.function(self._run_chunk, autograph=False)

    def _observe(self, units: list[tf.Tensor]) -> tuple[list[Moments], Tapped]:
        """Moments of every BN layer and of the inputs themselves, for images in canvas units; and the traced network."""
        inputs = [image_ops.to_model(u, low=r.low, high=r.high) for u, r in zip(units, self.ranges, strict=True)]
        tapped = self.network.forward(inputs)
        self.head_names = [head.name for head in tapped.heads]
        return layer_rows([*tapped.calls, *enumerate(units, start=len(self.network.layers))], self.layers), tapped

    # ---- the compiled part: many batches, no Python between them ---------------------------------------------------

    def _fill_replica(self, canvases):
        """One batch's row of the table without gradient, for its centre crop: (counts, means, m2s)."""
        row, _ = self._observe([image_ops.finish(c, layout) for c, layout in zip(canvases, self.layouts, strict=True)])
        return tf.stack([m.count for m in row]), *flatten(row)

    def _step(self, canvases, first, second, means, m2s, spreads, batch, size, step, rate):
        """One step of one batch on one replica. Returns its new slots, its fresh row and the metrics."""
        seed = tf.stack([self.config.seed, step * len(self.sizes) + batch])
        used = [c[:size] for c in canvases] if len(set(self.sizes)) > 1 else canvases
        with tf.GradientTape() as tape:
            tape.watch(used)
            units = [image_ops.augment(c, layout, seed=seed) for c, layout in zip(used, self.layouts, strict=True)]
            row, tapped = self._observe(units)
            heads = tf.stack([tf.reduce_mean(output_spread(head.logits)) for head in tapped.heads])
            rows, heads, ids = exchange(tf.concat(flatten(row), 0), heads, batch, replicas=self.strategy.num_replicas_in_sync)
            pooled = len(self.sizes) > 1 and self.config.pool_statistics
            others = other_rows(self._counts, *replace_rows(means, m2s, rows, ids), batch, layers=self.layers) if pooled else []
            value, metrics = objective(row, tapped, others, layers=self.layers, priors=self.priors, config=self.config,
                                       limits=self._limits(spreads, step), size=tf.cast(size, tf.float32))
        gradients = tape.gradient(value, used)
        moved = []
        for canvas, m, v, gradient in zip(canvases, first, second, gradients, strict=True):
            gradient = tf.pad(gradient, [[0, tf.shape(canvas)[0] - tf.shape(gradient)[0]], *[[0, 0]] * (canvas.shape.rank - 1)])
            change, m, v = radam(gradient, m, v, step=step, rate=rate)
            moved.append((canvas + change, m, v))
        metrics["gradient"] = tf.linalg.global_norm(gradients)
        return *map(list, zip(*moved, strict=True)), rows, heads, ids, metrics

    def _limits(self, spreads: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """How far each head is stretched: not at all while the statistics are being matched, then up to the limit."""
        limit = self.config.stretch_limit * spreads if self.config.stretch_limit else spreads * 0.0 + math.inf
        return tf.where(step < self.matching_steps, 0.0, limit)

    def _run_chunk(self, state, order, steps, step, scale):
        """`steps` steps from `step` on. order: int32 [LONGEST_CHUNK, local batches] of local batch numbers.
        Returns the new state and the metrics' means.

        The loop stands around strategy.run, not in it: replicas cannot meet (all-reduce) inside a loop of their own."""
        local = tf.shape(order)[1]
        count = steps * local

        def body(i, state, sums):
            args = (state, order[i // local, i % local], step + i // local, scale)
            state, metrics = self.strategy.run(self._replica_step, args=args)
            return i + 1, state, sums + self.strategy.reduce("MEAN", metrics, axis=None)

        state = self.strategy.run(lambda groups: (*[[_unstack(a) for a in g] for g in groups[:3]], *groups[3:]), args=(state,))
        _, state, sums = tf.while_loop(lambda i, *_: i < count, body, (0, state, tf.zeros(len(self._metric_names()))),
                                       parallel_iterations=1)
        state = self.strategy.run(lambda groups: (*[[a.stack() for a in g] for g in groups[:3]], *groups[3:]), args=(state,))
        return state, sums / tf.cast(count, tf.float32)

    def _replica_step(self, state, here, now, scale):
        """One step of local batch `here` on one replica: the new state (slots as TensorArrays) and the metrics."""
        *slots, means, m2s, spreads = state
        replicas = self.strategy.num_replicas_in_sync
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group if replicas > 1 else 0
        batch = here * replicas + replica
        share = cosine(now, steps=self.config.steps) if self.config.schedule == "cosine" else scale
        args = [[array.read(here) for array in group] for group in slots]
        *moved, rows, heads, ids, metrics = self._step(*args, means, m2s, spreads, batch, tf.constant(self.sizes)[batch], now,
                                                self.config.learning_rate * share)
        slots = [[array.write(here, value) for array, value in zip(group, new, strict=True)]
                 for group, new in zip(slots, moved, strict=True)]
        means, m2s = replace_rows(means, m2s, rows, ids)
        memory = tf.where(spreads > 0.0, SPREAD_MEMORY, 1.0)  # the first batch sets it: any constant would carry a unit
        spreads = tf.where(now < self.matching_steps, spreads + memory * (heads - spreads), spreads)
        return (*slots, means, m2s, spreads), tf.stack([metrics[key] for key in self._metric_names()])

    def _metric_names(self) -> list[str]:
        return ["loss", "bn", "prior", "gradient", *(f"spread/{name}" for name in self.head_names)]

    # ---- the loop -------------------------------------------------------------------------------------------------

    def start(self) -> State:
        """The state before the first step: start canvases, empty slots, and the table filled once without gradient."""
        largest = max(self.sizes)
        canvases = [np.zeros((len(self.sizes), largest, *layout.canvas_shape), np.float32) for layout in self.layouts]
        index = 0
        for k, size in enumerate(self.sizes):
            for i in range(size):
                for number, (array, layout, valid) in enumerate(zip(canvases, self.layouts, self.ranges, strict=True)):
                    array[k, i] = image_ops.start_canvas(layout.canvas_shape, index=index * len(canvases) + number,
                                                         seed=self.config.seed, std=valid.prior_std, start=self.config.start)
                index += 1
        self._counts, means, m2s = self._table(canvases)  # also fills head_names
        zeros = [np.zeros_like(a) for a in canvases]
        return State(canvases, zeros, [np.zeros_like(a) for a in canvases], means, m2s,
                     np.zeros(len(self.head_names), np.float32), 0, (1.0, math.inf, 0))

    def _table(self, canvases: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = [self._fill([tf.constant(a[k, :size]) for a in canvases]) for k, size in enumerate(self.sizes)]
        return tuple(np.stack([row[i].numpy() for row in rows]) for i in range(3))

    def run(self, state: State, *, report: Callable[[Progress, Callable[[], State]], bool] | None = None) -> State:
        """Runs from `state` to the last step.

        Args:
          report: called about every two seconds with the progress and a function that fetches the state (for
            checkpoints); returning True stops the run there.
        Raises: FloatingPointError when a loss or gradient is not finite.
        """
        if self._counts is None:
            self._counts = self._table(state.canvases)[0]
        if not self.head_names:
            specs = [tf.TensorSpec((None, *s), tf.float32) for s in self.network.input_shapes]
            tf.function(lambda *x: self.head_names.extend(h.name for h in self.network.forward(list(x)).heads),
                        autograph=False).get_concrete_function(*specs)
        device, step, plateau_state = self._to_devices(state), state.step, state.plateau
        chunk = 1
        def fetch():
            return self._fetch(device, step, plateau_state)

        while step < self.config.steps:
            began, steps = time.perf_counter(), min(chunk, self.config.steps - step, LONGEST_CHUNK)
            device, sums = self._chunk(device, self._order(step, steps), tf.constant(steps), tf.constant(step),
                                       tf.constant(plateau_state[0]))
            metrics = dict(zip(self._metric_names(), map(float, sums.numpy()), strict=True))
            self._require_finite(metrics, step)
            step += steps
            seconds = time.perf_counter() - began
            if self.config.schedule == "plateau":
                plateau_state = plateau(plateau_state, metrics["loss"], patience=max(1, self.config.steps // 50))
            elif seconds < CHUNK_SECONDS / 2:
                chunk *= 2
            elif seconds > CHUNK_SECONDS * 2:
                chunk = max(1, chunk // 2)
            rate = steps * self.config.num_images / seconds
            if report and report(Progress(step, metrics, rate), fetch):
                break
        return fetch()

    def _require_finite(self, metrics: dict[str, float], step: int) -> None:
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(f"{', '.join(bad)} became non-finite after step {step}. The last checkpoint is good; "
                                     "try a smaller --learning_rate or check the model's weights.")

    def _order(self, step: int, steps: int) -> tf.Tensor:
        local = len(self.sizes) // self.strategy.num_replicas_in_sync
        order = np.zeros((LONGEST_CHUNK, local), np.int32)  # one shape, so that the loop is traced once
        for i in range(steps):
            order[i] = np.random.default_rng([self.config.seed, step + i]).permutation(local)
        return tf.constant(order)

    def _to_devices(self, state: State):
        replicas = self.strategy.num_replicas_in_sync

        def value(context):
            mine = slice(context.replica_id_in_sync_group, None, replicas)
            groups = [[tf.constant(a[mine]) for a in group] for group in (state.canvases, state.first, state.second)]
            return (*groups, tf.constant(state.means), tf.constant(state.m2s), tf.constant(state.spreads))

        if replicas == 1:
            groups = [[tf.constant(a) for a in group] for group in (state.canvases, state.first, state.second)]
            return (*groups, tf.constant(state.means), tf.constant(state.m2s), tf.constant(state.spreads))
        return self.strategy.experimental_distribute_values_from_function(value)

    def _fetch(self, device, step: int, plateau_state) -> State:
        def interleave(value):
            parts = [p.numpy() for p in self.strategy.experimental_local_results(value)]
            return np.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:]) if len(parts) > 1 else parts[0]

        groups = [[interleave(a) for a in group] for group in device[:3]]
        shared = (self.strategy.experimental_local_results(a)[0].numpy() for a in device[3:])
        return State(*groups, *shared, step, plateau_state)

    def images(self, state: State) -> list[np.ndarray]:
        """The finished images of every input, float32 [num_images, *input shape] in model units."""
        results = []
        for array, layout, valid in zip(state.canvases, self.layouts, self.ranges, strict=True):
            parts = [image_ops.to_model(image_ops.finish(tf.constant(array[k, :size]), layout), low=valid.low, high=valid.high)
                     for k, size in enumerate(self.sizes)]
            results.append(np.concatenate([p.numpy() for p in parts]))
        return self.network.own_layout(results)

    def gap_start(self) -> dict[str, float]:
        """layer_gaps before the first step (a resumed run computes it again: it follows from the seed)."""
        return self.layer_gaps(self.start())

    def layer_gaps(self, state: State) -> dict[str, float]:
        """Gap of the finished images' pooled statistics per BN layer."""
        counts, means, m2s = self._table(state.canvases)
        lengths, gaps, offset = [len(bn.mean) for bn in self.layers], {}, 0
        for i, (bn, length) in enumerate(zip(self.layers, lengths, strict=True)):
            part = slice(offset, offset + length)
            pooled = merge(Moments(*(tf.constant(a) for a in (counts[:, i:i + 1], means[:, part], m2s[:, part]))))
            gaps[bn.name] = float(losses.moment_gap(pooled, mean=bn.mean, variance=bn.variance, epsilon=bn.epsilon))
            offset += length
        return gaps


def generate_images(model, config: GenerationConfig | None = None, *, strategy: tf.distribute.Strategy | None = None,
                    report: Callable[[Progress, Callable[[], State]], bool] | None = None) -> np.ndarray | dict[str, np.ndarray]:
    """Images whose statistics in `model` are those of its training set (DGH, WACV 2025).

    Args:
      model: a trained Keras model with BatchNormalization; it is left unchanged.
      config: settings; the defaults where None.
    Returns: float32 [num_images, *input shape] in the model's input units; a dict by input name for several inputs.
    Raises: ValueError when the model or a setting cannot work; FloatingPointError when the loss diverges.
    """
    generator = Generator(model, config or GenerationConfig(), strategy=strategy)
    images = generator.images(generator.run(generator.start(), report=report))
    return images[0] if len(images) == 1 else dict(zip(generator.network.input_names, images, strict=True))


def _unstack(stacked: tf.Tensor) -> tf.TensorArray:
    return tf.TensorArray(stacked.dtype, size=tf.shape(stacked)[0], clear_after_read=False,
                          element_shape=stacked.shape[1:]).unstack(stacked)
