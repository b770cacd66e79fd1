"""The networks without BatchNorm and the sets they are trained and judged on."""

import commands
import numpy as np
import pytest

from benchmarks.data.datasets import load
from benchmarks.zoo.__main__ import split
from benchmarks.zoo.networks import NETWORKS


def files(tmp_path, *counts):
    """.npz files of 16 x 16 images that can be told apart by their first pixel's two channels."""
    rng, number, names = np.random.default_rng(0), 0, []
    for place, count in enumerate(counts):
        x = rng.integers(0, 256, (count, 16, 16, 3), np.uint8)
        for image in x:
            image[0, 0, :2] = divmod(number, 256)
            number += 1
        names.append(str(tmp_path / f"{place}.npz"))
        np.savez(names[-1], x=x, y=np.arange(count) % 4)
    return names


def numbers(x):
    return set((x[:, 0, 0, 0].astype(int) * 256 + x[:, 0, 0, 1]).tolist())


def test_held_out_images_are_no_training_images_and_none_is_lost(tmp_path):
    (x, y), (held, held_y) = split(files(tmp_path, 40, 60), held_out=30)
    assert len(held) == len(held_y) == 30 and len(x) == len(y) == 70
    assert not numbers(x) & numbers(held) and numbers(x) | numbers(held) == set(range(100))


@pytest.mark.parametrize(
    "names, what", [(["missing.npz"], "no file at missing.npz"), ([], "at most half")]
)
def test_sets_that_cannot_train_are_refused(tmp_path, names, what):
    with pytest.raises((ValueError, FileNotFoundError), match=what):
        split(names or files(tmp_path, 50), held_out=30)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("shape", [(32, 32, 3), (64, 64, 3)])
def test_networks_keep_no_statistics(network, shape):
    model = NETWORKS[network](shape, 10)
    assert not any("moving" in weight.path for weight in model.weights)
    assert not model.non_trainable_weights and model.count_params() < 200_000
    found = model(np.random.default_rng(0).uniform(0, 255, (2, *shape))).numpy()
    assert found.shape == (2, 10) and not np.allclose(found[0], found[1])


def test_the_command_leaves_what_the_benchmarks_read(tmp_path):
    import keras

    folder = tmp_path / "zoo"
    code, out, _ = commands.call(
        "benchmarks.zoo",
        "--network=groupnorm",
        f"--images={','.join(files(tmp_path, 30, 34))}",
        "--held_out=20",
        "--epochs=1",
        f"--output_dir={folder}",
    )
    assert code == 0 and "trained on 44 images" in out and "on 20 held-out ones" in out
    model = keras.models.load_model(folder / "groupnorm.keras")
    assert getattr(model, "optimizer", None) is None
    for role, count in (("real", 44), ("evaluation", 20)):
        x, y = load(str(folder / f"{role}.npz"), role=role, input_shape=model.input_shape[1:])
        assert len(x) == len(y) == count
