"""Trains a network without BatchNorm: python -m benchmarks.zoo --network=vit --output_dir=DIR.

DIR/NAME.keras, DIR/real.npz (images it was trained on, to calibrate with) and DIR/evaluation.npz
(held out from training) are what benchmarks.calibration and the suite take. Minutes on two cores.
"""

from __future__ import annotations

import pathlib
import time
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from benchmarks.zoo.networks import NETWORKS
from dgh_tf.common.console import run, say
from dgh_tf.common.files import atomic_path, locked_folder

if TYPE_CHECKING:
    import keras

FLAGS = flags.FLAGS
_BATCH = 64
_LEARNING_RATE = 3e-3
_WEIGHT_DECAY = 0.02
_SMOOTHING = 0.1  # of labels: without it so few images end in outputs of 0 and 1 alone


def define_flags() -> None:
    flags.DEFINE_enum("network", None, list(NETWORKS), "The network to train.", required=True)
    flags.DEFINE_list(
        "images",
        ["demo"],
        "demo (the demo's painted digits), or .npz files with x (uint8 [N, height, width, "
        "channels]) and y (class indices), which are joined.",
    )
    flags.DEFINE_integer(
        "held_out",
        1000,
        "Images of the joined files, drawn by a fixed seed, that training never sees; the demo's "
        "are held out already.",
        lower_bound=1,
    )
    flags.DEFINE_string("output_dir", None, "Folder for the model and its sets.", required=True)
    flags.DEFINE_integer("epochs", 40, "Passes over the training images.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the weights, the order and the augmentation.")


def split(
    names: list[str], *, held_out: int
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and held-out images with their class indices, x uint8 [N, height, width, channels].

    Raises: ValueError for files that hold no such images or too few of them; FileNotFoundError.
    """
    from benchmarks.data.datasets import read_npz

    if names == ["demo"]:
        from dgh_tf.demo import data

        def stored(x: np.ndarray) -> np.ndarray:
            return np.rint((x + 1.0) * 127.5).astype(np.uint8)

        (x, y), (held_x, held_y) = data.real(), data.evaluation()
        return (stored(x), y), (stored(held_x), held_y)
    missing = [name for name in names if not pathlib.Path(name).exists()]
    if missing:
        raise FileNotFoundError(
            f"--images: no file at {', '.join(missing)}. Give demo, or .npz files with x and y."
        )
    parts = [read_npz(pathlib.Path(name)) for name in names]
    size = parts[0][0].shape[1:]
    for name, (found, labels) in zip(names, parts, strict=True):
        if found.dtype != np.uint8 or found.shape[1:] != size or len(size) != 3 or labels is None:
            raise ValueError(
                f"--images: {name} holds x {found.dtype} {found.shape} and "
                f"{'no y' if labels is None else 'y'}; expected uint8 [N, height, width, channels] "
                "with y, of one size in all files."
            )
    x = np.concatenate([images for images, _ in parts])
    y = np.concatenate([labels for _, labels in parts if labels is not None]).astype(np.int64)
    if len(x) < 2 * held_out:
        raise ValueError(
            f"--images hold {len(x)} images, which leaves {max(0, len(x) - held_out)} beside "
            f"--held_out={held_out}. Give more images or hold out at most half."
        )
    order = np.random.default_rng(0).permutation(len(x))
    held, kept = order[:held_out], order[held_out:]
    return (x[kept], y[kept]), (x[held], y[held])


def train(
    network: str, x: np.ndarray, y: np.ndarray, *, mirror: bool, epochs: int, seed: int
) -> keras.Model:
    """A model trained on shifted (and mirrored) copies of x, uncompiled.

    The same seed gives the same model on the same machine.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    classes, side = int(y.max()) + 1, x.shape[1]
    model = NETWORKS[network](x.shape[1:], classes)
    shift = side // 8
    padding = [[0, 0], [shift, shift], [shift, shift], [0, 0]]
    targets = np.eye(classes, dtype=np.float32)[y] * (1 - _SMOOTHING) + _SMOOTHING / classes
    steps = epochs * -(-len(x) // _BATCH)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=_LEARNING_RATE, warmup_steps=steps // 10
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=_WEIGHT_DECAY, clipnorm=1.0)
    model.compile(
        optimizer=optimizer,
        loss="categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )
    rng, start = np.random.default_rng(seed), time.monotonic()
    for epoch in range(epochs):
        padded = np.pad(x, padding, mode="edge")
        rows, columns = rng.integers(0, 2 * shift + 1, (2, len(x)))
        crops = np.stack(
            [p[r : r + side, c : c + side] for p, r, c in zip(padded, rows, columns, strict=True)]
        )
        if mirror:
            turned = rng.random(len(x)) < 0.5
            crops[turned] = crops[turned, :, ::-1]
        order = rng.permutation(len(x))
        history = model.fit(
            tf.constant(crops[order], tf.float32),
            targets[order],
            batch_size=_BATCH,
            shuffle=False,
            verbose=0,
        ).history
        say(
            f"epoch {epoch + 1}/{epochs}: loss {history['loss'][0]:.3f}, accuracy "
            f"{history['accuracy'][0]:.3f}, {time.monotonic() - start:.0f} s"
        )
    clean = NETWORKS[network](x.shape[1:], classes)  # never compiled: no optimizer in the file
    clean.set_weights(model.get_weights())
    return clean


def main(argv: list[str]) -> int:
    """Trains, writes the model and its sets, and prints the accuracy on the held-out images."""
    del argv
    (x, y), (held_x, held_y) = split(FLAGS.images, held_out=FLAGS.held_out)
    with locked_folder(FLAGS.output_dir, flag="output_dir") as folder:
        from dgh_tf.demo.saving import save_small

        model = train(
            FLAGS.network,
            x,
            y,
            mirror=FLAGS.images != ["demo"],  # digits read backwards are none
            epochs=FLAGS.epochs,
            seed=FLAGS.seed,
        )
        for name, images, labels in (("real", x, y), ("evaluation", held_x, held_y)):
            with atomic_path(folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, x=images, y=labels)
        path = folder / f"{FLAGS.network}.keras"
        save_small(model, path)
        found = model.predict(held_x.astype(np.float32), batch_size=_BATCH, verbose=0)
        accuracy = (found.argmax(axis=1) == held_y).mean()
        say(
            f"wrote {path}: {model.count_params()} parameters, trained on {len(x)} images, top-1 "
            f"{accuracy:.4f} on {len(held_x)} held-out ones"
        )
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
