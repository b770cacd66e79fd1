"""The low-bit study: its table by hand, its settings, and the command on a tiny model, resumed."""

import json
import pathlib

import commands
import numpy as np
import pytest
import tiny_models

from benchmarks.lowbit import Setting, pivot, settings_of

ROOT = pathlib.Path(__file__).resolve().parents[2]


def row(source, seed, top1, *, setting="W8A6"):
    return {
        "source": source,
        "setting": setting,
        "rule": "mse",
        "reconstruction": False,
        "seed": seed,
        "top1": top1,
    }


def test_table_by_hand():
    # real: mean 0.6, deviation sqrt(2 * 0.01^2) = 0.014; generated: 0.59; the gap is one point
    rows = [
        row("real", 0, 0.61),
        row("real", 1, 0.59),
        row("synthetic", 0, 0.59),
        row("real", 0, 0.1, setting="W4A4"),
    ]
    assert (
        pivot(rows, field="top1", sources=["real", "synthetic"])
        == """\
| setting   |          real |   generated |   generated - real, points |
|:----------|--------------:|------------:|---------------------------:|
| W8A6 mse  | 0.600 ± 0.014 |       0.590 |                       -1.0 |
| W4A4 mse  |         0.100 |           - |                          - |"""
    )


def test_settings_are_all_combinations_and_wrong_ones_are_named():
    assert settings_of(["W8A6"], ["minmax", "mse"], ["true"]) == [
        Setting("W8A6", "minmax", True),
        Setting("W8A6", "mse", True),
    ]
    assert Setting("W4A8", "mse", False).bits == (4, 8)
    for names, rules, learned in (
        (["W8"], ["mse"], ["true"]),
        (["W8A9"], ["mse"], ["true"]),
        (["W8A8"], ["best"], ["true"]),
        (["W8A8"], ["mse"], ["yes"]),
    ):
        with pytest.raises(ValueError, match="W8A6 with 2 to 8 bits"):
            settings_of(names, rules, learned)


@pytest.mark.slow
def test_command_measures_and_resumes(tmp_path):
    model = tiny_models.softmax_head()
    model.save(tmp_path / "m.keras")
    x = tiny_models.images(64)
    y = np.asarray(model(x)).argmax(1)  # the model's own answers: float top-1 is 1
    np.savez(tmp_path / "data.npz", x=x, y=y)
    given = [
        f"--model={tmp_path}/m.keras",
        f"--real={tmp_path}/data.npz",
        f"--evaluation={tmp_path}/data.npz",
        f"--output_dir={tmp_path}/out",
        "--num_images=16",
        "--steps=2",
        "--seeds=1",
        "--batch_size=8",
        "--input_range=-1,1",
        "--settings=W8A8,W4A4",
        "--rules=mse",
        "--reconstruction=false,true",
        "--reconstruction_steps=10",
    ]
    for sources in ("real", "real,synthetic"):
        code, out, err = commands.call("benchmarks.lowbit", *given, f"--sources={sources}")
        assert code == 0, err
    assert "4 of 8 rows are done already" in out
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    sqnr = {
        (r["setting"], r["reconstruction"]): r["sqnr_db"] for r in rows if r["source"] == "real"
    }
    assert len(rows) == 8 and rows[0]["float_top1"] == 1.0
    assert sqnr["W8A8", False] > sqnr["W4A4", False] + 10  # each bit is 6 dB
    assert "generated - real" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "lowbit.png").stat().st_size > 5000
