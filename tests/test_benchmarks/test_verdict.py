"""The verdict: its figures by hand, its evidence against numpy and Keras, and files that must be
told apart.
"""

import pathlib

import numpy as np
import pytest
import tiny_models

from dgh_tf.common.stable_ranges import STABLE
from tflite_export.proof import calibrated_on
from tflite_export.quality import accuracy_estimate, agreement, layer_errors
from tflite_export.quality.accuracy_estimate import Evidence, judge

ROOT = pathlib.Path(__file__).resolve().parents[2]


def evidence(*, same=9, of=10, noise=1e-4, low=None, high=None, clipped=0.0, classes=4):
    """Two tensors and one head of `of` images, `same` of which both files put in the same class."""
    reference = np.eye(classes)[np.arange(of) % classes]
    outputs = reference.copy()
    outputs[same:] = np.roll(outputs[same:], 1, axis=1)
    low = np.zeros((of, 2)) if low is None else low
    high = np.ones((of, 2)) if high is None else high
    return Evidence(
        names=["a", "x/b;y/relu"],
        kinds=["INPUT", "CONV_2D"],
        limits=np.array([[0.0, 1.0], [0.0, 1.0]]),
        low=low,
        high=high,
        signal=np.ones((of, 2)),
        noise=np.full((of, 2), noise),
        clipped=np.full((of, 2), clipped),
        reference={"y": reference},
        outputs={"y": outputs},
        float_logits={"y": reference},
        logits={"y": outputs},
    )


def test_range_change_by_hand():
    # even images reach 4 and odd ones 3: 1 of 4; the second tensor's lows are -2 and -1 of a width
    # of 3; the third never moves
    low, high = np.array([[0, -2, 0], [0, -1, 0]]), np.array([[4, 1, 5], [3, 1, 5]])
    np.testing.assert_allclose(accuracy_estimate.range_change(low, high), [0.25, 1 / 3, 0.0])
    assert accuracy_estimate.range_change(low[:1], high[:1]).tolist() == [0, 0, 0]


def test_ranges_of_few_images_change_and_of_many_do_not():
    """Extremes of n normal values spread like 1 / log n: against a simulation of 2 and 2000
    images.
    """
    rng = np.random.default_rng(0)
    few, many = (
        accuracy_estimate.range_change(x, x + 1)
        for x in (rng.normal(size=(2, 300)), rng.normal(size=(2000, 300)))
    )
    assert np.median(few) > 2 * np.median(many) and np.median(many) < STABLE


def test_decibels_are_bounded_for_silence_and_equality():
    np.testing.assert_allclose(
        accuracy_estimate.decibels([1.0, 0.0, 1.0], [0.01, 1.0, 0.0]), [20.0, -20.0, 100.0]
    )


def test_interval_holds_the_mean_and_shrinks_with_the_number_of_images():
    low, high = accuracy_estimate.interval(np.array([0.0, 1.0] * 50))
    # binomial: standard deviation sqrt(0.25 / 100) = 0.05, the 90 per cent interval is 1.645 of
    # them to each side
    assert (low, high) == pytest.approx((0.5 - 0.082, 0.5 + 0.082), abs=0.02)
    assert accuracy_estimate.interval(np.ones(5)) == (1.0, 1.0)


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_normal_values_keep_their_highest_as_often_as_theory_says(classes):
    """Two classes: 1 - arctan(noise) / pi (Sheppard 1899); any number: all without noise, chance
    where all is noise.
    """
    angles, kept = agreement._normal(classes)[:2]
    assert kept[0] == 1.0 and kept[-1] == pytest.approx(1 / classes, abs=0.03)
    assert np.all(np.diff(kept) < 0.02)  # falls, but for the noise of the draws
    if classes == 2:
        np.testing.assert_allclose(kept, 1 - angles / np.pi, atol=0.01)


def test_logit_correlations_by_hand():
    """Logits (0, 1, 2) and (1, 0, 2) correlate to 1/2."""
    alike = agreement.logit_correlations(np.array([[0.0, 1.0, 2.0]]), np.array([[1.0, 0.0, 2.0]]))
    np.testing.assert_allclose(alike, [0.5])


def noisy(noise, *, of=64, classes=10, seed=0):
    """Logits with an error of so large a part of their spread."""
    rng = np.random.default_rng(seed)
    logits, error = rng.normal(size=(2, of, classes))
    sides = {"reference": logits, "outputs": logits + noise * error}
    sides |= {"float_logits": sides["reference"], "logits": sides["outputs"]}
    found = evidence(of=of, classes=classes)
    return found._replace(**{name: {"y": side} for name, side in sides.items()})


@pytest.mark.parametrize(
    ("noise", "level"), [(0.001, "fine"), (0.2, "doubtful"), (3, "do not ship")]
)
def test_levels_follow_the_noise_of_the_logits(noise, level):
    result = judge({"unstretched": noisy(noise)})
    assert result["level"] == level and result["sentence"].lower().startswith(level)
    assert result["band"][0] <= result["predicted_agreement"] <= result["band"][1]
    assert result["kinds"]["unstretched"]["noise"] == pytest.approx(max(noise, 0.01), rel=0.2)


@pytest.mark.parametrize(
    ("told", "low", "level"),
    [
        (0.97, 0.91, "fine"),  # five points below the border at most
        (0.97, 0.89, "doubtful"),
        (0.94, 0.94, "doubtful"),
        (0.75, 0.2, "doubtful"),
        (0.74, 0.7, "do not ship"),
    ],
)
def test_a_fine_file_is_surely_not_far_below_the_border(told, low, level):
    assert accuracy_estimate.level_of(told, low) == level


def test_a_doubtful_file_of_which_much_is_told_says_why(monkeypatch):
    """ "Doubtful: about 95%" alone would read as a contradiction."""
    for low, said in (
        (0.89, ["it may be less than 90%, so the file is not called fine"]),
        (0.9, []),
    ):
        told = agreement.Prediction(0.955, low, 1.0)
        monkeypatch.setattr(accuracy_estimate, "predict", lambda *_, told=told, **__: told)
        assert judge({"stretched": evidence(same=7)})["reasons"] == said


def test_images_that_the_model_takes_for_one_are_named():
    """Logits of 20 for one class on every image, and differences of 1 that noise half hides."""
    found = noisy(0.5)
    shared = np.eye(10)[0] * 20.0
    alike = found._replace(
        float_logits={"y": found.float_logits["y"] + shared},
        logits={"y": found.logits["y"] + shared},
    )
    (reason, *_) = judge({"unstretched": alike})["reasons"]
    assert "nearly the same logits" in reason
    assert judge({"unstretched": found})["reasons"] == []


@pytest.mark.parametrize("height", [5.0, 0.0])
def test_images_that_all_have_the_same_logits_judge_nothing(height):
    """One class by 5 on every image, or none, and differences of a thousandth, which the integer
    file keeps: no noise, and a margin of thousands of them. Nothing of that holds for other inputs,
    so nothing is predicted, whatever a second kind of images says.
    """
    rng = np.random.default_rng(3)
    logits = np.tile([height, 0.0, 0.0], (10, 1)) + (1e-3 if height else 0.0) * rng.normal(
        size=(10, 3)
    )
    sides = {"reference": logits, "outputs": logits + 1e-6 * rng.normal(size=(10, 3))}
    sides |= {"float_logits": sides["reference"], "logits": sides["outputs"]}
    same = evidence(classes=3)._replace(**{name: {"y": side} for name, side in sides.items()})
    for kinds in ({"unstretched": same}, {"stretched": noisy(0.001), "unstretched": same}):
        result = judge(kinds)
        assert (result["level"], result["predicted_agreement"]) == ("unknown", None)
        assert result["band"] is None and result["reasons"] == []
        told = layer_errors.look_first(result, b"", b"", np.zeros(0))  # no layer is looked at
        assert told["sentence"].startswith("Not judged: ") and told["look_first"] == []
    one = same._replace(**{name: {"y": side[:1]} for name, side in sides.items()})
    assert judge({"unstretched": one})["level"] != "unknown"  # it may be like others or not


def test_outputs_that_are_the_same_on_all_images_judge_nothing():
    """A regression that gives 300 on every image keeps 50 dB of nothing; one of 300 and 302 has
    something to tell.
    """
    files = [np.full((10, 1), 300.0) for _ in range(2)]
    files[1] += 1.0
    for height, level in ((0.0, "unknown"), (2.0, "fine")):
        files[0][::2] = 300.0 + height
        heads = {"reference": {"y": files[0]}, "outputs": {"y": files[1]}}
        heads |= {"float_logits": heads["reference"], "logits": heads["outputs"]}
        result = judge({"stretched": evidence()._replace(**heads)})
        assert result["level"] == level and result["worst_head_sqnr_db"] > 45


def test_unstable_ranges_are_named():
    high = np.ones((10, 2))
    high[0] = 2.0  # of one half alone
    (reason,) = judge({"stretched": evidence(same=7, high=high)})["reasons"]
    assert "too few images" in reason
    assert judge({"stretched": evidence(same=7)})["reasons"] == []


def test_models_without_classes_are_judged_by_their_worst_head():
    quiet = evidence()
    signs = np.array([1.0, -1.0] * 5)[:, None, None]
    heads = {"boxes": signs * np.ones((10, 5, 4)), "scores": signs * np.ones((10, 5, 2))}
    noisy = {"boxes": heads["boxes"] + 0.01, "scores": heads["scores"] + 0.5}
    result = judge({"stretched": quiet._replace(reference=heads, outputs=noisy)})
    assert result["predicted_agreement"] is None and result["band"] is None
    # 10 log10(1 / 0.25) = 6.02
    assert (
        result["worst_head_sqnr_db"] == pytest.approx(6.02, abs=0.01)
        and result["level"] == accuracy_estimate.NO
    )


@pytest.mark.parametrize(("lost", "level"), [(0, "fine"), (2, "doubtful"), (4, "do not ship")])
def test_masks_are_judged_by_what_they_mark(lost, level):
    """Ten places of 100 are marked; an integer file that is off by 0.2 everywhere else loses some
    of them: IoU 1, 0.8 and 0.6.
    """
    logits = np.full((10, 100, 1), -2.0)
    logits[:, :10] = 3.0
    marked = 1.0 / (1.0 + np.exp(-logits))
    outputs = marked.copy()
    outputs[:, 10:] += 0.2
    outputs[:, :lost] = 0.4
    logits, marked, outputs = (
        np.stack([np.roll(row, 10 * place, axis=0) for place, row in enumerate(side)])
        for side in (logits, marked, outputs)
    )
    one = evidence()._replace(
        reference={"y": marked}, outputs={"y": outputs}, float_logits={"y": logits}
    )
    result = judge({"stretched": one})
    assert result["mask"] == {"agreement": 1 - lost / 100, "iou": pytest.approx(1 - lost / 10)}
    assert result["level"] == level
    assert result["worst_head_sqnr_db"] < 10
    assert f"IoU {1 - lost / 10:.2f}" in result["sentence"]
    first = {"reference": marked, "outputs": outputs, "float_logits": logits}
    alike = {name: {"y": np.repeat(side[:1], 10, axis=0)} for name, side in first.items()}
    result = judge({"stretched": one._replace(**alike)})
    assert (result["level"], result["mask"]) == ("unknown", None)
    boxes = one._replace(float_logits={"y": marked})  # in 0..1, but of no sigmoid
    assert judge({"stretched": boxes})["mask"] is None


def _behind(head, logits, noisy):
    sides = {"reference": head(logits), "outputs": head(noisy)}
    sides |= {"float_logits": logits, "logits": noisy}
    found = evidence(of=len(logits), classes=logits.shape[1])
    return found._replace(**{name: {"y": side} for name, side in sides.items()})


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def test_one_sigmoid_tells_two_classes_apart():
    rng = np.random.default_rng(0)
    logits = 4.0 * rng.normal(size=(64, 1))
    flipped = logits * np.where(np.arange(64)[:, None] < 16, -1.0, 1.0)  # a quarter changes sides
    found = _behind(_sigmoid, logits, flipped)
    assert judge({"unstretched": found})["kinds"]["unstretched"]["agreement"] == 0.75
    assert judge({"unstretched": found})["level"] != accuracy_estimate.FINE
    same = judge({"unstretched": _behind(_sigmoid, logits, logits + 1e-3)})
    assert same["level"] == accuracy_estimate.FINE and not same["linear"]


def test_one_sigmoid_is_scored_by_top1():
    from benchmarks.measure.scoring import scorer

    shares = np.array([[0.9], [0.2], [0.6], [0.4]])
    score, _ = scorer(None, np.zeros((4, 8)), np.array([1, 0, 0, 1]), reference={"y": shares})
    assert score({"y": np.array([[0.8], [0.6], [0.7], [0.1]])}) == {"top1": 0.25, "agreement": 0.75}


def test_tensors_are_named_as_a_person_knows_them():
    assert accuracy_estimate.short("serving_default_image:0") == "input image"
    assert accuracy_estimate.short("net/conv1;net/relu1") == "net/relu1"
    assert len(accuracy_estimate.short("a" * 50)) == 40


def test_labels_of_which_several_hold_are_no_classes():
    """The strongest of ten labels changes by a hair in each image, no label changes sides."""
    rng = np.random.default_rng(0)
    logits = np.where(rng.random((64, 10)) < 0.3, 3.0, -3.0) + 0.01 * rng.normal(size=(64, 10))
    result = judge(
        {"unstretched": _behind(_sigmoid, logits, logits + 0.02 * rng.normal(size=(64, 10)))}
    )
    assert result["mask"] == {"agreement": 1.0, "iou": 1.0}
    assert result["predicted_agreement"] is None and result["level"] == accuracy_estimate.FINE


def test_numbers_are_not_only_told_as_classes():
    """A linear head may be a regression: 0.1 of error for a spread of 1 is 20 dB."""
    result = judge({"unstretched": noisy(0.1)})
    assert result["linear"] and "they keep 20 dB" in result["sentence"]
    logits = np.random.default_rng(0).normal(size=(64, 10))

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    assert not judge({"unstretched": _behind(softmax, logits, logits)})["linear"]


def test_calibration_images_are_called_the_best_case():
    assert "best case" in judge({"calibration": evidence()}, held_out=False)["sentence"]
    assert "best case" not in judge({"stretched": evidence()})["sentence"]
    with pytest.raises(ValueError, match="at least one kind"):
        judge({})


@pytest.fixture(scope="module")
def files():
    """A tiny classifier, its float file, and integer files from good images and from images that
    are far too dark.
    """
    from tflite_export import to_float_tflite, to_tflite

    model = tiny_models.softmax_head()
    good = tiny_models.images(24)
    return (
        model,
        good,
        to_float_tflite(model),
        to_tflite(model, good[:16]),
        to_tflite(model, good[:16] * 0.05),
    )


def test_evidence_equals_keras_and_numpy(files):
    from tflite_export.quality.layer_comparison import gather
    from tflite_export.tflite.interpreter import Runner

    model, images, float_tflite, tflite, _ = files
    found = gather(float_tflite, tflite, images)
    name = next(iter(found.reference))
    np.testing.assert_allclose(found.reference[name], model.predict(images, verbose=0), atol=1e-5)
    np.testing.assert_allclose(
        found.outputs[name], Runner(tflite, kernels="builtin").predict(images)
    )
    # softmax of the logits behind it is the output
    z = found.float_logits[name]
    np.testing.assert_allclose(
        np.exp(z) / np.exp(z).sum(-1, keepdims=True), found.reference[name], atol=1e-5
    )
    assert found.kinds[0] == "INPUT" and found.low[:, 0] == pytest.approx(
        images.reshape(24, -1).min(1), abs=1e-6
    )
    assert found.signal[:, 0] == pytest.approx(
        np.sum(np.float64(images) ** 2, axis=(1, 2, 3)), rel=1e-6
    )
    # uniform rounding noise of the input has variance step^2 / 12 where nothing is cut off
    step = (found.limits[0, 1] - found.limits[0, 0]) / 255
    inside = found.clipped[:, 0] == 0
    assert inside.sum() > 10
    assert found.noise[inside, 0].sum() / images[inside].size == pytest.approx(
        step**2 / 12, rel=0.15
    )


def test_dark_calibration_is_seen_from_good_images_and_hidden_from_dark_ones(files):
    from tflite_export.quality.layer_comparison import gather

    _, images, float_tflite, tflite, dark = files
    good, bad, blind = (
        judge({"stretched": gather(float_tflite, file, x)})
        for file, x in ((tflite, images), (dark, images), (dark, images * 0.05))
    )
    assert good["worst_head_sqnr_db"] > bad["worst_head_sqnr_db"] + 10
    assert (
        max(row["clipped"] for row in bad["layers"])
        > 0.3
        > 0.05
        > max(row["clipped"] for row in good["layers"])
    )
    assert (
        blind["worst_head_sqnr_db"] > 20
    )  # why a file is never judged by the images that may be at fault


def test_a_file_with_other_names_inside_is_known_by_its_ends_and_logits(files):
    """Such as distillation makes: here the model's rebuilt in tf_keras, whose layers the converter
    names otherwise.
    """
    from tflite_export import to_tflite
    from tflite_export.algorithms.distillation.to_tf_keras import to_tf_keras
    from tflite_export.quality.layer_comparison import gather

    model, images, float_tflite, tflite, _ = files
    renamed = gather(float_tflite, to_tflite(to_tf_keras(model), images[:16]), images)
    same = gather(float_tflite, tflite, images)
    assert renamed.kinds == ["INPUT", "FULLY_CONNECTED", "SOFTMAX"] and len(same.kinds) > 6
    for name, logits in same.float_logits.items():
        np.testing.assert_array_equal(renamed.float_logits[name], logits)
        np.testing.assert_allclose(
            renamed.logits[name], same.logits[name], atol=0.05 * np.ptp(logits)
        )
    assert judge({"stretched": renamed})["level"] == judge({"stretched": same})["level"]


def test_a_file_that_ends_at_the_logits_is_compared_with_the_float_logits(files):
    from tflite_export.quality.layer_comparison import gather
    from tflite_export.quantization import quantize

    model, images, float_tflite, tflite, _ = files
    cut = gather(
        float_tflite, quantize(model, images[:16], head="logits", algorithm="minmax").tflite, images
    )
    whole = gather(float_tflite, tflite, images)
    for name, logits in whole.float_logits.items():
        np.testing.assert_array_equal(cut.reference[name], logits)
        np.testing.assert_allclose(cut.outputs[name], logits, atol=0.05 * np.ptp(logits))
    told = [judge({"stretched": each})["predicted_agreement"] for each in (cut, whole)]
    assert told[0] == pytest.approx(told[1], abs=0.02)


def test_files_of_other_models_are_refused(files):
    from tflite_export import to_tflite
    from tflite_export.quality.layer_comparison import gather, require_same_ends

    images = tiny_models.images(4, shape=(16, 16, 1))
    other = to_tflite(tiny_models.grey_input(), images)
    with pytest.raises(ValueError, match="images made for this model"):
        gather(files[2], other, images)
    with pytest.raises(ValueError, match="a file that tflite_export made"):
        require_same_ends(files[2], to_tflite(tiny_models.two_heads(), tiny_models.images(4)))


def test_gaps_are_those_that_generation_minimizes(files):
    """Against dgh_tf.losses.moment_gap on the moments of the same inputs, and noise against
    images.
    """
    import tensorflow as tf

    from benchmarks.measure.gaps import statistics_gaps
    from dgh_tf.models.network import Network
    from dgh_tf.ops.losses import moment_gap
    from dgh_tf.ops.moments import Moments

    network = Network(files[0])
    gaps = statistics_gaps(network, files[1], batch_size=7)
    taps = tf.function(lambda x: [x for _, x in network.forward([x]).calls], autograph=False)(
        tf.constant(files[1])
    )
    for layer, x in zip(network.layers, taps, strict=True):
        flat = x.numpy().reshape(-1, x.shape[-1]).astype(np.float64)
        observed = Moments(
            *(
                tf.constant(v, tf.float32)
                for v in (len(flat), flat.mean(0), flat.var(0) * len(flat))
            )
        )
        expected = moment_gap(
            observed, mean=layer.mean, variance=layer.variance, epsilon=layer.epsilon
        )
        assert gaps[layer.name] == pytest.approx(float(expected), rel=1e-3)


def test_the_farthest_set_tells_how_images_converged(files):
    from benchmarks.verdict import farthest
    from dgh_tf.models.network import Network

    network, near = Network(files[0]), files[1]
    sets = near, 30.0 * near
    gaps = [farthest(network, [images]).mean_gap for images in sets]
    assert farthest(network, sets).mean_gap == gaps[1] > gaps[0]
    assert farthest(Network(files[0], use_statistics=False), sets) is None


@pytest.mark.parametrize("text", ["[]", "5", '{"sha256": 5}', '{"sha256": {}}', None])
def test_a_json_beside_a_file_need_not_be_its_proof(text, tmp_path):
    beside, tflite = tmp_path / "F.json", tmp_path / "F.tflite"
    if text is not None:
        beside.write_text(text)
    assert calibrated_on(tflite) is None
    beside.write_text('{"sha256": {"calibration": "ab"}}')
    assert calibrated_on(tflite) == "ab"
    beside.write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"F\.json is damaged"):
        calibrated_on(tflite)
