"""TensorFlow's meeting of several workers without Python's lock.

TensorFlow's binding keeps the lock until all workers are there. Where one of them ended a moment
before, no other thread runs for many minutes: neither a time limit nor a signal ends the process.
The same C function, called by ctypes, lets the other threads run.
"""

from __future__ import annotations

import contextlib
import ctypes
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_NAME = "TFE_EnableCollectiveOps"


@contextlib.contextmanager
def unlocked_meeting() -> Iterator[None]:
    """Within it workers meet while Python's other threads run. Where TensorFlow's library does not
    show the function (Windows), they meet as TensorFlow does it.

    Raises: tf.errors.OpError where they cannot meet.

    Example: `with unlocked_meeting(): tf.distribute.MultiWorkerMirroredStrategy()`
    """
    from tensorflow.python.eager import context

    bindings: Any = context.pywrap_tfe
    binding, own = getattr(bindings, _NAME, None), _enable_collectives()
    if binding is None or own is None:
        yield
        return
    setattr(bindings, _NAME, own)
    try:
        yield
    finally:
        setattr(bindings, _NAME, binding)


def _enable_collectives() -> Callable[[object, bytes], None] | None:
    """The C function with the arguments of its binding: a context and a serialized ServerDef."""
    found = sorted(pathlib.Path(tf.sysconfig.get_lib()).glob("libtensorflow_cc.*"))
    if not found:
        return None
    try:
        library = ctypes.CDLL(str(found[0]))  # the one that runs: it is loaded once
        enable = getattr(library, _NAME)
        new_status, delete_status = library.TF_NewStatus, library.TF_DeleteStatus
        get_code, get_message = library.TF_GetCode, library.TF_Message
    except (OSError, AttributeError):
        return None
    enable.restype = delete_status.restype = None
    enable.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
    new_status.restype, new_status.argtypes = ctypes.c_void_p, ()
    get_code.restype, get_message.restype = ctypes.c_int, ctypes.c_char_p
    for function in (delete_status, get_code, get_message):
        function.argtypes = (ctypes.c_void_p,)
    # PyDLL, of pythonapi, keeps the lock, which reading a Python object needs
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)

    def enabled(context: object, server: bytes) -> None:
        status = new_status()
        try:
            enable(pointer(context, None), server, len(server), status)
            code, message = get_code(status), get_message(status).decode(errors="replace")
        finally:
            delete_status(status)
        if code:
            raise tf.errors.OpError(None, None, message or f"error {code}", code)

    return enabled
