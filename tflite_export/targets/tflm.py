"""state: TensorFlow Lite for Microcontrollers: its operators, the arena it needs, and, where
installed, the file run in it.

The package tflite-micro is TFLM itself with its reference kernels, built for this machine. It runs
in a process of its own
(python -m tflite_export.targets_tflm FOLDER), because a model that it does not take can end the
process.
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
from tflite_export.targets.static import (
    TFLM_OPERATORS,
    TFLM_SOURCE,
    File,
    bookkeeping_bytes,
    lifetimes,
    live_peak,
    planned_bytes,
    read_file,
)

_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")
_ARENA = 256 * 2**20  # bytes offered; what is used is reported
_IMAGES, _SECONDS = 4, 120
# of the output's codes, 16 steps of int8: LiteRT's own kernels differ by up to 12; the dense fault
# was 170
_MOST_SHARE = 0.0625


def _compared(tflite: bytes) -> dict[str, Any]:
    """The file run in TFLM and in LiteRT's built-in kernels on the same random codes.

    Returns: {"arena_bytes", "largest_difference_steps" (of the last bit), "agrees"} or {"error":
      TFLM's own line}.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=tflite,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    rng, details = np.random.default_rng(0), interpreter.get_input_details()
    limits = [np.iinfo(detail["dtype"]) for detail in details]
    inputs = [
        rng.integers(each.min, each.max + 1, (_IMAGES, *detail["shape"])).astype(detail["dtype"])
        for each, detail in zip(limits, details, strict=True)
    ]
    with processes.temporary_folder() as folder:
        (folder / "model.tflite").write_bytes(tflite)
        np.savez(folder / "inputs.npz", *inputs)
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
    worst = share = 0
    for i in range(_IMAGES):
        for detail, values in zip(details, inputs, strict=True):
            interpreter.set_tensor(detail["index"], values[i])
        interpreter.invoke()
        for detail, values in zip(interpreter.get_output_details(), outputs, strict=True):
            steps = int(
                np.abs(
                    interpreter.get_tensor(detail["index"]).astype(int) - values[i].astype(int)
                ).max()
            )
            worst, share = (
                max(worst, steps),
                max(share, steps / 256 ** np.dtype(detail["dtype"]).itemsize),
            )
    total = _TOTAL.search(done.stdout + done.stderr)
    return {
        "arena_bytes": int(total.group(1)) if total else None,
        "largest_difference_steps": worst,
        "agrees": share <= _MOST_SHARE,
    }


def _notes(file: File, run: dict[str, Any] | None) -> list[str]:
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
        o.kind == "FULLY_CONNECTED" and o.inputs[1] is not None and o.inputs[1].scales > 1
        for o in file.operators
    )
    if dense:
        here = "right in this TFLM, wrong" if run is not None and run.get("agrees") else "wrong"
        notes.append(
            f"{dense} dense layer{'s have' if dense > 1 else ' has'} a scale per "
            f"output channel: {here} without a word in older "
            "TFLM, so compare outputs on the device"
        )
    return notes


def report(tflite: bytes) -> dict[str, Any]:
    """TFLM's verdict on an integer file: see targets.judge. `fully_mapped`: TFLM has a kernel for
    every operator.

    Figures: `activations_bytes` is the memory plan of all activations, `live_peak_bytes` what no
      plan goes below, `arena_estimate_bytes`
    the plan and an estimate of TFLM's bookkeeping; kernels may need scratch on top. `arena_bytes`,
    only where tflite-micro is installed,
    is TFLM's own count.
    """
    file = read_file(tflite)
    fallback = [
        {
            "operator": o.kind,
            "tensor": o.outputs[0].name if o.outputs else "",
            "why": "TFLM has no such operator",
        }
        for o in file.operators
        if o.kind not in TFLM_OPERATORS
    ]
    peak, at = live_peak(file)
    installed = importlib.util.find_spec("tflite_micro") is not None
    run = _compared(tflite) if installed and not fallback else None
    plan = planned_bytes(lifetimes(file))
    figures = {
        "arena_estimate_bytes": plan + bookkeeping_bytes(file),
        "activations_bytes": plan,
        "live_peak_bytes": peak,
        "live_peak_at": file.operators[at].outputs[0].name if file.operators else "",
        "model_bytes": len(tflite),
        **(run or {}),
    }
    how = (
        "run in TFLM (tflite-micro) on this machine"
        if run and "error" not in run
        else "operator list and memory plan, not run"
    )
    return {
        "how": f"{how}; operators from {TFLM_SOURCE}",
        "fully_mapped": not fallback and not (run and "error" in run),
        "operators_mapped": len(file.operators) - len(fallback),
        "operators_cpu": len(fallback),
        "fallback": fallback,
        "notes": _notes(file, run),
        "figures": figures,
    }


def main(argv: list[str]) -> int:
    """The worker: FOLDER holds model.tflite and inputs.npz; leaves outputs.npz, and TFLM's count of
    the arena on stderr.
    """
    from tflite_micro import runtime

    folder = pathlib.Path(argv[1])
    interpreter = runtime.Interpreter.from_bytes(
        (folder / "model.tflite").read_bytes(), arena_size=_ARENA
    )
    with np.load(folder / "inputs.npz") as file:
        inputs = [file[key] for key in file.files]
    from ai_edge_litert import schema_py_generated as schema

    outputs: list[list[np.ndarray]] = []
    count = (
        schema.Model.GetRootAs((folder / "model.tflite").read_bytes(), 0)
        .Subgraphs(0)
        .OutputsLength()
    )
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
