"""File systems so small that tests can fill them."""

import contextlib
import subprocess

import pytest


@contextlib.contextmanager
def small_disk(folder, *, size):
    """Mounts a file system of `size` ("64k") on the folder; skips the test where that is not
    allowed.
    """
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
