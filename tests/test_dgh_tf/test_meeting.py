"""Workers meet over real sockets: they learn of every difference before any of them starts, say for
whom they wait, and end by a signal, after a time, or at once where they cannot meet.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from benchmarks.measure.ports import free_ports
from dgh_tf.run.meeting import Job, meet, read_job

ROOT = pathlib.Path(__file__).resolve().parents[2]
IDENTITY = {"model_sha256": "ab", "config": {"seed": 1, "steps": 5}, "version": "0.1"}


def addresses(count):
    return [("127.0.0.1", port) for port in free_ports(count)]


def met(places, identities, *, jobs=None, wait=20.0, late=0.0):
    """What each worker got: None, or its exception. jobs: of each, where they are not one job's.
    late: seconds before worker 0 comes.
    """
    jobs = jobs or [Job(places, number) for number in range(len(places))]

    def one(number):
        if number == 0:
            time.sleep(late)
        try:
            meet(jobs[number], identities[number], wait_seconds=wait, say=lambda text: None)
        except (ValueError, OSError) as error:
            return error
        return None

    with concurrent.futures.ThreadPoolExecutor(len(identities)) as threads:
        return list(threads.map(one, range(len(identities))))


@pytest.mark.parametrize("late", [0.0, 1.0])
def test_three_equal_workers_meet_whoever_comes_first(late):
    assert met(addresses(3), [IDENTITY] * 3, late=late) == [None] * 3


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model_sha256": "cd"}, "model_sha256: 'ab' at worker 0, 'cd' at worker 2"),
        ({"config": {"seed": 2, "steps": 5}}, "seed: 1 at worker 0, 2 at worker 2"),
        ({"version": "0.2"}, "version: '0.1' at worker 0, '0.2' at worker 2"),
        ({"output_dir": "b"}, "output_dir: None at worker 0, 'b' at worker 2"),
    ],
)
def test_all_workers_refuse_and_name_what_differs(changed, words):
    errors = met(addresses(3), [IDENTITY, IDENTITY, {**IDENTITY, **changed}])
    assert all(isinstance(error, ValueError) for error in errors)
    assert all(words in str(error) for error in errors) and len(set(map(str, errors))) == 1


def test_an_index_given_twice_is_refused():
    places = addresses(4)
    # the second worker 1 is on another machine: the two never listen at one port
    elsewhere = [places[0], *addresses(1), *places[2:]]
    jobs = [Job(places, 0), Job(places, 1), Job(elsewhere, 1)]
    errors = met(places, [IDENTITY] * 3, jobs=jobs, wait=5)
    assert any("two workers have the index 1" in str(error) for error in errors), errors
    assert all(errors)


def test_strangers_that_connect_change_nothing():
    places = addresses(2)
    told = threading.Event()

    def stranger(data):
        while not told.is_set():
            with contextlib.suppress(OSError), socket.create_connection(places[0], 1) as connection:
                connection.sendall(data)
                time.sleep(0.05)

    texts = [b"GET / HTTP/1.1\r\n\r\n", b"[" * 100_000 + b"\n", b"\n", b'{"index": 1}\n', b"\xff\n"]
    threads = [threading.Thread(target=stranger, args=[text], daemon=True) for text in texts]
    for thread in threads:
        thread.start()
    try:
        assert met(places, [IDENTITY] * 2, late=0.5, wait=60) == [None, None]
    finally:
        told.set()
        for thread in threads:
            thread.join()


def said_by(place, data):
    """Connects as soon as there is somebody, sends and ends."""
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(place, 1) as connection:
            connection.sendall(data)
            return
        time.sleep(0.05)


def test_what_another_version_says_is_told_when_its_worker_stays_away():
    places = addresses(2)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        threads.submit(said_by, places[0], b'{"number": 1}\n')
        with pytest.raises(TimeoutError, match=r"from .*127\.0\.0\.1 is no such worker: 'index'"):
            meet(Job(places, 0), IDENTITY, wait_seconds=3.0, say=lambda text: None)


def test_a_worker_that_ends_while_all_meet_is_missed_at_once():
    places = addresses(3)
    hello = json.dumps({"index": 2, "identity": IDENTITY}).encode() + b"\n"
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        threads.submit(said_by, places[0], hello)
        last = threads.submit(
            lambda: (time.sleep(1), meet(Job(places, 1), IDENTITY, wait_seconds=9, say=print))
        )
        with pytest.raises(ConnectionError, match=f"worker 2 at 127.0.0.1:{places[2][1]} ended"):
            meet(Job(places, 0), IDENTITY, wait_seconds=20.0, say=lambda text: None)
        last.result()


def test_a_worker_that_never_comes_and_a_port_in_use():
    places = addresses(2)
    for index, missing in ((0, 1), (1, 0)):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=f"worker {missing} at 127.0.0.1:.*did not come"):
            meet(Job(places, index), IDENTITY, wait_seconds=1.0, say=lambda text: None)
        assert time.monotonic() - began < 10
    port = places[0][1]
    refused = pytest.raises(OSError, match=f"port {port} .*another port")
    with socket.create_server(("", port)), refused:
        meet(Job(places, 0), IDENTITY, wait_seconds=1.0, say=lambda text: None)


def test_a_host_that_there_is_not_is_named(monkeypatch):
    places = [("no-such-host.invalid", 4000), *addresses(1)]
    with pytest.raises(TimeoutError, match="no-such-host.invalid:4000 did not come"):
        meet(Job(places, 1), IDENTITY, wait_seconds=1.0, say=lambda text: None)


def set_cluster(monkeypatch, workers, index=0, **more):
    config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}, **more}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))


@pytest.mark.parametrize(
    "workers",
    [
        ["a:1", "b"],
        ["a:1", "b:port"],
        ["a:1", "b:0"],
        ["a:1", "b:65536"],
        ["a:1", ":5"],
        ["a:1", "b\x1b[2J:5"],
        ["a:1", "b c:5"],
        ["a:1", "a:1"],
        ["a:1", 5],
        ["a:1", None],
        [],
        "a:1",
        None,
        {"a": 1},
    ],
)
def test_clusters_that_make_no_sense_are_refused(workers, monkeypatch):
    set_cluster(monkeypatch, workers)
    with pytest.raises(ValueError, match="needs the variable TF_CONFIG"):
        read_job("multi_worker")


def test_tf_config_as_it_should_be(monkeypatch):
    set_cluster(monkeypatch, ["host1:2222", "[::1]:2223"], 1)
    assert read_job("multi_worker") == Job([("host1", 2222), ("::1", 2223)], 1)
    for text in ("", "{", "[]", "5", "[" * 10_000, '{"cluster": {}, "task": 5}'):
        monkeypatch.setenv("TF_CONFIG", text)
        with pytest.raises(ValueError, match="TF_CONFIG"):
            read_job("multi_worker")
    monkeypatch.delenv("TF_CONFIG")
    with pytest.raises(ValueError, match="TF_CONFIG"):
        read_job("multi_worker")
    assert read_job("mirrored").index == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("index", [0, 1])
def test_a_waiting_command_says_so_and_ends_by_a_signal_at_once(number, index, work, tmp_path):
    places = addresses(2)
    with worker_of_two(index, places, work / "good.keras", tmp_path / "run") as process:
        line = process.stdout.readline()
        assert line == "waiting for 1 worker at {}:{}\n".format(*places[1 - index])
        began = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
        assert time.monotonic() - began < 3 and process.returncode == 128 + number
        assert err.startswith("stopped: ") and err.count("\n") == 1, err
        assert not (tmp_path / "run").exists()


def tell_worker(place, told):
    """Is a worker 1 that meets worker 0 at `place`, and returns what worker 0 answers."""
    for _ in range(600):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(place) as there:
            there.sendall(json.dumps(told).encode() + b"\n")
            return json.loads(there.makefile().readline())
        time.sleep(0.1)
    raise TimeoutError("worker 0 does not listen")


def hear_worker(place):
    """Is a worker 0 that meets worker 1 at `place`, and returns what worker 1 told."""
    with socket.create_server(place) as server:
        server.settimeout(60)
        with server.accept()[0] as there:
            told = json.loads(there.makefile().readline())
            there.sendall(b'{"refused": null}\n')
    return told


def wait_for_tensorflow(place):
    """Until TensorFlow listens at a worker's port; a moment later it waits for the others."""
    for _ in range(600):
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(place):
            time.sleep(1.0)
            return
        time.sleep(0.1)
    raise TimeoutError("TensorFlow does not listen")


@contextlib.contextmanager
def worker_of_two(index, places, model, folder, *options):
    """The command as one worker of two."""
    hosts = ["{}:{}".format(*place) for place in places]
    config = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "dgh_tf.generate", f"--model={model}"),
            *(f"--output_dir={folder}", "--strategy=multi_worker", *options),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TF_CONFIG": json.dumps(config)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_worker_whose_peer_ends_before_tensorflow_meets_ends_too(work, tmp_path):
    """TensorFlow itself would wait for many minutes, with Python's lock held."""
    model, places = work / "good.keras", addresses(2)
    patience = "--wait_minutes=0.1"
    with worker_of_two(1, places, model, tmp_path / "run", patience) as other:
        told = hear_worker(places[0])  # ... and worker 0 is gone
        wait_for_tensorflow(places[1])
        other.send_signal(signal.SIGTERM)
        _, text = other.communicate(timeout=5)
        assert (other.returncode, text) == (143, "stopped: while the workers met.\n")
    with worker_of_two(0, places, model, tmp_path / "run", patience) as chief:
        assert tell_worker(places[0], told) == {"refused": None}  # ... and worker 1 is gone
        _, text = chief.communicate(timeout=60)
        assert chief.returncode == 1 and text.count("\n") == 1, text
        assert text.startswith("error: a worker ended while all of them met."), text
