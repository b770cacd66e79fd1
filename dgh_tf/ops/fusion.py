"""Chains of elementwise operations in one pass over memory. Large activations cost by the
pass, not by the operation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import tensorflow as tf


@functools.cache
def fused(function: Callable) -> Callable:
    """`function` of tensors, compiled by XLA on CPUs; elsewhere as it is (GPUs have the bandwidth,
    and XLA there needs a compiler of its own). What it closes over must be the same whenever it is
    the same function: pass arrays as arguments.
    """
    on_cpu = not tf.config.list_logical_devices("GPU")
    return tf.function(function, jit_compile=True, autograph=False) if on_cpu else function
