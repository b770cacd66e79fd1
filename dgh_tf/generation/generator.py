"""The custom training loop: canvases, and a table of moments (batch x BN channels).

The set is one joint problem: batches share only the table. A visit recomputes one batch's row with
gradient, pools it with all other rows as constants, and moves that batch's canvases; a step is a
visit to every batch. With several replicas each takes its own batch; what rows changed by is
exchanged in one all-reduce, and images never leave their replica.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from dgh_tf.common.quiet import without_retracing_warnings
from dgh_tf.config import GenerationConfig, parse_image_size, range_text
from dgh_tf.generation.distribution import (
    batch_sizes,
    has_devices,
    lost_peer,
    make_strategy,
)
from dgh_tf.generation.inputs import Inputs, largest_reach, natural_statistics
from dgh_tf.generation.objective import (
    Layers,
    Problem,
    layer_gaps,
    make_targets,
    pseudo_statistics,
    ranged_layers,
)
from dgh_tf.generation.prepared import prepared
from dgh_tf.generation.real_images import real_images
from dgh_tf.generation.replicas import Replicas
from dgh_tf.generation.store import FileStore, MemoryStore, Record, Slots, Store, record_bytes
from dgh_tf.generation.update import FINE, NOT_A_LAYER, Carry, Progress, Step, Turn, course
from dgh_tf.input_range.find import KnownInput, known_inputs
from dgh_tf.models.network import Network
from dgh_tf.ops import canvas as image_ops
from dgh_tf.ops.radam import plateau

REPORT_SECONDS = 2.0
ASKED_EVERY = 16  # visits after which workers ask each other, within a long step
Report = Callable[[Progress], bool | None]
Due = Callable[[], tuple[bool, bool]]
Told = Callable[[str, int], None]  # what is being done, and how many images have it behind them


def _untold(what: str, images: int) -> None:
    """Tells nobody."""


class State(NamedTuple):
    """All that a run is besides its records, as numpy arrays: with them, what a checkpoint holds.

    Attributes:
      visits: batches done by each replica since the start.
      plateau: (scale, best loss, steps waited), see `radam.plateau`.
      gap_start: gap of every layer before the first step.
      carry: of every replica here, see `update.Carry`; arrays [replicas here, ...].
    """

    visits: int
    plateau: tuple[float, float, int]
    gap_start: dict[str, float]
    carry: list[np.ndarray]


class Generator:
    """One generation run on one model: `start` or `restore`, then `run`, then `images`.

    Example:
      >>> import dgh_tf
      >>> config = dgh_tf.GenerationConfig(num_images=4, steps=6)
      >>> generator = dgh_tf.Generator(dgh_tf.load_model("demo"), config)
      >>> generator.start()
      >>> generator.run()
      >>> generator.all_images()[0].shape
      (4, 64, 64, 3)
    """

    def __init__(
        self,
        model: Any,
        config: GenerationConfig,
        *,
        strategy: tf.distribute.Strategy | None = None,
        store_file: pathlib.Path | None = None,
        memory_bytes: int = 0,
        real_hint: str | pathlib.Path | np.ndarray | None = None,
    ) -> None:
        """Prepares a run; long work starts with `run`. Raises ValueError for models and settings
        that cannot work.

        model: a Keras model, the path of one, or either as `Prepared`.
        store_file: where records that need more than `memory_bytes` are streamed through; None
        keeps all in memory.
        real_hint: a few real images (see `real_images.load_hint`), whose statistics count and which
        `images` ends with.
        """
        self.config = config
        if strategy is None or not has_devices(strategy):
            strategy = make_strategy(config.strategy)
        self._replicas = Replicas(strategy)
        shared = prepared(model)
        size = parse_image_size(config.image_size) if config.image_size else None
        of_network = size, config.use_statistics
        self.network = shared.once(
            of_network,
            lambda: Network(shared.model, image_size=size, use_statistics=config.use_statistics),
        )
        _require_aim(self.network, config)
        text, kind = range_text(config.input_range), config.input_kind
        known = shared.once(
            (*of_network, text, kind), lambda: known_inputs(self.network, text=text, kind=kind)
        )
        self._take_inputs(known, real_hint)
        self.head_names = self.network.head_names(precision=config.precision)
        self.sizes = batch_sizes(config, self._replicas.count)
        self.batches = self._replicas.own_batches(len(self.sizes))  # of this process
        self.rounds = len(self.batches) // self._replicas.here  # visits that make up a step
        self._course = course(
            config,
            batches=len(self.sizes),
            real=len(self.real),
            heads=len(self.head_names),
            has_statistics=bool(self.network.layers),
        )
        problem = self._problem()
        self.targets = problem.targets
        self._step = shared.once(
            (problem.config, *self.ranges, text, self._replicas.count),
            lambda: Step(self.network, problem, self._inputs, replicas=self._replicas.count),
        )
        self._make_store(store_file, memory_bytes)
        self.state = State(0, (1.0, math.inf, 0), {}, [])
        self._order = -1, np.empty(0, int)

    def _take_inputs(
        self, known: list[KnownInput], real_hint: str | pathlib.Path | np.ndarray | None
    ) -> None:
        """What is known of every input, with the real images and ranges that hold them, and how its
        canvases lie.
        """
        network = self.network
        self.real, self.ranges = real_images(
            real_hint, network=network, ranges=[each.valid for each in known]
        )
        self.known = [
            dataclasses.replace(each, valid=valid)
            for each, valid in zip(known, self.ranges, strict=True)
        ]
        self.layouts = [
            image_ops.choose_layout(
                shape,
                augment=self.config.augment and not each.signal,
                flip=self.config.flip,
                statistics=bool(network.layers),
            )
            for shape, each in zip(network.input_shapes, self.known, strict=True)
        ]
        self._inputs = Inputs(self.layouts, self.known, plain=not network.layers)

    def _problem(self) -> Problem:
        """What the images are to reach, without what a `Course` tells."""
        network, known, shapes = self.network, self.known, self.network.input_shapes
        alone = not network.layers  # then also what is no image needs its natural spread
        pseudo = (
            map(natural_statistics, known, shapes)
            if alone
            else map(pseudo_statistics, self.ranges, shapes)
        )
        layers: Layers = [*network.layers, *pseudo]
        priors = [
            float(alone or (each.signal is None and image_ops.is_image(shape)))
            for shape, each in zip(shapes, known, strict=True)
        ]
        reach = largest_reach(known)
        return Problem(
            config=_without_course(self.config),
            layers=layers,
            targets=make_targets(layers, priors),
            heads=self.head_names,
            ranged={} if reach is None else ranged_layers(network.layers),
            reach=reach or 0.0,
            stretch_masks=alone or not (self.config.bn_weight and all(k.signal for k in known)),
        )

    def _make_store(self, file: pathlib.Path | None, memory_bytes: int) -> None:
        sizes, channels = [self.sizes[k] for k in self.batches], len(self.targets.mean)
        shapes = [layout.canvas_shape for layout in self.layouts]
        self.record_bytes = len(sizes) * record_bytes(shapes, max(sizes), channels=channels)
        self.streamed = file is not None and self.record_bytes > memory_bytes
        devices = self._replicas.devices
        self.store: Store = (  # one of them: that in memory takes the whole set's at once
            FileStore(file, shapes, sizes, channels=channels, devices=devices)
            if file is not None and self.streamed
            else MemoryStore(shapes, sizes, channels=channels, devices=devices)
        )

    # ---- before and after
    # ------------------------------------------------------------

    def start(self, *, told: Told = _untold) -> None:
        """Fills the store with the start images, empty slots and the table, computed once without
        gradient.

        Args:
          told: called after every batch with what is being done and the images so far; what it
            raises ends the start.
        """
        drawn = 0
        for place, k in enumerate(self.batches):
            canvases = self._start_canvases(k)
            zeros = [np.zeros_like(a) for a in canvases]
            row = np.zeros((2, len(self.targets.mean)), np.float32)
            self.store.write(place, Record(canvases, zeros, zeros, row))
            drawn += self.sizes[k]
            told("start images drawn", drawn)
        totals = self._fill_table(keep=True, told=told, what="start images measured")
        first = self._step.first_carry(totals, self._start_spreads())
        carry = [np.stack([a.numpy()] * self._replicas.here) for a in first]
        self.state = State(0, (1.0, math.inf, 0), layer_gaps(totals, self.targets), carry)

    @without_retracing_warnings()
    def _fill_table(self, *, keep: bool, told: Told, what: str) -> np.ndarray:
        """Sum of the rows of all batches' finished images, float64; keep: write them to the
        records. told: hears of `what` after every batch.
        """
        measured = 0
        totals = np.zeros((2, len(self.targets.mean)))
        if len(self.real):
            real_row = tf.function(self._step.real_row, autograph=False)
            totals += real_row(tf.constant(self.real), self._course).numpy()
        for turn in range(self.rounds):
            places = self._places(turn)
            rows = self._replicas.run(self._step.fill, self._canvases(places), self._course)
            totals += self._replicas.total(rows)
            if keep:
                for place, row in zip(places, self._replicas.local(rows), strict=True):
                    self.store.write_row(place, row.numpy())
            measured += sum(self.sizes[self.batches[place]] for place in places)
            told(what, measured)
        return totals

    def _start_spreads(self) -> np.ndarray:
        """Every head's mean spread over the start images that are not plain, float32 [heads];
        zeros where matched statistics will tell it, and for the ranged layers of such a model.
        """
        spreads = np.zeros(len(self.head_names) + len(self._step.problem.ranged), np.float32)
        if self.network.layers:
            return spreads
        for turn in range(self.rounds):
            places = self._places(turn)
            canvases = self._canvases(places)
            turns = [
                Turn(tf.constant(0), tf.constant(self.batches[p]), tf.constant(1.0)) for p in places
            ]
            shares = self._replicas.run(
                self._step.spread, canvases, self._replicas.each(turns), self._course
            )
            spreads += self._replicas.total(shares)
        return spreads

    def _canvases(self, places: list[int]) -> Any:
        """The canvases of a batch for every replica here."""
        read = [[tf.constant(a) for a in self.store.canvases(place)] for place in places]
        return self._replicas.each(read)

    def _places(self, turn: int) -> list[int]:
        """Places in the store of the batches that the replicas here work on together."""
        here = self._replicas.here
        return list(range(turn * here, (turn + 1) * here))

    def images(self) -> Iterator[list[np.ndarray]]:
        """The finished images, some at a time in the set's order, for every input float32 [n,
        *input shape] in model units.

        With several workers all must ask at once, and all get all images.
        """
        for turn in range(self.rounds):
            parts = [self._finished(self.store.canvases(p)) for p in self._places(turn)]
            if self._replicas.here < self._replicas.count:
                by_input = zip(*parts, strict=True)
                parts = [[self._replicas.gathered(values) for values in by_input]]
            yield from (self.network.own_layout([a.numpy() for a in part]) for part in parts)
        if len(self.real):
            yield self.network.own_layout([self.real])

    def _finished(self, canvases: list[np.ndarray]) -> list[tf.Tensor]:
        """A batch's images of every input in model units."""
        return self._inputs.to_model(self._inputs.finish(list(map(tf.constant, canvases))))

    def start_images(self) -> list[np.ndarray]:
        """The images of all batches before any step, for every input float32 [num_images, *input
        shape] in model units: what `all_images` gives between `start` and `run`, without the
        passes through the model. Real ones of a hint are not among them.
        """
        parts = [self._finished(self._start_canvases(k)) for k in range(len(self.sizes))]
        return self.network.own_layout(
            [np.concatenate([a.numpy() for a in values]) for values in zip(*parts, strict=True)]
        )

    def _start_canvases(self, batch: int) -> list[np.ndarray]:
        """Of every input, float32 [size of the batch, *canvas shape]."""
        first, size = sum(self.sizes[:batch]), self.sizes[batch]
        return [
            self._inputs.start(number, first=first, size=size, config=self.config)
            for number in range(len(self.layouts))
        ]

    def all_images(self) -> list[np.ndarray]:
        """`images` in one array for every input."""
        return [np.concatenate(parts) for parts in zip(*self.images(), strict=True)]

    def layer_gaps(self, *, told: Told = _untold) -> dict[str, float]:
        """Gap of the finished images' pooled statistics per BN layer and input. told: see
        `start`.
        """
        totals = self._fill_table(keep=False, told=told, what="images measured")
        return layer_gaps(totals, self.targets)

    def spreads(self) -> np.ndarray:
        """Every head's spread under matched statistics, float32 [heads], in logit units."""
        return Carry(*self.state.carry).spreads[0][: len(self.head_names)]

    # ---- the loop
    # ------------------------------------------------------------

    @without_retracing_warnings()
    def run(self, *, report: Report | None = None, due: Due = lambda: (False, False)) -> None:
        """Runs from where the run stands to its last step.

        Args:
          report: called about every two seconds with the progress; the run stands between two
            visits then, so that `state` and `store` can be saved. Returning True stops the run
            there.
          due: (whether to save, whether to stop), asked between visits; either brings a report at
            once. With several workers all do what one of them asks for.
        Raises: FloatingPointError when a loss or gradient is not finite; ConnectionError when
          another worker is lost.
        """
        with lost_peer(self._replicas.strategy):
            self._run(report, due)

    def _run(self, report: Report | None, due: Due) -> None:
        carry, visits = self._carry_to_devices(), self.state.visits
        last = self.rounds * self.config.steps
        began, counted = time.perf_counter(), visits
        while visits < last:
            carry = self._visit(carry, visits, last)
            visits += 1
            now = time.perf_counter()
            late = now - began > REPORT_SECONDS or visits == last
            wanted, save, stop = self._agreed(visits, late, *due())
            reporting = wanted or save or stop
            # the schedule plateau needs the mean over a whole step, whether it is stopped in or not
            by_plateau = self.config.schedule == "plateau"
            step_ended = by_plateau and visits % self.rounds == 0
            if not (reporting or step_ended):
                continue
            metrics, emptied = self._figures(carry)
            if step_ended or not by_plateau:
                carry = emptied
            self._keep(carry, visits, metrics["loss"] if step_ended else None)
            if reporting:
                rate = (visits - counted) * self.config.num_images / self.rounds / (now - began)
                began, counted = now, visits
                progress = Progress(visits // self.rounds, metrics, rate, save, stop)
                if (report is not None and report(progress)) or stop:
                    return

    def _keep(self, carry: Carry, visits: int, step_loss: float | None) -> None:
        """Makes `state` that of now. step_loss: of the step that has just ended, for the schedule
        plateau; None for another schedule, or within a step.
        """
        scale = self.state.plateau
        if step_loss is not None:
            scale = plateau(scale, step_loss, patience=max(1, self.config.steps // 50))
        self.state = self.state._replace(
            visits=visits, plateau=scale, carry=self._carry_from_devices(carry)
        )

    def _turn(self, visit: int) -> int:
        """Which of the batches here a visit goes to: every step takes them in an order of
        its own.
        """
        step, place = divmod(visit, self.rounds)
        if step != self._order[0]:
            order = np.random.default_rng([self.config.seed, step]).permutation(self.rounds)
            self._order = step, order
        return int(self._order[1][place])

    def _visit(self, carry: Carry, visit: int, last: int) -> Carry:
        """One batch of every replica here. last: visits of the whole run. Returns the carry."""
        step = visit // self.rounds
        places = self._places(self._turn(visit))
        upcoming: list[int] | list[None] = [None] * len(places)
        if visit + 1 < last:
            upcoming = self._places(self._turn(visit + 1))
        slots = [self.store.take(p, upcoming=u) for p, u in zip(places, upcoming, strict=True)]
        turns = [
            Turn(
                tf.constant(step),
                tf.constant(self.batches[place]),
                tf.constant(self.state.plateau[0], tf.float32),
            )
            for place in places
        ]
        if self._replicas.count == 1:
            carry, code = self._step.visit(slots[0], carry, turns[0], self._course)
            codes = [int(code)]
        else:
            carry, codes = self._visit_together(slots, carry, turns)
        for place, record in zip(places, slots, strict=True):
            self.store.put(place, record)
        for place, code in zip(places, codes, strict=True):
            if code > FINE:
                self._raise_non_finite(code, step, self.batches[place])
        return carry

    def _visit_together(
        self, slots: list[Slots], carry: Carry, turns: list[Turn]
    ) -> tuple[Carry, list[int]]:
        """A visit of several replicas: their gradients at once, then each replica's update."""
        canvases = self._replicas.each([list(map(tf.convert_to_tensor, s.canvases)) for s in slots])
        rows = self._replicas.each([tf.convert_to_tensor(s.row) for s in slots])
        each_turn = self._replicas.each(turns)
        results = self._replicas.run(
            self._step.gradient, canvases, rows, carry, each_turn, self._course
        )
        del canvases, rows  # a tensor that still shows a variable's memory makes the update copy it
        gradients = self._replicas.local(results)
        for record, gradient, turn in zip(slots, gradients, turns, strict=True):
            self._step.apply(record, gradient, turn, self._course)
        return results.carry, [int(gradient.code) for gradient in gradients]

    def _agreed(self, visits: int, *wishes: bool) -> list[bool]:
        """What any worker wishes, so that all report, save and stop at the same visit; asked now
        and then, for it costs an all-reduce.
        """
        if self._replicas.here == self._replicas.count:
            return list(wishes)
        if visits % self.rounds and visits % ASKED_EVERY:
            return [False] * len(wishes)
        return self._replicas.any_of(wishes)

    def _figures(self, carry: Carry) -> tuple[dict[str, float], Carry]:
        """Means of the figures since the last report, and the carry with none."""
        parts = self._replicas.local(carry)
        sums, count = sum(c.sums.numpy() for c in parts), sum(float(c.count) for c in parts)
        metrics = dict(zip(self._step.names, map(float, sums / max(count, 1.0)), strict=True))
        emptied = [
            c._replace(sums=tf.zeros_like(c.sums), count=tf.zeros_like(c.count)) for c in parts
        ]
        return metrics, self._replicas.each(emptied)

    def _carry_to_devices(self) -> Carry:
        own = zip(*self.state.carry, strict=True)  # of each replica here
        return self._replicas.each([Carry(*map(tf.constant, parts)) for parts in own])

    def _carry_from_devices(self, carry: Carry) -> list[np.ndarray]:
        by_entry = zip(*self._replicas.local(carry), strict=True)
        return [np.stack([np.asarray(v) for v in values]) for values in by_entry]

    def _raise_non_finite(self, code: int, step: int, batch: int) -> None:
        where = "the loss or its gradient"
        if code != NOT_A_LAYER:
            where = f"the input of layer {self.targets.names[code]!r}"
        raise FloatingPointError(
            f"{where} became non-finite in step {step}, batch {batch}; images and checkpoints are "
            "those before it. Try a smaller learning_rate, precision=float32, or check the model's "
            "weights."
        )


def _without_course(config: GenerationConfig) -> GenerationConfig:
    """The settings that a compiled step depends on; those that its `Course` tells are the same for
    all.
    """
    return dataclasses.replace(
        config, num_images=1, batch_size=1, steps=1, seed=0, output_weight=1.0, input_range=""
    )


def _require_aim(network: Network, config: GenerationConfig) -> None:
    """Raises ValueError where a model without statistics is asked for statistics alone."""
    if not (network.layers or config.output_weight or config.prior_weight):
        raise ValueError(
            f"There is nothing to optimize for model {network.model.name!r}: it has "
            f"{network.evidence.sentence}, and --output_weight and --prior_weight are 0. Give at "
            "least one of them a weight."
        )
