"""Models that the method cannot work on are refused here, with what was found, what was
expected and what to do.

Every function raises ValueError, or returns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dgh_tf.common.text import in_one_line
from dgh_tf.models.batchnorm import BatchNorm, is_initial
from dgh_tf.models.heads import Head, upstream

OTHER_NORMS = {"GroupNormalization", "LayerNormalization", "UnitNormalization", "RMSNormalization"}
_SCALES = (1, 16, 256)  # of the noise that must change the outputs, whatever the input's unit


def require_connected(model: Any, heads: list[Head], inputs: Sequence[tf.Tensor]) -> None:
    """Refuses a model with a traced head that no input leads to."""
    wanted = {x.ref() for x in inputs}
    for head in heads:
        if not wanted & upstream([head.logits]):
            raise ValueError(
                f"Output {head.name!r} of model {model.name!r} does not depend on its "
                "input; it is a constant. "
                "Check how the model is built, or pass the part that does the work."
            )


def require_alive(model: Any, logits: Callable, shapes: list[tuple[int, ...]]) -> None:
    """Refuses a head whose values are the same for inputs of any scale, and a model that cannot run
    here at all.

    logits: the traced function from inputs of `shapes` (with a batch axis in front) to each head's
    logits by name.
    """
    rng = np.random.default_rng(0)
    inputs = [
        np.stack([scale * rng.normal(size=shape) for scale in _SCALES]).astype(np.float32)
        for shape in shapes
    ]
    try:
        found = logits(*map(tf.constant, inputs))
    except tf.errors.UnimplementedError as error:
        reason = next(
            (line for line in str(error).splitlines() if "only supports" in line or "NHWC" in line),
            str(error).splitlines()[0],
        )
        raise ValueError(
            f"Model {model.name!r} does not run on this device: {reason[:200]} "
            "Convolutions and pooling with "
            "data_format='channels_first' run on GPUs and on few CPUs; rebuild it "
            "with channels_last and the same weights, "
            "behind a Permute((2, 3, 1)) layer where the input must stay."
        ) from error
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"Model {model.name!r} does not take {len(_SCALES)} images at once: "
            f"{in_one_line(error)}. Build it so that it takes batches of any size, with -1 "
            "wherever a shape names the batch."
        ) from error
    for name, values in found.items():
        values = values.numpy()
        if (values == values[:1]).all():
            raise ValueError(
                f"Output {name!r} of model {model.name!r} is the same for noise of the scales "
                f"{', '.join(map(str, _SCALES))}: it does not depend on its input, "
                "because a layer on the way is dead. "
                "Check the weights, or pass the part that works."
            )


def require_trained_on_data(model: Any, layers: list[BatchNorm]) -> None:
    """Refuses running statistics that only fall from where they began: mean 0 and one variance in
    all channels of all layers, which is what steps on constant inputs leave.
    """
    moved = [bn for bn in layers if len(bn.mean) > 1 and not is_initial(bn.mean, bn.variance)]
    if moved and all(not bn.mean.any() and np.ptp(bn.variance) == 0 for bn in moved):
        raise ValueError(
            f"All {len(moved)} trained BN layers of model {model.name!r} have mean 0 and one equal "
            f"variance ({moved[0].variance[0]:.4g} in {moved[0].name!r}); expected statistics of "
            "data. The model was trained on nothing but zeros, or its statistics were reset: train "
            "it on data, or give use_statistics=False to generate without them."
        )


def require_finite(model: Any, layers: list[BatchNorm]) -> None:
    """Refuses running statistics and weights that no training gives: not finite, or without
    variance.
    """
    for bn in layers:
        if not (np.isfinite(bn.mean).all() and np.isfinite(bn.variance).all()):
            raise ValueError(
                f"BN layer {bn.name!r} has running statistics that are not finite; "
                "expected numbers. "
                "Training diverged; train again or load an earlier checkpoint."
            )
        if (bn.variance < 0).any() or not bn.variance.any():
            raise ValueError(
                f"BN layer {bn.name!r} has running variances of zero or below; "
                "expected positive ones. It saw no varying "
                "data: check how the model was trained or converted."
            )
    for weight in model.weights:
        value = np.asarray(weight)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ValueError(
                f"Weight {getattr(weight, 'path', weight.name)!r} of model "
                f"{model.name!r} holds values that are not finite; "
                "expected numbers. Training diverged; train again or load an earlier checkpoint."
            )
