"""Whether a float .tflite graph gives for images together what it gives for each alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgh_tf.models.tflite.run import Graph, Observe, feeds_of, run

_TRIED = 3  # images that `proven` runs alone and together
_NOISE = 0.1  # in standard deviations of the images: no two that are tried may be equal
_CLOSE = 1e-3  # of a tensor's largest value: another order of sums, not another image


def proven(graph: Graph, images: np.ndarray | Mapping[str, np.ndarray]) -> Graph:
    """The graph with `batched` settled: whether it gives for images together what it gives for each
    alone.

    At batch 1 nothing in a file tells the batch axis from others: a transpose to time-major order
    is a reshape there. So a few images run one by one, at exactly the file's shapes, and together,
    and every activation is compared.

    Args:
      graph: from `read_graph`; one that is settled already comes back as it is.
      images: float32 [images, ...] in the model's input units, or a dict by input name.
    """
    import tensorflow as tf

    if graph.batched is not None:
        return graph
    rng = np.random.default_rng(0)
    feeds = {}
    for index, array in feeds_of(graph, images).items():
        few = np.asarray(array[np.arange(_TRIED) % len(array)], np.float32)
        noise = rng.standard_normal(few.shape, np.float32) * (_NOISE * few.std())
        feeds[index] = np.clip(few + noise, few.min(), few.max())
    apart = dataclasses.replace(graph, batched=False)
    together = dataclasses.replace(graph, batched=True)
    want: dict[int, np.ndarray] = {}
    got: dict[int, np.ndarray] = {}
    run(apart, feeds, observe=_noting(want))
    try:
        run(together, feeds, observe=_noting(got))
    except (ValueError, tf.errors.InvalidArgumentError):  # shapes that fit one image alone
        return apart
    return together if all(_same(want[i], got[i]) for i in want) else apart


def _noting(seen: dict[int, np.ndarray]) -> Observe:
    """An `observe` that keeps every value."""

    def note(index: int, value: Any) -> Any:
        seen[index] = value.numpy()
        return value

    return note


def _same(apart: np.ndarray, together: np.ndarray) -> bool:
    """Whether both hold the same values for every image; [images, ...] each."""
    if together.ndim == 0 or len(together) != len(apart) or together.size != apart.size:
        return False
    finite = np.isfinite(apart)
    size = np.max(np.abs(apart[finite]), initial=0.0)
    return bool(
        np.allclose(
            together.reshape(apart.shape), apart, rtol=0, atol=_CLOSE * size, equal_nan=True
        )
    )
