"""Layer errors: order and sides by hand, on real files, and as the report shows them."""

import json

import pytest
import tiny_models

from benchmarks import layers
from dgh_tf.report import integer_files
from tflite_export.quality.accuracy_estimate import side_by_side, worst_first


def row(index, tensor, sqnr_db, clipped=0.0):
    return {
        "index": index,
        "tensor": tensor,
        "operator": "CONV_2D",
        "sqnr_db": sqnr_db,
        "clipped": clipped,
        "range": [0, 1],
        "seen": [0, 2],
        "range_change": 0.0,
    }


def test_the_worst_layer_of_any_file_comes_first():
    # by hand: b is worst (8 dB, with noise), then a (20), then c (30; equal in both); d is not in
    # both files
    real = [row(0, "a", 20.0), row(1, "b", 25.0), row(2, "c", 30.0), row(3, "d", 1.0)]
    noise = [row(0, "a", 21.0), row(1, "b", 8.0, clipped=0.4), row(2, "c", 30.0)]
    assert [each["tensor"] for each in worst_first(real)] == ["d", "a", "b", "c"]
    rows = side_by_side({"real": real, "noise": noise})
    assert [each["tensor"] for each in rows] == ["b", "a", "c"]
    assert [rows[0]["files"][name]["sqnr_db"] for name in ("real", "noise")] == [25.0, 8.0]


GOLDEN = """| tensor   | operator   |   real, dB |   cut off |   noise, dB |   cut off |
|:---------|:-----------|-----------:|----------:|------------:|----------:|
| b        | CONV_2D    |       25.0 |     0.00% |         8.0 |    40.00% |"""


def test_the_printed_table():
    rows = side_by_side(
        {
            "real": [row(0, "b", 25.0), row(1, "c", 30.0)],
            "noise": [row(0, "b", 8.0, clipped=0.4), row(1, "c", 30.0)],
        }
    )
    assert layers.table_of(rows, most=1) == GOLDEN
    assert "operator" in layers.table_of([], most=3)


def test_names_of_calibrations():
    assert layers.named_sources(["real=a/b.npz", "out/images", "c.npy"]) == {
        "real": "a/b.npz",
        "images": "out/images",
        "c": "c.npy",
    }
    with pytest.raises(ValueError, match="its name 'c' is taken"):
        layers.named_sources(["c.npy", "d/c.npz"])


def test_the_report_shows_what_the_command_compared(tmp_path):
    compared = side_by_side({"real": [row(0, "<b>", 25.0)], "generated": [row(0, "<b>", 24.0)]})
    (tmp_path / "layers.json").write_text(json.dumps({"layers_compared": compared}))
    (found,) = integer_files.found(tmp_path, model="m").files
    assert found.compared.names == ("real", "generated")
    ((name, _, (real, generated)),) = found.compared.rows
    assert name == "<b>" and real.startswith("25 dB") and generated.startswith("24 dB")


@pytest.mark.slow
def test_a_calibration_that_is_too_narrow_shows_in_every_layer():
    model, images = tiny_models.conv_bn_relu(), tiny_models.images()
    rows = layers.compare(
        model, {"whole": images, "narrow": images * 0.2}, tiny_models.images(seed=7)
    )
    assert (
        rows[0]["files"]["narrow"]["sqnr_db"]
        < 10
        < min(each["files"]["whole"]["sqnr_db"] for each in rows)
    )
    assert rows[0]["files"]["narrow"]["clipped"] > 0.1
