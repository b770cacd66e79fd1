"""BN layers folded into the layers before them: the same images, statistics and gradients as
without, and as float64 numpy has them; and left alone where folding cannot tell them.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import tiny_models as tiny

from dgh_tf.models.network import Network
from dgh_tf.ops.moments import channel_sums, moved_sums


def observed(network: Network, x: np.ndarray, *, folded: bool):
    """BN inputs, their sums (count aside), logits, and the gradient of all of these with
    respect to x.
    """

    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            tapped = network.forward([x], folded=folded)
            sums = [
                known or channel_sums(value, shift=network.layers[index].shift)
                for (index, value), known in zip(tapped.calls, tapped.sums, strict=True)
            ]
            logits = [head.logits for head in tapped.heads]
            value = tf.add_n([tf.reduce_sum(tf.sin(y)) for y in logits])
            sums = [moved(tapped, *each) for each in zip(tapped.calls, sums, strict=True)]
            for total, squares, count in sums:
                value += tf.reduce_sum(tf.square(total / count - 0.3))
                value += tf.reduce_sum(tf.square(squares / count - 0.7))
        inputs = [value for _, value in tapped.calls]
        return inputs, [s[:2] for s in sums], logits, tape.gradient(value, x)

    return tf.function(run, autograph=False)(tf.constant(x))


def moved(tapped, call, sums):
    """The sums of a BN layer's own input."""
    index, _ = call
    if index not in tapped.moves:
        return sums
    return (*moved_sums(*sums, move=tapped.moves[index]), sums[2])


def close(first, second, *, rtol: float):
    scale = np.max(np.abs(second))
    np.testing.assert_allclose(first, second, rtol=rtol, atol=rtol * scale)


MODELS = {
    "plain": (tiny.conv_bn_relu, (16, 16, 3)),
    "large maps": (tiny.conv_bn_relu, (64, 48, 3)),
    "shared BN layer": (tiny.shared_bn, (16, 16, 3)),
}


@pytest.mark.parametrize("backend", [keras, tf_keras])
@pytest.mark.parametrize("name", MODELS)
def test_folded_tells_the_same_inputs_sums_logits_and_gradient(name, backend):
    build, shape = MODELS[name]
    options = {} if build is tiny.shared_bn else {"shape": shape}
    network = Network(build(keras=backend, **options))
    x = tiny.images(5, shape=shape)
    plain, folded = (observed(network, x, folded=f) for f in (False, True))
    for a, b in zip(tf.nest.flatten(folded), tf.nest.flatten(plain), strict=True):
        close(a.numpy(), b.numpy(), rtol=2e-5)


def test_sums_are_those_of_float64_numpy():
    model = tiny.conv_bn_relu(shape=(64, 48, 3))
    network, x = Network(model), tiny.images(5, shape=(64, 48, 3))
    assert len(network._folded) == len(network.layers) == len(network._rectified)
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    inputs = keras.Model(model.input, [layer.input for layer in norms])(x)
    _, sums, _, _ = observed(network, x, folded=True)
    for bn, value, (total, squares) in zip(network.layers, inputs, sums, strict=True):
        d = np.asarray(value, np.float64).reshape(-1, len(bn.mean)) - bn.shift
        close(total.numpy(), d.sum(0), rtol=1e-5)
        close(squares.numpy(), (d**2).sum(0), rtol=1e-5)


def _one_block(*, gamma=1.0, beta=0.2, second=False, activation=None, layer="Conv2D", rectify=None):
    x = inputs = keras.Input((12, 12, 3))
    made = {
        "Conv2D": lambda: keras.layers.Conv2D(4, 3, strides=2, activation=activation),
        "DepthwiseConv2D": lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
        "dilated": lambda: keras.layers.Conv2D(4, 3, dilation_rate=2),
    }[layer]()
    y = made(x)
    z = keras.layers.BatchNormalization(name="bn")(y)
    if second:  # takes the convolution's own output, too
        z = keras.layers.Concatenate()([z, y])
    z = keras.layers.GlobalAveragePooling2D()((rectify or keras.layers.ReLU())(z))
    model = tiny.settle(keras.Model(inputs, keras.layers.Dense(3)(z)))
    bn = model.get_layer("bn")
    values = bn.get_weights()
    values[0][0], values[1][0] = gamma, beta
    bn.set_weights(values)
    return model


@pytest.mark.parametrize("layer", ["Conv2D", "DepthwiseConv2D"])
@pytest.mark.parametrize(("gamma", "beta"), [(1.0, 0.2), (-0.7, 0.3), (0.003, 0.6), (1.0, -40.0)])
def test_small_and_negative_gammas_and_far_betas(layer, gamma, beta):
    network = Network(_one_block(gamma=gamma, beta=beta, layer=layer))
    assert len(network._folded) == 1
    x = tiny.images(6, shape=(12, 12, 3))
    plain, folded = (observed(network, x, folded=f) for f in (False, True))
    for a, b in zip(tf.nest.flatten(folded), tf.nest.flatten(plain), strict=True):
        close(a.numpy(), b.numpy(), rtol=2e-4)  # |beta / gamma| 200 times float32's 1e-7, squared


def _beside(x):
    """What a BN layer gives, to a ReLU and to a layer beside it."""
    return keras.layers.Concatenate()([keras.layers.ReLU(6.0)(x), keras.layers.Rescaling(0.5)(x)])


def _twice(x):
    layer = keras.layers.ReLU()
    return layer(layer(x) - 0.1)


RELUS = {  # by name: what stands behind the BN layer, and up to where a ReLU is fused with it
    "ReLU(6)": (lambda x: keras.layers.ReLU(6.0)(x), 6.0),
    "relu6": (lambda x: keras.layers.Activation("relu6")(x), 6.0),
    "relu": (lambda x: keras.layers.Activation("relu")(x), np.inf),
    "beside another": (_beside, 6.0),
    "called twice": (_twice, None),
    "ReLU(4)": (lambda x: keras.layers.ReLU(4.0)(x), None),
    "with a slope": (lambda x: keras.layers.ReLU(negative_slope=0.1)(x), None),
    "with a threshold": (lambda x: keras.layers.ReLU(threshold=0.1)(x), None),
    "silu": (lambda x: keras.layers.Activation("silu")(x), None),
}


@pytest.mark.parametrize("name", RELUS)
def test_a_relu_is_fused_only_where_it_is_a_plain_one(name):
    rectify, fused = RELUS[name]
    network = Network(_one_block(gamma=3.0, beta=2.0, rectify=rectify))
    assert [each.cap for each in network._rectified] == [fused] * (fused is not None)
    x = tiny.images(6, shape=(12, 12, 3))
    plain, folded = (observed(network, x, folded=f) for f in (False, True))
    for a, b in zip(tf.nest.flatten(folded), tf.nest.flatten(plain), strict=True):
        close(a.numpy(), b.numpy(), rtol=2e-5)


def test_a_convolution_that_others_take_too_still_gives_them_its_own_output():
    network = Network(_one_block(second=True))
    x = tiny.images(6, shape=(12, 12, 3))
    plain, folded = (observed(network, x, folded=f) for f in (False, True))
    for a, b in zip(tf.nest.flatten(folded), tf.nest.flatten(plain), strict=True):
        close(a.numpy(), b.numpy(), rtol=2e-5)


@pytest.mark.parametrize(
    "options",
    [{"gamma": 0.0}, {"gamma": 1e-4}, {"activation": "relu"}, {"layer": "dilated"}],
    ids=str,
)
def test_what_cannot_be_told_is_left_alone(options):
    network = Network(_one_block(**options))
    assert not network._folded
    x = tiny.images(6, shape=(12, 12, 3))
    plain, folded = (observed(network, x, folded=f) for f in (False, True))
    for a, b in zip(tf.nest.flatten(folded), tf.nest.flatten(plain), strict=True):
        np.testing.assert_array_equal(a, b)
