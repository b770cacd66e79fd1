"""The workers of a job meet before any of them starts TensorFlow, and make sure that they run
the same job.

TensorFlow's own way to meet is silent, endless and deaf to signals, and knows nothing of seeds: a
worker with other settings would make other images of the same job. So worker 0 first listens at its
own address of TF_CONFIG, hears what each other worker is about to run, and answers all of them.
Then the address is free again, and TensorFlow uses it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dgh_tf.common.run_folder import differences

_TURN = 0.2  # seconds between two looks at the clock and at signals
_ANSWER_SECONDS = 5.0  # in which whoever connects must say who it is
_MOST_BYTES = 2**20  # of a message
_EXAMPLE = (
    'Set it on every machine to {"cluster": {"worker": ["host1:port", "host2:port"]}, "task": '
    '{"type": "worker", "index": 0}}, with the machine\'s own index.'
)


@dataclasses.dataclass(frozen=True)
class Job:
    """The (host, port) of every worker of a job, and which of them this process is."""

    addresses: Sequence[tuple[str, int]]
    index: int

    def names(self, indices: Sequence[int]) -> str:
        """The addresses of some workers, for the user."""
        return ", ".join("{}:{}".format(*self.addresses[i]) for i in indices)


def read_job(strategy: str) -> Job:
    """The job that the variable TF_CONFIG tells of; of one worker for every strategy but
    multi_worker. Raises ValueError for a TF_CONFIG of another form.
    """
    if strategy != "multi_worker":
        return Job([("", 0)], 0)
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        index, kind = config["task"]["index"], config["task"]["type"]
        if set(config["cluster"]) != {"worker"}:
            raise ValueError("its cluster has other members than workers")
        job = Job([_address(text) for text in config["cluster"]["worker"]], int(index))
        if kind != "worker" or not 0 <= job.index < len(job.addresses):
            raise ValueError("its task is none of its workers")
        if len(set(job.addresses)) < len(job.addresses):
            raise ValueError("it gives two workers the same address")
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"strategy=multi_worker needs the variable TF_CONFIG ({error!r}). {_EXAMPLE}"
        ) from error
    return job


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.strip("[]")  # of an IPv6 address
    plain = bool(host) and all(c.isalnum() or c in ".-_:%" for c in host)
    if not plain or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"the worker {text!r} is not host:port")
    return host, int(port)


def meet(
    job: Job, identity: Mapping[str, Any], *, wait_seconds: float, say: Callable[[str], None]
) -> None:
    """Returns when all workers of the job are there and run the same; at once for a job of one.

    Args:
      job: the workers, and which of them this process is.
      identity: what must be equal, as `run_folder.run_identity` tells it.
      wait_seconds: for all workers together.
      say: gets a line while this waits.
    Raises:
      ValueError: another worker runs something else: the same on every worker. TimeoutError: one
        did not come. OSError: this worker's port is in use.
    """
    if len(job.addresses) == 1:
        return
    identity = json.loads(json.dumps(identity))  # as the others get it: lists for tuples
    others = [i for i in range(len(job.addresses)) if i != job.index]
    workers = f"{len(others)} worker{'s' * (len(others) > 1)}"
    say(f"waiting for {workers} at {job.names(others)}")
    limit = time.monotonic() + wait_seconds
    with _listening(job) as server:
        if job.index == 0:
            answer = _gather(job, server, identity, limit)
    if job.index:
        answer = _ask(job, identity, limit)
    if answer:
        raise ValueError(answer)


@contextlib.contextmanager
def _listening(job: Job) -> Iterator[socket.socket]:
    """A socket at this worker's own port: taken by every worker, if only to see that it is free."""
    port = job.addresses[job.index][1]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise OSError(
            f"worker {job.index} cannot listen at port {port} ({error.strerror}). End the program "
            "that uses it, or give another port in every worker's TF_CONFIG."
        ) from error
    with server:
        server.settimeout(_TURN)
        yield server


def _send(connection: socket.socket, value: Any) -> None:
    connection.sendall(json.dumps(value).encode() + b"\n")


def _receive(connection: socket.socket, limit: float) -> Any:
    """The next value that the other end sends. Raises OSError where it ends or sends none in time,
    ValueError for what is no JSON.
    """
    data = b""
    connection.settimeout(_TURN)
    while not data.endswith(b"\n"):
        if time.monotonic() > limit:
            raise TimeoutError("no answer")
        try:
            part = connection.recv(65536)
        except TimeoutError:
            continue
        if not part or len(data) > _MOST_BYTES:
            raise ConnectionError("the connection ended")
        data += part
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _gather(
    job: Job, server: socket.socket, identity: Mapping[str, Any], limit: float
) -> str | None:
    """Worker 0: hears all others and tells each the same: None, or what differs."""
    here: dict[int, socket.socket] = {}
    wrong: list[str] = []
    why = ""
    with contextlib.ExitStack() as stack:
        while len(here) < len(job.addresses) - 1:
            missing = [i for i in range(1, len(job.addresses)) if i not in here]
            if time.monotonic() > limit:
                raise _late(job, missing, why)
            try:
                connection, address = server.accept()
            except TimeoutError:
                continue  # nobody came in this turn
            stack.enter_context(connection)
            try:
                told = _receive(connection, time.monotonic() + _ANSWER_SECONDS)
                index, other = int(told["index"]), dict(told["identity"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                # no worker of ours, or one of another version: told if a worker stays missing
                why = f" (what connected from {address[0]} is no such worker: {error})"
                continue
            if index in missing:
                here[index] = connection
                wrong += [
                    f"{name}: {first!r} at worker 0, {second!r} at worker {index}"
                    for name, first, second in differences(identity, other)
                ]
            elif not _replaced(here, index, connection):
                wrong.append(f"two workers have the index {index}")
                here[-1] = connection
                break
        answer = _refusal(wrong) if wrong else None
        gone = [index for index, connection in here.items() if not _answered(connection, answer)]
        for connection in here.values():
            _await_end(connection)
    if gone and answer is None:
        raise ConnectionError(
            f"worker {', '.join(map(str, gone))} at {job.names(gone)} ended while the workers met. "
            "Look at what it says, and start the same command on all of them again."
        )
    return answer


def _replaced(here: dict[int, socket.socket], index: int, connection: socket.socket) -> bool:
    """Whether this is a worker that was there, ended, and was started again."""
    if index not in here or _is_there(here[index]):
        return False
    here[index] = connection
    return True


def _is_there(connection: socket.socket) -> bool:
    """Whether the other end, which waits for the answer, has not ended."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _answered(connection: socket.socket, answer: str | None) -> bool:
    """Whether the other end could be told the answer, not having ended in the meantime."""
    if not _is_there(connection):
        return False
    connection.settimeout(_ANSWER_SECONDS)
    try:
        _send(connection, {"refused": answer})
    except OSError:
        return False
    return True


def _await_end(connection: socket.socket) -> None:
    """Lets the other end close first: the end that does keeps its port for a while."""
    connection.settimeout(_ANSWER_SECONDS)
    try:
        while connection.recv(65536):
            pass
    except OSError:
        return  # it was reset, which ends it, too, or hangs, which TensorFlow's meeting will tell


def _refusal(wrong: Sequence[str]) -> str:
    return (
        f"the workers do not run the same job ({'; '.join(wrong)}). Give the same command on all "
        "of them, and in TF_CONFIG each its own index."
    )


def _ask(job: Job, identity: Mapping[str, Any], limit: float) -> str | None:
    """Every other worker: tells worker 0 what it is about to run and returns the answer."""
    why = ""
    while time.monotonic() < limit:
        try:
            with socket.create_connection(job.addresses[0], timeout=2.0) as connection:
                _send(connection, {"index": job.index, "identity": dict(identity)})
                return _receive(connection, limit)["refused"]
        except (OSError, UnicodeError) as error:
            why = f" ({error.strerror if isinstance(error, OSError) else error})"
        except (ValueError, KeyError, TypeError):
            why = " (another program answers there)"
        time.sleep(_TURN)
    raise _late(job, [0], why)


def _late(job: Job, missing: Sequence[int], why: str) -> TimeoutError:
    return TimeoutError(
        f"worker {', '.join(map(str, missing))} at {job.names(missing)} did not come within "
        f"--wait_minutes{why}. Start the same command there, or look at TF_CONFIG and the network."
    )
