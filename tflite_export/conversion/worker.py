"""The process that runs TensorFlow's converter; a crash in it ends only this process.

`python -m tflite_export.conversion.worker FOLDER`. FOLDER/request.json says what to do; it holds
FOLDER/model (a SavedModel with the signature serving_default) and one FOLDER/<n>.npy of calibration
images per input; or FOLDER/calibrated.tflite, a float file with the ranges of its activations.
Leaves FOLDER/model.tflite, or FOLDER/error.txt with the exception's text, or ends with the code
ENOSPC where the disk has no room.

Without FOLDER it imports TensorFlow once, then reads folders from stdin, one JSON string a line,
does each in a fork of itself, whose stderr goes to FOLDER/stderr.txt, and answers with the fork's
exit code, a signal as its negative number.
"""

from __future__ import annotations

import errno
import json
import os
import pathlib
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable

import numpy as np

from dgh_tf.common.files import is_full_disk
from dgh_tf.common.quick_import import UNUSED, quick_import
from tflite_export.calibration.check import representative_dataset
from tflite_export.tflite.schemes import SCHEMES


def convert(folder: pathlib.Path) -> bytes:
    """Returns the .tflite bytes for the request in `folder`; scheme null means a float model."""
    request = json.loads((folder / "request.json").read_text())
    # of no use to a reader, and the last lines of a crash are shown
    warnings.filterwarnings("ignore", message=r"\s*Warning: tf\.lite\.Interpreter is deprecated")
    import tensorflow as tf

    if (folder / "calibrated.tflite").exists():
        from tensorflow.lite.python.convert import mlir_quantize

        return mlir_quantize(
            (folder / "calibrated.tflite").read_bytes(),
            input_data_type=tf.int8,
            output_data_type=tf.int8,
        )
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "model"))
    if request["scheme"] is not None:
        scheme = SCHEMES[request["scheme"]]
        arrays = {
            name: np.load(folder / f"{i}.npy", mmap_mode="r", allow_pickle=False)
            for i, name in enumerate(request["inputs"])
        }
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = representative_dataset(arrays)
        converter.target_spec.supported_ops = [getattr(tf.lite.OpsSet, scheme.converter_operators)]
        io_dtype = getattr(tf, scheme.io_dtype)
        converter.inference_input_type = converter.inference_output_type = io_dtype
    return converter.convert()


def main(argv: list[str], make: Callable[[pathlib.Path], bytes]) -> int:
    """Leaves FOLDER/model.tflite with what `make` gives for the folder, or FOLDER/error.txt with
    its exception's text. Returns the exit code.
    """
    folder = pathlib.Path(argv[1])
    try:
        data = make(folder)
        (folder / "model.tflite").write_bytes(data)
    except Exception as error:
        if is_full_disk(error):  # no text would fit either
            return errno.ENOSPC
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
        raise
    return 0


def _in_fork(folder: str, answers: int) -> None:
    """One conversion, in a process that has forked for it and never returns from here."""
    code = 1
    try:
        os.close(answers)
        held = os.open(
            os.path.join(folder, "stderr.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600
        )
        for old, new in ((held, 2), (held, 1), (os.open(os.devnull, os.O_RDONLY), 0)):
            os.dup2(old, new)
        code = main(["", folder], convert)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # as in a fork of a process that had none
                stream.flush()
        os._exit(code)


def serve() -> None:
    """Converts folder after folder until stdin ends. Nothing here may run a TensorFlow operation:
    its threads would not be in a fork.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody can wait for a fork
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever an import prints is no answer
    # TensorFlow imports Keras where it can
    with quick_import(unused=(*UNUSED, "keras.src")):
        import tensorflow as tf
        from tensorflow.lite.python import convert as _  # noqa: F401 - what is imported here no fork has to import

        assert tf.lite.TFLiteConverter and tf.lite.OpsSet  # loaded at the first use
    folders = open(0, "rb", closefd=False)  # noqa: SIM115 - sys.stdin may hold what a parent read
    for line in iter(folders.readline, b""):
        ended, held = (
            os.pipe()
        )  # only the fork holds its end: it closes when the fork ends, in whatever way
        child = os.fork()
        if child == 0:
            _in_fork(json.loads(line), answers)
        os.close(held)
        if (
            0 in select.select([0, ended], [], [])[0]
        ):  # the next line comes after the answer, so this is the parent's end
            os.kill(child, signal.SIGKILL)
            return
        os.close(ended)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if len(sys.argv) > 1:
        sys.exit(main(sys.argv, convert))
    serve()
