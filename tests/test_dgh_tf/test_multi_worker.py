"""Two workers on loopback: they finish as one job, and one that is killed ends the other with a
clear error, to be gone on with.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_models

from benchmarks.measure.ports import free_ports

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


class Worker:
    """One process of a job. What it prints goes to a file: waiting for a line of it can then never
    last for ever.
    """

    def __init__(self, command, number, cluster, log):
        self.log = log
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": number}})
        with open(log, "w") as held:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=held,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CONFIG": config},
            )

    def wait_for(self, told, *, seconds=240):
        """Until `told()` is true. A process that ends before, or takes longer, is an error with its
        last words.
        """
        limit = time.monotonic() + seconds
        while not told():
            assert self.process.poll() is None and time.monotonic() < limit, self.log.read_text()[
                -2000:
            ]
            time.sleep(0.05)

    def finish(self, *, seconds=240):
        """(exit code, all that it printed)."""
        try:
            return self.process.wait(seconds), self.log.read_text()
        finally:
            self.process.kill()


@contextlib.contextmanager
def job(model_path, folder, *, steps):
    """Two processes of one command, each with its own TF_CONFIG; none is left behind."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    command = [
        sys.executable,
        "-m",
        "dgh_tf.generate",
        f"--model={model_path}",
        f"--output_dir={folder}",
        "--input_range=-1,1",
        "--num_images=12",
        "--batch_size=3",
        f"--steps={steps}",
        "--strategy=multi_worker",
        "--checkpoint_seconds=1",
    ]
    workers = [
        Worker(command, i, cluster, folder.with_name(f"{folder.name}-{i}.txt")) for i in range(2)
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.wait()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    return path


def test_two_workers_match_the_statistics_as_one_process_does(model_path, tmp_path):
    with job(model_path, tmp_path / "two", steps=60) as workers:
        ended = [worker.finish() for worker in workers]
    assert [code for code, _ in ended] == [0, 0], ended
    subprocess.run(
        [
            sys.executable,
            "-m",
            "dgh_tf.generate",
            f"--model={model_path}",
            f"--output_dir={tmp_path / 'one'}",
            "--input_range=-1,1",
            "--num_images=12",
            "--batch_size=6",
            "--steps=60",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    two, one = (
        json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("two", "one")
    )
    assert np.load(tmp_path / "two" / "images.npy").shape == (12, 16, 16, 3)
    for name, gap in one["gap_start"].items():
        assert two["gap_start"][name] == pytest.approx(gap, rel=1e-4, abs=1e-6)
    means = [np.mean(list(m["gap_end"].values())) for m in (two, one)]
    assert means[0] == pytest.approx(means[1], rel=0.05)


def test_a_killed_worker_ends_the_other_and_both_go_on_from_their_last_common_checkpoint(
    model_path, tmp_path
):
    folder, steps = (
        tmp_path / "job",
        4000,
    )  # more than are ever made: both jobs are stopped long before
    with job(model_path, folder, steps=steps) as (chief, other):
        chief.wait_for(lambda: len(list(folder.glob("checkpoint*/visit-*.json"))) == 4)
        other.process.kill()
        code, text = chief.finish()
        assert (
            code == 1
            and text.splitlines()[-1].startswith("error: Another worker")
            and "Traceback" not in text
        ), text
    with job(model_path, folder, steps=steps) as again:
        for (
            worker
        ) in again:  # they have met, and do not run yet: TensorFlow must not swallow the signal
            worker.wait_for(lambda log=worker.log: "batches of up to" in log.read_text())
        for worker in again:
            worker.process.send_signal(signal.SIGTERM)
        ended = [worker.finish() for worker in again]
    assert [code for code, _ in ended] == [128 + signal.SIGTERM] * 2, ended
    assert all(
        "going on from step" in text and "stopped: saved at step" in text for _, text in ended
    ), ended
