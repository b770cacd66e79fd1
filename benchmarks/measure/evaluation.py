"""What one integer model costs on the evaluation set, and the ranges written in its file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import metrics
from benchmarks.measure.scoring import Outputs
from dgh_tf.common.quiet import held_stderr

if TYPE_CHECKING:
    from dgh_tf.models.network import Network

Ranges = dict[str, tuple[float, float]]


def float_outputs(model: Any, x: np.ndarray, *, batch_size: int = 64) -> dict[str, np.ndarray]:
    """Outputs of the float model by the names they have in its .tflite file, float32 [images, ...]:
    raw heads of a detector.
    """
    import tensorflow as tf

    from dgh_tf.models.network import call_model
    from tflite_export.conversion.freeze import named_outputs

    traced = tf.function(
        lambda images: named_outputs(model, call_model(model, [images])),
        autograph=False,
        reduce_retracing=True,
    )
    parts = [traced(tf.constant(x[i : i + batch_size])) for i in range(0, len(x), batch_size)]
    return {
        name: np.concatenate([np.asarray(part[name], np.float32) for part in parts])
        for name in parts[0]
    }


@functools.lru_cache(maxsize=1)  # all rows of a run ask about the same network: trace it once
def _logits_function(network: Network) -> Callable:
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)
    def logits(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            head.name: tf.reshape(head.logits, [tf.shape(x)[0], -1])
            for head in network.forward([x]).heads
        }

    return logits


def logits_spread(
    network: Network, images: np.ndarray, *, batch_size: int = 64
) -> dict[str, float]:
    """Mean over images of highest minus lowest logit of the float model's heads
    (dgh_tf.models.network.Network).

    Returns: {"logits_spread"} of a model with one head, {"logits_spread/<head>", ...} of others.
    """
    import tensorflow as tf

    images = np.moveaxis(images, 1, -1) if network.channels_first[0] else images
    logits = _logits_function(network)
    parts = [
        logits(tf.constant(images[i : i + batch_size])) for i in range(0, len(images), batch_size)
    ]
    spreads = {
        name: metrics.spread(np.concatenate([part[name].numpy() for part in parts]))
        for name in parts[0]
    }
    return {
        f"logits_spread/{name}" if len(spreads) > 1 else "logits_spread": value
        for name, value in spreads.items()
    }


def tensor_ranges(tflite: bytes) -> Ranges:
    """Range that each activation tensor of the main graph can hold, by name, read from the file's
    scales.

    Per-tensor quantized inputs and results of operators only; weights and biases have no part in
    calibration.
    """
    from dgh_tf.models.tflite.model import read_model

    model = read_model(tflite)
    activations = {model.tensors[i] for i in model.inputs}
    activations |= {tensor for o in model.operators for tensor in o.output_tensors}
    return {
        tensor.name: tensor.limits
        for tensor in model.tensors
        if tensor in activations and tensor.limits is not None and tensor.dtype != "UINT8"
    }


def integer_outputs(tflite: bytes, x: np.ndarray, *, names: Iterable[str]) -> Outputs:
    """Outputs of an integer model for x (float32 [images, ...] in model input units), by name; a
    single one by the first of `names`.
    """
    from tflite_export import Runner

    with held_stderr():  # LiteRT announces its delegate
        runner = Runner(tflite)
    outputs = runner.predict(x)
    return outputs if isinstance(outputs, dict) else {next(iter(names)): outputs}


def evaluate(
    tflite: bytes,
    x: np.ndarray,
    *,
    reference: Outputs,
    score: Callable[[Outputs], dict[str, float]],
) -> dict[str, float | None]:
    """Scores of an integer model on an evaluation set.

    Args:
      tflite: the file's bytes.
      x: float32 [images, ...] in model input units.
      reference: the float model's outputs for x, by output name.
      score: see `benchmarks.measure.scoring`.

    Returns: what `score` gives, and `distances`.
    """
    outputs = integer_outputs(tflite, x, names=reference)
    return {**score(outputs), **distances(reference, outputs)}


def distances(reference: Outputs, outputs: Outputs) -> dict[str, float | None]:
    """mse (squared output units) and sqnr_db over all values of all heads, and of each of several
    heads as mse/<head>, sqnr_db/<head>.

    Large heads outweigh small ones in the pooled figures, so read those per head. sqnr_db is None
    where both are equal.
    """
    pooled = [
        np.concatenate([side[name].reshape(-1) for name in reference])
        for side in (reference, outputs)
    ]
    pairs = {
        "": pooled,
        **(
            {f"/{name}": (reference[name], outputs[name]) for name in reference}
            if len(reference) > 1
            else {}
        ),
    }
    found: dict[str, float | None] = {}
    for suffix, pair in pairs.items():
        sqnr = metrics.sqnr_db(*pair)
        found |= {
            f"mse{suffix}": metrics.mse(*pair),
            f"sqnr_db{suffix}": sqnr if np.isfinite(sqnr) else None,
        }  # JSON has no infinity
    return found


def compare_ranges(real: Ranges, other: Ranges) -> dict[str, float | None]:
    """Means over the tensors in both files.

    Returns:
      range_coverage: mean share of the real range that the other covers; range_ratio: geometric
        mean of the widths' ratio, other / real; range_gap: mean |log2 ratio|, 0 where all widths
        are equal. None without a common tensor.
    """
    names = [name for name in real if name in other]
    if not names:
        return {"range_coverage": None, "range_ratio": None, "range_gap": None}
    a, b = np.array([real[name] for name in names]), np.array([other[name] for name in names])
    octaves = np.log2(metrics.range_ratio(a, b))
    return {
        "range_coverage": float(metrics.range_coverage(a, b).mean()),
        "range_ratio": float(2 ** octaves.mean()),
        "range_gap": float(np.abs(octaves).mean()),
    }
