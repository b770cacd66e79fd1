"""BatchNormalization layers: the statistics of their training set, and what they compute."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

BATCH_NORMS = {"BatchNormalization", "SyncBatchNormalization"}


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """One BN layer and what it knows of its training set: running statistics float32 [channels]."""

    layer: Any
    name: str
    axis: int
    epsilon: float
    mean: np.ndarray
    variance: np.ndarray
    rank: int  # of its input, with batch

    @property
    def shift(self) -> np.ndarray:
        """What to take off the input before squaring it, see `moments.safe_shift`."""
        from dgh_tf.ops.moments import safe_shift  # with TensorFlow, which --help goes without

        return safe_shift(self.mean, variance=self.variance, epsilon=self.epsilon)


def batchnorm_layers(model: Any) -> list:
    """Every BN layer of the model however deep it is nested, each once (Keras 3 and tf_keras,
    SyncBatchNormalization too).
    """
    found = [
        layer
        for layer in model._flatten_layers()
        if BATCH_NORMS & {base.__name__ for base in type(layer).__mro__}
    ]
    return list({id(layer): layer for layer in found}.values())


def has_statistics(model: Any) -> bool:
    """Whether a BN layer of the model has statistics that training has moved from mean 0 and
    variance 1. False for what has no layers, such as a .tflite file.
    """
    layers = batchnorm_layers(model) if hasattr(model, "_flatten_layers") else []
    return not all(is_initial(layer.moving_mean, layer.moving_variance) for layer in layers)


def is_initial(mean: Any, variance: Any) -> bool:
    """Whether statistics are those that a layer is made with: mean 0 and variance 1."""
    return not np.any(np.asarray(mean)) and bool(np.all(np.asarray(variance) == 1))


def read_batchnorm(layer: Any, rank: int) -> BatchNorm:
    """The statistics of one BatchNorm layer. rank: of its input, with the batch axis."""
    axis = layer.axis[0] if isinstance(layer.axis, list | tuple) else layer.axis
    mean, variance = (np.asarray(w, np.float32) for w in (layer.moving_mean, layer.moving_variance))
    return BatchNorm(
        layer,
        getattr(layer, "path", None) or layer.name,
        axis % rank,
        float(layer.epsilon),
        mean,
        variance,
        rank,
    )


def inference_affine(bn: BatchNorm) -> tuple[np.ndarray, np.ndarray] | None:
    """The layer's inference as scale and offset, float32 [channels], constants of the run: its own
    call computes them each time.

    None for layers that are not plainly Keras' own or do not normalize the last axis; those are
    called as they are.
    """
    layer = bn.layer
    plain = type(layer).__name__ in BATCH_NORMS and type(layer).__module__.split(".")[0] in (
        "keras",
        "tf_keras",
    )
    if not plain or "call" in layer.__dict__ or bn.axis != bn.rank - 1:
        return None
    scale = 1.0 / np.sqrt(bn.variance.astype(np.float64) + bn.epsilon)
    if layer.scale:
        scale = scale * np.asarray(layer.gamma)
    offset = (np.asarray(layer.beta) if layer.center else 0.0) - bn.mean * scale
    return scale.astype(np.float32), offset.astype(np.float32)
