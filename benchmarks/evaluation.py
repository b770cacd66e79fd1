"""state: what one integer model costs on the evaluation set, and the ranges written in its file."""
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import metrics
from dgh_tf.console import held_stderr

Ranges = dict[str, tuple[float, float]]


def float_outputs(model: Any, x: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
    """Class scores of the float model, float32 [images, classes]. Raises ValueError for other kinds of output."""
    outputs = model.predict(x, batch_size=batch_size, verbose=0)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    if isinstance(outputs, list) and len(outputs) == 1:
        outputs = outputs[0]
    if isinstance(outputs, list) or outputs.size == len(x) or outputs.size != len(x) * outputs.shape[-1]:
        shapes = [o.shape[1:] for o in outputs] if isinstance(outputs, list) else outputs.shape[1:]
        raise ValueError(f"Model '{model.name}' has outputs of shape {shapes}. This comparison is for classification: "
                         "one output with a score for each of two or more classes.")
    return outputs.reshape(len(x), -1)


@functools.lru_cache(maxsize=1)  # all rows of a run ask about the same network: trace it once
def _logits_function(network: Any) -> Callable:
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)
    def logits(x):
        values = network.forward([x]).heads[0].logits
        return tf.reshape(values, [tf.shape(x)[0], -1])

    return logits


def logits_spread(network: Any, images: np.ndarray, *, batch_size: int = 64) -> float:
    """Mean over images of highest minus lowest logit of the float model's first head (dgh_tf.network.Network)."""
    import tensorflow as tf

    logits = _logits_function(network)
    parts = [logits(tf.constant(images[i:i + batch_size])).numpy() for i in range(0, len(images), batch_size)]
    return metrics.spread(np.concatenate(parts))


def tensor_ranges(tflite: bytes) -> Ranges:
    """Range that each activation tensor of the main graph can hold, by name, read from the file's scales.

    Per-tensor quantized inputs and results of operators only; weights and biases have no part in calibration.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    from tflite_export.integer_check import graph_io, operator_table

    names = {row["tensor"] for row in graph_io(tflite)["inputs"]}
    names |= {out["name"] for row in operator_table(tflite) if row["subgraph"] == 0 for out in row["outputs"]}
    # Without delegates, whose own tensors would only be in the way.
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=tflite, experimental_op_resolver_type=plain)
    ranges = {}
    for detail in interpreter.get_tensor_details():
        scale, zero_point = detail["quantization"]
        if detail["name"] in names and scale and np.dtype(detail["dtype"]).kind == "i":
            limits = np.iinfo(detail["dtype"])
            low, high = scale * (limits.min - zero_point), scale * (limits.max - zero_point)
            ranges[detail["name"]] = (float(low), float(high))
    return ranges


def evaluate(tflite: bytes, x: np.ndarray, y: np.ndarray, *, reference: np.ndarray) -> dict[str, float | None]:
    """Scores of an integer model on an evaluation set.

    Args:
      tflite: the file's bytes.
      x: float32 [images, ...] in model input units. y: class indices, int [images].
      reference: the float model's scores for x, [images, classes].

    Returns:
      top1, float_top1, agreement (0..1), mse (squared output units), sqnr_db (None where the outputs are equal).
    """
    from tflite_export import Runner

    with held_stderr():  # LiteRT announces its delegate
        runner = Runner(tflite)
    outputs = runner.predict(x).reshape(len(x), -1)
    sqnr = metrics.sqnr_db(reference, outputs)
    return {"top1": metrics.top1(outputs, y), "float_top1": metrics.top1(reference, y),
            "agreement": metrics.agreement(reference, outputs), "mse": metrics.mse(reference, outputs),
            "sqnr_db": sqnr if np.isfinite(sqnr) else None}  # JSON has no infinity


def compare_ranges(real: Ranges, other: Ranges) -> dict[str, float | None]:
    """Means over the tensors in both files.

    Returns:
      range_coverage: mean share of the real range that the other covers; range_ratio: geometric mean of the widths'
      ratio, other / real; range_gap: mean |log2 ratio|, 0 where all widths are equal. None without a common tensor.
    """
    names = [name for name in real if name in other]
    if not names:
        return {"range_coverage": None, "range_ratio": None, "range_gap": None}
    a, b = np.array([real[name] for name in names]), np.array([other[name] for name in names])
    octaves = np.log2(metrics.range_ratio(a, b))
    return {"range_coverage": float(metrics.range_coverage(a, b).mean()), "range_ratio": float(2 ** octaves.mean()),
            "range_gap": float(np.abs(octaves).mean())}
