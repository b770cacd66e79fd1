"""C++ for TensorFlow Lite Micro: the file as an array, what the interpreter needs to know of
it, and a test that compares a device with LiteRT.

Names and comments hold nothing of the model but plain letters and numbers, so that no name in a
file can become code.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from dgh_tf.models.tflite.model import Tensor, TFLiteModel
from tflite_export.firmware.vectors import TestVectors

# TFLM's resolver has a method Add... for each operator: its name in words, but for these
_WORDS = {"2D": "2D", "CUMSUM": "CumSum", "LSTM": "LSTM", "MATMUL": "MatMul", "PADV2": "PadV2"}
_C_TYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "uint8": "uint8_t"}
_ARENA_MARGIN, _ARENA_STEP = 1.1, 1024
# Steps of the last bit by which TFLM's kernels may differ from LiteRT's reference kernels, and from
# its built-in ones
TOLERANCE = {"reference": 1, "builtin": 16}
_PER_LINE = 16


def add_call(kind: str) -> str:
    """The method of tflite::MicroMutableOpResolver that adds an operator.

    Example: `add_call("DEPTHWISE_CONV_2D")` is "AddDepthwiseConv2D".
    """
    return "Add" + "".join(_WORDS.get(word, word.capitalize()) for word in kind.split("_"))


def identifier(stem: str) -> str:
    """A C++ name made of a file's: letters, digits and single underscores, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"model_{plain}".rstrip("_")


def reserved_bytes(used: int) -> int:
    """Bytes to reserve for an arena in which `used` are counted: a tenth more, in whole KiB.

    Example: `reserved_bytes(10_000)` is 11264.
    """
    return int(-(-_ARENA_MARGIN * used // _ARENA_STEP)) * _ARENA_STEP


def _lines(values: Sequence[str]) -> str:
    rows = [values[i : i + _PER_LINE] for i in range(0, len(values), _PER_LINE)]
    return "\n".join(f"    {', '.join(row)}," for row in rows)


def _ends(tensors: Sequence[Tensor], end: str) -> str:
    """Scales, zero points and sizes of the inputs or the outputs as C++ constants."""
    for tensor in tensors:
        if len(tensor.scales) != 1:
            raise ValueError(
                f"{end} {tensor.index} has {len(tensor.scales)} scales; expected one, as full "
                "integer files have."
            )
    shapes = [
        f"// {end} {i}: {tensor.dtype.lower()} {list(tensor.shape)}, "
        f"value = (code - zero point) * scale"
        for i, tensor in enumerate(tensors)
    ]
    scales = ", ".join(f"{tensor.scales[0]!r}f" for tensor in tensors)
    zeros = ", ".join(str(tensor.zero_points[0]) for tensor in tensors)
    sizes = ", ".join(str(tensor.nbytes) for tensor in tensors)
    count = len(tensors)
    return "\n".join(
        [
            *shapes,
            f"constexpr int k{end}s = {count};",
            f"constexpr float k{end}Scale[k{end}s] = {{{scales}}};",
            f"constexpr int k{end}ZeroPoint[k{end}s] = {{{zeros}}};",
            f"constexpr std::size_t k{end}Bytes[k{end}s] = {{{sizes}}};",
        ]
    )


_HEADER = """\
// A full-integer model for TensorFlow Lite Micro, written by tflite_export.convert.
// sha256 of the .tflite file: {sha256}
#ifndef {guard}
#define {guard}

#include <cstddef>
#include <cstdint>

#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"

// Some releases of TFLM keep its classes in tflite::micro, others in tflite itself.
namespace tflite {{
namespace micro {{}}
using namespace micro;
}}  // namespace tflite

namespace {name} {{

// The .tflite file, aligned as TFLM reads it.
extern const unsigned char kModel[];
constexpr std::size_t kModelBytes = {size};

// {arena_how}
// Kernels other than the reference ones (CMSIS-NN) may need more: AllocateTensors() says so.
constexpr std::size_t kArenaBytes = {arena};

{inputs}

{outputs}

// Every operator of the file, and no other: {operators}.
using Resolver = tflite::MicroMutableOpResolver<{count}>;
inline TfLiteStatus AddOperators(Resolver& resolver) {{
{calls}
  return kTfLiteOk;
}}

}}  // namespace {name}

#endif  // {guard}
"""

_MODEL = """\
// Data of {header}: see there.
#include "{header}"

namespace {name} {{

alignas(16) const unsigned char kModel[kModelBytes] = {{
{data}
}};

}}  // namespace {name}
"""

_GOLDEN = """\
// Inputs and the outputs that LiteRT's {kernels} kernels give for them, as codes.
// sha256 of the .tflite file: {sha256}
#ifndef {guard}
#define {guard}

#include <cstdint>

namespace {name} {{

constexpr int kCases = {cases};
// Steps of the last bit by which a device may differ.
constexpr int kTolerance = {tolerance};

{arrays}

// By case: the data of every input, and what every output should hold.
constexpr const void* kGoldenInput[kCases][{inputs}] = {{
{input_table}
}};
constexpr const void* kGoldenOutput[kCases][{outputs}] = {{
{output_table}
}};

}}  // namespace {name}

#endif  // {guard}
"""

_TEST = """\
// Runs the golden cases through TensorFlow Lite Micro and compares the outputs code by code.
// Exit code 0 if every one is within kTolerance. On a device call GoldenTest() from your own code.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "{golden}"
#include "{header}"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/schema/schema_generated.h"

namespace {{

alignas(16) std::uint8_t arena[{name}::kArenaBytes];

template <typename T>
int LargestDifference(const void* codes, const void* expected, std::size_t bytes) {{
  const T* found = static_cast<const T*>(codes);
  const T* wanted = static_cast<const T*>(expected);
  int worst = 0;
  for (std::size_t i = 0; i < bytes / sizeof(T); ++i) {{
    const int difference = std::abs(static_cast<int>(found[i]) - static_cast<int>(wanted[i]));
    if (difference > worst) worst = difference;
  }}
  return worst;
}}

}}  // namespace

int GoldenTest() {{
  static {name}::Resolver resolver;
  if ({name}::AddOperators(resolver) != kTfLiteOk) return 2;
  tflite::MicroInterpreter interpreter(tflite::GetModel({name}::kModel), resolver, arena,
                                       sizeof(arena));
  if (interpreter.AllocateTensors() != kTfLiteOk) return 3;
  std::printf("arena: %lu of %lu bytes used\\n",
              static_cast<unsigned long>(interpreter.arena_used_bytes()),
              static_cast<unsigned long>(sizeof(arena)));
  int worst = 0;
  for (int n = 0; n < {name}::kCases; ++n) {{
    for (int i = 0; i < {name}::kInputs; ++i) {{
      std::memcpy(interpreter.input(i)->data.raw, {name}::kGoldenInput[n][i],
                  {name}::kInputBytes[i]);
    }}
    if (interpreter.Invoke() != kTfLiteOk) return 4;
    for (int i = 0; i < {name}::kOutputs; ++i) {{
      const TfLiteTensor* output = interpreter.output(i);
      const void* wanted = {name}::kGoldenOutput[n][i];
      const std::size_t bytes = {name}::kOutputBytes[i];
      const int difference =
          output->type == kTfLiteInt16
              ? LargestDifference<std::int16_t>(output->data.raw, wanted, bytes)
              : LargestDifference<std::int8_t>(output->data.raw, wanted, bytes);
      std::printf("case %d, output %d: largest difference %d steps\\n", n, i, difference);
      if (difference > worst) worst = difference;
    }}
  }}
  std::printf(worst <= {name}::kTolerance ? "passed\\n" : "FAILED\\n");
  return worst <= {name}::kTolerance ? 0 : 1;
}}

int main() {{ return GoldenTest(); }}
"""


def _golden_arrays(codes: dict[str, np.ndarray], end: str) -> tuple[str, str]:
    """C++ arrays of every case and tensor, and the table of their names."""
    arrays, table = [], []
    for case in range(len(next(iter(codes.values())))):
        names = []
        for i, values in enumerate(codes.values()):
            flat = values[case].ravel()
            names.append(f"k{end}{case}x{i}")
            arrays.append(
                f"alignas(16) constexpr std::{_C_TYPES[str(flat.dtype)]} "
                f"{names[-1]}[{flat.size}] = {{\n{_lines([str(v) for v in flat.tolist()])}\n}};"
            )
        table.append(f"    {{{', '.join(names)}}},")
    return "\n".join(arrays), "\n".join(table)


def tflm_sources(
    model: TFLiteModel, vectors: TestVectors, *, stem: str, arena_bytes: int, counted: bool
) -> dict[str, bytes]:
    """C++ files for TensorFlow Lite Micro.

    Args:
      model: a full-integer file.
      vectors: golden cases; a handful.
      stem: F of F.tflite; files and the namespace are named after it.
      arena_bytes: what the arena holds.
      counted: by TFLM itself, against an estimate.
    Returns: by file name: {stem}_model.h, {stem}_model.cc, {stem}_golden.h (codes) and
      {stem}_golden_test.cc (a program that compares).
    Raises: ValueError for an input or output without a single scale.

    Example: `tflm_sources(read_model(tflite), vectors, stem="net", arena_bytes=9000, counted=True)`
    """
    name, sha256 = f"{identifier(stem)}_model", hashlib.sha256(model.data).hexdigest()
    kinds = sorted({operator.kind for operator in model.operators})
    calls = [f"  TF_LITE_ENSURE_STATUS(resolver.{add_call(kind)}());" for kind in kinds]
    how = "TFLM itself counts" if counted else "A memory plan gives about"
    header = _HEADER.format(
        sha256=sha256,
        guard=f"{name.upper()}_H_",
        name=name,
        size=len(model.data),
        arena_how=f"{how} {arena_bytes} bytes; this is a tenth more, in whole KiB.",
        arena=reserved_bytes(arena_bytes),
        inputs=_ends([model.tensors[i] for i in model.inputs], "Input"),
        outputs=_ends([model.tensors[i] for i in model.outputs], "Output"),
        operators=", ".join(kinds),
        count=len(kinds),
        calls="\n".join(calls),
    )
    files = {kind: f"{stem}_{kind}" for kind in ("model.h", "model.cc", "golden.h")}
    inputs, input_table = _golden_arrays(vectors.inputs, "In")
    outputs, output_table = _golden_arrays(vectors.outputs, "Out")
    golden = _GOLDEN.format(
        kernels=vectors.kernels,
        sha256=sha256,
        guard=f"{identifier(stem).upper()}_GOLDEN_H_",
        name=name,
        cases=vectors.cases,
        tolerance=TOLERANCE[vectors.kernels],
        arrays=f"{inputs}\n{outputs}",
        inputs=len(vectors.inputs),
        outputs=len(vectors.outputs),
        input_table=input_table,
        output_table=output_table,
    )
    data = _lines([f"0x{byte:02x}" for byte in model.data])
    texts = {
        files["model.h"]: header,
        files["model.cc"]: _MODEL.format(header=files["model.h"], name=name, data=data),
        files["golden.h"]: golden,
        f"{stem}_golden_test.cc": _TEST.format(
            golden=files["golden.h"], header=files["model.h"], name=name
        ),
    }
    return {file: text.encode() for file, text in texts.items()}
