"""state: runs a .tflite file in LiteRT, float in and float out; scales and zero points come from
the file.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_export.tflite.integer_check import graph_io

_KERNELS = {
    "xnnpack": "AUTO",
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}
_CHUNK = 256  # images quantized together: bounds the memory beside the caller's arrays


def quantize(x: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """Float values to integer codes: round(x / scale) + zero point, saturated (TFLite 8-bit
    quantization spec).

    Args:
      x: float array in real units.
      detail: a row of get_input_details() or get_output_details() of the interpreter.
    Returns:
      Codes of dtype detail["dtype"]; float32 unchanged for a float tensor.
    """
    dtype = np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return np.asarray(x, dtype)
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(dtype)
    codes = np.rint(np.asarray(x, np.float32) / np.float32(scale)) + zero_point
    return np.clip(codes, limits.min, limits.max).astype(dtype)


def dequantize(codes: np.ndarray, detail: Mapping[str, Any]) -> np.ndarray:
    """Integer codes to float32 values: scale * (code - zero point). Codes without a scale are
    returned as float32.
    """
    scale, zero_point = detail["quantization"]
    if np.dtype(detail["dtype"]).kind == "f" or scale == 0:
        return np.asarray(codes, np.float32)
    return (np.asarray(codes, np.float32) - np.float32(zero_point)) * np.float32(scale)


class Runner:
    """A LiteRT interpreter for a batch-1 file of any integer or float type.

    Args:
      tflite: the file's bytes or path.
      threads: of the interpreter; more than 1 is slower for small networks.
      kernels: "xnnpack" (default, what a phone or PC runs), "builtin" or "reference". They differ
        by some steps of the
        last bit, so a comparison must keep to one.
    Raises:
      FileNotFoundError, ValueError: no such file, not a TFLite model, or a fixed batch above 1.
    """

    def __init__(
        self, tflite: bytes | str | os.PathLike, *, threads: int = 1, kernels: str = "xnnpack"
    ):
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        if kernels not in _KERNELS:
            raise ValueError(f"Unknown kernels '{kernels}'; expected one of {', '.join(_KERNELS)}.")
        data = tflite if isinstance(tflite, bytes) else pathlib.Path(tflite).read_bytes()
        io = graph_io(data)
        resolver = getattr(OpResolverType, _KERNELS[kernels])
        self._interpreter = Interpreter(
            model_content=data, num_threads=threads, experimental_op_resolver_type=resolver
        )
        self._interpreter.allocate_tensors()
        rows = self._interpreter.get_input_details()
        self.inputs: dict[str, dict] = {row["name"]: rows[row["index"]] for row in io["inputs"]}
        rows = self._interpreter.get_output_details()
        self.outputs: dict[str, dict] = {row["name"]: rows[row["index"]] for row in io["outputs"]}
        for name, detail in self.inputs.items():
            if len(detail["shape"]) == 0 or detail["shape"][0] != 1:
                raise ValueError(
                    f"Input '{name}' of the TFLite model has shape "
                    f"{list(detail['shape'])}; expected batch 1. "
                    "Convert the model with batch 1."
                )

    def _by_name(self, x: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = dict(x) if isinstance(x, Mapping) else {next(iter(self.inputs)): x}
        if set(arrays) != set(self.inputs):
            raise ValueError(
                f"Got inputs {', '.join(arrays)}; the model takes {', '.join(self.inputs)}."
            )
        for name, array in arrays.items():
            want = tuple(int(size) for size in self.inputs[name]["shape"][1:])
            if np.shape(array)[1:] != want or len(array) == 0:
                raise ValueError(
                    f"Input '{name}' has shape {list(np.shape(array))}; expected "
                    f"[images, {', '.join(map(str, want))}] "
                    "with at least one image."
                )
        if len({len(array) for array in arrays.values()}) > 1:
            raise ValueError(
                "Inputs differ in length: "
                f"{ ({n: len(a) for n, a in arrays.items()}) }. Pass equally many."
            )
        return arrays

    def predict(
        self, x: np.ndarray | Mapping[str, np.ndarray]
    ) -> np.ndarray | dict[str, np.ndarray]:
        """Runs the model image by image.

        Args:
          x: array [images, ...input shape] in the model's input units, or a dict of such arrays by
            input name.
        Returns:
          float32 [images, ...output shape]; a dict of such arrays by output name if there are
          several outputs.
        Raises:
          ValueError: wrong names, shapes or lengths.
        """
        arrays = self._by_name(x)
        interpreter, count = self._interpreter, len(next(iter(arrays.values())))
        codes = {
            name: np.empty((count, *d["shape"]), d["dtype"]) for name, d in self.outputs.items()
        }
        reads = [(codes[name], d["index"]) for name, d in self.outputs.items()]
        for start in range(0, count, _CHUNK):
            feeds = [
                (quantize(a[start : start + _CHUNK], self.inputs[n]), self.inputs[n]["index"])
                for n, a in arrays.items()
            ]
            for i in range(min(_CHUNK, count - start)):
                for values, index in feeds:
                    interpreter.set_tensor(index, values[i : i + 1])
                interpreter.invoke()
                for values, index in reads:
                    values[start + i] = interpreter.get_tensor(index)
        results = {}
        for name, detail in self.outputs.items():
            values = dequantize(codes[name], detail)
            # the file's own batch axis is 1: drop it in favour of the axis over images
            results[name] = (
                values[:, 0] if len(detail["shape"]) and detail["shape"][0] == 1 else values
            )
        return next(iter(results.values())) if len(results) == 1 else results
