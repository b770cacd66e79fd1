"""A float .tflite file of any converter, checked, and brought to one form.

Files of TensorFlow's converter, of litert-torch and of onnx2tf differ in what they may hold:
weights in float16, open batch sizes with the operators that compute shapes from them, several
signatures. The form that leaves here has one graph at batch 1, float32 constants, fixed shapes and
one signature, and no operator that TensorFlow's quantizer lacks while others compute the same.
"""

from __future__ import annotations

import collections
import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dgh_tf.models.tflite.model import (
    Operator,
    Signature,
    Tensor,
    TFLiteModel,
    plain,
    read_model,
)
from dgh_tf.models.tflite.operators import KERNELS
from dgh_tf.models.tflite.parts import fill, pack_used, unpack
from dgh_tf.models.tflite.spec import CHANNEL_AXIS

_INTEGER_WEIGHTS = {"INT8", "UINT8", "INT4", "INT16", "INT2", "UINT4"}
_CONTROL_FLOW = {"IF", "WHILE", "CALL_ONCE", "CALL", "STABLEHLO_WHILE", "STABLEHLO_CASE"}
_CHOICES = {
    *("ARG_MAX", "ARG_MIN", "TOPK_V2"),
    *("GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "EQUAL", "NOT_EQUAL"),
}
_CASTS = {"CAST", "RESHAPE", "EXPAND_DIMS", "SQUEEZE", "ONE_HOT"}
_BIASED, _BIAS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), 2  # the bias's place
_STABLEHLO_MARK = b"keep_stablehlo_constant"
_ADVICE = "Export the model again as float32, without quantization."


def read_float_file(data: bytes, *, signature: str) -> TFLiteModel:
    """The graph of a float file in the form that everything here works on.

    Args:
      data: the file.
      signature: the key of the one to take; empty where there is only one.
    Raises:
      ValueError: no or a damaged TFLite model; a quantized one; operators that cannot be run here;
        inputs that are not float32 or have open or several batch sizes; several signatures and none
        or an unknown one asked for.

    Example:
      read_float_file(pathlib.Path("model.tflite").read_bytes(), signature="")
    """
    model = read_model(data)
    chosen = _choose(model, signature)
    model = _with_one_graph(model, chosen)
    _require_float(model)
    model = _with_fixed_shapes(_with_float32_constants(model))
    _require_known(model)
    model = _with_inner_biases(_with_integer_kernels(model))
    _require_batch_of_one(model)
    return _with_readable_constants(model)


def float_weight_bytes(model: TFLiteModel) -> int:
    """Bytes that the float32 constants of a file take."""
    return sum(t.nbytes for t in model.tensors if t.constant and t.dtype == "FLOAT32")


# ---- what is refused


def _choose(model: TFLiteModel, key: str) -> Signature | None:
    """The signature asked for, or the only one; None where the file has none."""
    keys = [signature.key for signature in model.signatures]
    if not key and len(keys) <= 1:
        return model.signatures[0] if keys else None
    if key not in keys:
        asked = f"--signature={key} is none of them" if key else "it does not say which to take"
        known = ", ".join(keys) or "none"
        raise ValueError(
            f"The file has {len(keys)} signatures ({known}); {asked}. Give --signature=KEY"
            + (" or leave the flag out." if len(keys) <= 1 else ".")
        )
    return model.signatures[keys.index(key)]


def _require_float(model: TFLiteModel) -> None:
    """Refuses files that hold integers where a float file has floats, with the kind of file."""
    made = [t for o in model.operators for t in o.output_tensors]
    inputs = [model.tensors[i] for i in model.inputs]
    scaled = [t for t in [*inputs, *made] if t.scales and t.dtype in _INTEGER_WEIGHTS]
    if scaled:
        raise ValueError(
            f"The file is quantized already: {scaled[0].name} is {scaled[0].dtype} with a scale. "
            f"Pass the float file it was made from. {_ADVICE}"
        )
    weights = [t for t in model.tensors if t.constant and t.scales and t.dtype in _INTEGER_WEIGHTS]
    if weights:
        raise ValueError(
            f"The file has integer weights and float activations ({len(weights)} tensors, such as "
            f"{weights[0].name}, {weights[0].dtype}): a hybrid file, of dynamic-range or "
            f"weight-only quantization, whose weights are rounded already. {_ADVICE}"
        )
    for name, tensor in zip(model.input_names, inputs, strict=True):
        if tensor.dtype != "FLOAT32":
            raise ValueError(
                f"Input {name!r} takes {tensor.dtype}; expected FLOAT32, such as an image. "
                "Export the part of the model behind that input."
            )
    half = next((t for t in made if t.dtype in ("FLOAT16", "BFLOAT16", "FLOAT64")), None)
    if half is not None:
        raise ValueError(
            f"{half.name} is computed in {half.dtype}; expected float32 activations (float16 "
            f"weights behind DEQUANTIZE are fine). {_ADVICE}"
        )


def _require_known(model: TFLiteModel) -> None:
    """Refuses operators that cannot be run, and differentiated, outside LiteRT."""
    unknown = sorted({o.kind for o in model.operators} - set(KERNELS))
    if not unknown:
        return
    _require_no_choice(model)
    loops = [kind for kind in unknown if kind in _CONTROL_FLOW]
    custom = [kind for kind in unknown if kind.startswith(("CUSTOM", "FLEX"))]
    why = (
        "control flow, which has no integer form here"
        if loops
        else "custom operators, whose code is not in the file"
        if custom
        else "operators that cannot be differentiated here"
    )
    raise ValueError(
        f"The file has {', '.join(unknown)}: {why}. Expected only "
        f"{', '.join(sorted(KERNELS))}. Export the model without them, or the part before them."
    )


def _require_no_choice(model: TFLiteModel) -> None:
    """Refuses a file whose output is a choice, such as the position of the highest number."""
    makers = {i: o for o in model.operators for i in o.outputs}
    for name, i in zip(model.output_names, model.outputs, strict=True):
        operator = makers.get(i)
        for _ in model.operators:  # back through what only casts and reshapes
            if operator is None or operator.kind not in _CASTS or not operator.inputs:
                break
            operator = makers.get(operator.inputs[0])
        if operator is not None and operator.kind in _CHOICES and operator.input_tensors:
            chosen = operator.input_tensors[0]
            raise ValueError(
                f"Output {name!r} is a choice: {operator.kind} of "
                f"'{chosen.name if chosen else '?'}'. It follows from the network's numbers and is "
                "not one of them, so it has no scale. Export the file up to that tensor and choose "
                "outside; of a Keras model --head=logits makes such a file."
            )


def _require_batch_of_one(model: TFLiteModel) -> None:
    for name, i in zip(model.input_names, model.inputs, strict=True):
        shape = model.tensors[i].shape
        if len(shape) < 2 or shape[0] != 1:
            raise ValueError(
                f"Input {name!r} has the shape {list(shape)}; expected a batch of one image, "
                f"[1, ...]. Export the model with batch size 1."
            )
    for name, i in zip(model.output_names, model.outputs, strict=True):
        tensor = model.tensors[i]
        if not tensor.shape or tensor.shape[0] != 1 or tensor.dtype != "FLOAT32":
            raise ValueError(
                f"Output {name!r} is {tensor.dtype} of shape {list(tensor.shape)}; expected "
                "FLOAT32 [1, ...]. Export the model up to its float outputs, without what follows "
                "(class indices, boxes after non-maximum suppression)."
            )


# ---- what is rewritten


def _with_one_graph(model: TFLiteModel, chosen: Signature | None) -> TFLiteModel:
    """The file with the chosen signature's graph alone, and a signature by its tensors' names where
    it has none.
    """
    from ai_edge_litert import schema_py_generated as schema

    if chosen is not None and len(model.signatures) == len(model.subgraphs) == 1:
        return model
    parts = unpack(model)
    number = 0 if chosen is None else chosen.subgraph
    calls = {o.kind for o in model.subgraphs[number].operators} & _CONTROL_FLOW
    if calls:
        raise ValueError(
            f"The file has {', '.join(sorted(calls))}: control flow, which has no integer form "
            "here. Export the model without it (recurrent layers unrolled)."
        )
    graph = parts.subgraphs[number]
    parts.subgraphs = [graph]
    if chosen is None:
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        for side in ("inputs", "outputs"):
            entries = []
            for i in getattr(graph, side):
                entry = schema.TensorMapT()
                name = (graph.tensors[i].name or b"").decode()
                entry.name, entry.tensorIndex = plain(name).encode(), int(i)
                entries.append(entry)
            setattr(signature, side, entries)
        parts.signatureDefs = [signature]
    else:
        keys = [(s.signatureKey or b"").decode() for s in parts.signatureDefs]
        signature = parts.signatureDefs[keys.index(chosen.key)]
        signature.subgraphIndex = 0
        parts.signatureDefs = [signature]
    return pack_used(parts)


def _with_float32_constants(model: TFLiteModel) -> TFLiteModel:
    """The file with float32 constants where DEQUANTIZE made them of float16 ones."""
    halves = {
        place: operator.input_tensors[0]
        for place, operator in enumerate(model.operators)
        if operator.kind == "DEQUANTIZE" and _is_half_constant(operator.input_tensors[0])
    }
    if not halves:
        return model
    parts = unpack(model)
    graph = parts.subgraphs[0]
    for place, source in halves.items():
        made = graph.tensors[graph.operators[place].outputs[0]]
        assert source is not None  # _is_half_constant
        fill(parts, made, np.asarray(source.value, np.float32).tobytes())
    graph.operators = [o for place, o in enumerate(graph.operators) if place not in halves]
    return pack_used(_without_unread(parts))


def _is_half_constant(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.constant and tensor.dtype == "FLOAT16"


def _with_fixed_shapes(model: TFLiteModel) -> TFLiteModel:
    """The file at batch 1, without the operators that compute shapes from it.

    LiteRT runs the graph once, because only it knows the sizes that follow.
    """
    is_open = any(t.open_size for t in model.tensors)
    if not is_open and not any(o.kind == "SHAPE" for o in model.operators):
        return model
    for name, i in zip(model.input_names, model.inputs, strict=True):
        tensor = model.tensors[i]
        if min(tensor.shape_signature[1:], default=1) < 0:
            raise ValueError(
                f"Input {name!r} has the open shape {list(tensor.shape_signature)}; only the batch "
                "may be open. Export the model for one image size."
            )
    interpreter = _ran_once(model)
    details = {each["index"]: each for each in interpreter.get_tensor_details()}
    fixed = _shape_computations(model)
    values = {i: np.array(interpreter.get_tensor(i)) for i in fixed}
    parts = unpack(model)
    graph = parts.subgraphs[0]
    for index, tensor in enumerate(graph.tensors):
        tensor.shapeSignature = None
        if index in details and model.tensors[index].open_size:
            tensor.shape = np.asarray(details[index]["shape"], np.int32)
    for index, value in values.items():
        graph.tensors[index].shape = np.asarray(value.shape, np.int32)
        fill(parts, graph.tensors[index], np.ascontiguousarray(value).tobytes())
    graph.operators = [o for o in graph.operators if not set(map(int, o.outputs)) <= set(fixed)]
    return pack_used(_without_unread(parts))


def _ran_once(model: TFLiteModel) -> Any:
    """An interpreter that has run the graph on zeros, at batch 1."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plainly = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        interpreter = Interpreter(
            model_content=model.data,
            experimental_op_resolver_type=plainly,
            experimental_preserve_all_tensors=True,
        )
        for detail in interpreter.get_input_details():
            interpreter.resize_tensor_input(detail["index"], [1, *detail["shape"][1:]])
        interpreter.allocate_tensors()
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], np.float32))
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"LiteRT cannot run the file at batch 1 ({' '.join(str(error).split())[:200]}). Export "
            "the model with batch size 1."
        ) from error
    return interpreter


def _shape_computations(model: TFLiteModel) -> list[int]:
    """Tensors that hold what follows from shapes and constants alone: SHAPE and what reads it."""
    fixed: list[int] = []
    known = {t.index for t in model.tensors if t.constant}
    for operator in model.operators:
        from_known = all(i < 0 or i in known for i in operator.inputs)
        if operator.kind == "SHAPE" or (from_known and operator.inputs):
            known |= set(operator.outputs)
            fixed += operator.outputs
    return fixed


def _with_integer_kernels(model: TFLiteModel) -> TFLiteModel:
    """The file with x * x for SQUARE and x * -1 for NEG, for which there is no integer kernel."""
    from ai_edge_litert import schema_py_generated as schema

    places = [p for p, o in enumerate(model.operators) if o.kind in ("SQUARE", "NEG")]
    if not places:
        return model
    parts = unpack(model)
    graph, code = parts.subgraphs[0], schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.MUL
    code.version = 1
    parts.operatorCodes.append(code)
    minus_one = None
    for place in places:
        operator = graph.operators[place]
        source = operator.inputs[0]
        if model.operators[place].kind == "NEG":
            if minus_one is None:
                minus_one = _scalar(parts, b"minus_one", -1.0)
            operator.inputs = np.asarray([source, minus_one], np.int32)
        else:
            operator.inputs = np.asarray([source, source], np.int32)
        operator.opcodeIndex = len(parts.operatorCodes) - 1
        operator.builtinOptionsType = schema.BuiltinOptions.MulOptions
        operator.builtinOptions = schema.MulOptionsT()
    return pack_used(parts)


class _Outside(NamedTuple):
    """A bias that is added behind the operator it belongs to, perhaps behind a reshape."""

    operator: int  # places in the graph
    addition: int
    reshape: int | None
    bias: np.ndarray  # with that of the operator, float32 [channels]


def _with_inner_biases(model: TFLiteModel) -> TFLiteModel:
    """The file with the biases that follow an operator as an ADD inside the operator.

    Converters write a dense layer on a sequence as FULLY_CONNECTED, RESHAPE, ADD. In integers the
    sum would be rounded twice, and cost an operator.
    """
    from ai_edge_litert import schema_py_generated as schema

    found = _outside_biases(model)
    if not found:
        return model
    parts = unpack(model)
    graph = parts.subgraphs[0]
    for each in found:
        operator, addition = graph.operators[each.operator], graph.operators[each.addition]
        bias = schema.TensorT()
        bias.name = (graph.tensors[operator.outputs[0]].name or b"") + b"/inner_bias"
        bias.type, bias.shape = schema.TensorType.FLOAT32, np.asarray(each.bias.shape, np.int32)
        fill(parts, bias, each.bias.tobytes())
        operator.inputs = np.asarray([*operator.inputs[:_BIAS], len(graph.tensors)], np.int32)
        graph.tensors.append(bias)
        if addition.builtinOptions is not None:
            activation = addition.builtinOptions.fusedActivationFunction
            operator.builtinOptions.fusedActivationFunction = activation
        last = operator if each.reshape is None else graph.operators[each.reshape]
        last.outputs = addition.outputs
    gone = {each.addition for each in found}
    graph.operators = [o for place, o in enumerate(graph.operators) if place not in gone]
    return pack_used(_without_unread(parts))


def _outside_biases(model: TFLiteModel) -> list[_Outside]:
    readers = collections.defaultdict(list)
    for place, operator in enumerate(model.operators):
        for i in operator.inputs:
            readers[i].append(place)

    def only_reader(index: int) -> int | None:
        places = readers[index]
        return places[0] if len(places) == 1 and index not in model.outputs else None

    found = []
    for place, operator in enumerate(model.operators):
        weights = operator.input_tensors[1] if operator.kind in _BIASED else None
        if weights is None or not weights.constant or operator.options["activation"] != "NONE":
            continue
        channels = weights.shape[CHANNEL_AXIS[operator.kind]]
        at, reshape = only_reader(operator.outputs[0]), None
        if at is not None and model.operators[at].kind == "RESHAPE":
            reshape, at = at, only_reader(model.operators[at].outputs[0])
        if at is None or model.operators[at].kind != "ADD":
            continue
        bias = _whole_bias(operator, model.operators[at], channels=channels)
        if bias is not None:
            found.append(_Outside(place, at, reshape, bias))
    return found


def _whole_bias(operator: Operator, addition: Operator, *, channels: int) -> np.ndarray | None:
    """The operator's own bias and the constant that is added, float32 [channels]; None where what
    is added is no bias: computed, or another value at another place.
    """
    summed = addition.output_tensors[0].shape
    added = [t.value for t in addition.input_tensors if t is not None and t.constant]
    if len(added) != 1 or added[0] is None or added[0].size != channels:
        return None
    if all(t is None or t.constant or t.shape != summed for t in addition.input_tensors):
        return None  # the sum has more values than the operator gives, or more axes
    axes = added[0].shape
    while axes and axes[0] == 1:
        axes = axes[1:]
    if summed[len(summed) - len(axes) :] != axes:  # one channel after the other, as in the operator
        return None
    own = operator.input_tensors[_BIAS] if len(operator.inputs) > _BIAS else None
    if own is None:
        return np.ravel(added[0])
    return None if own.value is None else np.ravel(added[0]) + own.value


def _with_readable_constants(model: TFLiteModel) -> TFLiteModel:
    """The file without the mark of litert-torch that makes TensorFlow's quantizer read constants in
    a form that it then leaves in float, with every operator that has weights.
    """
    parts = unpack(model)
    kept = [entry for entry in parts.metadata or [] if entry.name != _STABLEHLO_MARK]
    if len(kept) == len(parts.metadata or []):
        return model
    parts.metadata = kept
    return pack_used(parts)


def _scalar(parts: Any, name: bytes, value: float) -> int:
    """Adds a float32 constant without axes to the main graph; returns its index."""
    from ai_edge_litert import schema_py_generated as schema

    tensor = schema.TensorT()
    tensor.name, tensor.shape = name, np.zeros(0, np.int32)
    tensor.type = schema.TensorType.FLOAT32
    fill(parts, tensor, np.asarray(value, np.float32).tobytes())
    parts.subgraphs[0].tensors.append(tensor)
    return len(parts.subgraphs[0].tensors) - 1


def _without_unread(parts: Any) -> Any:
    """The main graph without tensors that nothing makes or reads, which some readers refuse."""
    graph = parts.subgraphs[0]
    ends = [*graph.inputs, *graph.outputs]
    inner = [i for o in graph.operators for i in (*o.inputs, *o.outputs)]
    used = sorted({int(i) for i in [*ends, *inner] if i >= 0})
    place = {-1: -1, **{old: new for new, old in enumerate(used)}}

    def moved(indices: Sequence[int] | None) -> Any:
        return None if indices is None else np.asarray([place[int(i)] for i in indices], np.int32)

    graph.tensors = [copy.copy(graph.tensors[i]) for i in used]
    for operator in graph.operators:
        operator.inputs, operator.outputs = moved(operator.inputs), moved(operator.outputs)
        operator.intermediates = None
    graph.inputs, graph.outputs = moved(graph.inputs), moved(graph.outputs)
    for entry in [*parts.signatureDefs[0].inputs, *parts.signatureDefs[0].outputs]:
        entry.tensorIndex = place[entry.tensorIndex]
    return parts
