"""The replicas of a strategy: which batches are whose, and how values get to replicas and
back. The loop itself knows no devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dgh_tf.generation.distribution import is_in_one_process


class Replicas:
    """The replicas of all processes and those here.

    Attributes:
      count: replicas of all processes together.
      devices: of the replicas of this process, in order.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        self.count: int = strategy.num_replicas_in_sync
        self.devices: list[str] = list(strategy.extended.worker_devices)
        resolver = strategy.cluster_resolver
        several_processes = resolver is not None and bool(resolver.task_type)
        self._first = resolver.task_id * len(self.devices) if several_processes else 0

    @property
    def here(self) -> int:
        """Replicas of this process."""
        return len(self.devices)

    def own_batches(self, batches: int) -> list[int]:
        """Numbers of the batches, of so many, that the replicas of this process take."""
        last = self._first + self.here
        return [k for k in range(batches) if self._first <= k % self.count < last]

    def each(self, values: Sequence[Any]) -> Any:
        """One value for each replica here, as `run` takes them."""
        if self.count == 1:
            return values[0]
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: values[context.replica_id_in_sync_group - self._first]
        )

    def local(self, values: Any) -> list[Any]:
        """The value of each replica here, of any structure of values that `run` gave."""
        flat = [self.strategy.experimental_local_results(v) for v in tf.nest.flatten(values)]
        return [tf.nest.pack_sequence_as(values, own) for own in zip(*flat, strict=True)]

    def run(self, function: Callable, *arguments: Any) -> Any:
        """`function` on every replica at once."""
        return self.strategy.run(function, args=arguments)

    def total(self, values: Any) -> np.ndarray:
        """The sum over all replicas of what each of them holds, a tensor of one shape."""
        if is_in_one_process(self.strategy):
            return np.sum([value.numpy() for value in self.local(values)], axis=0)
        return self.strategy.reduce("SUM", values, axis=None).numpy()

    def gathered(self, values: Sequence[tf.Tensor]) -> tf.Tensor:
        """The values of all replicas of all processes, one after the other along the first axis.

        Args:
          values: one for each replica here. All processes must ask at once.
        """
        return self.strategy.gather(self.each(values), axis=0)

    def any_of(self, wishes: Sequence[bool]) -> list[bool]:
        """For each wish whether any process has it. All processes must ask at once."""
        flags = self.each([tf.constant(wishes, tf.float32)] * self.here)
        return [bool(v) for v in self.total(flags) > 0]
