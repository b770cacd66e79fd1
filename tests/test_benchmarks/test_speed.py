"""The speed benchmark: its limit really is one forward and backward pass, and its figures hang
together.
"""

import numpy as np
import pytest
import tensorflow as tf
import tiny_models

from benchmarks import speed
from dgh_tf.models.loading import load_model
from dgh_tf.models.network import Network


def test_the_limit_repeats_the_gradient_of_the_plain_model():
    model = load_model("demo")
    x = tf.constant(
        np.random.default_rng(0).uniform(-1, 1, (2, *model.input_shape[1:])).astype("float32")
    )
    with tf.GradientTape() as tape:  # the independent source: Keras called eagerly
        tape.watch(x)
        value = tf.reduce_sum(tf.math.log(model(x, training=False)[:, :1]))
    expected = float(tf.reduce_sum(tape.gradient(value, x)[:, 0]))

    def logits(inputs, training=False):
        return tf.math.log(model(inputs, training=training)[:, :1])

    network = Network(model)
    network.model = logits
    total = float(speed.limit_step(network, x)(tf.constant(3)))
    assert total == pytest.approx(3 * expected, rel=1e-3, abs=1e-5)


def test_efficiency_is_the_ratio_of_the_two_rates():
    row = speed.measure(
        tiny_models.conv_bn_relu(),
        batch_size=4,
        batches=1,
        seconds=0.3,
        repeats=1,
        input_range="-1,1",
    )
    assert row["efficiency"] == pytest.approx(row["rates"][0] / row["limit_rates"][0])
    assert row["image_steps_per_second"] > 0 and row["peak_rss_mib"] > 100
