"""Do this tree and another commit give the same bytes on this machine? python -m
benchmarks.same_results --base=COMMIT.

Three small generations and three small conversions run in each; sha256 of every images.npy and
.tflite is compared. Bytes differ between processors, so that stored hashes prove nothing: both
sides are run here, one after the other.
"""

from __future__ import annotations

import hashlib
import pathlib
import subprocess
import sys
import tempfile

from absl import flags

from benchmarks.measure.trees import ROOT, checked_out
from dgh_tf.common import console

GENERATIONS = {
    "demo": ["--model=demo", "--num_images=24", "--batch_size=8", "--steps=4", "--seed=1"],
    "demo_detector": ["--model=demo_detector", "--num_images=6", "--batch_size=4", "--steps=3"],
    "demo, streamed": ["--model=demo", "--num_images=12", "--steps=3", "--memory_mib=0"],
}
CONVERSIONS = {
    "int8": ["--scheme=int8"],
    "int16x8": ["--scheme=int16x8"],
    "w4a8": ["--scheme=w4a8", "--algorithm=minmax"],
}


def define_flags() -> None:
    flags.DEFINE_string(
        "base", None, "Commit to compare with, such as HEAD~1 or a tag.", required=True
    )


def _run(tree: pathlib.Path, module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, cwd=tree, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(
            f"{' '.join(command)} ended with {done.returncode} in {tree}: {done.stderr[-2000:]}"
        )


def _sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def results(tree: pathlib.Path, folder: pathlib.Path) -> dict[str, str]:
    """sha256 by name of what the code in `tree` makes. Raises ValueError where a command fails."""
    found = {}
    for number, (name, options) in enumerate(GENERATIONS.items()):
        output = folder / f"images{number}"
        _run(tree, "dgh_tf.generate", f"--output_dir={output}", *options)
        found[f"generate {name}"] = _sha256(output / "images.npy")
    for name, options in CONVERSIONS.items():
        output = folder / f"{name}.tflite"
        images = f"--calibration={folder / 'images0'}"
        _run(tree, "tflite_export.convert", "--model=demo", images, f"--output={output}", *options)
        found[f"convert {name}"] = _sha256(output)
    return found


def main(argv: list[str]) -> int:
    """Prints a line for each result and returns 1 where one differs."""
    del argv
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with checked_out(flags.FLAGS.base, folder / "tree") as tree:
            before = results(tree, folder / "before")
        after = results(ROOT, folder / "after")
    equal = sum(before[key] == after[key] for key in before)
    for key in before:
        console.say(
            f"{'equal' if before[key] == after[key] else 'DIFFERS'}: {key}, {after[key][:16]}"
        )
    console.say(f"{equal} of {len(before)} equal to {flags.FLAGS.base}")
    return 0 if equal == len(before) else 1


if __name__ == "__main__":
    define_flags()
    console.run(main)
