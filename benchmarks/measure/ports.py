"""Free ports of this machine for workers of one job."""

from __future__ import annotations

import contextlib
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
