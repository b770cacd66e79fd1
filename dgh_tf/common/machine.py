"""What a result was made on, in words."""

from __future__ import annotations

import os
import pathlib
import platform


def describe() -> str:
    """The processor and the number of its logical CPUs.

    Example:
      describe()  # "AMD EPYC 7B13, 2 logical CPUs"
    """
    info = pathlib.Path("/proc/cpuinfo")  # Linux alone has it
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} logical CPUs"
