"""state: runs a float and an integer .tflite file side by side in LiteRT and measures every
activation tensor.

Files made from one frozen graph have the same names for their tensors; one that was trained
(distillation) is known by
its inputs, outputs and logits alone. Intermediate tensors are kept, which needs the built-in
kernels: XNNPACK computes
them in places of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tflite_export.calibration.check import Images
from tflite_export.conversion.freeze import plain
from tflite_export.quality.accuracy_estimate import Evidence
from tflite_export.tflite.edit import SHAPE_ONLY, without_softmax
from tflite_export.tflite.integer_check import graph_io, operator_table
from tflite_export.tflite.interpreter import dequantize, quantize

_MOST_IMAGES = 64  # of the calibration set are run again for its verdict


class _Traced:
    """An interpreter that keeps every tensor: feed one image, read any tensor as float."""

    def __init__(self, tflite: bytes):
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        io = graph_io(tflite)
        self._interpreter = Interpreter(
            model_content=tflite,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self._interpreter.allocate_tensors()
        rows = self._interpreter.get_input_details()
        self.inputs = {row["name"]: rows[row["index"]] for row in io["inputs"]}
        self.outputs = {row["name"]: row["tensor"] for row in io["outputs"]}
        self.tensors = {detail["name"]: detail for detail in self._interpreter.get_tensor_details()}

    def run(self, image: Mapping[str, np.ndarray]) -> None:
        for name, detail in self.inputs.items():
            self._interpreter.set_tensor(detail["index"], quantize(image[name], detail))
        self._interpreter.invoke()

    def read(self, tensor: str) -> np.ndarray:
        detail = self.tensors[tensor]
        return dequantize(self._interpreter.get_tensor(detail["index"]), detail).astype(np.float64)

    def limits(self, tensor: str) -> tuple[float, float]:
        """Lowest and highest value that the tensor can hold; infinite for a float tensor."""
        detail = self.tensors[tensor]
        scale, zero_point = detail["quantization"]
        if np.dtype(detail["dtype"]).kind == "f" or not scale:
            return -np.inf, np.inf
        codes = np.iinfo(detail["dtype"])
        return float(scale) * (codes.min - zero_point), float(scale) * (codes.max - zero_point)


def _activations(float_tflite: bytes, tflite: bytes, ends: Mapping[str, str]) -> dict[str, str]:
    """Operator by tensor name, in order, for the inputs (as INPUT) and every float activation that
    both files hold.
    """
    table = operator_table(tflite)
    if any(row["subgraph"] for row in table + operator_table(float_tflite)):
        raise ValueError(
            "The model has control flow (several subgraphs), whose tensors cannot be "
            "followed. There is no verdict for it."
        )
    kept = {out["name"] for row in table for out in row["outputs"]} | set(ends)
    found = {row["tensor"]: "INPUT" for row in graph_io(float_tflite)["inputs"]}
    for row in operator_table(float_tflite):
        found |= {
            out["name"]: row["operator"]
            for out in row["outputs"]
            if out["dtype"] == "FLOAT32" and out["name"] in kept
        }
    return found


def _heads(tflite: bytes) -> dict[str, tuple[str, str]]:
    """(output, logits) tensors by the output's name. The logits stand behind a softmax or logistic
    output (through a reshape);
    without one they are the output itself.
    """
    makers, found = (
        {out["name"]: row for row in operator_table(tflite) for out in row["outputs"]},
        {},
    )
    for row in graph_io(tflite)["outputs"]:
        tensor = row["tensor"]
        while tensor in makers and makers[tensor]["operator"] in SHAPE_ONLY:
            tensor = makers[tensor]["inputs"][0]["name"]
        ending = tensor in makers and makers[tensor]["operator"] in ("SOFTMAX", "LOGISTIC")
        found[row["name"]] = (
            row["tensor"],
            makers[tensor]["inputs"][0]["name"] if ending else row["tensor"],
        )
    return found


def _same_heads(
    float_tflite: bytes, tflite: bytes
) -> tuple[bytes, list[tuple[tuple[str, str], tuple[str, str]]]]:
    """The float file, without its softmax and sigmoid where the integer file ends at the logits;
    and `_heads` of both, side by side.
    """
    ours, theirs = _heads(float_tflite), _heads(tflite)
    if any(ours[name][0] != ours[name][1] and theirs[name][0] == theirs[name][1] for name in ours):
        float_tflite = without_softmax(float_tflite)
        ours = _heads(float_tflite)
    return float_tflite, [(ours[name], theirs[name]) for name in ours]


def require_same_ends(float_tflite: bytes, tflite: bytes) -> None:
    """Raises ValueError where the two files' inputs and outputs have other names: they are of
    different models, or made elsewhere.
    """
    reference, integer = (
        {end: [row["name"] for row in rows] for end, rows in graph_io(file).items()}
        for file in (float_tflite, tflite)
    )
    if any(set(integer[end]) != set(reference[end]) for end in reference):
        raise ValueError(
            f"The file has inputs {', '.join(integer['inputs'])} and outputs "
            f"{', '.join(integer['outputs'])}, the model "
            f"{', '.join(reference['inputs'])} and {', '.join(reference['outputs'])}. "
            "Give the model that the file was made "
            "from, and a file that tflite_export made: tensors are followed by name."
        )


def gather(float_tflite: bytes, tflite: bytes, images: Images) -> Evidence:
    """Runs both files on every image and compares all their activation tensors.

    Args:
      float_tflite: of `to_float_tflite`. tflite: the integer file of the same model; one that ends
        at the logits is compared
        with the float file's logits.
      images: float32 [images, ...] in the model's input units, or a dict by input name.
    Raises:
      ValueError: the files are of different models, or the images do not fit them.
    """
    require_same_ends(float_tflite, tflite)
    float_tflite, heads = _same_heads(float_tflite, tflite)
    reference, integer = _Traced(float_tflite), _Traced(tflite)
    arrays = (
        {plain(k): v for k, v in images.items()}
        if isinstance(images, Mapping)
        else {next(iter(reference.inputs)): images}
    )
    wanted = {
        name: tuple(map(int, detail["shape"][1:])) for name, detail in reference.inputs.items()
    }
    given = {name: tuple(np.shape(array)[1:]) for name, array in arrays.items()}
    if given != wanted:
        raise ValueError(
            f"The images have the shapes {given}, the model takes {wanted}. Give "
            "images made for this model."
        )
    theirs = {row["name"]: row["tensor"] for row in graph_io(tflite)["inputs"]}
    ends = {
        row["tensor"]: theirs[row["name"]] for row in graph_io(float_tflite)["inputs"]
    }  # the integer file's by the float file's
    for (output, logits), (other, behind) in heads:
        ends |= {logits: behind, output: other}
    integer.tensors |= {ours: integer.tensors[other] for ours, other in ends.items()}
    kinds = _activations(float_tflite, tflite, ends)
    return _measured(
        reference, integer, arrays, kinds, {output: logits for (output, logits), _ in heads}
    )


def _measured(
    reference: _Traced,
    integer: _Traced,
    arrays: Mapping[str, np.ndarray],
    kinds: Mapping[str, str],
    logits: Mapping[str, str],
) -> Evidence:
    count, names = len(next(iter(arrays.values()))), list(kinds)
    limits = np.array([integer.limits(name) for name in names])
    table = {
        key: np.zeros((count, len(names))) for key in ("low", "high", "signal", "noise", "clipped")
    }
    heads: dict[str, tuple[list, list]] = {name: ([], []) for name in reference.outputs}
    raw: dict[str, tuple[list, list]] = {name: ([], []) for name in reference.outputs}
    for i in range(count):
        image = {name: np.asarray(array[i : i + 1], np.float32) for name, array in arrays.items()}
        reference.run(image)
        integer.run(image)
        for j, name in enumerate(names):
            a, b = reference.read(name), integer.read(name)
            step = (
                (limits[j, 1] - limits[j, 0]) / 255 if np.isfinite(limits[j, 0]) else 0.0
            )  # softmax ends a step below 1
            outside = (a < limits[j, 0] - 1.01 * step) | (a > limits[j, 1] + 1.01 * step)
            values: dict[str, Any] = {
                "low": a.min(),
                "high": a.max(),
                "signal": np.sum(a * a),
                "noise": np.sum((a - b) ** 2),
                "clipped": np.mean(outside),
            }
            for key, value in values.items():
                table[key][i, j] = value
        for name, tensor in reference.outputs.items():
            for store, which in ((heads, tensor), (raw, logits[tensor])):
                store[name][0].append(
                    reference.read(which)[0]
                )  # without the file's batch axis of 1
                store[name][1].append(integer.read(which)[0])
    return Evidence(
        names=names,
        kinds=list(kinds.values()),
        limits=limits,
        **table,
        reference={n: np.stack(pair[0]) for n, pair in heads.items()},
        outputs={n: np.stack(pair[1]) for n, pair in heads.items()},
        float_logits={n: np.stack(pair[0]) for n, pair in raw.items()},
        logits={n: np.stack(pair[1]) for n, pair in raw.items()},
    )


def calibration_verdict(
    float_tflite: bytes, tflite: bytes, images: Images, *, generated: bool, same_inside: bool = True
) -> dict[str, Any]:
    """The verdict that the calibration images themselves allow, for F.json: the best case, since
    they set the file's ranges.

    Args:
      float_tflite: the same model in float32, with the same outputs.
      generated: whether the images were generated for this model. Others may be noise, which judges
        nothing; the level
        is then "unknown".
      same_inside: whether tensors between the layers hold what the float model's hold; equalization
        scales them, so that their
        errors against it say nothing and are left out.
    Returns: as `verdict.judge`, from at most 64 images spread over the set.
    """
    from tflite_export.quality.accuracy_estimate import judge, sentence

    def spread(array: np.ndarray) -> np.ndarray:
        return np.asarray(
            array[np.linspace(0, len(array) - 1, min(len(array), _MOST_IMAGES)).astype(int)],
            np.float32,
        )

    chosen = (
        {name: spread(a) for name, a in images.items()}
        if isinstance(images, Mapping)
        else spread(images)
    )
    try:
        evidence = gather(float_tflite, tflite, chosen)
    except ValueError as error:
        return {
            "level": "unknown",
            "sentence": f"No verdict: {str(error).splitlines()[0]}",
            "reasons": [],
            "held_out": False,
        }
    result = judge({"calibration": evidence}, held_out=False)
    if not same_inside:
        result |= {"reasons": [], "layers": [], "sentence": sentence(result, [])}
    if generated:
        return result
    return {
        **result,
        "level": "unknown",
        "sentence": "Not judged: these calibration images were not generated for this model, so "
        "what the "
        "file does on them may say nothing about real inputs. python -m "
        "benchmarks.verdict judges it with images of its own.",
    }
