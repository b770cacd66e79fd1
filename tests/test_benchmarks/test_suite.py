"""The suite: its list, its plan, rows that survive a kill, tables against means by hand,
correlations against scipy's definition.
"""

import importlib.resources
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.output.results import Job, run_jobs, time_left
from benchmarks.suite import report, verdict
from benchmarks.suite.plan import Entry, Key, Store, choose, plan, read_models

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENTRY = {
    "name": "a",
    "model": "{data}/m.keras",
    "real": "demo",
    "evaluation": "demo",
    "task": "classification",
}
KEY = Key("a", "real", 8, 0, "int8")


def write(path, *entries):
    path.write_text(json.dumps({"models": list(entries)}))
    return path


def test_list_of_the_repository_is_read_and_names_no_path_of_a_machine():
    path = importlib.resources.files("benchmarks.suite") / "suite.json"
    entries = read_models(path, data="D", zoo="Z")
    names = {entry.name for entry in entries}
    assert names >= {"demo", "resnet8", "dscnn", "mobilenet", "vit", "convnext", "groupnorm"}
    assert all(entry.model.startswith(("D/", "Z/", "demo")) for entry in entries)
    with pytest.raises(ValueError, match="--data=DIR"):
        read_models(path, data="", zoo="Z")
    with pytest.raises(ValueError, match="vit: its paths hold {zoo}.*--zoo=DIR"):
        read_models(path, data="D")


def test_a_place_is_asked_for_where_a_chosen_entry_needs_it():
    path = importlib.resources.files("benchmarks.suite") / "suite.json"
    (found,) = choose(path, data="", zoo="Z", only=["vit"])
    assert (found.model, found.real) == ("Z/vit/vit.keras", "Z/vit/real.npz")
    with pytest.raises(ValueError, match="paths of vit hold {zoo}.*--zoo=DIR"):
        choose(path, data="D", only=["demo", "vit"])
    assert choose(path, data="", only=["demo"])[0].model == "demo"


def test_every_model_of_the_list_has_a_row_without_statistics():
    """It needs a range: the list states one, or the model has a Rescaling layer, as these."""
    path = importlib.resources.files("benchmarks.suite") / "suite.json"
    stated = {entry.name for entry in read_models(path, data="D", zoo="Z") if entry.stated_range}
    every = {entry.name for entry in read_models(path, data="D", zoo="Z")}
    assert every - stated == {"demo_detector", "vit", "convnext", "groupnorm"}


def test_yaml_and_json_are_the_same(tmp_path):
    pytest.importorskip("yaml")
    (tmp_path / "m.yaml").write_text(
        "models:\n- {name: a, model: '{data}/m.keras', real: demo, evaluation: demo, "
        "task: classification}\n"
    )
    assert read_models(tmp_path / "m.yaml", data="x") == read_models(
        write(tmp_path / "m.json", ENTRY), data="x"
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"task": "poetry"}, "expected one of classification, detection"),
        ({"colour": 1}, "unknown colour"),
        ({"name": "a/b"}, "file names"),
    ],
)
def test_wrong_entries_are_refused_by_name(tmp_path, change, told):
    with pytest.raises(ValueError, match=told):
        read_models(write(tmp_path / "m.json", {**ENTRY, **change}), data="x")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"models": []}', '{"models": [1]}', '{"models": [{"name": "a"}]}']
)
def test_files_that_are_no_list_are_refused(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(ValueError, match="models|missing"):
        read_models(tmp_path / "m.json", data="")


def test_two_entries_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        read_models(write(tmp_path / "m.json", ENTRY, ENTRY), data="x")


def test_plan_has_every_combination_once_and_all_of_the_first_seed_first():
    entries = [Entry(**{**ENTRY, "name": name}) for name in "ab"]
    keys = plan(
        entries,
        sources=["real", "noise"],
        num_images=[8, 16],
        ablation_num_images=[8],
        seeds=3,
        schemes=["int8", "w4a8"],
    )
    assert (
        len(keys) == len(set(keys)) == 3 * 2 * 2 * (2 + 1)
    )  # seeds, models, sources; int8 at both sizes, w4a8 at the ablation's
    assert [key.seed for key in keys] == sorted(key.seed for key in keys)
    assert len({key.name for key in keys}) == len(keys)


def test_parts_are_left_out_at_the_ablation_s_sizes_and_per_batch_only_where_there_are_batches():
    entries = [
        Entry(**ENTRY),
        Entry(**{**ENTRY, "name": "b", "num_images": (4,), "ablation_num_images": (64,)}),
    ]
    keys = plan(
        entries,
        sources=["synthetic", "no_stretching", "per_batch"],
        num_images=[8, 16],
        ablation_num_images=[32],
        seeds=1,
        schemes=["int8"],
    )
    assert [(key.model, key.source, key.num_images) for key in keys] == [
        ("a", "synthetic", 8),
        ("a", "synthetic", 16),
        ("a", "no_stretching", 32),
        ("b", "synthetic", 4),
        ("b", "no_stretching", 64),
        ("b", "per_batch", 64),
    ]


def test_rows_of_other_settings_are_not_taken_and_damaged_ones_are_named(tmp_path):
    store = Store(tmp_path)
    assert store.row(KEY) is None
    store.add(KEY, {"run": "one", "top1": 0.5})
    assert (
        store.row(KEY, fingerprint="one")["top1"] == 0.5
        and store.row(KEY, fingerprint="two") is None
    )
    for text in ('{"run": ', "[" * 200_000, "5"):
        (tmp_path / "rows" / f"{KEY.name}.json").write_text(text)
        with pytest.raises(ValueError, match="measures that row again"):
            store.row(KEY)


def test_time_left_uses_the_closest_rows_known():
    """Rows of the same model and source, else of the model, else of all: 3 + 7 + 9 by hand."""
    times = [(("a real", "a"), 3.0), (("b real", "b"), 4.0), (("b noise", "b"), 14.0)]
    missing = [("a real", "a"), ("c real", "c"), ("b gaussian", "b")]
    assert time_left(times, missing) == pytest.approx(3.0 + 7.0 + 9.0)


def test_jobs_stop_before_the_row_that_would_begin_too_late(capsys):
    now, ran = [0.0], []

    def job(name, *, done=False):
        def measure():
            now[0] += 45
            ran.append(name)
            return "fine"

        return Job(name, (name,), lambda: done, measure)

    jobs = [job("a"), job("b", done=True), job("c"), job("d")]
    assert not run_jobs(jobs, minutes=1, clock=lambda: now[0])
    assert ran == ["a", "c"] and "--minutes=1 are over" in capsys.readouterr().out
    assert run_jobs(jobs[1:2]) and ran == ["a", "c"]
    assert "1 of 1 rows are done already" in capsys.readouterr().out


def row(source, agreement, told, *, seed=0, size=8):
    level = verdict.level_of(told, bounds=verdict.BOUNDS["agreement"])
    return {
        "model": "a",
        "source": source,
        "num_images": size,
        "seed": seed,
        "scheme": "int8",
        "top1": agreement - 0.1,
        "float_top1": 0.9,
        "agreement": agreement,
        "sqnr_db": 20.0,
        "mse": 0.1,
        "predicted_agreement": told,
        "band": [told - 0.1, told + 0.1],
        "level": level,
        "ranges": {"t": [0.0, 1.0]},
        "gaps": {"bn": 0.1},
        "gap": 0.1,
        "run": "r",
    }


def test_rank_correlation_by_the_definition():
    """Spearman without ties is 1 - 6 sum d^2 / (n (n^2 - 1)); ranks 1,2,3,4 against 2,1,3,4 give 1
    - 12 / 60.
    """
    assert verdict.rank_correlation([0.1, 0.2, 0.3, 0.4], [5, 4, 6, 7]) == pytest.approx(0.8)
    assert (
        verdict.rank_correlation([1, 1, 1], [1, 2, 3]) is None
        and verdict.rank_correlation([1, 2], [1, 2]) is None
    )


def test_misjudged_rows_are_listed_and_right_ones_are_not(tmp_path):
    rows = [
        row("real", 0.98, 0.97),
        row("noise", 0.9, 0.4),
        row("gaussian", 0.1, 0.2),
        row("synthetic", 0.99, 0.98),
    ]
    text = verdict.write(tmp_path, rows)
    assert (
        "Misjudged (1 of 4)" in text
        and "a, uniform noise, 8 images, seed 0, int8: told 0.400 (do not ship), true 0.900 "
        "(doubtful)"
        in text
    )
    assert (
        "| a " in text and "1.000" in text and (tmp_path / "verdict.png").stat().st_size > 3000
    )  # order is right: rank 1


def test_models_without_classes_are_compared_by_their_worst_head_and_never_pooled_with_others(
    tmp_path,
):
    heads = [
        {
            **row("real", 0, 0, seed=seed),
            "model": "d",
            "agreement": None,
            "predicted_agreement": None,
            "level": "fine",
            "predicted_sqnr_db": told,
            "sqnr_db/boxes": 40.0,
            "sqnr_db/classes": true,
        }
        for seed, (told, true) in enumerate([(30.0, 21.0), (28.0, 22.0), (31.0, 23.0), (33.0, 9.0)])
    ]
    text = verdict.write(
        tmp_path,
        [row("real", 0.98, 0.97), row("noise", 0.9, 0.8), row("gaussian", 0.1, 0.2), *heads],
    )
    # by hand: ranks 2 1 3 4 of what was told, 2 3 4 1 of the truth: 1 - 6 (0 + 4 + 1 + 9) / (4 *
    # 15) = -0.4; only one is misjudged
    assert "| d " in text and "-0.400" in text and "| all " not in text
    assert (
        "Misjudged (1 of 7)" in text
        and "d, real, 8 images, seed 3, int8: told 33.000 (fine), true 9.000 (do not ship)" in text
    )


def test_report_of_unfinished_rows_has_means_plots_and_failures(tmp_path):
    store = Store(tmp_path)
    keys = [
        Key("a", source, size, seed, "int8")
        for source in ("real", "noise")
        for size in (8, 16)
        for seed in (0, 1)
    ]
    for index, key in enumerate(keys[:-2]):
        store.add(key, row(key.source, 0.8 + 0.01 * index, 0.9, seed=key.seed, size=key.num_images))
    store.add(
        keys[-2],
        {
            "model": "a",
            "source": "noise",
            "num_images": 16,
            "seed": 0,
            "scheme": "int8",
            "run": "r",
            "error": "too few",
        },
    )
    entry = Entry(**{**ENTRY, "mlperf_tiny": 0.85})
    text = report.write(store, [entry], keys, command="python -m benchmarks.suite")
    assert (
        "7 of 8 rows" in text
        and "no MLPerf results" in text
        and "noise, 16 images, seed 0, int8: too few" in text
    )
    assert "0.805 ± 0.007" in text  # agreement of real, 8: 0.80 and 0.81, sample deviation 0.00707
    assert len(json.loads((tmp_path / "results.json").read_text())) == 7
    for name in ("sizes-a-int8.png", "ranges-a-int8.png", "gaps-a-int8.png", "verdict.png"):
        assert (tmp_path / name).stat().st_size > 3000, name


def test_evidence_survives_its_file(tmp_path):
    from test_verdict import evidence

    from benchmarks.measure.evidence import load_evidence, save_evidence
    from tflite_export.quality.accuracy_estimate import judge

    before = evidence(same=7)
    save_evidence(tmp_path / "e.npz", before)
    after = judge({"x": load_evidence(tmp_path / "e.npz")})
    assert after["sentence"] == judge({"x": before})["sentence"]
    np.testing.assert_allclose(load_evidence(tmp_path / "e.npz").noise, before.noise)


@pytest.mark.slow
def test_a_killed_suite_goes_on_and_repeats_nothing(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.suite",
        "--only=demo",
        "--sources=noise,gaussian",
        "--num_images=8",
        "--seeds=2",
        "--held_out=2",
        f"--output_dir={tmp_path}",
    ]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )
    until = time.monotonic() + 300
    while not list((tmp_path / "rows").glob("*.json")) and time.monotonic() < until:
        time.sleep(0.5)
    running.send_signal(signal.SIGKILL)
    running.wait()
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").glob("*.json")}
    assert first
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in first.items())
    keys = [
        tuple(row[name] for name in ("source", "num_images", "seed", "scheme"))
        for row in json.loads((tmp_path / "results.json").read_text())
    ]
    assert {(source, seed) for source, _, seed, *_ in keys} == set(
        itertools.product(("noise", "gaussian"), (0, 1))
    )
    assert (
        len(set(keys)) == len(keys)
        and f"{len(first)} of {len(keys)} rows are done already" in done.stdout
    )
