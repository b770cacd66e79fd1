"""Growing images and steps: the rule by hand on made-up ranges, the ranges against Keras on a real
network.
"""

import json
import pathlib
import subprocess
import sys

import commands
import numpy as np
import pytest
import tiny_models

from dgh_tf.common.stable_ranges import halves_change, range_change
from dgh_tf.run import autosize
from dgh_tf.run.autosize import Attempt, choose

ROOT = pathlib.Path(__file__).resolve().parents[2]


def runs(*, settled_steps, settled_images, seconds=10.0):
    """A measure whose one range grows until `settled_steps`, and whose halves agree from
    `settled_images` on; and its calls.
    """
    calls = []

    def measure(num_images, steps):
        calls.append((num_images, steps))
        return Attempt(
            num_images,
            steps,
            seconds,
            [0.0],
            [float(min(steps, settled_steps))],
            0.1 if num_images >= settled_images else 0.5,
        )

    return measure, calls


def test_range_change_by_hand():
    low, high = (
        np.array([[0.0, -2.0, 1.0], [0.0, -1.0, 1.0]]),
        np.array([[4.0, 1.0, 1.0], [3.0, 1.0, 1.0]]),
    )
    np.testing.assert_allclose(range_change(low, high), [0.25, 1 / 3, 0.0])


def test_change_between_halves_is_that_of_their_own_ranges():
    """By hand: images 0 and 3 reach from -1 to 4, images 1 and 2 from 0 to 5."""
    low, high = np.array([[-1.0], [0.0], [2.0], [1.0]]), np.array([[1.0], [5.0], [3.0], [4.0]])
    np.testing.assert_allclose(halves_change(low, high), [1 / 6])


def test_steps_grow_until_ranges_hold_still_then_images_until_halves_agree():
    measure, calls = runs(settled_steps=100, settled_images=64)
    found = choose(measure, num_images=None, steps=None, budget_seconds=0)
    # 25, 50 and 100 steps each double the range; 200 steps change nothing; then 16, 32, 64 images
    assert calls == [(16, 25), (16, 50), (16, 100), (16, 200), (32, 200), (64, 200)]
    assert (
        found[:2] == (64, 200)
        and found.stable
        and "from 100 to 200 steps the ranges of 1 tensors moved by 0%" in found.why
    )
    assert "two halves of 64 images differ by 10%" in found.why


def test_what_is_given_does_not_grow():
    measure, calls = runs(settled_steps=100, settled_images=64)
    assert choose(measure, num_images=8, steps=None, budget_seconds=0)[:2] == (8, 200)
    assert choose(measure, num_images=None, steps=7, budget_seconds=0)[:2] == (64, 7)
    assert calls[-3:] == [(16, 7), (32, 7), (64, 7)]


@pytest.mark.parametrize(
    ("budget", "last"), [(5, (16, 25)), (29, (16, 25)), (35, (16, 50)), (65, (32, 200))]
)
def test_budget_ends_it_before_an_attempt_that_would_be_too_late(budget, last):
    """Attempts of 10 s; the next is expected to take twice the last: the k-th begins where 10 (k -
    1) + 20 <= budget.
    """
    measure, calls = runs(settled_steps=100, settled_images=64)
    found = choose(measure, num_images=None, steps=None, budget_seconds=budget)
    assert calls[-1] == found[:2] == last and not found.stable and "would end after" in found.why


def test_limits_are_told():
    found = choose(
        runs(settled_steps=10**9, settled_images=1)[0], num_images=16, steps=None, budget_seconds=0
    )
    assert found.steps == autosize.MOST_STEPS and "more than 1600 are not tried" in found.why
    found = choose(
        runs(settled_steps=1, settled_images=10**9)[0], num_images=None, steps=50, budget_seconds=0
    )
    assert (
        found.num_images == autosize.MOST_IMAGES
        and not found.stable
        and "more than 1024 are not tried" in found.why
    )


def test_ranges_are_those_of_keras_and_halves_of_equal_images_agree():
    import keras

    from dgh_tf.models.network import Network

    model = tiny_models.softmax_head()
    network, images = Network(model), tiny_models.images(6)
    low, high = autosize.activation_ranges(network, [images], batch_size=4)
    first = network.layers[0].layer
    inputs = keras.Model(model.input, first.input).predict(images, verbose=0).reshape(6, -1)
    np.testing.assert_allclose(low[:, 0], inputs.min(1), atol=1e-5)
    np.testing.assert_allclose(high[:, 0], inputs.max(1), atol=1e-5)
    assert low.shape == (6, len(network.layers) + 1)
    twice = autosize.attempt(network, [np.repeat(images, 2, axis=0)], steps=5, seconds=1.0)
    assert twice.halves == pytest.approx(0.0, abs=1e-6) and twice.num_images == 12
    # two kinds in turn, as generated images are where there are no statistics
    kinds = autosize.attempt(network, [np.tile(images[:2], (4, 1, 1, 1))], steps=5, seconds=1.0)
    assert kinds.halves == pytest.approx(0.0, abs=1e-6)
    assert autosize.attempt(network, [images], steps=5, seconds=1.0).halves > 0.0
    np.testing.assert_allclose(twice.high, high.max(0))


def generate(folder, *options):
    return subprocess.run(
        [sys.executable, "-m", "dgh_tf.generate", f"--output_dir={folder}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.slow
def test_command_grows_adopts_the_last_attempt_and_knows_that_it_is_finished(tmp_path):
    folder, real = tmp_path / "run", tmp_path / "real.npy"
    np.save(real, np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
    options = ["--num_images=auto", "--steps=6", "--budget_minutes=0.01", f"--real_hint={real}"]
    done = generate(folder, *options)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (
        manifest["identity"]["config"]["num_images"] == autosize.FIRST_IMAGES
        and manifest["identity"]["config"]["steps"] == 6
    )
    assert manifest["auto"]["why"] in done.stdout and not (folder / "attempts").exists()
    assert (
        np.load(folder / "images.npy").shape == (autosize.FIRST_IMAGES + 3, 64, 64, 3)
        and manifest["real_images"] == 3
    )
    assert "3 real images" in (folder / "report.html").read_text()
    again = generate(folder, *options)
    assert again.returncode == 0 and "is finished" in again.stdout
    other = generate(folder, *options[:-1])
    assert other.returncode == 1 and "real_hint" in other.stderr


@pytest.mark.parametrize(
    ("option", "told"),
    [("--steps=many", "a whole number or auto"), ("--real_hint=nowhere", "no such file")],
)
def test_wrong_values_are_told_in_one_line(tmp_path, option, told):
    code, _, err = commands.call("dgh_tf.generate", f"--output_dir={tmp_path / 'run'}", option)
    assert code == 1 and told in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
