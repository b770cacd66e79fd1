"""benchmarks.kills counts what survives: here a few of each kind."""

import json
import re
import subprocess
import sys

import pytest
from imports import ROOT

from benchmarks import kills
from benchmarks.measure import warm


@pytest.mark.slow
def test_a_few_kills_and_damages_change_nothing():
    arguments = ("--trials=4", "--damages=20", "--seed=40")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kills", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "kills: 4 of 4 the same images and files" in done.stdout
    assert re.search(r"^damages: 20 of 20 fine", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_the_trials_are_small_and_try_statistics_and_several_attempts(tmp_path):
    """They once grew to 512 images, with a checkpoint at every step, and matched no statistics."""
    kills.write_model(tmp_path / kills.MODEL)
    (kind,) = [kind for kind in kills.KINDS if kind.name == "auto"]
    kills.undisturbed(tmp_path / "auto", kind)
    manifest = json.loads((tmp_path / "auto" / "manifest.json").read_text())
    assert manifest["auto"]["attempts"] == ["8-25", "8-50"]
    assert manifest["convergence"]["level"] == "good", manifest["convergence"]


@pytest.mark.slow
def test_a_warm_command_ends_as_a_cold_one(tmp_path):
    for arguments in (["dgh_tf.report", f"--output_dir={tmp_path}"], ["dgh_tf.report", "--steps"]):
        cold = subprocess.run(
            [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        found = warm.run(*arguments, home=tmp_path, seconds=60)
        assert (found.code, found.stdout, found.stderr) == (
            cold.returncode,
            cold.stdout,
            cold.stderr,
        )
        assert found.code == 1 and found.stderr.startswith("error: ")


def test_what_a_kill_changes_is_told(tmp_path, monkeypatch):
    """Whatever a run leaves beside what it left without kills is a fault; so are other images."""
    whole = kills.Undisturbed(kills.Left("0", ("images.npy",)), seconds=0.0, first=0.0)
    # a command that leaves the folder alone
    monkeypatch.setattr(kills, "command", lambda folder, kind: ["platform"])
    (tmp_path / "images.npy").write_bytes(b"1")
    assert kills.killed(tmp_path, kills.KINDS[0], whole, 0) == "other images"
    left = kills.left_by(tmp_path)
    whole = kills.Undisturbed(left, seconds=0.0, first=0.0)
    assert kills.killed(tmp_path, kills.KINDS[0], whole, 0) == ""
    (tmp_path / ".images.npy.k").touch()
    assert "files differ" in kills.killed(tmp_path, kills.KINDS[0], whole, 0)
