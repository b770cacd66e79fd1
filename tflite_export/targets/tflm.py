"""TensorFlow Lite for Microcontrollers: its operators, the arena it needs, and, where
installed, the file run in it.

The package tflite-micro is TFLM itself with its reference kernels, built for this machine. It runs
in a process of its own (python -m tflite_export.targets.tflm FOLDER), because a model that it does
not take can end the process.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import sys
from typing import Any

import numpy as np

from dgh_tf.common import processes
from dgh_tf.models.tflite.model import TFLiteModel, read_model
from tflite_export.targets.memory_plan import (
    bookkeeping_bytes,
    lifetimes,
    live_peak,
    planned_bytes,
)
from tflite_export.tflite.edit import weights_of
from tflite_export.tflite.interpreter import LiteRTInterpreter

SOURCE = "tensorflow/tflite-micro, tensorflow/lite/micro/micro_mutable_op_resolver.h"
OPERATORS = frozenset(
    " ".join(
        (
            "ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D "
            "BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS BROADCAST_TO",
            "CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTHWISE_CONV_2D "
            "DEPTH_TO_SPACE DEQUANTIZE DIV ELU EMBEDDING_LOOKUP EQUAL",
            "EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER "
            "GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF",
            "L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND "
            "LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM",
            "MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 "
            "PRELU QUANTIZE READ_VARIABLE REDUCE_MAX REDUCE_MIN RELU",
            "RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND "
            "RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX SPACE_TO_BATCH_ND",
            "SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE "
            "STRIDED_SLICE SUB SUM SVDF TANH TRANSPOSE TRANSPOSE_CONV",
            "UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE",
        )
    ).split(" ")
)
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")
_ARENA = 256 * 2**20  # bytes offered; what is used is reported
_IMAGES, _SECONDS = 4, 120
# of the output's codes, 16 steps of int8: LiteRT's own kernels differ by up to 12; the dense fault
# was 170
_MOST_SHARE = 0.0625


def _compared(model: TFLiteModel) -> dict[str, Any]:
    """The file run in TFLM and in LiteRT's built-in kernels on the same random codes.

    Returns: {"arena_bytes", "largest_difference_steps" (of the last bit), "agrees"} or {"error":
      TFLM's own line}.
    """
    reference = LiteRTInterpreter(model, kernels="builtin")
    rng, inputs = np.random.default_rng(0), {}
    for input_name, detail in reference.inputs.items():
        limits = np.iinfo(detail["dtype"])
        codes = rng.integers(limits.min, limits.max + 1, (_IMAGES, *detail["shape"]))
        inputs[input_name] = codes.astype(detail["dtype"])
    with processes.temporary_folder() as folder:
        (folder / "model.tflite").write_bytes(model.data)
        np.savez(folder / "inputs.npz", *inputs.values())
        try:
            done = processes.run(
                "tflite_export.targets.tflm",
                str(folder),
                timeout=_SECONDS,
                environment={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except TimeoutError:
            return {"error": f"it took more than {_SECONDS} s"}
        if done.code or not (folder / "outputs.npz").exists():
            lines = [
                line.strip()
                for line in done.stderr.partition("Traceback")[0].splitlines()
                if line.strip()
            ]
            return {"error": "; ".join(lines)[:300] or f"it ended with code {done.code}"}
        with np.load(folder / "outputs.npz") as file:
            outputs = [file[key] for key in file.files]
    worst, share = 0, 0.0
    for i in range(_IMAGES):
        reference.run({name: codes[i] for name, codes in inputs.items()})
        for (output_name, detail), values in zip(reference.outputs.items(), outputs, strict=True):
            ours = reference.output(output_name).astype(int)
            steps = int(np.abs(ours - values[i].astype(int)).max())
            worst = max(worst, steps)
            share = max(share, steps / 256 ** np.dtype(detail["dtype"]).itemsize)
    total = _TOTAL.search(done.stdout + done.stderr)
    return {
        "arena_bytes": int(total.group(1)) if total else None,
        "largest_difference_steps": worst,
        "agrees": share <= _MOST_SHARE,
    }


def _notes(model: TFLiteModel, run: dict[str, Any] | None) -> list[str]:
    notes = []
    if run is None and importlib.util.find_spec("tflite_micro") is None:
        notes.append(
            'The file was not run: pip install "dgh-tf[tflm]" lets this target run '
            "it in TFLM itself."
        )
    elif run is not None and "error" in run:
        notes.append(f"TFLM on this machine does not run the file: {run['error']}")
    elif run is not None and not run["agrees"]:
        notes.append(
            f"TFLM's output is up to {run['largest_difference_steps']} steps off "
            "LiteRT's: find out why before shipping"
        )
    dense = sum(
        o.kind == "FULLY_CONNECTED" and len(weights_of(o).scales) > 1 for o in model.operators
    )
    if dense:
        here = "right in this TFLM, wrong" if run is not None and run.get("agrees") else "wrong"
        notes.append(
            f"{dense} dense layer{'s have' if dense > 1 else ' has'} a scale per "
            f"output channel: {here} without a word in older "
            "TFLM, so compare outputs on the device"
        )
    return notes


def report(model: TFLiteModel) -> dict[str, Any]:
    """TFLM's verdict on an integer file: see report.judge. `fully_mapped`: TFLM has a kernel for
    every operator.

    Figures: `activations_bytes` is the memory plan of all activations, `live_peak_bytes` what no
    plan goes below, `arena_estimate_bytes` the plan and an estimate of TFLM's bookkeeping; kernels
    may need scratch on top. `arena_bytes`, only where tflite-micro is installed, is TFLM's own
    count.
    """
    fallback = [
        {
            "operator": o.kind,
            "tensor": o.output_tensors[0].name if o.outputs else "",
            "why": "TFLM has no such operator",
        }
        for o in model.operators
        if o.kind not in OPERATORS
    ]
    peak, at = live_peak(model)
    installed = importlib.util.find_spec("tflite_micro") is not None
    run = _compared(model) if installed and not fallback else None
    plan = planned_bytes(lifetimes(model))
    figures = {
        "arena_estimate_bytes": plan + bookkeeping_bytes(model),
        "activations_bytes": plan,
        "live_peak_bytes": peak,
        "live_peak_at": model.operators[at].output_tensors[0].name if model.operators else "",
        "model_bytes": len(model.data),
        **(run or {}),
    }
    how = (
        "run in TFLM (tflite-micro) on this machine"
        if run and "error" not in run
        else "operator list and memory plan, not run"
    )
    return {
        "how": f"{how}; operators from {SOURCE}",
        "fully_mapped": not fallback and not (run and "error" in run),
        "operators_mapped": len(model.operators) - len(fallback),
        "operators_cpu": len(fallback),
        "fallback": fallback,
        "notes": _notes(model, run),
        "figures": figures,
    }


def main(argv: list[str]) -> int:
    """The worker: FOLDER holds model.tflite and inputs.npz; leaves outputs.npz, and TFLM's count of
    the arena on stderr.
    """
    from tflite_micro import runtime

    folder = pathlib.Path(argv[1])
    tflite = (folder / "model.tflite").read_bytes()
    interpreter = runtime.Interpreter.from_bytes(tflite, arena_size=_ARENA)
    with np.load(folder / "inputs.npz") as file:
        inputs = [file[key] for key in file.files]
    outputs: list[list[np.ndarray]] = []
    count = len(read_model(tflite).outputs)
    for i in range(len(inputs[0])):
        for index, values in enumerate(inputs):
            interpreter.set_input(values[i], index)
        interpreter.invoke()
        outputs.append([interpreter.get_output(index) for index in range(count)])
    np.savez(folder / "outputs.npz", *(np.stack(each) for each in zip(*outputs, strict=True)))
    interpreter.print_allocations()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
