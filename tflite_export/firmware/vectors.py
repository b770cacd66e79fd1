"""Integer inputs and the outputs that LiteRT gives for them, to check a device against."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Mapping

import numpy as np

from dgh_tf.common.subsets import spread
from dgh_tf.models.tflite.model import TFLiteModel, read_model
from tflite_export.tflite.interpreter import LiteRTInterpreter, MissingKernelError, quantize

_MOST_BYTES = 2**20  # of all inputs together


@dataclasses.dataclass(frozen=True)
class TestVectors:
    """Codes as a device gets and gives them.

    Attributes:
      inputs, outputs: by public name, [cases, *shape of the tensor], the tensor's own integer type.
      kernels: LiteRT's that gave the outputs: "reference", which TFLM's are made after, or
        "builtin" where those lack an operator.
    """

    __test__ = False  # no test case, whatever pytest reads into the name

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    kernels: str

    @property
    def cases(self) -> int:
        """How many."""
        return len(next(iter(self.inputs.values())))

    def first(self, cases: int) -> TestVectors:
        """Fewer of them."""
        return TestVectors(
            {name: codes[:cases] for name, codes in self.inputs.items()},
            {name: codes[:cases] for name, codes in self.outputs.items()},
            self.kernels,
        )


def _interpreter(model: TFLiteModel) -> tuple[LiteRTInterpreter, str]:
    """The reference kernels do not run depthwise layers with 4-bit weights."""
    try:
        return LiteRTInterpreter(model, kernels="reference"), "reference"
    except MissingKernelError:
        return LiteRTInterpreter(model, kernels="builtin"), "builtin"


def make_vectors(
    tflite: bytes | TFLiteModel, images: Mapping[str, np.ndarray], *, cases: int = 8
) -> TestVectors:
    """Runs a few images through an integer file of batch 1.

    Args:
      tflite: the integer file.
      images: float32 [number, *shape] by input name, in the model's units; some of them, spread
        over the whole set, are taken.
      cases: at most, and fewer of large inputs.
    Raises: ValueError for a file that LiteRT does not run.

    Example: `make_vectors(tflite, {"image": images}).outputs["output"].dtype`
    """
    model = read_model(tflite)
    interpreter, kernels = _interpreter(model)
    count = len(next(iter(images.values())))
    each = sum(int(np.prod(row["shape"])) for row in interpreter.inputs.values())
    cases = min(cases, count, max(1, _MOST_BYTES // each))
    places = spread(cases, total=count)
    inputs = {
        name: np.stack(
            [quantize(images[name][place], row).reshape(row["shape"]) for place in places]
        )
        for name, row in interpreter.inputs.items()
    }
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in interpreter.outputs}
    for i in range(cases):
        interpreter.run({name: codes[i] for name, codes in inputs.items()})
        for name, codes in outputs.items():
            codes.append(interpreter.output(name))
    return TestVectors(inputs, {name: np.stack(codes) for name, codes in outputs.items()}, kernels)


def npz(vectors: TestVectors) -> bytes:
    """An .npz file: arrays "input/NAME" and "output/NAME", the same bytes each time."""
    buffer = io.BytesIO()
    named = {
        **{f"input/{name}": codes for name, codes in vectors.inputs.items()},
        **{f"output/{name}": codes for name, codes in vectors.outputs.items()},
    }
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, codes in named.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # dated 1980
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w") as file:
                np.lib.format.write_array(file, codes, allow_pickle=False)
    return buffer.getvalue()
