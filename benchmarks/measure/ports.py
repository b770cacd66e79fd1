"""Free ports of this machine for workers of one job, and the environment of each worker."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket

# Below those that systems give to outgoing connections: else another program's connection, or a
# worker's own that is tried before the other end listens, may take the port in between.
_PORTS = range(20000, 32768)


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens now. Raises OSError where too few are found.

    Example: `free_ports(2)`
    """
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(found) == count:
                return found
            each = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind(("127.0.0.1", port))
                found.append(port)
    raise OSError(f"fewer than {count} ports of {_PORTS.start} to {_PORTS.stop - 1} are free")


def job_environments(workers: int) -> list[dict[str, str]]:
    """The environment of each of so many workers of one job on this machine, this process's own
    and TF_CONFIG. Raises as `free_ports` does.
    """
    hosts = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    jobs = [
        {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        for index in range(workers)
    ]
    return [{**os.environ, "TF_CONFIG": json.dumps(job)} for job in jobs]
