"""What a result was made on, in words."""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import sys

_INFO = pathlib.Path("/proc/cpuinfo")  # Linux alone has it


def processor() -> str:
    """The processor's name, or its architecture where the system does not tell.

    Example:
      processor()  # "AMD EPYC 7B13"
    """
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = _INFO.read_text(errors="replace").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe() -> str:
    """The processor and the number of its logical CPUs.

    Example:
      describe()  # "AMD EPYC 7B13, 2 logical CPUs"
    """
    return f"{processor()}, {os.cpu_count()} logical CPUs"


def peak_memory() -> int | None:
    """The most bytes that this process has held, None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # Linux counts in KiB
