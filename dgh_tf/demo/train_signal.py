"""Trains the embedded model of a sensor. `python -m dgh_tf.demo.train_signal
--output=demo_signal.keras`: a minute on two CPU cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from dgh_tf.common.console import run, say
from dgh_tf.common.quiet import quiet_tensorflow
from dgh_tf.demo import signal_data

if TYPE_CHECKING:
    import keras

FLAGS = flags.FLAGS
_BATCH = 64
_LEARNING_RATE = 3e-3
_PASS = 2048  # signals, drawn anew for each


def define_flags() -> None:
    flags.DEFINE_string("output", "demo_signal.keras", "Where to write the trained model (.keras).")
    flags.DEFINE_integer("epochs", 20, "Passes over 2048 new signals each.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of the weights and the signals.")


def build() -> keras.Model:
    """Convolution, BN and ReLU four times; the mean over time is classified."""
    import keras
    from keras import layers

    inputs = x = keras.Input((signal_data.SAMPLES, signal_data.AXES), name="vibration")
    for width in (16, 24, 32, 48):
        x = layers.Conv1D(width, 9, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.95)(x))
    x = layers.GlobalAveragePooling1D()(x)
    outputs = layers.Dense(len(signal_data.STATES), activation="softmax", name="states")(x)
    return keras.Model(inputs, outputs, name="demo_signal")


def train(*, epochs: int, seed: int) -> keras.Model:
    """A seed gives the same model on the same machine."""
    import keras

    keras.utils.set_random_seed(seed)
    model = build()
    rate = keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, epochs * _PASS // _BATCH)
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss="sparse_categorical_crossentropy",
        jit_compile=False,
    )
    for epoch in range(epochs):
        # seeds of their own, apart from those of calibration and evaluation
        x, y = signal_data.draw(_PASS, seed=1000 * (seed + 1) + epoch)
        loss = model.fit(x, y, batch_size=_BATCH, shuffle=False, verbose=0).history["loss"][0]
        say(f"epoch {epoch + 1}/{epochs}: loss {loss:.3f}")
    clean = build()
    clean.set_weights(model.get_weights())
    return clean


def main(argv: list[str]) -> int:
    """Trains, writes the model and prints its accuracy on the evaluation signals."""
    del argv
    quiet_tensorflow()
    from dgh_tf.demo.saving import save_small

    model = train(epochs=FLAGS.epochs, seed=FLAGS.seed)
    save_small(model, FLAGS.output)
    x, y = signal_data.evaluation()
    right = (model.predict(x, verbose=0).argmax(axis=1) == y).mean()
    say(f"wrote {FLAGS.output}: {model.count_params()} parameters, top-1 {right:.4f}")
    return 0


if __name__ == "__main__":
    define_flags()
    run(main)
