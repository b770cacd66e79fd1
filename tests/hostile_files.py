"""Broken and hostile files of every kind that the commands read, by name. Each maker takes the path
to write.
"""

from __future__ import annotations

import functools
import io
import json
import os
import pathlib
import pickle
import zipfile

import numpy as np


class Trap:
    """Unpickled, it leaves a file behind: proof that pickled code ran."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def npy(header: str, data: bytes = b"") -> bytes:
    """A .npy of version 1 with any header text."""
    text = header.encode("latin1").ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def saved(array) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def npz(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


GOOD = np.linspace(0.0, 1.0, 4 * 8 * 8 * 3, dtype=np.float32).reshape(4, 8, 8, 3)
HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': %s, }"


def changed(value, at=(1, 2, 3, 0)) -> np.ndarray:
    array = GOOD.astype(np.float64)
    array[at] = value
    return array


def arrays(trap: pathlib.Path) -> dict[str, bytes]:
    """Contents of .npy files that no command may take as images [number, 8, 8, 3]."""
    whole = saved(GOOD)
    return {
        "empty file": b"",
        "magic alone": whole[:6],
        "half a header": whole[:40],
        "no data": whole[:128],
        "half the data": whole[:-1000],
        "one byte short": whole[:-1],
        "text": b"these are no numbers\n",
        "zeros": bytes(4096),
        "other magic": b"\x93NUMPX" + whole[6:],
        "version 9": whole[:6] + b"\x09\x00" + whole[8:],
        "header not python": npy("{'descr': <f4>, "),
        "header is code": npy("__import__('os').system('true')"),
        "header without shape": npy("{'descr': '<f4', 'fortran_order': False}"),
        "huge shape": npy(HEADER % "(1000000000000, 8, 8, 3)", b"\0" * 64),
        "overflowing shape": npy(HEADER % "(9223372036854775807, 8, 8, 3)"),
        "negative shape": npy(HEADER % "(-4, 8, 8, 3)", b"\0" * 3072),
        "shape of text": npy(HEADER % "('a', 8)"),
        "header of 2 GiB": b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little") + b"{" * 64,
        "header of 60000 brackets": b"\x93NUMPY\x01\x00"
        + (60000).to_bytes(2, "little")
        + b"(" * 60000,
        "unknown dtype": npy(
            "{'descr': 'zz', 'fortran_order': False, 'shape': (4, 8, 8, 3), }", b"\0" * 3072
        ),
        "pickled objects": saved(np.array([Trap(trap)] * 4, dtype=object)),
        "object header": npy(HEADER.replace("<f4", "|O") % "(4, 8, 8, 3)"),
        "bare pickle": pickle.dumps(Trap(trap)),
        "strings": saved(np.full((4, 8, 8, 3), "x")),
        "bytes": saved(np.full((4, 8, 8, 3), b"x")),
        "booleans": saved(GOOD > 0.5),
        "complex": saved(GOOD.astype(np.complex64)),
        "dates": saved(np.zeros((4, 8, 8, 3), "datetime64[s]")),
        "structured": saved(np.zeros((4, 8, 8, 3), [("a", "f4"), ("b", "i4")])),
        "void": saved(np.zeros((4, 8, 8, 3), "V4")),
        "no images": saved(GOOD[:0]),
        "scalar": saved(np.float32(1.0)),
        "one axis": saved(GOOD.ravel()),
        "one image": saved(GOOD[0]),
        "channels first": saved(GOOD.transpose(0, 3, 1, 2)),
        "one channel": saved(GOOD[..., :1]),
        "too large": saved(GOOD.repeat(2, 1)),
        "five axes": saved(GOOD[None]),
        "no height": saved(GOOD[:, :0]),
        "nan": saved(changed(np.nan)),
        "inf": saved(changed(np.inf)),
        "minus inf": saved(changed(-np.inf)),
        "all nan": saved(GOOD * np.nan),
        "constant": saved(GOOD * 0 + 0.5),
        "beyond float32": saved(changed(1e300)),
        "beyond the width of float32": saved(
            (changed(3e38) - np.where(GOOD < 0.01, 3e38, 0.0)).astype(np.float32)
        ),
    }


@functools.cache
def bomb() -> bytes:
    """A .npz of 64 KiB that unpacks to 64 MiB."""
    return zipped(
        {
            "x.npy": saved(np.zeros((87381, 8, 8, 3), np.float32)),
            "y.npy": saved(np.zeros(87381, int)),
        }
    )


def archives(trap: pathlib.Path) -> dict[str, bytes]:
    """Contents of .npz files that no command may take as images [number, 8, 8, 3] with labels."""
    whole = npz(x=GOOD, y=np.arange(4))
    bad = arrays(trap)
    return {
        "empty file": b"",
        "half": whole[: len(whole) // 2],
        "tail cut": whole[:-30],
        "text": b"no zip at all",
        "empty zip": zipped({}),
        "text member": zipped({"x.npy": b"no array"}),
        "only labels": npz(y=np.arange(4)),
        "truncated member": zipped({"x.npy": bad["half the data"]}),
        "huge member": zipped({"x.npy": bad["huge shape"]}),
        "pickled member": zipped({"x.npy": bad["pickled objects"], "y.npy": saved(np.arange(4))}),
        "strings": npz(x=np.full((4, 8, 8, 3), "x"), y=np.arange(4)),
        "nan": npz(x=changed(np.nan), y=np.arange(4)),
        "wrong shape": npz(x=GOOD[:, :4], y=np.arange(4)),
        "no images": npz(x=GOOD[:0], y=np.arange(0)),
        "flipped bit": whole[:400] + bytes([whole[400] ^ 64]) + whole[401:],
        "member of another type": zipped({"x.txt": b"text"}),
        "a .npy by name only": saved(GOOD),
        "bomb": bomb(),
    }


def labels(trap: pathlib.Path) -> dict[str, bytes]:
    """More contents that are no labelled set, though the images are fine."""
    return {
        "fewer labels": npz(x=GOOD, y=np.arange(3)),
        "labels of text": npz(x=GOOD, y=np.array(list("abcd"))),
        "float labels": npz(x=GOOD, y=np.linspace(0, 1, 4)),
        "negative labels": npz(x=GOOD, y=np.arange(4) - 2),
        "two axes": npz(x=GOOD, y=np.zeros((4, 2), int)),
        "pickled labels": zipped(
            {"x.npy": saved(GOOD), "y.npy": saved(np.array([Trap(trap)] * 4, dtype=object))}
        ),
        "other names": npz(images=GOOD, labels=np.arange(4)),
    }


def models(good: bytes, tflite: bytes) -> dict[str, bytes]:
    """Contents of .keras files that are no model. good: a whole .keras file."""
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])

    def with_config(edit) -> bytes:
        data = json.loads(json.dumps(config))
        edit(data)
        return zipped({**members, "config.json": json.dumps(data).encode()})

    layers = config["config"]["layers"]
    last = len(layers) - 1
    return {
        "empty file": b"",
        "text": b"a model, I promise",
        "half": good[: len(good) // 2],
        "tail cut": good[:-20],
        "zeros": bytes(10000),
        "flipped bit": good[:200] + bytes([good[200] ^ 255]) + good[201:],
        "tflite": tflite,
        "npz": npz(x=GOOD),
        "empty zip": zipped({}),
        "no config": zipped({k: v for k, v in members.items() if k != "config.json"}),
        "config no json": zipped({**members, "config.json": b"{"}),
        "config a list": zipped({**members, "config.json": b"[]"}),
        "config null": zipped({**members, "config.json": b"null"}),
        "no weights": zipped({k: v for k, v in members.items() if not k.endswith(".h5")}),
        "weights no hdf5": zipped({**members, "model.weights.h5": b"no weights"}),
        "weights cut": zipped({**members, "model.weights.h5": members["model.weights.h5"][:1000]}),
        "config bomb": zipped({**members, "config.json": bytes(300 * 2**20)}),
        "weights bomb": zipped({**members, "model.weights.h5": bytes(300 * 2**20)}),
        "unknown class": with_config(
            lambda c: c.update(
                class_name="Nothing", registered_name="Nothing", module="no.such.module"
            )
        ),
        "unknown layer": with_config(
            lambda c: c["config"]["layers"][1].update(
                class_name="Nothing", registered_name=None, module="x.y"
            )
        ),
        "lambda layer": with_config(
            lambda c: c["config"]["layers"][last].update(
                class_name="Lambda",
                config={
                    "name": "l",
                    "function": {
                        "class_name": "__lambda__",
                        "config": {"code": "4wEAAA==", "defaults": None, "closure": None},
                    },
                },
            )
        ),
        "a module's function": with_config(
            lambda c: c.update(module="os", class_name="system", registered_name=None)
        ),
        "no layers": with_config(lambda c: c["config"].update(layers=[])),
        "layers of text": with_config(lambda c: c["config"].update(layers="x")),
        "negative filters": with_config(
            lambda c: c["config"]["layers"][1]["config"].update(filters=-3)
        ),
        "other filters": with_config(
            lambda c: c["config"]["layers"][1]["config"].update(filters=7)
        ),
        "deep json": zipped({**members, "config.json": b"[" * 100000}),
        "path outside": zipped({"../outside.txt": b"x"}),
        "hdf5 cut": b"\x89HDF\r\n\x1a\n" + bytes(40),
        "hdf5 text": b"\x89HDF\r\n\x1a\nno tables at all, sorry",
    }


def manifests(sha256: str) -> dict[str, bytes]:
    """Contents of manifest.json of a generate folder that cannot be trusted. sha256: of its
    images.npy.
    """

    def made(**more) -> bytes:
        return json.dumps({"images_sha256": sha256, **more}).encode()

    return {
        "empty": b"",
        "no json": b"{not json",
        "list": b"[1, 2]",
        "number": b"5",
        "null": b"null",
        "binary": bytes(range(256)),
        "no sha256": b"{}",
        "sha256 of other images": made(images_sha256="0" * 64),
        "sha256 a number": made(images_sha256=5),
        "files no object": made(files="images.npy"),
        "files outside": made(files={"": "../../etc/passwd"}),
        "file missing": made(files={"": "gone.npy"}),
        "sha256 by input": made(images_sha256={"other": sha256}),
        "range of text": made(input_range="wide"),
        "range of one": made(input_range=[1]),
        "range empty": made(input_range=[]),
        "range reversed": made(input_range=[1, 0]),
        "range of nulls": made(input_range=[None, None]),
        "range far off": made(input_range=[1000, 2000]),
        "range with nan": b'{"images_sha256": "%s", "input_range": [NaN, NaN]}' % sha256.encode(),
        "range a number": made(input_range=3),
        "other model": made(model_sha256="0" * 64),
        "model a list": made(model_sha256=[1]),
        "deep": b"[" * 100000,
    }


# lists of models for the suite
_ENTRY = (
    b'{"models": [{"name": "a", "model": "m", "real": "r", "evaluation": "e", '
    b'"task": "detection", %s}]}'
)
LISTS = {
    **{
        value.decode(): _ENTRY % value
        for value in (
            b'"steps": true',
            b'"steps": 0',
            b'"batch_size": -4',
            b'"num_evaluation": -1',
            b'"num_images": [8, "x"]',
            b'"num_images": [[8]]',
            b'"num_images": [NaN]',
            b'"ablation_num_images": [0]',
            b'"schemes": [8]',
            b'"mlperf_tiny": "high"',
            b'"mlperf_tiny": NaN',
            b'"held_out": 1e99',
        )
    },
    "deep": b"[" * 200_000,
    "a long number": _ENTRY % (b'"steps": ' + b"9" * 5000),
    "a long name": (_ENTRY % b'"steps": 1').replace(b'"a"', b'"%s"' % (b"a" * 300)),
    "empty": b"",
    "no json": b"{",
    "a number": b"5",
    "no models": b"{}",
    "models a number": b'{"models": 3}',
    "models empty": b'{"models": []}',
    "entries of text": b'{"models": ["a"]}',
    "an entry without anything": b'{"models": [{}]}',
    "binary": bytes(range(256)),
    "unknown field": (
        b'{"models": [{"name": "a", "model": "m", "real": "r", "evaluation": "e", '
        b'"task": "classification", "colour": 1}]}'
    ),
    "bad name": (
        b'{"models": [{"name": "../a", "model": "m", "real": "r", "evaluation": "e", '
        b'"task": "classification"}]}'
    ),
    "bad task": (
        b'{"models": [{"name": "a", "model": "m", "real": "r", "evaluation": "e", '
        b'"task": "juggling"}]}'
    ),
    "twice": b'{"models": [%s, %s]}'
    % ((b'{"name": "a", "model": "m", "real": "r", "evaluation": "e", "task": "detection"}',) * 2),
    "numbers": (
        b'{"models": [{"name": 1, "model": 2, "real": 3, "evaluation": 4, "task": '
        b'"classification"}]}'
    ),
    "steps of text": (
        b'{"models": [{"name": "a", "model": "m", "real": "r", "evaluation": "e", '
        b'"task": "detection", "steps": "many"}]}'
    ),
}
