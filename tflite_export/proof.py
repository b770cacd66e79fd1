"""What stands beside an integer file: F.json, the proof that F.tflite is fully integer."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dgh_tf.common.files import atomic_path, in_turn, read_json, require_writable, with_checksum
from tflite_export.calibration.check import Images
from tflite_export.tflite.integer_check import check_integer
from tflite_export.tflite.schemes import SCHEMES


def proof(
    tflite: bytes,
    *,
    scheme: str,
    float_weight_bytes: int,
    images: Images,
    calibration_sha256: str,
    model_sha256: str | None,
) -> dict[str, Any]:
    """What F.json holds. Raises IntegerError when the file is not fully integer.

    Args:
      tflite: the integer file.
      scheme: one of SCHEMES, whose types the file's ends must have.
      float_weight_bytes: size of the model's weights as float32, for comparison.
      images: that calibrated the file, [images, ...], or a dict by input name.
      calibration_sha256: of them.
      model_sha256: of the model's file, None for a model that came as an object.
    """
    arrays = images if isinstance(images, Mapping) else {"images": images}
    return {
        "scheme": scheme,
        **check_integer(tflite, io_dtype=SCHEMES[scheme].io_dtype),
        "float_weight_bytes": float_weight_bytes,
        "sha256": {
            "model": model_sha256,
            "calibration": calibration_sha256,
            "tflite": hashlib.sha256(tflite).hexdigest(),
        },
        "calibration": {
            name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in arrays.items()
        },
        "versions": {"tensorflow": importlib.metadata.version("tensorflow")},
    }


def calibrated_on(tflite: pathlib.Path) -> str | None:
    """sha256 of the images that calibrated a file, as the proof beside it tells; None where there
    is no proof. Raises ValueError for a damaged one.
    """
    beside = tflite.with_suffix(".json")
    data = read_json(beside) if beside.exists() else None
    hashes = data.get("sha256") if isinstance(data, dict) else None
    return hashes.get("calibration") if isinstance(hashes, dict) else None


def output_paths(text: str | pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The .tflite file to write and its .json file. Raises ValueError for another ending, OSError
    where they cannot be written, or where the .json is somebody's own file.
    """
    path = pathlib.Path(text)
    if path.suffix != ".tflite":
        raise ValueError(
            f"output={text} does not end in .tflite. The proof goes beside it as "
            ".json; give F.tflite."
        )
    beside = require_writable(path.with_suffix(".json"), flag="output")
    if beside.exists() and not _is_proof(beside):
        raise FileExistsError(
            f"--output={text}: {beside} is no proof of an earlier conversion, and would be "
            "replaced. Give another name, or remove it."
        )
    return require_writable(path, flag="output"), beside


def _is_proof(path: pathlib.Path) -> bool:
    try:
        data = read_json(path)
    except ValueError:
        return False
    return isinstance(data, dict) and "fully_integer" in data


def proof_bytes(report: Mapping[str, Any]) -> bytes:
    """What F.json holds, with a checksum, for readers to know damage."""
    return (json.dumps(with_checksum(report), indent=1) + "\n").encode()


def write_set(files: Mapping[pathlib.Path, bytes]) -> None:
    """Writes all files, whole, before any takes its place, so that a full disk leaves the old ones,
    and files of two processes do not mix. Raises OSError.
    """
    with contextlib.ExitStack() as stack:
        for folder in {path.parent for path in files}:
            stack.enter_context(in_turn(folder))
        for path, data in files.items():
            stack.enter_context(atomic_path(path)).write_bytes(data)


def summary(name: str, report: Mapping[str, Any]) -> str:
    """One line on an integer file: its operators, ends and size."""
    ends = {e["dtype"].lower() for e in report["inputs"] + report["outputs"]}
    return (
        f"{name}: {sum(report['operators'].values())} operators, all integer; "
        f"{'/'.join(sorted(ends))} in and out; "
        f"{report['bytes'] / 1024:.0f} KiB (the float32 weights alone take "
        f"{report['float_weight_bytes'] / 1024:.0f})"
    )
