"""Proves that a .tflite file computes with integers only, and lists its operators and ends."""

from __future__ import annotations

import collections
from typing import Any

from dgh_tf.models.tflite.model import Operator, Tensor, TFLiteModel, read_model

FLOATS = frozenset({"FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16", "COMPLEX64", "COMPLEX128"})
_SHOWN = 20  # float parts in an error


class IntegerError(ValueError):
    """The model is not fully integer, or its inputs and outputs have another type than
    asked for.
    """


def operator_table(tflite: bytes | TFLiteModel) -> list[dict[str, Any]]:
    """Every operator in order of execution.

    Returns:
      Rows {"subgraph", "index", "operator", "inputs", "outputs"}; inputs and outputs are lists of
      {"name", "dtype"} with dtypes as in the TFLite schema (INT8, INT4, FLOAT32 ...).
    Raises:
      ValueError: the bytes are not a TFLite model, or a damaged one.

    Example:
      [row["operator"] for row in operator_table(pathlib.Path("model.tflite").read_bytes())]
    """

    def ends(tensors: tuple[Tensor | None, ...]) -> list[dict[str, str]]:
        return [{"name": t.name, "dtype": t.dtype} for t in tensors if t is not None]

    return [
        {
            "subgraph": place,
            "index": index,
            "operator": operator.kind,
            "inputs": ends(operator.input_tensors),
            "outputs": ends(operator.output_tensors),
        }
        for place, graph in enumerate(read_model(tflite).subgraphs)
        for index, operator in enumerate(graph.operators)
    ]


def graph_io(tflite: bytes | TFLiteModel) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs of the main graph, in the file's order, as F.json holds them.

    Returns:
      {"inputs": rows, "outputs": rows}; a row is {"name", "index", "tensor", "dtype", "shape",
      "scale", "zero_point"}. `name` is the signature's name (the tensor's where there is no
      signature), `index` the position in the interpreter's get_input_details() or
      get_output_details(); scale and zero_point are None where not quantized.
    """
    model = read_model(tflite)
    ends = {
        "inputs": (model.inputs, model.input_names),
        "outputs": (model.outputs, model.output_names),
    }
    return {
        end: [
            _io_row(model.tensors[tensor], place, name)
            for place, (tensor, name) in enumerate(zip(indices, names, strict=True))
        ]
        for end, (indices, names) in ends.items()
    }


def _io_row(tensor: Tensor, place: int, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "index": place,
        "tensor": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "scale": tensor.scales[0] if tensor.scales else None,
        "zero_point": tensor.zero_points[0] if tensor.zero_points else None,
    }


def _float_parts(model: TFLiteModel) -> list[str]:
    """One line per operator that touches a float tensor, then one per float tensor no operator
    touches.
    """
    lines, touched = [], set()
    for graph in model.subgraphs:
        for index, operator in enumerate(graph.operators):
            floats = [t for t in _ends(operator) if t.dtype in FLOATS]
            touched.update(floats)
            if floats:
                names = ", ".join(f"{t.name} {t.dtype}" for t in floats)
                lines.append(f"{operator.kind} #{index}: {names}")
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            if tensor.dtype in FLOATS and tensor not in touched:
                lines.append(f"tensor {tensor.name} {tensor.dtype} (no operator)")
    return lines


def _ends(operator: Operator) -> list[Tensor]:
    tensors = (*operator.input_tensors, *operator.output_tensors)
    return [tensor for tensor in tensors if tensor is not None]


def check_integer(tflite: bytes | TFLiteModel, *, io_dtype: str) -> dict[str, Any]:
    """Proves that a model computes with integers only.

    Args:
      tflite: the file's bytes, or the file as `read_model` gives it.
      io_dtype: dtype every input and output must have: "int8", "uint8" or "int16".
    Returns:
      The proof: {"fully_integer": True, "operators": {name: count}, "tensor_dtypes": {dtype:
      count}, "float_tensors": 0, "inputs", "outputs" (see `graph_io`), "table" (see
      `operator_table`), "bytes"}.
    Raises:
      IntegerError: a tensor is float (the operators around it are listed), or an input or output
        has another dtype or no scale.
      ValueError: the bytes are not a TFLite model, or a damaged one.

    Example:
      check_integer(pathlib.Path("model.tflite").read_bytes(), io_dtype="int8")["operators"]
    """
    model = read_model(tflite)
    table, io, floats = operator_table(model), graph_io(model), _float_parts(model)
    if floats:
        more = [f"... and {len(floats) - _SHOWN} more"] if len(floats) > _SHOWN else []
        shown = "\n  ".join(floats[:_SHOWN] + more)
        raise IntegerError(
            f"The model is not fully integer: {len(floats)} of its {len(table)} "
            "operators or its tensors use floating "
            f"point; expected none. Replace these layers, or check the calibration data:\n  {shown}"
        )
    for end in ("inputs", "outputs"):
        for row in io[end]:
            if row["dtype"] != io_dtype.upper() or not row["scale"]:
                raise IntegerError(
                    f"The model's {end[:-1]} '{row['name']}' has dtype "
                    f"{row['dtype'].lower()} and scale "
                    f"{row['scale']}; expected {io_dtype} with a scale. Convert again "
                    f"with {io_dtype} at both ends."
                )
    dtypes = collections.Counter(t.dtype for graph in model.subgraphs for t in graph.tensors)
    return {
        "fully_integer": True,
        "operators": dict(collections.Counter(row["operator"] for row in table)),
        "tensor_dtypes": dict(dtypes),
        "float_tensors": 0,
        **io,
        "table": table,
        "bytes": len(model.data),
    }
