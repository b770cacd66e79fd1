"""Calibration sets as files, one writer for each form that other tools take.

To add a form: a writer, its line in FORMATS, and its row in docs/guide/calibration_sets.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import zipfile
from collections.abc import Callable

import numpy as np

from dgh_tf.calibration_sets.modules import MODULES
from dgh_tf.calibration_sets.source import Input, Source
from dgh_tf.common.files import atomic_folder
from dgh_tf.common.run_folder import image_files

_BYTE = 255.0
_OUTSIDE = 0.5 / _BYTE  # of the range: values that rounding to bytes keeps inside
_EXACT = 6  # decimals of mean and std


@dataclasses.dataclass(frozen=True)
class Format:
    """A form of calibration sets.

    Attributes:
      tools: who takes it. how: one line for the user, of the folder's files.
      write: the set into a folder; returns each input's part of calibration.json.
      check: raises ValueError for what the form cannot hold.
    """

    tools: str
    how: str
    write: Callable[[Source, pathlib.Path], list[dict]]
    check: Callable[[Source], None] = lambda source: None


def _save(path: pathlib.Path, images: np.ndarray) -> None:
    np.save(path, np.ascontiguousarray(images, "<f4"), allow_pickle=False)


def _write_arrays(source: Source, folder: pathlib.Path) -> list[dict]:
    files = image_files([each.name for each in source.inputs])
    for each in source.inputs:
        _save(folder / files[each.name], each.images)
    return [{"file": files[each.name]} for each in source.inputs]


def _write_module(source: Source, folder: pathlib.Path, *, name: str) -> list[dict]:
    file, text = MODULES[name]
    (folder / file).write_text(text, encoding="utf-8")
    return _write_arrays(source, folder)


def _write_npz(source: Source, folder: pathlib.Path) -> list[dict]:
    """numpy.savez takes names as arguments and so not any name; an .npz file holds any."""
    with zipfile.ZipFile(folder / "images.npz", "w") as archive:
        for each in source.inputs:
            member = zipfile.ZipInfo(f"{each.name}.npy")  # dated 1980: the same bytes each time
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(each.images, "<f4"), allow_pickle=False)
    return [{"file": "images.npz", "key": each.name} for each in source.inputs]


def _sample_files(source: Source, suffix: str) -> list[list[str]]:
    """Files of every image, one for each input: 00000.raw, or input_name/00000.raw of several."""
    plain = image_files([each.name for each in source.inputs])
    one = len(source.inputs) == 1
    return [
        [
            f"images/{i:05d}{suffix}"
            if one
            else f"{pathlib.PurePath(plain[each.name]).stem}/{i:05d}{suffix}"
            for each in source.inputs
        ]
        for i in range(source.count)
    ]


def _write_samples(
    source: Source,
    folder: pathlib.Path,
    *,
    suffix: str,
    save: Callable[[pathlib.Path, Input, int], None],
    list_file: str,
    line: Callable[[list[str]], str],
) -> list[dict]:
    """One file per image and input, and the list of them."""
    rows = _sample_files(source, suffix)
    for i, row in enumerate(rows):
        for each, file in zip(source.inputs, row, strict=True):
            (folder / file).parent.mkdir(exist_ok=True)
            save(folder / file, each, i)
    (folder / list_file).write_text("".join(f"{line(row)}\n" for row in rows), encoding="utf-8")
    return [
        {"folder": str(pathlib.PurePosixPath(file).parent), "list": list_file} for file in rows[0]
    ]


def _write_raw(source: Source, folder: pathlib.Path) -> list[dict]:
    names = [each.name for each in source.inputs]

    def save(path: pathlib.Path, each: Input, i: int) -> None:
        path.write_bytes(each.images[i].astype("<f4").tobytes())

    def line(files: list[str]) -> str:
        if len(files) == 1:
            return files[0]
        return " ".join(f"{name}:={file}" for name, file in zip(names, files, strict=True))

    return _write_samples(
        source,
        folder,
        suffix=".raw",
        save=save,
        list_file="input_list.txt",
        line=line,
    )


def _check_raw(source: Source) -> None:
    bad = [each.name for each in source.inputs if any(c.isspace() or c == ":" for c in each.name)]
    if bad and len(source.inputs) > 1:
        raise ValueError(
            f"A line of input_list.txt cannot hold the input name {bad[0]!r}. Give another one "
            "with --input_names."
        )


def _write_npy_list(source: Source, folder: pathlib.Path) -> list[dict]:
    return _write_samples(
        source,
        folder,
        suffix=".npy",
        save=lambda path, each, i: _save(path, each.images[i : i + 1]),
        list_file="dataset.txt",
        line=" ".join,
    )


def _mapped(each: Input) -> tuple[np.ndarray, np.ndarray]:
    """(mean, std) as image tools name them, [1] or [channels]: model input = (pixel - mean) / std.

    pixel 0 is the range's low end and 255 its high end.
    """
    std = _BYTE / (each.high - each.low)
    return (0.0 - each.low) * std, std


def _pixels(each: Input, i: int) -> np.ndarray:
    """uint8 [height, width, channels] of one image."""
    image = np.asarray(each.images[i], np.float64)
    if each.channels_first:
        image = image.transpose(1, 2, 0)
    mean, std = _mapped(each)
    return np.clip(np.rint(image * std + mean), 0, _BYTE).astype(np.uint8)


def _write_png(source: Source, folder: pathlib.Path) -> list[dict]:
    from PIL import Image

    def save(path: pathlib.Path, each: Input, i: int) -> None:
        pixels = _pixels(each, i)
        Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)

    parts = _write_samples(
        source, folder, suffix=".png", save=save, list_file="dataset.txt", line=" ".join
    )
    mean, std = (value.round(_EXACT).tolist() for value in _mapped(source.inputs[0]))
    return [{**parts[0], "mean": mean, "std": std}]


def _check_png(source: Source) -> None:
    instead = "Use --format=npy, npz, npy_list or raw, which keep the values as they are."
    if len(source.inputs) > 1:
        raise ValueError(
            f"A folder of .png files is for models with one input; this one has "
            f"{', '.join(each.name for each in source.inputs)}. {instead}"
        )
    each = source.inputs[0]
    shape = each.images.shape[1:]
    channels = shape[0 if each.channels_first else -1]
    if len(shape) != 3 or channels not in (1, 3):
        raise ValueError(
            f"A .png file holds [height, width, 1 or 3]; these images are {list(shape)}. {instead}"
        )
    if each.low.size not in (1, channels):
        raise ValueError(
            f"The input range has {each.low.size} values for {channels} channels. {instead}"
        )
    axes = (0, 2, 3) if each.channels_first else (0, 1, 2)
    width = each.high - each.low
    below = (each.low - each.images.min(axis=axes)) / width
    above = (each.images.max(axis=axes) - each.high) / width
    if max(below.max(), above.max()) > _OUTSIDE:
        raise ValueError(
            f"Images go beyond the input range {each.low.tolist()} to {each.high.tolist()}, and "
            f"bytes would cut them off. {instead}"
        )


FORMATS: dict[str, Format] = {
    "litert": Format(
        "litert-quantizer, litert quantize",
        "calib_data.py defines get_calibration_data()",
        functools.partial(_write_module, name="litert"),
    ),
    "onnxruntime": Format(
        "onnxruntime.quantization",
        "calibration_reader.py defines CalibrationImages, a CalibrationDataReader",
        functools.partial(_write_module, name="onnxruntime"),
    ),
    "openvino": Format(
        "NNCF for OpenVINO",
        "calibration_dataset.py defines calibration_dataset(), an nncf.Dataset",
        functools.partial(_write_module, name="openvino"),
    ),
    "mct": Format(
        "Sony's Model Compression Toolkit",
        "representative_data.py defines representative_data_gen()",
        functools.partial(_write_module, name="mct"),
    ),
    "png": Format(
        "Rockchip RKNN and other tools that read image files",
        "dataset.txt lists the files in images; pixel values are bytes",
        _write_png,
        _check_png,
    ),
    "npy": Format(
        "Hailo, Edge Impulse, NVIDIA ModelOpt",
        "images.npy (one file per input) is float32 in model input units",
        _write_arrays,
    ),
    "npy_list": Format(
        "Rockchip RKNN for signals and several inputs",
        "dataset.txt lists one .npy file per image and input, float32 with batch 1",
        _write_npy_list,
    ),
    "npz": Format(
        "ST Edge AI, NVIDIA ModelOpt",
        "images.npz holds an array per input name, float32 in model input units",
        _write_npz,
    ),
    "raw": Format(
        "Qualcomm QNN, QAIRT and SNPE",
        "input_list.txt lists files of bare little-endian float32; run the tool in that folder",
        _write_raw,
        _check_raw,
    ),
}


def export(source: Source, output: pathlib.Path, *, form: str) -> dict:
    """Writes a calibration set as a folder, whole or not at all.

    Args:
      source: what `load` gave.
      output: a folder that does not exist, or an empty one.
      form: a key of FORMATS.
    Returns: what calibration.json in the folder says: format, number of images, sha256 of the
      model, and per input name, shape, units and files.
    Raises: ValueError when the form cannot hold the images; OSError when nothing can be written.

    Example: `export(load(pathlib.Path("images")), pathlib.Path("calib"), form="litert")`
    """
    chosen = FORMATS[form]
    chosen.check(source)
    with atomic_folder(output, flag="output") as folder:
        parts = chosen.write(source, folder)
        described = {
            "format": form,
            "for": chosen.tools,
            "how": chosen.how,
            "images": source.count,
            "model_sha256": source.model_sha256,
            "inputs": [
                {
                    "name": each.name,
                    "shape": list(each.images.shape[1:]),
                    "low": each.low.tolist(),
                    "high": each.high.tolist(),
                    **part,
                }
                for each, part in zip(source.inputs, parts, strict=True)
            ],
        }
        text = json.dumps(described, indent=1) + "\n"
        (folder / "calibration.json").write_text(text, encoding="utf-8")
    return described
