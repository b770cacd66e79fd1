"""The calibration benchmark from its command line, resumed and refused, on a tiny model; and its
parts by hand.
"""

import json
import pathlib

import commands
import numpy as np
import pytest

from benchmarks.calibration import noise_bounds
from benchmarks.data import sources
from benchmarks.measure import evaluation
from benchmarks.output.results import Results

ROW = {"source": "real", "seed": 0, "top1": 0.5}


@pytest.fixture(scope="module")
def task_files(tmp_path_factory):
    """A tiny model that tells bright from dark images, and its data, inputs in [-1, 1]."""
    import keras

    folder = tmp_path_factory.mktemp("task")
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    x = np.clip(
        (y - 1)[:, None, None, None] * 0.5 + rng.normal(scale=0.4, size=(300, 12, 12, 3)), -1, 1
    )
    inputs = outputs = keras.Input((12, 12, 3), name="image")
    for layer in (
        keras.layers.Conv2D(8, 3, name="conv"),  # names count in the file's bytes
        keras.layers.BatchNormalization(momentum=0.8, name="bn"),
        keras.layers.ReLU(name="relu"),
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.Dense(3, activation="softmax", name="head"),
    ):
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs, name="toy")
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=8, batch_size=50, verbose=0)
    model.save(folder / "m.keras")
    np.savez(folder / "real.npz", x=x[:100].astype(np.float32), y=y[:100])
    np.savez(folder / "evaluation.npz", x=x[100:].astype(np.float32), y=y[100:])
    return folder


def run(task_files, output_dir, *options):
    files = [
        f"--model={task_files}/m.keras",
        f"--real={task_files}/real.npz",
        f"--evaluation={task_files}/evaluation.npz",
        f"--output_dir={output_dir}",
    ]
    return commands.call(
        "benchmarks.calibration",
        *files,
        "--num_images=16",
        "--seeds=1",
        "--steps=3",
        "--batch_size=8",
        "--input_range=-1,1",
        *options,
    )


def test_command_measures_and_a_second_run_adds_only_what_is_missing(task_files, tmp_path):
    import keras

    code, _, err = run(task_files, tmp_path, "--sources=noise")
    assert code == 0, err
    before = json.loads((tmp_path / "results.json").read_text())
    assert before[0]["range_ratio"] is None
    code, out, err = run(task_files, tmp_path, "--sources=noise,real,synthetic")
    assert code == 0, err
    rows = {row["source"]: row for row in json.loads((tmp_path / "results.json").read_text())}
    assert list(rows) == ["noise", "real", "synthetic"] and "1 of 3 rows are done already" in out
    first, again = (
        {k: v for k, v in row.items() if "range_" not in k and k != "checksum"}
        for row in (before[0], rows["noise"])
    )
    assert first == again
    assert rows["noise"]["range_ratio"] > 0 and rows["real"]["range_ratio"] == 1.0
    # float top-1 from Keras itself
    data = np.load(task_files / "evaluation.npz")
    model = keras.models.load_model(task_files / "m.keras")
    expected = np.mean(model.predict(data["x"], verbose=0).argmax(1) == data["y"])
    assert rows["real"]["float_top1"] == pytest.approx(expected)
    assert rows["real"]["agreement"] > 0.9 and rows["real"]["sqnr_db"] > 20
    assert rows["synthetic"]["generation_seconds"] > 0 and rows["synthetic"]["num_images"] == 16
    assert (tmp_path / "scores.png").stat().st_size > 5000 and (
        tmp_path / "ranges.png"
    ).stat().st_size > 5000
    report = (tmp_path / "results.md").read_text()
    assert "python -m benchmarks.calibration --model=" in report and "tensorflow 2." in report
    code, _, err = run(task_files, tmp_path, "--sources=noise", "--steps=4")
    assert code == 1 and "other arguments" in err and err.count("\n") == 1
    assert len(json.loads((tmp_path / "results.json").read_text())) == 3


@pytest.mark.slow
def test_real_images_alone_have_nothing_to_be_plotted_against(task_files, tmp_path):
    code, _, err = run(task_files, tmp_path, "--sources=real")
    assert (
        (code, err) == (0, "")
        and (tmp_path / "scores.png").exists()
        and not (tmp_path / "ranges.png").exists()
    )


def test_schemes_and_algorithms_stand_in_one_table_on_the_same_images(task_files, tmp_path):
    code, _, err = run(
        task_files,
        tmp_path,
        "--sources=real,synthetic",
        "--scheme=int8,w4a8",
        "--algorithm=minmax,bias_correction",
        "--head=logits",
    )
    assert code == 0, err
    rows = json.loads((tmp_path / "results.json").read_text())
    assert (
        len(rows) == 8
        and len({(row["source"], row["scheme"], row["algorithm"]) for row in rows}) == 8
    )
    assert {row["used"] for row in rows} == {"minmax", "bias_correction"}
    assert (
        len({row["generation_seconds"] for row in rows if row["source"] == "synthetic"}) == 1
    )  # generated once
    sqnr = {
        (row["scheme"], row["algorithm"]): row["sqnr_db"] for row in rows if row["source"] == "real"
    }
    assert sqnr["int8", "minmax"] > sqnr["w4a8", "minmax"] + 5  # each bit is 6 dB
    assert "generated, w4a8 bias_correction" in (tmp_path / "results.md").read_text()


def test_mixed_has_a_row_and_a_point_for_each_size(task_files, tmp_path):
    args = ("--sources=real", "--scheme=mixed", "--algorithm=minmax", "--seeds=1")
    code, _, err = run(task_files, tmp_path, *args, "--max_kib=9,2.4")
    assert code == 0, err
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["max_kib"] for row in rows] == [9.0, 2.4]
    assert all(row["kib"] <= row["max_kib"] for row in rows)
    assert rows[0]["kib"] > rows[1]["kib"] and rows[0]["sqnr_db"] > rows[1]["sqnr_db"]
    assert "real, mixed minmax in 2.4 KiB" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "sizes.png").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--algorithm=magic"], "Unknown algorithm 'magic'"),
        (["--scheme=int16x8", "--algorithm=mse"], "mse has no scheme int16x8"),
        (["--algorithm=minmax,minmax"], "none twice"),
        (["--scheme=mixed"], "Give both or neither"),
        (["--max_kib=300"], "Give both or neither"),
        (["--scheme=mixed", "--max_kib=300,x"], "expected sizes in KiB above 0"),
    ],
)
def test_misfits_are_refused_before_anything_is_loaded(options, message):
    from benchmarks.measure.comparison import combinations

    given = {"scheme": "int8", "algorithm": "minmax", "max_kib": ""} | dict(
        option.removeprefix("--").split("=") for option in options
    )
    scheme, algorithm, max_kib = (
        [text for text in given[name].split(",") if text]
        for name in ("scheme", "algorithm", "max_kib")
    )
    with pytest.raises(ValueError, match=message):
        combinations(scheme, algorithm, head="model", max_kib=max_kib)


def test_real_subsets_follow_the_seed_and_never_repeat_an_image():
    real = np.arange(20.0).reshape(20, 1)
    first, again, other = (
        sources.real_subset(real, num_images=10, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert len(set(first.ravel())) == 10 and set(first.ravel()) != set(other.ravel())
    with pytest.raises(ValueError, match="fewer than --num_images=21"):
        sources.real_subset(real, num_images=21, seed=0)


def test_noise_fills_the_valid_range_of_each_channel():
    from dgh_tf import GenerationConfig

    low, high = np.float32([-2.0, 0.0, 10.0]), np.float32([2.0, 1.0, 20.0])
    images, _ = sources.calibration_images(
        "noise",
        model=None,
        real=np.zeros((1, 16, 16, 3)),
        bounds=(low, high),
        config=GenerationConfig(num_images=64, seed=1),
    )
    flat = images.reshape(-1, 3)
    assert (flat >= low).all() and (flat <= high).all()
    # Uniform: mean in the middle, deviation width / sqrt(12); 16384 samples a channel.
    np.testing.assert_allclose(flat.std(axis=0), (high - low) / np.sqrt(12), rtol=0.03)
    np.testing.assert_allclose((flat.mean(axis=0) - low) / (high - low), 0.5, atol=0.02)


def proxies(shape=(32, 24, 3), *, num_images=6, seed=0, low=0.0, high=1.0):
    from dgh_tf import GenerationConfig

    images, seconds = sources.calibration_images(
        "proxy",
        model=None,
        real=np.zeros((1, *shape), np.float32),
        config=GenerationConfig(num_images=num_images, seed=seed),
        bounds=(np.float32(low), np.float32(high)),
        noise_bounds=(np.float32([5.0]), np.float32([6.0])),
    )
    assert seconds is None and images.shape == (num_images, *shape) and images.dtype == np.float32
    return images


def test_proxies_are_crops_of_the_two_photographs_in_turn():
    from sklearn.datasets import load_sample_images

    images = proxies(num_images=64)
    assert images.min() >= 0 and images.max() <= 1
    rng = np.random.default_rng(0)
    for first, photograph in enumerate(load_sample_images().images):
        # what plain crops of 4 to 3 and a quarter to all of the height have on average
        colours = []
        for height in (427 * 0.25 ** rng.random(400)).astype(int):
            top, left = rng.integers(0, [428 - height, 641 - height * 3 // 4])
            crop = photograph[top : top + height, left : left + height * 3 // 4]
            colours.append(crop.mean(axis=(0, 1)) / 255)
        found = images[first::2].astype(np.float64).mean(axis=(0, 1, 2))
        np.testing.assert_allclose(found, np.mean(colours, axis=0), atol=0.06)
    differences = np.abs(np.diff(images[::2].mean(axis=(1, 2, 3))))
    assert differences.min() > 0  # zoom, place and colours are each image's own


def test_proxies_follow_the_seed_and_a_larger_set_begins_with_the_smaller():
    np.testing.assert_array_equal(proxies(), proxies(num_images=9)[:6])
    assert not np.allclose(proxies(), proxies(seed=1))


def test_proxies_fill_the_valid_range_in_the_layout_and_order_of_the_model():
    """noise_bounds, 5 to 6 there, are of noise alone."""
    unit = proxies().astype(np.float64)
    np.testing.assert_allclose(proxies(low=-1, high=1), 2 * unit - 1, atol=1e-6)
    low, high = np.float32([-2, 0, 10]), np.float32([2, 1, 20])
    np.testing.assert_allclose(proxies(low=low, high=high), low + unit * (high - low), atol=1e-5)
    first = proxies((3, 32, 24), low=low[:, None, None], high=high[:, None, None])
    np.testing.assert_array_equal(first, np.moveaxis(proxies(low=low, high=high), -1, 1))
    # keras.applications' own mapping of red, green, blue 0..255, mode caffe
    from keras.applications.imagenet_utils import preprocess_input

    mean = np.float32([103.939, 116.779, 123.68])
    caffe = proxies(low=-mean, high=255 - mean)
    np.testing.assert_allclose(caffe, preprocess_input(255 * unit, mode="caffe"), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "kind", "told"),
    [
        ((16, 16, 1), "image", "no picture of three channels"),
        ((24,), "vector", "a vector"),
        ((64, 40, 3), "spectrogram", "a spectrogram"),
    ],
)
def test_proxies_are_refused_where_the_input_is_no_picture_of_three_channels(shape, kind, told):
    with pytest.raises(ValueError, match=f"proxy gives crops of photographs.* is {told}"):
        sources.require_fitting(["real", "proxy"], shape=shape, kind=kind)
    sources.require_fitting(["real", "start"], shape=shape, kind=kind)


def test_the_command_refuses_proxies_in_one_line_and_leaves_nothing(tmp_path):
    import tiny_models

    tiny_models.grey_input().save(tmp_path / "m.keras")
    np.savez(tmp_path / "x.npz", x=tiny_models.images(20, shape=(16, 16, 1)))
    code, _, err = run_on(tmp_path, "--sources=proxy", "--num_images=4")
    assert code == 1 and err.count("\n") == 1
    assert err.startswith("error: --sources: proxy gives crops of photographs")
    assert not (tmp_path / "out" / "results.json").exists()


def run_on(folder, *options):
    return commands.call(
        "benchmarks.calibration",
        f"--model={folder}/m.keras",
        f"--real={folder}/x.npz",
        f"--evaluation={folder}/x.npz",
        f"--output_dir={folder}/out",
        "--input_range=-1,1",
        *options,
    )


def test_start_images_are_finished_canvases_without_a_step():
    import tiny_models

    from dgh_tf import GenerationConfig, Generator
    from dgh_tf.ops import canvas

    config = GenerationConfig(num_images=5, batch_size=2, seed=3, input_range=(0, 10))
    model = tiny_models.conv_bn_relu()
    images, seconds = sources.calibration_images(
        "start", model=model, real=np.zeros((1, 16, 16, 3)), config=config, bounds=None
    )
    assert seconds is None and images.shape == (5, 16, 16, 3) and images.dtype == np.float32
    generator = Generator(model, config)
    generator.start()
    np.testing.assert_array_equal(images, generator.all_images()[0])
    # by hand, in float64: the middle of a canvas, smoothed with three taps, cut off, in model units
    layout, image = generator.layouts[0], 4
    taps = np.exp(-0.5 * (np.arange(-1, 2) / layout.smoothing) ** 2)
    taps /= taps.sum()
    x = canvas.start_canvas(
        layout.canvas_shape, index=image, seed=3, std=generator.ranges[0].prior_std, start="leaves"
    ).astype(np.float64)
    at = layout.padding // 2
    x = x[at : at + 18, at : at + 18]
    x = sum(tap * x[i : i + 16] for i, tap in enumerate(taps))
    x = sum(tap * x[:, i : i + 16] for i, tap in enumerate(taps))
    np.testing.assert_allclose(images[image], 5 * (np.clip(x, -1, 1) + 1), atol=1e-5)


def test_start_signals_are_those_that_generation_starts_from():
    import tiny_models

    from dgh_tf import GenerationConfig, Generator

    config = GenerationConfig(num_images=3, batch_size=2, seed=1, input_range=(-4, 4))
    model = tiny_models.spectrogram()
    images, _ = sources.calibration_images(
        "start", model=model, real=np.zeros((1, 40, 12, 1)), config=config, bounds=None
    )
    generator = Generator(model, config)
    generator.start()
    np.testing.assert_array_equal(images, generator.all_images()[0])
    assert len({image.tobytes() for image in images}) == 3


def test_noise_can_fill_the_range_of_the_real_images():
    real = np.array([[[-1.0, 5], [2, 7]]], np.float32)
    assert [*map(list, noise_bounds("real", real))] == [[-1.0], [7.0]]
    assert [*map(list, noise_bounds("-1,2;5,9", real))] == [[-1.0, 5.0], [2.0, 9.0]]
    for text in ("wide", "2,1", "0,1;0,1;0,1"):
        with pytest.raises(ValueError, match=f"--noise_range={text}"):
            noise_bounds(text, real)


@pytest.mark.parametrize("names", [["real", "nosie"], [], ["real", "real"]])
def test_wrong_sources_are_refused_with_the_right_ones(names):
    with pytest.raises(ValueError, match="expected some of real, synthetic"):
        sources.check_sources(names)


def test_range_comparison_by_hand():
    # Widths 4 -> 2 and 1 -> 4: log2 ratios -1 and 2, geometric mean 2 ** 0.5, gap 1.5; covered 0.5
    # and 1.
    result = evaluation.compare_ranges(
        {"a": (0, 4), "b": (0, 1), "c": (0, 1)}, {"a": (0, 2), "b": (-1, 3)}
    )
    assert result == pytest.approx(
        {"range_coverage": 0.75, "range_ratio": 2**0.5, "range_gap": 1.5}
    )


def test_file_ranges_hold_the_calibration_images(task_files):
    """The input range is the calibration images' own minimum and maximum (min/max calibration), to
    one step.
    """
    import keras

    from tflite_export import to_tflite

    images = np.random.default_rng(0).uniform(-0.5, 0.8, (8, 12, 12, 3)).astype(np.float32)
    ranges = evaluation.tensor_ranges(
        to_tflite(keras.models.load_model(task_files / "m.keras"), images)
    )
    step = (images.max() - images.min()) / 255
    assert any(
        np.allclose(each, (images.min(), images.max()), atol=step) for each in ranges.values()
    )
    # TFLite fixes the scale of softmax at 1/256
    assert any(np.allclose(each, (0.0, 255 / 256)) for each in ranges.values())
    assert len(ranges) >= 4  # input, convolution, mean, dense, softmax


@pytest.mark.parametrize("name", ["results.json", "ranges.json"])
def test_a_changed_figure_is_refused(name, tmp_path):
    Results(tmp_path, run="a").add({**ROW, "top1": 0.5}, {"t": (0.0, 0.5)})
    path = tmp_path / name
    path.write_text(path.read_text().replace("0.5", "0.9"))
    with pytest.raises(ValueError, match="was changed since it was written"):
        Results(tmp_path, run="a")


def test_damaged_results_are_not_overwritten(tmp_path):
    Results(tmp_path, run="a").add(ROW, {})
    whole = (tmp_path / "results.json").read_text()
    assert Results(tmp_path, run="a").done("real", 0) and not Results(tmp_path, run="a").done(
        "real", 1
    )
    with pytest.raises(ValueError, match="other arguments"):
        Results(tmp_path, run="b")
    for text in (whole[:-10], "{}", "[1]"):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(ValueError, match="Remove it"):
            Results(tmp_path, run="a")
        assert (tmp_path / "results.json").read_text() == text


def test_every_source_is_in_the_legend_also_one_that_the_first_group_lacks(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from benchmarks.output import plots

    legends = []
    monkeypatch.setattr(
        Axes, "legend", lambda axis, **_: legends.append(axis.get_legend_handles_labels()[1])
    )
    rows = [
        {"group": group, "source": source, "v": 1.0}
        for group, source in [("a", "real"), ("b", "real"), ("b", "noise")]
    ]
    plots.grouped(rows, tmp_path / "g.png", field="v", label="v", line=None)
    assert legends == [["real", "uniform noise"]]


def test_a_model_of_fixed_batch_size_one_is_scored(tmp_path):
    """All images of the set count, against the model called image by image."""
    import keras
    import tiny_models

    from benchmarks.measure.comparison import load_task

    inputs = keras.Input(batch_shape=(1, 16, 16, 3))
    y = keras.layers.Conv2D(8, 3, strides=2, use_bias=False)(inputs)
    y = keras.layers.Flatten()(keras.layers.ReLU()(keras.layers.BatchNormalization()(y)))
    model = tiny_models.settle(keras.Model(inputs, keras.layers.Dense(5)(y)))
    model.save(tmp_path / "m.keras")
    x, truth = tiny_models.images(10), np.arange(10) % 5
    np.savez(tmp_path / "x.npz", x=x, y=np.eye(5)[truth])
    data = str(tmp_path / "x.npz")
    task = load_task(
        str(tmp_path / "m.keras"), real=data, evaluation=data, input_range="-1,1", preprocess="none"
    )
    alone = [int(np.argmax(model(image[None]))) for image in x]
    assert task.float_scores["float_top1"] == np.mean(alone == truth)


@pytest.mark.parametrize(
    ("values", "centre", "ends"),
    [
        # 0.99 and the nearer half spread over 0.005, so that 0.1 is left to the edge; by hand
        ([0.98, 0.985, 0.99, 0.1], 0.99, (0.9775, 0.9925)),
        # both kinds of noise are bad, and real images tell where to look
        ([0.787, 0.789, 0.146, 0.267], 0.787, (0.787 - 0.25 * 0.005 * 0.787, None)),
        ([0.5, 0.6, 0.7], None, (0.45, 0.75)),
        ([0.5], None, (0.5 - 0.25 * 0.0025, 0.5 + 0.25 * 0.0025)),
        ([], None, (0.0, 1.0)),
    ],
)
def test_an_axis_shows_the_differences_between_the_best(values, centre, ends):
    from benchmarks.output import plots

    low, high = plots.shown_range(values, centre=centre)
    assert low == pytest.approx(ends[0], abs=1e-6)
    assert high < 0.8 if ends[1] is None else high == pytest.approx(ends[1], abs=1e-6)


def test_pictures_name_sources_as_the_readme_does(tmp_path):
    from benchmarks.output import plots
    from benchmarks.output.names import name_of

    readme = (pathlib.Path(__file__).resolve().parents[2] / "README.md").read_text()
    for source in ("real", "synthetic", "noise"):
        assert name_of(source) in readme
    rows = [
        {"source": source, "seed": 0, "top1": value}
        for source, value in (("real", 0.9), ("synthetic", 0.91), ("noise", 0.1))
    ]
    plots.scores(rows, tmp_path / "s.png", columns={"top1": "top-1"}, reference={"top1": 0.92})
    ranges = {"real": {"a": (0.0, 1.0), "b": (-1.0, 1.0)}, "noise": {"a": (0.0, 2.0)}}
    plots.range_ratios(ranges["real"], {"noise": ranges["noise"]}, tmp_path / "r.png")
    assert {p.name for p in tmp_path.iterdir()} == {"s.png", "r.png"}


@pytest.mark.parametrize("cut", ["half", "flipped", "empty"])
def test_kept_images_that_are_damaged_are_told(cut, tmp_path):
    path, images = tmp_path / "images" / "a.npz", np.arange(24.0).reshape(2, 2, 2, 3)
    first = sources.kept(path, lambda: (images, None))
    again, seconds = sources.kept(path, lambda: pytest.fail("they are there"))
    np.testing.assert_array_equal(first[0], again)
    assert seconds is None
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes({"half": whole[:middle], "flipped": flipped, "empty": b""}[cut])
    with pytest.raises(ValueError, match=r"a\.npz is damaged .* Remove it"):
        sources.kept(path, lambda: (images, None))
