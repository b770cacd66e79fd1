"""What several workers cost: the prediction by hand, and two real workers over loopback."""

import subprocess
import sys

import commands
import keras
import pytest

from benchmarks.workers import Row, first_failed, measured, predicted_ms, table
from dgh_tf.models.loading import load_model

ALONE = Row(workers=1, update_ms=20.0, processor_ms=30.0, exchange_ms=0.0, payload=800)
FOUR = Row(workers=4, update_ms=66.0, processor_ms=31.0, exchange_ms=2.0, payload=800)


def test_a_batch_update_is_predicted_from_one_worker_alone_and_the_all_reduces():
    assert predicted_ms(FOUR, alone=ALONE, cpus=2) == 4 * 30 / 2 + 1.5 * 2
    assert predicted_ms(FOUR, alone=ALONE, cpus=64) == 20 + 1.5 * 2  # each has CPUs of its own


def test_a_ring_sends_its_values_twice_but_for_the_own_share():
    assert FOUR.exchanged == 2 * 3 / 4 * 800
    assert ALONE.exchanged == 0
    line = table([ALONE, FOUR], batch_size=32, cpus=2).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["4", "1200", "2.00", "66.0", "63.0", "1.05", "1939"]


@pytest.mark.parametrize("workers", ["1", "two", "2,0"])
def test_numbers_of_workers_that_cannot_be_are_refused(tmp_path, workers):
    arguments = (f"--workers={workers}", f"--output={tmp_path / 'w.json'}")
    code, _, err = commands.call("benchmarks.workers", *arguments)
    assert code == 1 and "--workers" in err and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_workers_exchange_two_moments_of_every_channel_and_one_spread():
    row = measured("demo", batch_size=4, workers=2, updates=4)
    norms = [
        layer
        for layer in load_model("demo")._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    channels = 3 + sum(layer.moving_mean.shape[0] for layer in norms)  # of the input, too
    assert row.payload == 4 * (2 * channels + 1)
    assert 0 < row.exchange_ms < row.update_ms


def test_workers_do_not_wait_for_one_that_failed():
    """The first would sleep for a minute; of two that end well none failed."""
    sleep, fail = "import time; time.sleep(60)", "import sys; sys.exit(3)"
    for programs, wanted in (((sleep, fail), 1), (("", ""), None)):
        running = [subprocess.Popen([sys.executable, "-S", "-c", each]) for each in programs]
        try:
            assert first_failed(running, seconds=30) == wanted
        finally:
            for process in running:
                process.kill()
                process.wait()
    with pytest.raises(TimeoutError, match="1 workers took more than 0 s"):
        first_failed([running[0]], seconds=0)
