"""math: reads the operators, tensors and signatures of a .tflite file, and refuses floating point
in it.

Read straight from the flatbuffer, not from an interpreter: that needs no memory for tensors, sees
packed INT4, and is
not rewritten by a delegate.
"""

from __future__ import annotations

import collections
from typing import Any

FLOATS = frozenset({"FLOAT16", "FLOAT32", "FLOAT64", "BFLOAT16", "COMPLEX64", "COMPLEX128"})


class IntegerError(ValueError):
    """The model is not fully integer, or its inputs and outputs have another type than
    asked for.
    """


def _model(tflite: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    if len(tflite) < 8 or bytes(tflite[4:8]) != b"TFL3":
        raise ValueError(
            f"This is not a TFLite model: {len(tflite)} bytes without the mark TFL3. "
            "Pass a .tflite file."
        )
    return schema.Model.GetRootAs(tflite, 0)


def _names(enum: type) -> dict[int, str]:
    return {value: name for name, value in vars(enum).items() if not name.startswith("_")}


def _tensor(graph: Any, index: int) -> dict[str, Any]:
    """Name, dtype (schema's name), shape, scales and zero points of one tensor."""
    from ai_edge_litert import schema_py_generated as schema

    tensor, types = graph.Tensors(index), _names(schema.TensorType)
    quantization = tensor.Quantization()
    count = quantization.ScaleLength() if quantization else 0
    return {
        "name": (tensor.Name() or b"").decode(),
        "dtype": types[tensor.Type()],
        "shape": [tensor.Shape(i) for i in range(tensor.ShapeLength())],
        "scales": [quantization.Scale(i) for i in range(count)],
        "zero_points": [quantization.ZeroPoint(i) for i in range(quantization.ZeroPointLength())]
        if count
        else [],
    }


def _operator_name(model: Any, operator: Any) -> str:
    from ai_edge_litert import schema_py_generated as schema

    code = model.OperatorCodes(operator.OpcodeIndex())
    builtin = max(
        code.BuiltinCode(), code.DeprecatedBuiltinCode()
    )  # old files fill only the 8-bit field
    name = _names(schema.BuiltinOperator)[builtin]
    return f"CUSTOM:{code.CustomCode().decode()}" if name == "CUSTOM" else name


def operator_table(tflite: bytes) -> list[dict[str, Any]]:
    """Every operator in order of execution.

    Returns:
      Rows {"subgraph", "index", "operator", "inputs", "outputs"}; inputs and outputs are lists of
      {"name", "dtype"}
      with dtypes as in the TFLite schema (INT8, INT4, FLOAT32 ...).
    Raises:
      ValueError: the bytes are not a TFLite model.
    """
    model, rows = _model(tflite), []
    for g in range(model.SubgraphsLength()):
        graph = model.Subgraphs(g)
        tensors = [_tensor(graph, i) for i in range(graph.TensorsLength())]
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            row = {"subgraph": g, "index": i, "operator": _operator_name(model, operator)}
            ends = {
                "inputs": [operator.Inputs(j) for j in range(operator.InputsLength())],
                "outputs": [operator.Outputs(j) for j in range(operator.OutputsLength())],
            }
            for end, indices in ends.items():  # -1 marks an optional input that is absent
                row[end] = [
                    {k: tensors[j][k] for k in ("name", "dtype")} for j in indices if j >= 0
                ]
            rows.append(row)
    return rows


def graph_io(tflite: bytes) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs of the main graph, in the file's order.

    Returns:
      {"inputs": rows, "outputs": rows}; a row is {"name", "index", "tensor", "dtype", "shape",
      "scale", "zero_point"}.
      `name` is the signature's name (the tensor's where there is no signature), `index` the
      position in the
      interpreter's get_input_details() or get_output_details(); scale and zero_point are None where
      not quantized.
    """
    model = _model(tflite)
    signature: dict[str, dict[int, str]] = {"inputs": {}, "outputs": {}}
    graph = model.Subgraphs(0)
    if model.SignatureDefsLength():
        first = model.SignatureDefs(0)
        inputs = [first.Inputs(i) for i in range(first.InputsLength())]
        outputs = [first.Outputs(i) for i in range(first.OutputsLength())]
        signature = {
            "inputs": {m.TensorIndex(): m.Name().decode() for m in inputs},
            "outputs": {m.TensorIndex(): m.Name().decode() for m in outputs},
        }
    ends = {"inputs": graph.InputsAsNumpy(), "outputs": graph.OutputsAsNumpy()}
    return {
        end: [_io_row(graph, int(t), i, signature[end]) for i, t in enumerate(indices)]
        for end, indices in ends.items()
    }


def _io_row(graph: Any, tensor: int, index: int, names: dict[int, str]) -> dict[str, Any]:
    row = _tensor(graph, tensor)
    scale, zero_point = (row["scales"] or [None])[0], (row["zero_points"] or [None])[0]
    return {
        "name": names.get(tensor, row["name"]),
        "index": index,
        "tensor": row["name"],
        "dtype": row["dtype"],
        "shape": row["shape"],
        "scale": scale,
        "zero_point": zero_point,
    }


def _float_parts(model: Any, table: list[dict[str, Any]]) -> list[str]:
    """One line per operator that touches a float tensor, then one per float tensor no operator
    touches.
    """
    lines, touched = [], set()
    for row in table:
        ends = row["inputs"] + row["outputs"]
        floats = [t for t in ends if t["dtype"] in FLOATS]
        touched |= {(row["subgraph"], t["name"]) for t in floats}
        if floats:
            names = ", ".join(f"{t['name']} {t['dtype']}" for t in floats)
            lines.append(f"{row['operator']} #{row['index']}: {names}")
    for g in range(model.SubgraphsLength()):
        graph = model.Subgraphs(g)
        for tensor in (_tensor(graph, i) for i in range(graph.TensorsLength())):
            if tensor["dtype"] in FLOATS and (g, tensor["name"]) not in touched:
                lines.append(f"tensor {tensor['name']} {tensor['dtype']} (no operator)")
    return lines


def check_integer(tflite: bytes, *, io_dtype: str) -> dict[str, Any]:
    """Proves that a model computes with integers only.

    Args:
      tflite: the file's bytes.
      io_dtype: dtype every input and output must have: "int8", "uint8" or "int16".
    Returns:
      The proof: {"fully_integer": True, "operators": {name: count}, "tensor_dtypes": {dtype:
        count},
      "float_tensors": 0, "inputs", "outputs" (see `graph_io`), "table" (see `operator_table`),
      "bytes"}.
    Raises:
      IntegerError: a tensor is float (the operators around it are listed), or an input or output
        has another dtype or
        no scale.
      ValueError: the bytes are not a TFLite model.
    """
    model, table, io = _model(tflite), operator_table(tflite), graph_io(tflite)
    floats = _float_parts(model, table)
    if floats:
        shown = "\n  ".join(
            floats[:20] + ([f"... and {len(floats) - 20} more"] if len(floats) > 20 else [])
        )
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
    dtypes = collections.Counter(
        _tensor(model.Subgraphs(g), i)["dtype"]
        for g in range(model.SubgraphsLength())
        for i in range(model.Subgraphs(g).TensorsLength())
    )
    return {
        "fully_integer": True,
        "operators": dict(collections.Counter(r["operator"] for r in table)),
        "tensor_dtypes": dict(dtypes),
        "float_tensors": 0,
        **io,
        "table": table,
        "bytes": len(tflite),
    }
