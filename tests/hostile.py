"""Bad input and the promise to its giver: one clear line, exit code above 0, no traceback, nothing
left half-written.
"""

import os
import pathlib

import commands

SEEN: set[tuple[str, ...]] = set()
TRAP = pathlib.Path("/tmp") / f"hostile_trap_{os.getpid()}"
REQUIRED = {  # flags that each command needs, good values; {w} is the work folder
    "tflite_export.convert": {
        "model": "{w}/good.keras",
        "calibration": "{w}/good.npy",
        "output": "{w}/out.tflite",
    },
    "benchmarks.calibration": {
        "model": "{w}/good.keras",
        "real": "{w}/good.npz",
        "evaluation": "{w}/good.npz",
        "output_dir": "{w}/bench",
    },
    "benchmarks.layers": {"model": "{w}/good.keras", "calibrations": "{w}/good.npy"},
    "benchmarks.verdict": {"model": "{w}/good.keras", "tflite": "{w}/none.tflite"},
    "benchmarks.privacy": {"model": "{w}/good.keras", "output_dir": "{w}/privacy"},
    "benchmarks.speed": {"model": "{w}/good.keras", "output": "{w}/speed.json"},
    "benchmarks.workers": {"model": "{w}/good.keras", "output": "{w}/workers.json"},
    "benchmarks.suite": {"output_dir": "{w}/suite"},
    "benchmarks.lowbit": {
        "model": "{w}/good.keras",
        "real": "{w}/good.npz",
        "evaluation": "{w}/good.npz",
        "output_dir": "{w}/low",
    },
    "benchmarks.structure": {
        "model": "{w}/good.keras",
        "real": "{w}/good.npz",
        "output_dir": "{w}/structure",
    },
    "benchmarks.convergence": {
        "model": "{w}/good.keras",
        "evaluation": "{w}/good.npz",
        "output_dir": "{w}/convergence",
    },
    "dgh_tf.report": {"output_dir": "{w}/nothing"},
    "dgh_tf.generate": {"model": "{w}/good.keras", "output_dir": "{w}/generated"},
}


def listing(folder):
    """Every file below a folder with its size and time, locks aside."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in pathlib.Path(folder).rglob("*")
        if p.name != ".lock" and not p.is_dir()
    }


def refused(work, command, *arguments, words="", code=1):
    """Runs a bad input and checks the promise of this file; returns the line."""
    SEEN.add((command, *arguments))
    before = listing(work)
    got, _, err = commands.call(command, *arguments)
    lines = err.strip("\n").split("\n")
    assert got == code, (got, err)
    assert len(lines) == 1 and err.startswith("error: ") and "Traceback" not in err, err
    assert 25 < len(err) < 1500, err
    assert words in err, err
    assert listing(work) == before, set(listing(work)) ^ set(before)
    return err


def convert(work, **changed):
    """Arguments of convert, good but for `changed`; None leaves one out."""
    given = {
        "model": work / "good.keras",
        "calibration": work / "good.npy",
        "output": work / "out.tflite",
        **changed,
    }
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def written(work, name, data):
    path = work / name
    path.write_bytes(data)
    return path
