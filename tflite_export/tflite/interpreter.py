"""Runs a .tflite file in LiteRT, float in and float out; scales and zero points come from
the file.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgh_tf.models.tflite.model import TFLiteModel, read_model

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


class MissingKernelError(ValueError):
    """LiteRT's kernels that were asked for do not run an operator of the file, or not this version
    of it; others may.
    """


def _unrunnable(error: Exception, kernels: str) -> ValueError:
    """What to raise for an error of LiteRT where it takes a file."""
    text = " ".join(str(error).split())
    missing = re.search(r"find op for builtin opcode '(\w+)' version '(\d+)'", text)
    if missing is None:
        return ValueError(f"LiteRT cannot run this TFLite model: {text[:500]}")
    what = f"{missing[1]} in version {missing[2]}"
    if kernels == "reference":
        return MissingKernelError(
            f"LiteRT's reference kernels do not run {what}, as depthwise layers with 4-bit weights "
            "have it. Use kernels='builtin', or scheme int8."
        )
    return MissingKernelError(
        f"LiteRT's kernels of this machine do not run {what}. Update ai-edge-litert, or convert "
        "the model without this operator."
    )


class LiteRTInterpreter:
    """LiteRT's interpreter of one file, ready to run: the only place that makes one.

    Args:
      tflite: the file's bytes, or the file as `read_model` gives it.
      threads: of the interpreter; more than 1 is slower for small networks.
      kernels: "xnnpack" (default, what a phone or PC runs), "builtin" or "reference".
      keep_tensors: every tensor can be read after a run, not only the outputs. XNNPACK computes in
        places of its own, so this needs other kernels.
    Attributes:
      model: what the file says. inputs, outputs: details of LiteRT by public name, among them
        "index", "shape", "dtype" and "quantization" (scale, zero point).
    Raises:
      ValueError: unknown kernels, a damaged file, or (MissingKernelError) one with an operator that
        these kernels do not run.
    """

    def __init__(
        self,
        tflite: bytes | TFLiteModel,
        *,
        threads: int = 1,
        kernels: str = "xnnpack",
        keep_tensors: bool = False,
    ) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        if kernels not in _KERNELS:
            raise ValueError(f"Unknown kernels '{kernels}'; expected one of {', '.join(_KERNELS)}.")
        self.model = read_model(tflite)
        try:
            self._interpreter = Interpreter(
                model_content=self.model.data,
                num_threads=threads,
                experimental_op_resolver_type=getattr(OpResolverType, _KERNELS[kernels]),
                experimental_preserve_all_tensors=keep_tensors,
            )
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise _unrunnable(error, kernels) from error
        rows = self._interpreter.get_input_details()
        self.inputs: dict[str, dict] = dict(zip(self.model.input_names, rows, strict=True))
        rows = self._interpreter.get_output_details()
        self.outputs: dict[str, dict] = dict(zip(self.model.output_names, rows, strict=True))

    def run(self, codes: Mapping[str, np.ndarray]) -> None:
        """One inference. codes: by input name, of the input's own shape and dtype."""
        for name, value in codes.items():
            self._interpreter.set_tensor(self.inputs[name]["index"], value)
        self._interpreter.invoke()

    def read(self, index: int) -> np.ndarray:
        """A copy of what a tensor of the main graph holds after `run`, in its own dtype."""
        return self._interpreter.get_tensor(index)

    def output(self, name: str) -> np.ndarray:
        """A copy of what an output holds after `run`, in its own dtype."""
        return self._interpreter.get_tensor(self.outputs[name]["index"])


class Runner:
    """Runs a batch-1 file of any integer or float type in LiteRT, float in and float out.

    Args:
      tflite: the file's bytes or path, or the file as `read_model` gives it.
      threads: of the interpreter; more than 1 is slower for small networks.
      kernels: "xnnpack" (default, what a phone or PC runs), "builtin" or "reference". They differ
        by some steps of the last bit, so a comparison must keep to one.
    Raises:
      FileNotFoundError, ValueError: no such file, not a TFLite model, one that LiteRT does not run,
        or a fixed batch above 1.

    Example:
      Runner("model.tflite").predict(images)
    """

    def __init__(
        self,
        tflite: bytes | str | os.PathLike | TFLiteModel,
        *,
        threads: int = 1,
        kernels: str = "xnnpack",
    ) -> None:
        data = (
            tflite
            if isinstance(tflite, (bytes, TFLiteModel))
            else pathlib.Path(tflite).read_bytes()
        )
        self._interpreter = LiteRTInterpreter(data, threads=threads, kernels=kernels)
        self.inputs, self.outputs = self._interpreter.inputs, self._interpreter.outputs
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
        for start in range(0, count, _CHUNK):
            feeds = {
                name: quantize(array[start : start + _CHUNK], self.inputs[name])
                for name, array in arrays.items()
            }
            for i in range(min(_CHUNK, count - start)):
                interpreter.run({name: values[i : i + 1] for name, values in feeds.items()})
                for name, values in codes.items():
                    values[start + i] = interpreter.output(name)
        results = {}
        for name, detail in self.outputs.items():
            values = dequantize(codes[name], detail)
            # the file's own batch axis is 1: drop it in favour of the axis over images
            results[name] = (
                values[:, 0] if len(detail["shape"]) and detail["shape"][0] == 1 else values
            )
        return next(iter(results.values())) if len(results) == 1 else results
