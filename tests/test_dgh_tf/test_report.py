"""report.html: complete without a network, parsed by the standard library, with the integer files
of its folder.
"""

import base64
import html.parser
import io
import json
import re

import commands
import numpy as np
import pytest
import report_folders
from report_folders import EVIL, MANIFEST, METRICS, PROOF

from dgh_tf.ops.kinds import kind_of_shape
from dgh_tf.report import charts, integer_files, pictures, text
from dgh_tf.report import page as report


class Page(html.parser.HTMLParser):
    """Tags, attributes and text, and whether every element is closed in order."""

    def __init__(self, source):
        super().__init__()
        self.links, self.stack, self.text, self.images = [], [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "action") and value
        ]
        if tag == "img" and attributes.get("src") and "button" in self.stack:
            self.images.append(attributes["src"])
        if tag not in ("meta", "link", "img", "br"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [
            value for name, value in attrs if name in ("src", "href", "xlink:href") and value
        ]

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack[-1:] not in (["style"], ["script"]):
            self.text.append(data)


def images_of(*shape):
    return np.random.default_rng(0).uniform(0, 255, shape)


@pytest.fixture
def folder(tmp_path):
    report_folders.write(tmp_path, images_of(6, 32, 32, 3))
    (tmp_path / "model.json").write_text(json.dumps(PROOF))
    (tmp_path / "model.tflite").write_bytes(b"file")
    return tmp_path


def shown(folder, **manifest):
    """The page's words, one space between them, and the page."""
    report.write_page(
        folder, manifest={**MANIFEST, **manifest}, metrics=METRICS, command="python -m x --a='b c'"
    )
    page = Page((folder / "report.html").read_text())
    assert page.stack == []
    return " ".join(" ".join(page.text).split()), page


def test_images_that_judge_the_file_are_not_called_calibration_images(folder):
    """Four of the run's six images calibrated the file, as convert holds two back."""
    assert "calibration images 6 no data was used" in shown(folder)[0]
    notes = {**PROOF["algorithm_notes"], "images": 4}
    (folder / "model.json").write_text(json.dumps({**PROOF, "algorithm_notes": notes}))
    words, _ = shown(folder)
    assert "calibration images 4 2 more judge the file; no data was used" in words


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (
            {"worst_head_sqnr_db": 13.2},
            "in float, its outputs keep 13 dB over quantization noise in the worst head.",
        ),
        (
            {"mask": {"agreement": 0.991, "iou": 0.951}, "worst_head_sqnr_db": 8.0},
            "overlap with float IoU 0.95 99.1 % of places stay on their side",
        ),
    ],
)
def test_models_without_classes_have_a_figure_on_the_first_screen(folder, told, wanted):
    verdict = {**PROOF["verdict"], "predicted_agreement": None, "band": None, **told}
    (folder / "model.json").write_text(json.dumps({**PROOF, "verdict": verdict}))
    assert wanted in shown(folder)[0]


def test_a_file_that_was_not_judged_promises_nothing(folder):
    """Files of earlier versions hold the figures of images that did not converge all the same."""
    verdict = {**PROOF["verdict"], "level": "unknown", "sentence": "Not judged: no statistics."}
    (folder / "model.json").write_text(json.dumps({**PROOF, "verdict": verdict}))
    words, _ = shown(folder)
    assert "Not judged: no statistics." in words and "model.tflite is unknown" in words
    assert "of inputs should get" not in words and "agreement with float" not in words


@pytest.mark.parametrize(
    ("gaps", "tone", "told"),
    [
        ({"bn_1": 0.01, "bn_2": 0.2}, "good", "mean statistics gap 0.105 (good)"),
        ({**{f"bn_{i}": 0.01 for i in range(9)}, "last": 1.2}, "warn", "(fair; layers that stay"),
        ({"bn_1": 0.5, "bn_2": 0.4}, "bad", "0.45 (poor; layers that stay away: bn_1 0.5, bn_2"),
    ],
)
def test_images_are_judged_as_the_run_judged_them(tmp_path, gaps, tone, told):
    """A layer of ten that stays away is not good, though the mean gap is 0.129."""
    manifest = report_folders.write(tmp_path, images_of(6, 32, 32, 3), gap_end=gaps)
    page = report.view(tmp_path, manifest=manifest, metrics=METRICS, command="")
    assert page.tone == tone and told in page.headline
    assert [card.tone for card in page.cards if "gap" in card.label] == [tone]


def test_the_worst_of_several_files_leads_and_the_others_are_named(folder):
    """By name the doubtful file comes first, the one that is not fit to ship last."""
    for name, level, agreement in (("net4", "do not ship", 0.31), ("net", "fine", 0.98)):
        verdict = {**PROOF["verdict"], "level": level, "predicted_agreement": agreement}
        (folder / f"{name}.json").write_text(json.dumps({**PROOF, "verdict": verdict}))
        (folder / f"{name}.tflite").write_bytes(b"file")
    page = report.view(folder, manifest=MANIFEST, metrics=METRICS, command="")
    assert [file.name for file in page.files] == ["model.tflite", "net.tflite", "net4.tflite"]
    assert (page.tone, page.word) == ("bad", "not fit to ship")
    assert page.headline.startswith("net4.tflite is not fit to ship: ")
    assert page.headline.endswith(" Below: model.tflite is doubtful, net.tflite is fine.")
    assert (page.cards[0].value, page.cards[0].tone) == ("31\N{NO-BREAK SPACE}%", "bad")


def test_colours_of_a_map_are_those_of_most_of_its_values(tmp_path):
    """One band of ten is far stronger: the others still show more than one colour."""
    images = np.random.default_rng(0).normal(size=(20, 49, 10, 1))
    images[:, :, 0] *= 50
    low, high = np.percentile(images, (5, 95))
    report_folders.write(tmp_path, images, low=-200.0, high=200.0)
    words, _ = shown(tmp_path, input_range=[{"low": [-200.0], "high": [200.0], "found": "given"}])
    assert f"≤ {low:.3g}" in words and f"≥ {high:.3g}" in words
    assert -20 < low < high < 20


def test_images_of_a_model_without_statistics_are_not_said_to_match_any(folder):
    assert "They match statistics and need not" in shown(folder)[0]
    words, _ = shown(folder, evidence={"statistics": "none"})
    assert "They follow image priors and need not" in words and "They match" not in words


def test_page_needs_no_network_and_says_what_there_is(folder):
    words, page = shown(folder)
    source = (folder / "report.html").read_text()
    beside = [link for link in page.links if not link.startswith(("data:", "#"))]
    assert beside == [
        "./images.npy",
        "./manifest.json",
        "./metrics.jsonl",
        "./preview.png",
        "./model.tflite",
        "./model.json",
    ]
    assert not re.search(r"url\((?!#)|@import", source)
    assert "width=device-width" in source and "prefers-color-scheme: dark" in source
    for expected in (
        "<b>net.keras",
        "model.tflite is doubtful: 2 KiB instead of 16 KiB in float, about 80 % of inputs should "
        "get the float model's class (75 % to 90 %).",
        "This CPU takes every operator; Ethos-U55 (128 MACs) leaves some out.",
        "python -m x --a='b c'",
        "python -m tflite_export.convert '--model=folder/<b>net.keras' --calibration=DIR "
        "--output=DIR/model.tflite --scheme=int8 --algorithm=minmax --head=logits --seed=3 "
        "--target=ethos-u55-128,cpu",
        "1" * 64,
        "2" * 64,
        "3" * 64,
        "0 to 255, from first statistics: byte & more",
        "Doubtful: <80 %>. More follows.",
        "the ranges change by 30 %",
        "3 × conv 2D",
        "2 of 3 operators",
        "SRAM 32.7 KiB",
        "0.25 ms",
        "conv_1 12.3 dB",
        "3.0 % cut off",
        "reaches -2 to 0.5, the integers hold -1 to 1",
        "dgh_tf 0.1.0",
        "2026-01-02 03:04 UTC",
        "a processor, 2 logical CPUs",
        "0.00411",
        "head of <two> and $\\bad$",
        "3 min 23 s",
    ):
        assert expected in words, expected


def test_nothing_of_a_file_becomes_markup(folder):
    evil = {
        "model": f"{EVIL}.keras",
        "gap_end": {EVIL: 0.1},
        "gap_start": {EVIL: 0.2},
        "unmatched_layers": [EVIL],
        "machine": EVIL,
        "augmentation": [EVIL],
        "versions": {EVIL: EVIL},
    }
    (folder / f"{EVIL.replace('/', '')}.json").write_text(json.dumps(PROOF))
    words, _ = shown(folder, **evil)
    source = (folder / "report.html").read_text()
    assert source.count("<script") == 1 and "alert" in words


def test_names_are_whole_and_keys_are_words(folder):
    words, _ = shown(folder)
    for key in ("sram_kib", "live_peak_at", "latency_ms", "CONV_2D", "fully_mapped", "net_1/"):
        assert key not in words, key
    assert "..." not in words


def test_images_of_the_page_are_the_set_s(folder):
    from PIL import Image

    found = shown(folder)[1].images
    assert len(found) == 6
    wanted = np.rint(images_of(6, 32, 32, 3)).repeat(3, axis=1).repeat(3, axis=2)  # 96 pixels
    for uri, image in zip(found, wanted, strict=True):
        tile = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
        np.testing.assert_allclose(tile.astype(float), image, atol=1.0)


def test_channels_first_images_are_turned(folder):
    np.save(folder / "images.npy", images_of(6, 32, 32, 3).transpose(0, 3, 1, 2))
    turned = shown(folder, channels_first=[True])[1].images
    np.save(folder / "images.npy", images_of(6, 32, 32, 3))
    assert turned == shown(folder)[1].images


@pytest.mark.parametrize(
    ("shape", "kind", "count", "size"),
    [
        ((5, 49, 10, 1), "spectrograms", 5, (90, 49)),  # 10 bands upwards, 49 steps to the right
        ((5, 128, 9), "sequences", 5, (90, 128)),
        ((5, 5000, 3), "sequences", 5, (96, 256)),
        ((40, 5000), "vectors", 1, (96, 256)),  # 32 of them, three pixels a row
    ],
)
def test_what_is_no_photograph_is_drawn_as_what_it_is(tmp_path, shape, kind, count, size):
    array = images_of(*shape)
    gallery = pictures.gallery(array, low=0.0, high=255.0, ends=("0", "255"))
    assert (gallery.kind, len(gallery.pictures)) == (kind, count)
    assert pictures.pixels(array, low=0.0, high=255.0).shape == (count, *size, 3)
    report_folders.write(tmp_path, array)
    words, page = shown(tmp_path)
    assert len(page.images) == count and gallery.across in words
    preview = pictures.preview_grid(array, low=0.0, high=255.0)
    assert max(preview.shape) < 2200


def test_time_runs_to_the_right_and_low_bands_lie_below():
    maps = np.zeros((1, 20, 10, 1))
    maps[0, 18, 1] = 1.0  # late, in a low band
    drawn = pictures.pixels(maps, low=0.0, high=1.0)[0].astype(int).sum(axis=-1)
    row, column = np.unravel_index(drawn.argmax(), drawn.shape)
    assert row // (96 // 10) == 8 and column // (96 // 20) == 18


def test_long_sequences_are_averaged_not_sampled():
    wave = np.arange(1024.0).reshape(1, 1024, 1) / 1023
    found = pictures._maps(wave, low=np.float64(0), high=np.float64(1), kind="sequence")[0, 0]
    np.testing.assert_allclose(found, np.arange(1024.0).reshape(256, 4).mean(axis=1) / 1023)


def test_a_loss_that_is_off_has_no_name_without_a_line():
    """The prior of signals is 0, which a logarithmic axis cannot show."""
    rows = [{"step": step, "bn": 1.0 / step, "prior": 0.0} for step in (1, 2)]
    names = {"bn": "BN statistics loss", "prior": "image prior"}
    chart = charts.curves(rows, names, title="t", caption="", ylabel="loss", logarithmic=True)
    assert chart.legend == (("a", "BN statistics loss"),)


def test_histogram_counts_the_values_at_the_ends():
    values = np.concatenate([np.zeros(10), np.full(30, 0.5), np.ones(60)]).reshape(100, 1)
    chart = charts.histogram(values, low=np.float64(0), high=np.float64(1), title="t")
    assert chart.caption.startswith("70 % of the values lie at an end")


def test_the_same_run_gives_the_same_page_and_none_of_matplotlib_s_colours(folder):
    sources = []
    for _ in range(2):
        shown(folder)
        sources.append((folder / "report.html").read_text())
    assert sources[0] == sources[1] and "#0102" not in sources[0]
    assert "var(--a)" in sources[0] and "currentColor" in sources[0]


def test_a_folder_without_files_images_or_metrics_says_how_to_get_them(folder):
    (folder / "model.json").unlink()
    (folder / "images.npy").unlink()
    report.write_page(folder, manifest={**MANIFEST, "lambda": {}}, metrics=[], command="c")
    words = "".join(Page((folder / "report.html").read_text()).text)
    assert "python -m tflite_export.convert" in words and "off" in words
    assert (
        "images.npy is not in this folder" in words and "mean statistics gap 0.015 (good)" in words
    )


def test_estimates_and_comparisons_of_their_own_are_shown_and_other_json_is_not(folder):
    (folder / "verdict.json").write_text(
        json.dumps({"level": "fine", "sentence": "Fine: 98%.", "reasons": [], "layers": []})
    )
    rows = [{**layer, "files": {"real": {"sqnr_db": 9.25, "clipped": 0.5}}} for layer in
            PROOF["verdict"]["layers"][:1]]  # fmt: skip
    (folder / "layers.json").write_text(json.dumps({"layers_compared": rows}))
    (folder / "other.json").write_text("[1]")
    found = integer_files.found(folder, model="m")
    assert [file.name for file in found.files] == ["layers.json", "model.tflite", "verdict.json"]
    assert "9.25 dB, 50.0 % cut off" in shown(folder)[0] and not found.damaged


@pytest.mark.parametrize(
    "damage",
    [
        b"{",
        b"\xff\xfe",
        json.dumps({**PROOF, "bytes": None, "operators": 5}).encode(),
        json.dumps({**PROOF, "targets": {"cpu": {}}}).encode(),
        json.dumps({**PROOF, "verdict": {"level": 1, "sentence": 2, "layers": [{}]}}).encode(),
        json.dumps({"layers_compared": [3]}).encode(),
    ],
)
def test_a_damaged_file_beside_is_named_and_the_page_written(folder, damage):
    (folder / "model.json").write_bytes(damage)
    code, out, err = commands.call("dgh_tf.report", f"--output_dir={folder}")
    assert code == 0 and "model.json is damaged" in out + err
    assert "model.json is damaged" in "".join(Page((folder / "report.html").read_text()).text)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", "{"),
        ("metrics.jsonl", "5\n"),
        ("images.npy", "no array"),
        ("manifest.json", json.dumps({**MANIFEST, "gap_end": {"bn": "x"}})),
        ("manifest.json", json.dumps({**MANIFEST, "input_range": []})),
        ("manifest.json", json.dumps({**MANIFEST, "files": ["a"]})),
    ],
)
def test_a_damaged_run_is_one_line(folder, file, content):
    (folder / file).write_text(content)
    code, _, err = commands.call("dgh_tf.report", f"--output_dir={folder}")
    assert code == 1 and err.count("\n") == 1 and "enerate the images again" in err


def test_command_of_a_finished_run_names_what_is_not_default():
    assert report.run_command(MANIFEST) == (
        "python -m dgh_tf.generate '--model=folder/<b>net.keras' --output_dir=DIR --num_images=6 "
        "--steps=7 --input_range=byte"
    )


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (0.0123456, "0.0123"),
        (1234.5, "1,230"),
        (123456, "123,456"),
        (0, "0"),
        (0.0, "0"),
        (2.357e-8, "2.36\u00a0×\u00a010⁻⁸"),
        (-4.5e9, "-4.50\u00a0×\u00a010⁹"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        (None, "–"),
        (99.96, "100"),
    ],
)
def test_numbers_have_three_digits(value, wanted):
    assert text.number(value) == wanted


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (2.36e-8, 0.9812, "0 to 0.981"),  # what a softmax reaches
        (-0.004, 5.127, "0 to 5.13"),
        (-4561.3, 128.0, "-4,560 to 130"),
        (1e-9, 2.345e-8, "1.00 × 10⁻⁹ to 2.35 × 10⁻⁸"),
        (0.0, 0.0, "0 to 0"),
    ],
)
def test_ends_of_a_range_are_as_fine_as_the_larger_one(low, high, wanted):
    assert text.ends(low, high).replace("\u00a0", " ") == wanted


def test_sizes_and_durations_are_said_as_people_do():
    assert [text.size(v) for v in (100, 81432, 5 * 2**20, -1)] == [
        "100 bytes",
        "79.5 KiB",
        "5 MiB",
        "–",
    ]
    assert [text.duration(v) for v in (0.2, 59.4, 200, 120, 7500)] == [
        "1 s",
        "59 s",
        "3 min 20 s",
        "2 min",
        "2 h 5 min",
    ]


@pytest.mark.parametrize(
    ("tensor", "name"),
    [
        # as TensorFlow's converter named them for DS-CNN and the embedded demo
        ("n_1/act_8_1/Relu;n_1/bn_8_1/batchnorm/add_1;n_1/conv2d_4_1/convolution", "conv2d_4"),
        ("n_1/act_3_1/Relu;n_1/depthwise_conv2d_1_2/depthwise", "depthwise_conv2d_1"),
        ("n_1/average_pooling2d_1/AvgPool", "average_pooling2d"),
        ("n_1/dense_1/MatMul;n_1/dense_1/BiasAdd", "dense"),
        ("s_1/re_lu_1/Relu;s_1/bn_1/batchnorm/add_1;s_1/first_1/convolution/Squeeze", "first"),
        ("g_1/group_norm_13_1/moments/SquaredDifference", "group_norm_13"),  # no layer: moments
        ("yolo_1/Repeat_1/Tile", "yolo"),
        ("m_1/Conv1_1/convolution", "Conv1"),
        ("net/inner/conv_2/convolution", "conv_2"),  # no scope was numbered, so none is taken off
        ("serving_default_image:0", "input image"),
        ("PartitionedCall:0", "output"),
        ("StatefulPartitionedCall_1:2", "output 2"),
        ("plain", "plain"),
        ("", ""),
    ],
)
def test_tensors_are_named_by_their_keras_layer(tensor, name):
    assert text.layer_name(tensor) == name


def test_command_writes_the_page_anew(folder):
    code, _, err = commands.call("dgh_tf.report", f"--output_dir={folder}")
    assert code == 0, err
    assert "Doubtful" in (folder / "report.html").read_text()
    (folder / "manifest.json").unlink()
    code, _, err = commands.call("dgh_tf.report", f"--output_dir={folder}")
    assert code == 1 and "holds no finished run" in err and err.count("\n") == 1


def test_one_channel_is_drawn_as_the_run_took_it():
    """A spectrogram has time to the right, so its sides are turned; a picture has not."""
    maps = np.zeros((2, 98, 40, 1))
    for told, wide in (("spectrogram", True), ("image", False)):
        kind = pictures.kind_told(told, maps.shape[1:])
        rows, columns = pictures.pixels(maps, low=0.0, high=1.0, kind=kind).shape[1:3]
        assert (columns > rows) == wide
    # the shape decides where it says enough, by the method's own rule
    for told, shape in (("vector", (30,)), ("no such kind", (98, 40, 1)), ("image", (128, 9))):
        assert pictures.kind_told(told, shape) == kind_of_shape(shape)


@pytest.mark.parametrize(
    ("shape", "kind", "size"),
    [
        ((98, 40, 1), "spectrograms", (40, 98)),
        ((40, 98, 1), "spectrograms", (40, 98)),  # bands first: time is to the right all the same
        ((128, 9), "sequences", (9, 128)),
        ((128, 1, 9), "sequences", (9, 128)),  # as the method takes it, not a map one value wide
        ((8, 8, 3), "images", (8, 8)),
        ((2, 3, 4, 5), "vectors", (4, 120)),
    ],
)
def test_inputs_are_drawn_as_the_method_takes_them(shape, kind, size):
    images = np.random.default_rng(0).uniform(size=(4, *shape))
    found = pictures.gallery(images, low=0.0, high=1.0, ends=("0", "1"))
    assert found.kind == kind
    drawn = pictures.pixels(images, low=0.0, high=1.0)[0]
    zoom = max(1, 96 // max(size)) if kind == "images" else 0
    assert drawn.shape[:2] == tuple(side * (zoom or max(1, 96 // side)) for side in size)


def test_a_spectrogram_with_bands_first_is_drawn_as_one_with_time_first():
    values = np.random.default_rng(0).uniform(size=(2, 98, 40, 1))
    first, turned = (
        pictures.pixels(each, low=0.0, high=1.0) for each in (values, values.swapaxes(1, 2))
    )
    np.testing.assert_array_equal(first, turned)
