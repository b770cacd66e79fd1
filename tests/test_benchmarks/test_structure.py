"""Images inside a model: the figures against float64 numpy and Keras' own activations, and the
command on a tiny model, resumed and refused.
"""

import json

import commands
import numpy as np
import pytest
import tiny_models

from benchmarks.measure import structure
from benchmarks.output.results import Results
from benchmarks.structure import (
    Given,
    halves,
    mean_of_known,
    named_paths,
    require_unchanged,
    thirds,
)


def test_gram_gap_by_hand():
    wanted = np.array([[3.0, 0], [0, 4]])  # of size 5
    assert structure.gram_gap(wanted, wanted) == 0
    assert structure.gram_gap(wanted + [[0, 1], [1, 0]], wanted) == pytest.approx(2**0.5 / 5)
    assert structure.gram_gap(0 * wanted, wanted) == 1
    assert structure.gram_gap(wanted, 0 * wanted) == np.inf
    assert structure.gram_gap(0 * wanted, 0 * wanted) == 0


def shares_by_hand(x):
    """x: [images, ..., channels]. Between over total sum of squares of every channel, in loops."""
    found = []
    for channel in np.moveaxis(x.astype(np.float64), -1, 0):
        everything = channel - channel.mean()
        between = sum(image.size * (image.mean() - channel.mean()) ** 2 for image in channel)
        if np.sum(everything**2) > 0:
            found.append(between / np.sum(everything**2))
    return np.mean(found)


def test_share_between_images_is_that_of_the_sums_of_squares():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 5, 4, 3)) + rng.normal(size=(7, 1, 1, 3)) * [0.1, 1, 10]
    x = np.concatenate([x, np.full((7, 5, 4, 1), 2.5)], axis=-1)  # a channel that never varies
    means, squares = x.mean(axis=(1, 2)), np.square(x).mean(axis=(1, 2))
    assert structure.between_share(means, squares) == pytest.approx(shares_by_hand(x))
    assert structure.between_share(means[:, 3:], squares[:, 3:]) == 0


def test_neighbour_difference_by_hand():
    # down: 1, 1; across: 4, 4; mean 2.5. The variance of 0, 2, 1, 3 is 1.25
    image = np.array([[0.0, 2], [1, 3]])[None, :, :, None]
    assert structure.neighbour_difference(image) == pytest.approx(2.0)
    noise = np.random.default_rng(0).normal(size=(4, 64, 64, 3))
    assert structure.neighbour_difference(noise) == pytest.approx(2.0, rel=0.02)
    assert structure.neighbour_difference(noise[:, 0, 0]) is None


@pytest.mark.parametrize(
    ("kernel", "strides", "dilations", "same"),
    [
        ((3, 3), (1, 1), (1, 1), True),
        ((3, 3), (2, 2), (1, 1), True),
        ((3, 2), (2, 1), (1, 1), True),
        ((2, 3), (1, 3), (1, 1), False),
        ((3, 3), (1, 1), (2, 3), True),
        ((1, 1), (2, 2), (1, 1), True),
    ],
)
def test_patches_times_weights_are_what_tensorflow_convolves(kernel, strides, dilations, same):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 9, 12, 3)), rng.normal(size=(*kernel, 3, 4))
    layer = structure.Layer("", "CONV_2D", 0, kernel, strides, dilations, same)
    wanted = tf.nn.conv2d(x, w, strides, "SAME" if same else "VALID", dilations=dilations).numpy()
    wanted = wanted.reshape(2, -1, 4)
    found = structure.patches(layer, x).reshape(2, wanted.shape[1], -1) @ w.reshape(-1, 4)
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    few = structure.patches(layer, x, positions=5).reshape(2, 5, -1) @ w.reshape(-1, 4)
    places = [int(np.argmin(np.abs(wanted[0] - row).sum(axis=1))) for row in few[0]]
    np.testing.assert_allclose(few, wanted[:, places], atol=1e-9)
    assert len(set(places)) == 5


def taken(model, layers, x):
    """What layers of a Keras model take, by Keras."""
    import keras

    return [y.numpy() for y in keras.Model(model.input, [each.input for each in layers])(x)]


def test_moments_and_shares_are_those_of_keras_own_activations():
    import keras
    import tensorflow as tf

    from dgh_tf.models.network import Network
    from dgh_tf.models.tflite.run import read_graph
    from tflite_export import to_float_tflite

    model, x = tiny_models.conv_bn_relu(), tiny_models.images(20)
    graph = read_graph(to_float_tflite(model, images=x[:1]))
    found = structure.structure_of(Network(model), graph, x)

    def patches(values, stride):
        values = tf.constant(values, tf.float64)
        sides, steps = [1, 3, 3, 1], [1, stride, stride, 1]
        taken = tf.image.extract_patches(values, sides, steps, [1, 1, 1, 1], "SAME").numpy()
        return taken.reshape(-1, 9, values.shape[-1])

    weighted = [
        layer
        for layer in model.layers
        if isinstance(
            layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense
        )
    ]
    assert len(found.moments) == len(weighted) == 5
    inputs = taken(model, weighted, x)
    for layer, values, moments in zip(weighted, inputs, found.moments, strict=True):
        if isinstance(layer, keras.layers.Dense):
            rows = values.astype(np.float64)[None]
        else:
            rows = patches(values, layer.strides[0])
            depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            rows = np.moveaxis(rows, -1, 0) if depthwise else rows.reshape(1, len(rows), -1)
        wanted = np.einsum("bni,bnj->bij", rows, rows) / rows.shape[1]
        near = {"rtol": 1e-3, "atol": 1e-4 * wanted.max()}
        np.testing.assert_allclose(moments.seconds, wanted, **near)
        wanted = [np.cov(block, rowvar=False, bias=True) for block in rows]
        np.testing.assert_allclose(moments.covariances, wanted, **near)

    norms = [each for each in model.layers if isinstance(each, keras.layers.BatchNormalization)]
    assert [name for name, _ in found.shares] == [each.name for each in norms]
    for values, (_, share) in zip(taken(model, norms, x), found.shares, strict=True):
        assert share == pytest.approx(shares_by_hand(values), rel=1e-3)
    assert found.pixel_share == pytest.approx(shares_by_hand(x))


def test_a_dense_layer_that_flattens_takes_all_values_of_an_image():
    # as converters other than TensorFlow's write it
    layer = structure.Layer("", "FULLY_CONNECTED", 0, None, entries=12)
    x = np.random.default_rng(0).normal(size=(5, 2, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(structure.rows_of(layer, x), x.reshape(1, 5, 12))


def test_nothing_is_told_of_a_layer_that_takes_the_same_from_all_real_images():
    rng = np.random.default_rng(0)

    def moments(rows):
        rows = rows.astype(np.float32)
        return structure.Moments(rows.mean(axis=0)[None], (rows.T @ rows / len(rows))[None])

    one, other = rng.normal(size=(2, 1, 6)), moments(rng.normal(size=(9, 6)))
    found = structure.gaps_of(other, moments(one[0].repeat(7, axis=0)))
    assert found["gram_gap"] > 0 and found["covariance_gap"] is None
    dead = structure.gaps_of(other, moments(np.zeros((7, 6))))
    assert dead == {"gram_gap": None, "covariance_gap": None}
    assert mean_of_known([None, 1.0, 3.0]) == 2.0 and mean_of_known([None]) is None


def test_channels_first_is_measured_in_the_order_of_the_model():
    from dgh_tf.models.network import Network
    from dgh_tf.models.tflite.run import read_graph
    from tflite_export import to_float_tflite

    model, x = tiny_models.channels_first(), tiny_models.images(6, shape=(3, 16, 20))
    graph = read_graph(to_float_tflite(model, images=x[:1]))
    found = structure.structure_of(Network(model), graph, x)
    assert found.pixel_share == pytest.approx(shares_by_hand(np.moveaxis(x, 1, -1)))
    assert len(found.moments) == 3 and len(found.shares) == 2


def test_halves_are_disjoint_and_always_the_same():
    real = np.arange(9.0)[:, None]
    reference, other = halves(real, num_images=4, needed=True)
    assert (len(reference), len(other)) == (5, 4)
    assert sorted([*reference.ravel(), *other.ravel()]) == [*range(9)]
    np.testing.assert_array_equal(reference, halves(real, num_images=1, needed=False)[0])
    with pytest.raises(ValueError, match="holds 9 images.*--num_images=5"):
        halves(real, num_images=5, needed=True)
    assert len(halves(real, num_images=50, needed=False)[1]) == 4
    with pytest.raises(ValueError, match="holds one image"):
        halves(real[:1], num_images=1, needed=False)


def test_thirds_by_hand():
    # six layers: 1, 2 | 3, 4 | 5, 6
    assert thirds([1.0, 2, 3, 4, 5, 6]) == {
        "share_first": 1.5,
        "share_middle": 3.5,
        "share_last": 5.5,
    }
    assert thirds([1.0, 2]) == {}


@pytest.mark.parametrize(
    "entry", ["real=x.npz", "=x.npz", "a=", "generated=x.npz", "two_public_photographs=x.npz"]
)
def test_names_of_images_are_checked(entry):
    with pytest.raises(ValueError, match="has no path, no name or that of a source"):
        named_paths([entry])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("structure")
    tiny_models.conv_bn_relu().save(folder / "m.keras")
    # labels of other classes than the model's: nothing is scored
    np.savez(folder / "real.npz", x=tiny_models.images(24), y=np.full(24, 99))
    np.savez(folder / "a.npz", x=tiny_models.images(8, seed=2))
    np.savez(folder / "b.npz", x=tiny_models.images(8, seed=3))
    return folder


def run(files, output_dir, *options):
    return commands.call(
        "benchmarks.structure",
        f"--model={files}/m.keras",
        f"--real={files}/real.npz",
        f"--output_dir={output_dir}",
        "--num_images=8",
        "--input_range=-1,1",
        "--seeds=1",
        *options,
    )


def test_command_measures_and_goes_on_with_ready_images(files, tmp_path):
    first = f"mine={files}/a.npz"
    code, out, err = run(files, tmp_path, "--sources=real,noise", f"--images={first}")
    assert code == 0, err
    assert "scored by" not in out and "--evaluation" not in out
    ready = f"--images={first},mine={files}/b.npz"
    code, out, err = run(files, tmp_path, "--sources=real,noise", ready)
    assert code == 0 and "3 of 4 rows are done already" in out, err
    rows = json.loads((tmp_path / "results.json").read_text())
    gaps = {(row["source"], row["seed"]): row["gram_gap"] for row in rows}
    assert set(gaps) == {("real", 0), ("noise", 0), ("mine", 0), ("mine", 1)}
    # the ready images are drawn as the real ones are, noise is not
    assert max(gap for (name, _), gap in gaps.items() if name != "noise") < gaps["noise", 0]
    for row in rows:
        assert row["gram_gap"] == np.mean([each["gram_gap"] for each in row["layers"]])
        assert len(row["layers"]) == 5 and len(row["between_images"]) == 4
    assert (tmp_path / "structure.png").stat().st_size > 5000
    text = (tmp_path / "results.md").read_text()
    assert "| uniform noise |" in text and "python -m benchmarks.structure --model=" in text


def test_other_images_of_a_name_that_was_measured_are_refused(tmp_path):
    results = Results(tmp_path, run="r")
    x = tiny_models.images(2)
    mine = Given("mine", 0, "a.npz", x)
    results.add({"source": "mine", "seed": 0, "sha256": mine.sha256}, {})
    require_unchanged(results, [mine, Given("mine", 1, "b.npz", x + 1)])
    with pytest.raises(
        ValueError, match=r"figures of other images named mine, seed 0, than b\.npz"
    ):
        require_unchanged(results, [Given("mine", 0, "b.npz", x + 1)])


def test_too_few_real_images_are_one_line_and_leave_nothing(files, tmp_path):
    code, _, err = run(files, tmp_path / "new", "--sources=real", "--num_images=30")
    assert code == 1 and err.startswith("error: The real set holds 24 images.")
    assert not (tmp_path / "new").exists()
