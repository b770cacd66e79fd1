"""A .tflite file as plain data, parsed once: tensors, operators, signatures and the bytes.

Files come from anywhere, so every length, index and offset is checked while reading: a damaged file
raises one ValueError here, and nothing that works on a `TFLiteModel` has to check again. The
flatbuffer is read directly rather than through an interpreter: that needs no memory for tensors,
shows packed INT4 as it is, and no delegate has rewritten anything.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgh_tf.models.tflite.spec import OPERATORS, spec_of

_ACTIVATIONS = {1: "RELU", 2: "RELU_N1_TO_1", 3: "RELU6", 4: "TANH"}  # ActivationFunctionType
_NUMPY_TYPES = {
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "FLOAT64": np.float64,
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "COMPLEX64": np.complex64,
    "COMPLEX128": np.complex128,
}
_INTEGERS = {name for name in _NUMPY_TYPES if "INT" in name}
_BITS = {"BOOL": 8, "BFLOAT16": 16, "FLOAT8_E4M3FN": 8, "FLOAT8_E5M2": 8}
_NO_SIZE = {"STRING", "RESOURCE", "VARIANT"}  # their elements have no fixed number of bytes
# what Python's flatbuffers raises where an offset leads out of the file or to nonsense
_READ_ERRORS = (
    struct.error,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    ValueError,
)


class _DamagedError(ValueError):
    """A file whose parts do not fit together; the text says which."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a subgraph.

    Attributes:
      index: place among its subgraph's tensors, which LiteRT's interpreter uses too.
      name: of the file; not always unique.
      shape: sizes in elements. shape_signature: the same, with -1 for an axis of open size.
      dtype: the schema's name (FLOAT32, INT8, INT4 ...).
      scales, zero_points: none for tensors that are not quantized, one, or one per channel.
      quantized_dimension: the channels' axis, where there are several scales.
      data: the constant's bytes as uint8 array, without a copy; None for activations.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    shape_signature: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    quantized_dimension: int
    data: np.ndarray | None

    @property
    def constant(self) -> bool:
        """Whether the file holds the tensor's values."""
        return self.data is not None

    @property
    def open_size(self) -> bool:
        """Whether an axis has no fixed size."""
        return min(self.shape_signature, default=1) < 0

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor's elements take, packed where its type is packed."""
        return _bytes_of(self.shape, self.dtype)

    @property
    def limits(self) -> tuple[float, float] | None:
        """Lowest and highest value that integers of one scale can stand for, in the model's units;
        None for float tensors and for several scales.
        """
        if len(self.scales) != 1 or not self.scales[0] or self.dtype not in _INTEGERS:
            return None
        codes, scale, zero_point = np.iinfo(self.dtype.lower()), self.scales[0], self.zero_points[0]
        return scale * (codes.min - zero_point), scale * (codes.max - zero_point)

    @functools.cached_property
    def value(self) -> np.ndarray | None:
        """The constant as array of its shape (INT4 unpacked to int8); None for activations.

        Raises ValueError for a type that has no array, and for bytes that do not fill the shape
        (sparse weights).
        """
        if self.data is None:
            return None
        if self.dtype == "INT4" and len(self.data) == self.nbytes:
            return unpack_int4(self.data.tobytes(), math.prod(self.shape)).reshape(self.shape)
        if self.dtype not in _NUMPY_TYPES or len(self.data) != self.nbytes:
            raise ValueError(
                f"Constant {self.name} holds {len(self.data)} bytes of {self.dtype} for shape "
                f"{list(self.shape)}, which this reader has no array for. Convert the model "
                "without sparse or unusual weights."
            )
        return np.frombuffer(self.data.tobytes(), _NUMPY_TYPES[self.dtype]).reshape(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """One operator, in order of execution.

    Attributes:
      kind: the schema's name (CONV_2D), or CUSTOM:name.
      input_tensors: None for an optional input that is absent.
      options: the schema's, by field name, and under "activation" the fused one ("NONE", "RELU",
        "RELU6", "RELU_N1_TO_1", "TANH").
    """

    kind: str
    input_tensors: tuple[Tensor | None, ...]
    output_tensors: tuple[Tensor, ...]
    options: Mapping[str, Any]

    @functools.cached_property
    def inputs(self) -> tuple[int, ...]:
        """Tensor indices; -1 for an absent input."""
        return tuple(-1 if tensor is None else tensor.index for tensor in self.input_tensors)

    @functools.cached_property
    def outputs(self) -> tuple[int, ...]:
        """Tensor indices."""
        return tuple(tensor.index for tensor in self.output_tensors)


@dataclasses.dataclass(frozen=True, eq=False)
class Subgraph:
    """Tensors, operators in order of execution, and the indices of inputs and outputs."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Signature:
    """Public names of one subgraph's inputs and outputs: tensor index by name."""

    key: str
    subgraph: int
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class TFLiteModel:
    """A .tflite file: `data` holds its bytes, the rest what they say. `tflite.edit` makes new ones.

    The main graph is the first subgraph; others belong to control flow. `read_model` makes it.
    """

    data: bytes
    subgraphs: tuple[Subgraph, ...]
    signatures: tuple[Signature, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Of the main graph, by index."""
        return self.subgraphs[0].tensors

    @property
    def operators(self) -> tuple[Operator, ...]:
        """Of the main graph, in order of execution."""
        return self.subgraphs[0].operators

    @property
    def inputs(self) -> tuple[int, ...]:
        """Tensor indices of the main graph's inputs, in the file's order."""
        return self.subgraphs[0].inputs

    @property
    def outputs(self) -> tuple[int, ...]:
        """Tensor indices of the main graph's outputs, in the file's order."""
        return self.subgraphs[0].outputs

    @functools.cached_property
    def input_names(self) -> tuple[str, ...]:
        """Public names of `inputs`: the signature's, or the tensors' where there is none."""
        return self._public_names("inputs")

    @functools.cached_property
    def output_names(self) -> tuple[str, ...]:
        """Public names of `outputs`: the signature's, or the tensors' where there is none."""
        return self._public_names("outputs")

    def _public_names(self, end: str) -> tuple[str, ...]:
        main = next((s for s in self.signatures if s.subgraph == 0), None)
        named: dict[int, list[str]] = {}
        for name, i in getattr(main, end).items() if main is not None else ():
            named.setdefault(i, []).append(name)  # one tensor may be several outputs
        return tuple(
            named[i].pop(0) if named.get(i) else self.tensors[i].name for i in getattr(self, end)
        )


def plain(name: str) -> str:
    """A name as the .tflite file has it: letters, digits and underscores of any script, the first
    no underscore. Everything else becomes an underscore.
    """
    kept = (c.isalnum() if c.isascii() else c.isprintable() for c in name)
    name = "".join(c if keep else "_" for c, keep in zip(name, kept, strict=True))
    return f"x{name}" if name.startswith("_") else name


def pack_int4(values: np.ndarray) -> bytes:
    """Integers -8..7, flattened, two per byte, the first in the low nibble (TensorType.INT4)."""
    nibbles = np.asarray(values, np.int8).ravel().astype(np.uint8) & 15
    nibbles = np.append(nibbles, np.zeros(len(nibbles) % 2, np.uint8))
    return (nibbles[::2] | nibbles[1::2] << 4).astype(np.uint8).tobytes()


def unpack_int4(data: bytes, count: int) -> np.ndarray:
    """The inverse of `pack_int4`: int8 [count]."""
    packed = np.frombuffer(data, np.uint8)
    nibbles = np.stack([packed & 15, packed >> 4], 1).ravel()[:count].astype(np.int8)
    return np.where(nibbles > 7, nibbles - 16, nibbles).astype(np.int8)


def schema_names(enum: type) -> dict[int, str]:
    """Names of a schema enumeration (TensorType, BuiltinOperator) by value."""
    return {value: name for name, value in vars(enum).items() if not name.startswith("_")}


def damaged(why: object) -> ValueError:
    """The one error that every unreadable file gives."""
    return ValueError(
        f"This is a damaged TFLite model, or one newer than the installed ai-edge-litert knows "
        f"({why}). Convert the model again, or copy the file again."
    )


def read_model(tflite: bytes | TFLiteModel) -> TFLiteModel:
    """Parses a file of any types and operators. A model parsed already is given back.

    Raises:
      ValueError: the bytes are not a TFLite model, or a damaged one.

    Example:
      model = read_model(pathlib.Path("model.tflite").read_bytes())
      [operator.kind for operator in model.operators]
    """
    if isinstance(tflite, TFLiteModel):
        return tflite
    from ai_edge_litert import schema_py_generated as schema

    if len(tflite) < 8 or bytes(tflite[4:8]) != b"TFL3":
        raise ValueError(
            f"This is not a TFLite model: {len(tflite)} bytes without the mark TFL3. "
            "Pass a .tflite file."
        )
    data = bytes(tflite)
    try:
        return _Reader(data, schema).model()
    except _DamagedError as error:
        raise damaged(error) from None
    except _READ_ERRORS as error:
        raise damaged(f"an offset leads nowhere, {type(error).__name__}") from error


def _bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    digits = re.sub(r"\D", "", dtype)
    bits = _BITS.get(dtype) or int(digits or 8)
    return math.ceil(math.prod(shape) * bits / 8)


class _Reader:
    """Reads one file through the accessors that flatc generated."""

    def __init__(self, data: bytes, schema: Any) -> None:
        self._data, self._schema = data, schema
        # Parts of a written file hardly overlap, so all of them together have about its length. A
        # damaged or hostile one may name the same parts over and over, which would read for ever.
        self._left = 16 * len(data) + 4096
        self._root = schema.Model.GetRootAs(data, 0)
        self._types = schema_names(schema.TensorType)
        self._kinds = schema_names(schema.BuiltinOperator)

    def _take(self, count: int, *, size: int = 4) -> range:
        """`count` entries of a list of the file, at `size` bytes each."""
        self._left -= count * size
        if self._left < 0:
            raise _DamagedError(f"a list of {count} entries in {len(self._data)} bytes")
        return range(count)

    def _numbers(self, table: Any, field: str) -> tuple[Any, ...]:
        """A vector of numbers, empty where the field is absent."""
        count = getattr(table, f"{field}Length")()
        self._take(count)
        return tuple(getattr(table, f"{field}AsNumpy")().tolist()) if count else ()

    def _text(self, raw: bytes | None) -> str:
        self._take(len(raw or b""), size=1)
        return (raw or b"").decode()

    def model(self) -> TFLiteModel:
        root = self._root
        codes = [self._kind(root.OperatorCodes(i)) for i in self._take(root.OperatorCodesLength())]
        buffers = [self._buffer(root.Buffers(i)) for i in self._take(root.BuffersLength())]
        subgraphs = tuple(
            self._subgraph(root.Subgraphs(i), codes, buffers)
            for i in self._take(root.SubgraphsLength())
        )
        if not subgraphs:
            raise _DamagedError("it holds no graph")
        self._take(root.MetadataLength())
        signatures = tuple(
            self._signature(root.SignatureDefs(i), subgraphs)
            for i in self._take(root.SignatureDefsLength())
        )
        return TFLiteModel(self._data, subgraphs, signatures)

    def _kind(self, code: Any) -> str:
        # old files fill only the 8-bit field
        kind = self._kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        return f"CUSTOM:{self._text(code.CustomCode())}" if kind == "CUSTOM" else kind

    def _buffer(self, buffer: Any) -> np.ndarray | None:
        if buffer.DataLength():
            return buffer.DataAsNumpy()
        start, size = buffer.Offset(), buffer.Size()  # of files above 2 GiB, behind the flatbuffer
        if start <= 1 or not size:
            return None
        if start + size > len(self._data):
            raise _DamagedError("constants beyond its end")
        return np.frombuffer(self._data, np.uint8, size, start)

    def _subgraph(self, graph: Any, codes: list[str], buffers: list[np.ndarray | None]) -> Subgraph:
        tensors = tuple(
            self._tensor(i, graph.Tensors(i), buffers) for i in self._take(graph.TensorsLength())
        )
        operators = tuple(
            self._operator(graph.Operators(i), codes, tensors)
            for i in self._take(graph.OperatorsLength())
        )
        inputs, outputs = self._numbers(graph, "Inputs"), self._numbers(graph, "Outputs")
        for index in (*inputs, *outputs):
            _require_index(index, len(tensors), "tensor")
        _require_order(operators)
        return Subgraph(tensors, operators, inputs, outputs)

    def _tensor(self, index: int, tensor: Any, buffers: list[np.ndarray | None]) -> Tensor:
        name, dtype = self._text(tensor.Name()), self._types[tensor.Type()]
        shape = self._numbers(tensor, "Shape")
        signature = self._numbers(tensor, "ShapeSignature") or shape
        if any(size < 0 for size in shape):
            raise _DamagedError(f"tensor {index} has shape {list(shape)}")
        _require_index(tensor.Buffer(), len(buffers), "buffer")
        data, quantization = buffers[tensor.Buffer()], tensor.Quantization()
        scales = self._numbers(quantization, "Scale") if quantization else ()
        zero_points = self._numbers(quantization, "ZeroPoint") if scales else ()
        axis = quantization.QuantizedDimension() if scales else 0
        whole = dtype not in _NO_SIZE and tensor.Sparsity() is None
        if data is not None and whole and len(data) != _bytes_of(shape, dtype):
            raise _DamagedError(
                f"tensor {index}, {dtype} of shape {list(shape)}, holds {len(data)} bytes"
            )
        if len(scales) > 1 and not (axis in range(len(shape)) and shape[axis] == len(scales)):
            raise _DamagedError(f"tensor {index} of shape {list(shape)} has {len(scales)} scales")
        if not zero_points:
            zero_points = (0,) * len(scales)
        if len(zero_points) != len(scales):
            raise _DamagedError(
                f"tensor {index} has {len(scales)} scales and {len(zero_points)} zero points"
            )
        return Tensor(index, name, shape, signature, dtype, scales, zero_points, axis, data)

    def _operator(self, operator: Any, codes: list[str], tensors: tuple[Tensor, ...]) -> Operator:
        _require_index(operator.OpcodeIndex(), len(codes), "operator code")
        inputs, outputs = self._numbers(operator, "Inputs"), self._numbers(operator, "Outputs")
        for index in (*(i for i in inputs if i != -1), *outputs):
            _require_index(index, len(tensors), "tensor")
        kind = codes[operator.OpcodeIndex()]
        wanted = 2 if spec_of(kind).channel_axis is not None else 1
        if kind in OPERATORS and (len(inputs) < wanted or not outputs):
            raise _DamagedError(f"a {kind} with {len(inputs)} inputs and {len(outputs)} outputs")
        made = self._schema.BuiltinOptionsCreator(
            operator.BuiltinOptionsType(), operator.BuiltinOptions()
        )
        options = dict(vars(made)) if made is not None else {}
        options["activation"] = _ACTIVATIONS.get(options.get("fusedActivationFunction", 0), "NONE")
        return Operator(
            kind,
            tuple(None if i == -1 else tensors[i] for i in inputs),
            tuple(tensors[i] for i in outputs),
            options,
        )

    def _signature(self, signature: Any, subgraphs: tuple[Subgraph, ...]) -> Signature:
        place = signature.SubgraphIndex()
        _require_index(place, len(subgraphs), "subgraph")
        ends = []
        for end in ("Inputs", "Outputs"):
            names: dict[str, int] = {}
            for i in self._take(getattr(signature, f"{end}Length")()):
                entry = getattr(signature, end)(i)
                _require_index(entry.TensorIndex(), len(subgraphs[place].tensors), "tensor")
                names[self._text(entry.Name())] = entry.TensorIndex()
            ends.append(names)
        return Signature(self._text(signature.SignatureKey()), place, *ends)


def _require_index(index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise _DamagedError(f"it names {what} {index} of {count}")


def _require_order(operators: tuple[Operator, ...]) -> None:
    """Every tensor has one maker, which comes before its readers: who follows tensors backwards
    arrives somewhere.
    """
    read: set[int] = set()
    made: set[int] = set()
    for operator in operators:
        read.update(operator.inputs)
        for index in operator.outputs:
            if index in read or index in made:
                raise _DamagedError("its operators are not in order of execution")
            made.add(index)
