"""Two workers on loopback: they finish as one job, and one that is killed ends the other with a clear error, to be gone on with."""
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_models

ROOT = pathlib.Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start_job(model_path, folder, *, steps):
    """Two processes of one command, each with its own TF_CONFIG."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    command = [sys.executable, "-m", "dgh_tf.generate", f"--model={model_path}", f"--output_dir={folder}", "--input_range=-1,1",
               "--num_images=12", "--batch_size=3", f"--steps={steps}", "--strategy=multi_worker", "--checkpoint_seconds=1"]
    return [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={
        **os.environ, "PYTHONPATH": str(ROOT), "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}})})
        for i in range(2)]


def finish(process, *, timeout=180):
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    return path


def test_two_workers_match_the_statistics_as_one_process_does(model_path, tmp_path):
    ended = [finish(process) for process in start_job(model_path, tmp_path / "two", steps=60)]
    assert [code for code, *_ in ended] == [0, 0], ended
    subprocess.run([sys.executable, "-m", "dgh_tf.generate", f"--model={model_path}", f"--output_dir={tmp_path / 'one'}",
                    "--input_range=-1,1", "--num_images=12", "--batch_size=6", "--steps=60"], cwd=ROOT, check=True, capture_output=True)
    two, one = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("two", "one"))
    assert np.load(tmp_path / "two" / "images.npy").shape == (12, 16, 16, 3)
    for name, gap in one["gap_start"].items():
        assert two["gap_start"][name] == pytest.approx(gap, rel=1e-4, abs=1e-6)
    means = [np.mean(list(m["gap_end"].values())) for m in (two, one)]
    assert means[0] == pytest.approx(means[1], rel=0.05)


def test_a_killed_worker_ends_the_other_which_says_so_and_both_go_on_from_their_last_common_checkpoint(model_path, tmp_path):
    chief, other = start_job(model_path, tmp_path, steps=4000)
    limit = time.monotonic() + 120
    while len(list(tmp_path.glob("checkpoint*/visit-*.json"))) < 4:
        assert chief.poll() is None and time.monotonic() < limit
        time.sleep(0.1)
    other.send_signal(signal.SIGKILL)
    began = time.monotonic()
    code, _, err = finish(chief)
    assert time.monotonic() - began < 90
    assert code == 1 and "Another worker" in err and "Traceback" not in err
    finish(other)
    again = start_job(model_path, tmp_path, steps=4000)
    line = next(line for line in again[0].stdout if "going on from step" in line or "images in" in line)
    assert "going on from step" in line
    for process in again:
        process.send_signal(signal.SIGTERM)
    codes = [finish(process)[0] for process in again]
    assert codes[0] == 128 + signal.SIGTERM and set(codes) <= {1, 128 + signal.SIGTERM}
