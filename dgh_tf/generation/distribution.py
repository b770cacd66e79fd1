"""Several devices: the strategy, the split of the set into batches, and what replicas tell
each other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from dgh_tf.config import GenerationConfig
from dgh_tf.generation.unlocked import unlocked_meeting


def batch_sizes(config: GenerationConfig, replicas: int) -> list[int]:
    """Images of each batch: as many batches as replicas divide, sizes equal up to one. Raises
    ValueError for too few images.
    """
    if config.num_images < replicas:
        raise ValueError(
            f"num_images={config.num_images} is less than the {replicas} replicas; "
            "give each at least one image."
        )
    batches = replicas * math.ceil(config.num_images / (config.batch_size * replicas))
    return [len(part) for part in np.array_split(np.arange(config.num_images), batches)]


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The tf.distribute strategy of that name, see GenerationConfig.strategy. Raises RuntimeError
    where TensorFlow ran before it should meet other workers.
    """
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([d.name for d in devices])
    if name == "multi_worker":
        options = tf.distribute.experimental.CommunicationOptions(
            implementation=tf.distribute.experimental.CommunicationImplementation.RING
        )
        try:
            with unlocked_meeting():
                return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        except RuntimeError as error:
            if "at program startup" not in str(error):
                raise
            raise RuntimeError(
                "strategy='multi_worker': TensorFlow ran in this process already, and meets other "
                "workers only before that. Make tf.distribute.MultiWorkerMirroredStrategy() at the "
                "program's start and give this object as strategy; it serves several generations."
            ) from error
    return tf.distribute.OneDeviceStrategy(
        "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
    )


def has_devices(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy names its devices. TensorFlow's default one does not, which
    tf.distribute.get_strategy() gives outside of a scope.
    """
    try:
        return bool(strategy.extended.worker_devices)
    except RuntimeError:
        return False


def is_in_one_process(strategy: tf.distribute.Strategy) -> bool:
    """Whether sums over its replicas are made here, not by TensorFlow's all-reduce.

    Every MirroredStrategy object numbers its all-reduces from the same start, and a process keeps
    the shapes and devices of a number: a second object, as of another generation or of a training
    before it, would fail at its first one.
    """
    return isinstance(strategy, tf.distribute.MirroredStrategy)


def _summed(values: tf.Tensor) -> tf.Tensor:
    """The sum over all replicas of a tensor of each; called on every replica."""
    context = tf.distribute.get_replica_context()
    if not is_in_one_process(context.strategy):
        return context.all_reduce(tf.distribute.ReduceOp.SUM, values)

    def sum_of_parts(
        strategy: tf.distribute.Strategy, parts: tf.distribute.DistributedValues
    ) -> tf.Tensor:
        with tf.device(strategy.extended.worker_devices[0]):
            return tf.add_n(strategy.experimental_local_results(parts))

    return context.merge_call(sum_of_parts, args=(values,))


def exchange(
    change: tf.Tensor, heads: list[tf.Tensor], *, replicas: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The sum over replicas of how their rows of the table changed, and the heads' mean spreads
    [heads], by one all-reduce.

    No gradient passes: that of an all-reduce would be summed over replicas, whose images are not
    this one's to move.
    """
    values = tf.stop_gradient(tf.concat([tf.reshape(change, [-1]), tf.stack(heads) / replicas], 0))
    if replicas > 1:
        values = _summed(values)
    rows, spreads = tf.split(values, [change.shape.num_elements(), len(heads)])
    return tf.reshape(rows, change.shape), spreads


def agreed_number(strategy: tf.distribute.Strategy, numbers: list[int]) -> int | None:
    """The largest of `numbers` that all workers have (at most two each); None where there
    is none.
    """
    if strategy.cluster_resolver is None or strategy.num_replicas_in_sync == 1:
        return max(numbers, default=None)
    padded = tf.constant([(numbers + [-1, -1])[:2]], tf.int64)
    here = strategy.experimental_distribute_values_from_function(lambda _: padded)
    rows = strategy.gather(here, axis=0).numpy()
    return max((int(n) for n in rows[0] if n >= 0 and all(n in row for row in rows)), default=None)


@contextlib.contextmanager
def lost_peer(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turns the many ways in which TensorFlow says that another worker is gone into one
    ConnectionError.
    """
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
        tf.errors.UnknownError,
    ) as error:
        if strategy.cluster_resolver is None:
            raise
        raise ConnectionError(
            "Another worker of this job cannot be reached any more. Start the same "
            "command on all workers again; they "
            "go on from the last checkpoint that all of them have."
        ) from error
