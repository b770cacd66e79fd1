"""state: the custom training loop. Canvases and a table of moments (batch x BN channels) under a
tf.distribute strategy.

The set is one joint problem: the table is all that batches know of each other. A visit recomputes
one batch's row with
gradient, pools it with all other rows as constants, and moves that batch's canvases; a step is a
visit to every batch.
With several replicas each takes its own batch; what rows changed by is exchanged in one all-reduce
and images never
leave their replica.
"""

from __future__ import annotations

import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dgh_tf.config import GenerationConfig, parse_image_size
from dgh_tf.generation.distribution import batch_sizes, lost_peer, make_strategy
from dgh_tf.generation.objective import layer_gaps, make_targets, pseudo_statistics
from dgh_tf.generation.real_images import real_images
from dgh_tf.generation.store import FileStore, MemoryStore, Slots, record_bytes
from dgh_tf.generation.update import FINE, NOT_A_LAYER, Carry, Progress, Step
from dgh_tf.input_range.find import find_input_range
from dgh_tf.models.network import Network
from dgh_tf.ops import canvas as image_ops
from dgh_tf.ops.radam import plateau

REPORT_SECONDS = 2.0
ASKED_EVERY = 16  # visits after which workers ask each other, within a long step


class State(NamedTuple):
    """All that a run is besides its records, as numpy arrays: with them, what a checkpoint holds.

    visits: batches done by each replica since the start. plateau: (scale, best loss, steps waited).
      gap_start: gap of
    every layer before the first step. carry: of every replica here, see `step.Carry`; arrays
    [replicas here, ...].
    """

    visits: int
    plateau: tuple[float, float, int]
    gap_start: dict[str, float]
    carry: list[np.ndarray]


class Generator:
    """One generation run on one model: `start` or `restore`, then `run`, then `images`."""

    def __init__(
        self,
        model,
        config: GenerationConfig,
        *,
        strategy: tf.distribute.Strategy | None = None,
        store_file: pathlib.Path | None = None,
        memory_bytes: int = 0,
        real_hint: str | pathlib.Path | np.ndarray | None = None,
    ):
        """Prepares a run; long work starts with `run`. Raises ValueError for models and settings
        that cannot work.

        store_file: where records that need more than `memory_bytes` are streamed through; None
          keeps all in memory.
        real_hint: a few real images (see `hint.load_hint`), whose statistics count and which
          `images` ends with.
        """
        self.config = config
        self.strategy = strategy or make_strategy(config.strategy)
        self.network = Network(
            model, image_size=parse_image_size(config.image_size) if config.image_size else None
        )
        self.real, self.ranges = real_images(
            real_hint,
            network=self.network,
            ranges=find_input_range(self.network, text=config.input_range),
        )
        self.layouts = [
            image_ops.choose_layout(s, augment=config.augment, flip=config.flip)
            for s in self.network.input_shapes
        ]
        self.replicas = self.strategy.num_replicas_in_sync
        self.sizes = batch_sizes(config, self.replicas)
        layers = [
            *self.network.layers,
            *map(pseudo_statistics, self.ranges, self.network.input_shapes),
        ]
        self.targets = make_targets(
            layers, [float(image_ops.is_image(shape)) for shape in self.network.input_shapes]
        )
        self.head_names = self.network.head_names(precision=config.precision)
        self._step = Step(
            self.network,
            config,
            layers=layers,
            targets=self.targets,
            ranges=self.ranges,
            layouts=self.layouts,
            sizes=self.sizes,
            set_images=config.num_images + len(self.real),
            replicas=self.replicas,
            head_names=self.head_names,
        )
        self._devices = self.strategy.extended.worker_devices
        first, every = self._first_replica(), self.replicas
        self.batches = [
            k for k in range(len(self.sizes)) if first <= k % every < first + len(self._devices)
        ]  # of this process
        self.rounds = len(self.batches) // len(self._devices)  # visits that make up a step
        sizes, kind = (
            [self.sizes[k] for k in self.batches],
            {"channels": len(self.targets.mean), "devices": self._devices},
        )
        shapes = [layout.canvas_shape for layout in self.layouts]
        self.record_bytes = len(sizes) * record_bytes(
            shapes, max(sizes), channels=len(self.targets.mean)
        )
        self.streamed = store_file is not None and self.record_bytes > memory_bytes
        self.store = (
            FileStore(store_file, shapes, sizes, **kind)
            if self.streamed
            else MemoryStore(shapes, sizes, **kind)
        )
        self.state = State(0, (1.0, math.inf, 0), {}, [])
        self._order = -1, np.empty(0, int)

    def _first_replica(self) -> int:
        """Number of this process's first replica among all."""
        resolver = self.strategy.cluster_resolver
        return (
            resolver.task_id * len(self.strategy.extended.worker_devices)
            if resolver and resolver.task_type
            else 0
        )

    # ---- before and after
    # ------------------------------------------------------------

    def start(self) -> None:
        """Fills the store with the start images, empty slots and the table, computed once without
        gradient.
        """
        for place, k in enumerate(self.batches):
            canvases = [
                self._start_canvases(number, first=sum(self.sizes[:k]), size=self.sizes[k])
                for number in range(len(self.layouts))
            ]
            zeros = [np.zeros_like(a) for a in canvases]
            self.store.write(
                place,
                [*canvases, *zeros, *zeros, np.zeros((2, len(self.targets.mean)), np.float32)],
            )
        totals = self._fill_table(keep=True)
        carry = [np.stack([a.numpy()] * len(self._devices)) for a in self._step.first_carry(totals)]
        self.state = State(0, (1.0, math.inf, 0), layer_gaps(totals, self.targets), carry)

    def _start_canvases(self, number: int, *, first: int, size: int) -> np.ndarray:
        """Start canvases of input `number` for the images first .. first + size of the set."""
        layout, std = self.layouts[number], self.ranges[number].prior_std
        return np.stack(
            [
                image_ops.start_canvas(
                    layout.canvas_shape,
                    index=i * len(self.layouts) + number,
                    seed=self.config.seed,
                    std=std,
                    start=self.config.start,
                )
                for i in range(first, first + size)
            ]
        )

    def _fill_table(self, *, keep: bool) -> np.ndarray:
        """Sum of the rows of all batches' finished images, float64; keep: write them to the
        records.
        """
        totals = np.zeros((2, len(self.targets.mean)))
        if len(self.real):
            totals += tf.function(self._step.real_row, autograph=False)(
                tf.constant(self.real)
            ).numpy()
        for turn in range(self.rounds):
            records = [self.store.read(place) for place in self._places(turn)]
            canvases = self._each(
                [[tf.constant(a) for a in record[: len(self.layouts)]] for record in records]
            )
            numbers = self._each([tf.constant(self.batches[place]) for place in self._places(turn)])
            rows = self.strategy.run(self._step.fill, args=(canvases, numbers))
            totals += self.strategy.reduce("SUM", rows, axis=None).numpy()
            if keep:
                for place, record, row in zip(
                    self._places(turn),
                    records,
                    self.strategy.experimental_local_results(rows),
                    strict=True,
                ):
                    self.store.write(place, [*record[:-1], row.numpy()])
        return totals

    def _places(self, turn: int) -> list[int]:
        """Places in the store of the batches that the replicas here work on together."""
        here = len(self._devices)
        return list(range(turn * here, (turn + 1) * here))

    def _each(self, values: list):
        """One value for each replica here, as strategy.run takes them."""
        if self.replicas == 1:
            return values[0]
        first = self._first_replica()
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: values[context.replica_id_in_sync_group - first]
        )

    def images(self) -> Iterator[list[np.ndarray]]:
        """The finished images, some at a time in the set's order, for every input float32 [n,
        *input shape] in model units.

        With several workers all must ask at once, and all get all images.
        """
        for turn in range(self.rounds):
            parts = []
            for place in self._places(turn):
                record = self.store.read(place)
                parts.append(
                    [
                        image_ops.to_model(
                            image_ops.finish(tf.constant(c), layout), low=valid.low, high=valid.high
                        )
                        for c, layout, valid in zip(record, self.layouts, self.ranges, strict=False)
                    ]
                )
            if len(parts) < self.replicas:
                parts = [
                    self.strategy.gather(self._each(parts)[i], axis=0)
                    for i in range(len(self.layouts))
                ]
                yield self.network.own_layout([part.numpy() for part in parts])
            else:
                yield from (self.network.own_layout([a.numpy() for a in part]) for part in parts)
        if len(self.real):
            yield self.network.own_layout([self.real])

    def all_images(self) -> list[np.ndarray]:
        """`images` in one array for every input."""
        return [np.concatenate(parts) for parts in zip(*self.images(), strict=True)]

    def layer_gaps(self) -> dict[str, float]:
        """Gap of the finished images' pooled statistics per BN layer and input."""
        return layer_gaps(self._fill_table(keep=False), self.targets)

    # ---- the loop
    # ------------------------------------------------------------

    def run(
        self,
        *,
        report: Callable[[Progress], bool | None] | None = None,
        due: Callable[[], tuple[bool, bool]] = lambda: (False, False),
    ) -> None:
        """Runs from where the run stands to its last step.

        Args:
          report: called about every two seconds with the progress; the run stands between two
            visits then, so that
            `state` and `store` can be saved. Returning True stops the run there.
          due: (whether to save, whether to stop), asked between visits; either brings a report at
            once. With several
            workers all do what one of them asks for.
        Raises: FloatingPointError when a loss or gradient is not finite; ConnectionError when
          another worker is lost.
        """
        with lost_peer(self.strategy):
            self._run(report, due)

    def _run(self, report, due) -> None:
        carry, visits, last = (
            self._carry_to_devices(),
            self.state.visits,
            self.rounds * self.config.steps,
        )
        began, counted = time.perf_counter(), visits
        turn = self._turn(visits)
        while visits < last:
            step, upcoming = (
                visits // self.rounds,
                self._turn(visits + 1) if visits + 1 < last else None,
            )
            carry = self._visit(carry, turn, upcoming, step)
            visits, turn = visits + 1, upcoming
            ended, now = visits % self.rounds == 0, time.perf_counter()
            stalled = ended and self.config.schedule == "plateau"
            wanted, save, stop = self._agreed(
                visits, now - began > REPORT_SECONDS or visits == last, *due()
            )
            if stalled or wanted or save or stop:
                metrics, fresh = self._figures(carry)
                if (
                    stalled or self.config.schedule != "plateau"
                ):  # which needs the mean over a whole step, stopped in it or not
                    carry = fresh
                scale = self.state.plateau
                if stalled:
                    scale = plateau(
                        scale, metrics["loss"], patience=max(1, self.config.steps // 50)
                    )
                self.state = self.state._replace(
                    visits=visits, plateau=scale, carry=self._carry_from_devices(carry)
                )
            if wanted or save or stop:
                rate = (visits - counted) * self.config.num_images / self.rounds / (now - began)
                began, counted = now, visits
                ask = (
                    report(Progress(visits // self.rounds, metrics, rate, save, stop))
                    if report
                    else None
                )
                if ask or stop:
                    return

    def _turn(self, visit: int) -> int:
        """Which of the batches here a visit goes to: every step takes them in an order of
        its own.
        """
        step, place = divmod(visit, self.rounds)
        if step != self._order[0]:
            self._order = (
                step,
                np.random.default_rng([self.config.seed, step]).permutation(self.rounds),
            )
        return int(self._order[1][place])

    def _visit(self, carry, turn: int, upcoming: int | None, step: int):
        """One batch of every replica here."""
        places = self._places(turn)
        nexts = self._places(upcoming) if upcoming is not None else [None] * len(places)
        slots = [
            self.store.take(place, upcoming=following)
            for place, following in zip(places, nexts, strict=True)
        ]
        now, scale = tf.constant(step), tf.constant(self.state.plateau[0], tf.float32)
        if self.replicas == 1:
            carry, code = self._step.visit(
                slots[0], carry, now, tf.constant(self.batches[places[0]]), scale
            )
            codes = [int(code)]
        else:
            carry, codes = self._visit_together(slots, carry, places, now, scale)
        for place, record in zip(places, slots, strict=True):
            self.store.put(place, record)
        for place, code in zip(places, codes, strict=True):
            if code > FINE:
                self._raise_non_finite(code, step, self.batches[place])
        return carry

    def _visit_together(self, slots: list[Slots], carry, places: list[int], now, scale):
        canvases = self._each([[tf.convert_to_tensor(v) for v in s.canvases] for s in slots])
        rows = self._each([tf.convert_to_tensor(s.row) for s in slots])
        numbers = self._each([tf.constant(self.batches[place]) for place in places])
        results = self.strategy.run(self._step.gradient, args=(canvases, rows, carry, now, numbers))
        gradients, fresh, carry, code = results
        del canvases, rows  # a tensor that still shows a variable's memory makes the update copy it
        codes = []
        for i, record in enumerate(slots):
            gradient, row, own = (
                tf.nest.map_structure(
                    lambda v, i=i: self.strategy.experimental_local_results(v)[i], part
                )
                for part in (gradients, fresh, code)
            )
            self._step.apply(record, gradient, row, own, now, scale)
            codes.append(int(own))
        return carry, codes

    def _agreed(self, visits: int, *wishes: bool) -> list[bool]:
        """What any worker wishes, so that all report, save and stop at the same visit; asked now
        and then, for it costs an all-reduce.
        """
        if len(self._devices) == self.replicas:
            return list(wishes)
        if visits % self.rounds and visits % ASKED_EVERY:
            return [False] * len(wishes)
        flags = self._each([tf.constant(wishes, tf.float32)] * len(self._devices))
        return [bool(v) for v in self.strategy.reduce("SUM", flags, axis=None).numpy() > 0]

    def spreads(self) -> np.ndarray:
        """Every head's spread under matched statistics, float32 [heads], in logit units."""
        return Carry(*self.state.carry).spreads[0]

    def _figures(self, carry) -> tuple[dict[str, float], object]:
        """Means of the figures since the last report, and the carry to go on with."""
        parts = self._local(carry)
        sums, count = sum(c.sums.numpy() for c in parts), sum(float(c.count) for c in parts)
        metrics = dict(zip(self._step.names, map(float, sums / max(count, 1.0)), strict=True))
        return metrics, self._each(
            [c._replace(sums=tf.zeros_like(c.sums), count=tf.zeros_like(c.count)) for c in parts]
        )

    def _local(self, carry) -> list[Carry]:
        groups = [self.strategy.experimental_local_results(a) for a in carry]
        return [Carry(*parts) for parts in zip(*groups, strict=True)]

    def _carry_to_devices(self):
        return self._each(
            [
                Carry(*(tf.constant(a[i]) for a in self.state.carry))
                for i in range(len(self._devices))
            ]
        )

    def _carry_from_devices(self, carry) -> list[np.ndarray]:
        return [
            np.stack([np.asarray(v) for v in values])
            for values in zip(*self._local(carry), strict=True)
        ]

    def _raise_non_finite(self, code: int, step: int, batch: int) -> None:
        where = (
            "the loss or its gradient"
            if code == NOT_A_LAYER
            else f"the input of layer {self.targets.names[code]!r}"
        )
        raise FloatingPointError(
            f"{where} became non-finite in step {step}, batch {batch}; images and "
            "checkpoints are those before it. "
            "Try a smaller --learning_rate, --precision=float32, or check the model's weights."
        )


def generate_images(
    model,
    config: GenerationConfig | None = None,
    *,
    strategy: tf.distribute.Strategy | None = None,
    report: Callable[[Progress], bool] | None = None,
    real_hint: str | pathlib.Path | np.ndarray | None = None,
) -> np.ndarray | dict[str, np.ndarray]:
    """Images whose statistics in `model` are those of its training set (DGH, WACV 2025).

    Args:
      model: a trained Keras model with BatchNormalization; it is left unchanged.
      config: settings; the defaults where None.
      report: called with the progress about every two seconds; returning True ends the run early.
      real_hint: 1 to 32 real images, a folder or an array (see `hint.load_hint`): their statistics
        are pooled with those of the
        generated ones, and they stand at the end of what is returned.
    Returns: float32 [num_images (+ real ones), *input shape] in the model's input units; a dict by
      input name for several inputs.
    Raises: ValueError when the model or a setting cannot work; FloatingPointError when the loss
      diverges.
    """
    generator = Generator(
        model, config or GenerationConfig(), strategy=strategy, real_hint=real_hint
    )
    generator.start()
    generator.run(report=report)
    images = generator.all_images()
    return (
        images[0]
        if len(images) == 1
        else dict(zip(generator.network.input_names, images, strict=True))
    )
