"""Which quantizers there are, their environments, and a run of one on a calibration set."""

from __future__ import annotations

import dataclasses
import pathlib
import site
import sys

import numpy as np

from benchmarks.data.choice import require_some
from dgh_tf.calibration_sets.formats import export
from dgh_tf.calibration_sets.source import Source
from dgh_tf.common import processes
from dgh_tf.common.console import say

_SECONDS = 3600.0  # for a model of ImageNet's size; a tool that hangs must not hold the benchmark


@dataclasses.dataclass(frozen=True)
class Tool:
    """A quantizer of somebody else's.

    Attributes:
      packages: what its environment installs. form: of dgh_tf.export.
      needs_ours: it also needs TensorFlow, which it finds among the packages installed here.
    """

    packages: tuple[str, ...]
    form: str
    needs_ours: bool = False


TOOLS = {
    "litert": Tool(("litert-quantizer>=0.11,<0.12",), "litert"),
    "onnxruntime": Tool(("onnxruntime", "onnx", "tf2onnx"), "onnxruntime", needs_ours=True),
    "openvino": Tool(("openvino", "nncf"), "openvino"),
}


def check_tools(names: list[str]) -> list[str]:
    """The names unchanged. Raises ValueError for an unknown, a repeated or no name."""
    return require_some(names, TOOLS, flag="tools")


def interpreter(name: str, *, environments: pathlib.Path) -> pathlib.Path:
    """The Python of a tool's environment, which is made where it is missing or was begun only.

    Raises: ValueError when its packages cannot be installed.
    """
    tool, folder = TOOLS[name], environments / name
    done, python = folder / "complete", folder / "bin" / "python"
    if sys.platform == "win32":
        python = folder / "Scripts" / "python.exe"
    if done.exists():
        return python
    say(f"installing {', '.join(tool.packages)} into {folder}")
    made = processes.run("venv", "--clear", str(folder))
    if made.code == 0:
        made = processes.run("pip", "install", "--quiet", *tool.packages, python=python)
    if made.code != 0:
        raise ValueError(
            f"The environment of {name} cannot be made: "
            f"{(made.stderr or made.stdout).strip()[-500:]}"
        )
    if tool.needs_ours:
        home = next(folder.glob("[lL]ib/**/site-packages"))
        (home / "ours.pth").write_text("\n".join(site.getsitepackages()))
    done.write_text("")
    return python


def run_tool(
    name: str, *, python: pathlib.Path, float_file: pathlib.Path, source: Source, x: np.ndarray
) -> np.ndarray:
    """Outputs float32 [images, ...] for x of the integer model that a tool makes.

    Args:
      name: a key of TOOLS.
      python: of the tool's environment, see `interpreter`.
      float_file: the float .tflite.
      source: the calibration images.
      x: inputs, float32 [images, ...].
    Raises: ValueError when the tool fails, with the end of what it printed.
    """
    with processes.temporary_folder() as folder:
        export(source, folder / "set", form=TOOLS[name].form)
        np.save(folder / "x.npy", x)
        paths = [str(each) for each in (float_file, folder / "set", folder / "x.npy")]
        ended = processes.run(
            "benchmarks.tools.program",
            name,
            *paths,
            str(folder / "outputs.npy"),
            python=python,
            timeout=_SECONDS,
        )
        if ended.code != 0:
            raise ValueError(f"{name} failed: {ended.stderr.strip()[-500:]}")
        return np.load(folder / "outputs.npy")
