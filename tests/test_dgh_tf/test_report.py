"""report.html: complete without a network, parsed by the standard library, with the integer files
of its folder.
"""

import base64
import html.parser
import io
import json
import pathlib
import re

import commands
import numpy as np
import pytest

from dgh_tf.report import integer_files
from dgh_tf.report import page as report

ROOT = pathlib.Path(__file__).resolve().parents[2]
MANIFEST = {
    "model": "folder/<b>net.keras",
    "images_sha256": "1" * 64,
    "shapes": {"input": [6, 8, 8, 3]},
    "files": {"input": "images.npy"},
    "seed": 0,
    "input_range": [{"low": [0.0], "high": [255.0], "found": "first statistics: byte & more"}],
    "augmentation": ["flips"],
    "lambda": {"output": 0.0041111},
    "gap_start": {"bn": 2.0, "input": 0.5},
    "gap_end": {"bn": 0.01, "input": 0.02},
    "seconds": 3.2,
    "unmatched_layers": ["dense"],
    "versions": {"dgh_tf": "0.1.0"},
    "identity": {
        "model_sha256": "2" * 64,
        "config": {"num_images": 6, "steps": 7, "seed": 0, "input_range": "byte"},
        "version": "0.1.0",
    },
}
METRICS = [
    {
        "step": s,
        "bn": 1.0 / s,
        "prior": 0.1,
        "loss": 1.0,
        "spread/head of <two>": 3.0 * s,
        "rate": 5.0,
    }
    for s in (1, 2, 4)
]
PROOF = {
    "fully_integer": True,
    "scheme": "int8",
    "operators": {"CONV_2D": 3},
    "inputs": [{"dtype": "INT8"}],
    "outputs": [{"dtype": "INT8"}],
    "bytes": 2048,
    "float_weight_bytes": 8192,
    "sha256": {"tflite": "3" * 64},
    "verdict": {
        "level": "doubtful",
        "sentence": "Doubtful: <80%>.",
        "reasons": ["CONV_2D c cuts off 3%"],
        "layers": [
            {
                "tensor": "t",
                "operator": "CONV_2D",
                "range": [-1.0, 1.0],
                "seen": [-2.0, 0.5],
                "sqnr_db": 12.3,
                "clipped": 0.03,
            }
        ],
    },
    "targets": {"ethos-u55-128": {"npu": "100%", "ms": 1.25}},
}


class Page(html.parser.HTMLParser):
    """Tags, attributes and text, and whether every element is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.links, self.stack, self.text, self.images = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.links += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "action") and value
        ]
        if tag == "img" and attributes.get("src"):
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
        self.text.append(data)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    report.write_preview(tmp_path, rng.uniform(0, 255, (6, 8, 8, 3)), low=0.0, high=255.0)
    (tmp_path / "model.json").write_text(json.dumps(PROOF))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METRICS))
    return tmp_path


def test_page_needs_no_network_and_is_well_formed(folder):
    report.write_page(folder, manifest=MANIFEST, metrics=METRICS, command="python -m x --a='b c'")
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.stack == []
    assert all(link.startswith(("data:", "#")) for link in page.links), page.links
    assert not re.search(r"url\((?!#)|@import", text)
    assert "width=device-width" in text and "prefers-color-scheme: dark" in text
    shown = "".join(page.text)
    for expected in (
        "<b>net.keras",
        "python -m x --a='b c'",
        "1" * 64,
        "2" * 64,
        "3" * 64,
        "0 to 255, from first statistics: byte & more",
        "Doubtful: <80%>.",
        "ethos-u55-128",
        "1.25",
        "3 CONV_2D",
        "cuts off 3%",
        "dgh_tf 0.1.0",
        "0.0041",
        "head of <two>",
    ):
        assert expected in shown, expected
    assert "<b>net" not in text


def test_images_of_the_page_are_the_preview_s_tiles(folder):
    from PIL import Image

    report.write_page(folder, manifest=MANIFEST, metrics=METRICS, command="c")
    found = Page((folder / "report.html").read_text()).images
    assert len(found) == 6
    rng = np.random.default_rng(0)
    wanted = (
        np.rint(rng.uniform(0, 255, (6, 8, 8, 3))).repeat(12, axis=1).repeat(12, axis=2)
    )  # 96 pixels a side
    for uri, image in zip(found, wanted, strict=True):
        tile = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
        np.testing.assert_allclose(tile.astype(float), image, atol=1.0)


def test_the_same_run_gives_the_same_page_and_none_of_matplotlib_s_colours(folder):
    texts = []
    for _ in range(2):
        report.write_page(folder, manifest=MANIFEST, metrics=METRICS, command="c")
        texts.append((folder / "report.html").read_text())
    assert (
        texts[0] == texts[1]
        and "#0102" not in texts[0]
        and "var(--a)" in texts[0]
        and "currentColor" in texts[0]
    )


def test_a_folder_without_files_or_metrics_says_how_to_get_them(folder):
    (folder / "model.json").unlink()
    assert integer_files.found(folder) == {}
    report.write_page(folder, manifest={**MANIFEST, "lambda": {}}, metrics=[], command="c")
    shown = "".join(Page((folder / "report.html").read_text()).text)
    assert "python -m tflite_export.convert" in shown and "off" in shown


def test_a_verdict_of_its_own_is_shown_and_other_json_is_not(folder):
    (folder / "verdict.json").write_text(
        json.dumps({"level": "fine", "sentence": "Fine: 98%.", "reasons": [], "layers": []})
    )
    assert set(integer_files.found(folder)) == {"model.json", "verdict.json"}


def test_command_of_a_finished_run_names_what_is_not_default():
    assert report.run_command(MANIFEST) == (
        "python -m dgh_tf.generate '--model=folder/<b>net.keras' --output_dir=DIR --num_images=6 "
        "--steps=7 --input_range=byte"
    )


def test_nested_values_become_tables():
    assert integer_files.nested([{"a": 1, "b": "<"}, {"a": 2.123456}]).count("<tr>") == 3
    assert integer_files.nested("<") == "&lt;" and integer_files.nested([1, 2]) == "1, 2"


def test_command_writes_the_page_anew(folder):
    code, _, err = commands.call("dgh_tf.report", f"--output_dir={folder}")
    assert code == 0, err
    assert "Doubtful" in (folder / "report.html").read_text()
    (folder / "manifest.json").unlink()
    code, _, err = commands.call("dgh_tf.report", f"--output_dir={folder}")
    assert code == 1 and "holds no finished run" in err and err.count("\n") == 1
