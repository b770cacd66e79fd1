"""state: several devices: the strategy, the split of the set into batches, and what replicas tell each other."""
from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from dgh_tf.config import GenerationConfig


def batch_sizes(config: GenerationConfig, replicas: int) -> list[int]:
    """Images of each batch: as many batches as replicas divide, sizes equal up to one. Raises ValueError for too few images."""
    if config.num_images < replicas:
        raise ValueError(f"--num_images={config.num_images} is less than the {replicas} replicas; give each at least one image.")
    batches = replicas * math.ceil(config.num_images / (config.batch_size * replicas))
    return [len(part) for part in np.array_split(np.arange(config.num_images), batches)]


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The tf.distribute strategy behind --strategy."""
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([d.name for d in devices])
    if name == "multi_worker":
        options = tf.distribute.experimental.CommunicationOptions(
            implementation=tf.distribute.experimental.CommunicationImplementation.RING)
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    return tf.distribute.OneDeviceStrategy("GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0")


def exchange(fresh: tf.Tensor, heads: tf.Tensor, batch: tf.Tensor, *,
             replicas: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Every replica's fresh row [replicas, values], the heads' mean spread and every replica's batch number, by one
    all-reduce of rows placed apart."""
    values = tf.stop_gradient(tf.concat([fresh, heads, tf.cast(batch, tf.float32)[None]], 0))
    if replicas == 1:
        gathered = values[None]
    else:
        context = tf.distribute.get_replica_context()
        place = tf.one_hot(context.replica_id_in_sync_group, replicas)
        gathered = context.all_reduce(tf.distribute.ReduceOp.SUM, place[:, None] * values[None])
    rows, heads, ids = tf.split(gathered, [fresh.shape[0], heads.shape[0], 1], 1)
    return rows, tf.reduce_mean(heads, 0), tf.cast(tf.round(ids[:, 0]), tf.int32)
