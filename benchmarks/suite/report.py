"""Results.json, results.md and the plots of a suite, from whatever rows are there."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from benchmarks.data.sources import ABLATION, GENERATED
from benchmarks.measure.comparison import COLUMNS, environment
from benchmarks.measure.evaluation import compare_ranges
from benchmarks.output import plots, table
from benchmarks.output.names import name_of
from benchmarks.suite import verdict as suite_verdict
from benchmarks.suite.plan import TASKS, Entry, Key, Store
from dgh_tf.common.files import atomic_write

Row = dict[str, Any]
SHOWN = {**COLUMNS, "gap": ("BN gap", 3), "predicted_agreement": ("told without data", 3)}
PART = ("ranges", "gaps", "run", "seconds")  # of a row: not in results.json


def write(store: Store, entries: Sequence[Entry], keys: Sequence[Key], *, command: str) -> str:
    """Writes all files; returns the text of results.md. Rows that were not measured yet are left
    out.
    """
    rows = [complete(store, key, row) for key in keys if (row := store.row(key)) is not None]
    for row in rows:
        real = [
            r
            for r in rows
            if r["source"] == "real"
            and all(r[f] == row[f] for f in ("model", "num_images", "seed", "scheme"))
        ]
        if real and "error" not in row and "error" not in real[0]:
            row |= compare_ranges(real[0]["ranges"], row["ranges"])
    measured = [row for row in rows if "error" not in row]
    parts = [
        f"# Benchmark suite\n\n{len(rows)} of {len(keys)} rows; mean ± standard "
        "deviation over seeds; SQNR and MSE are of the model's "
        "outputs. *Told without data* is the verdict's predicted agreement, from "
        "held-out generated images alone.\n"
    ]
    parts += [
        _model_part(store.folder, entry, [row for row in measured if row["model"] == entry.name])
        for entry in entries
    ]
    parts.append(suite_verdict.write(store.folder, measured))
    failed = [row for row in rows if "error" in row]
    if failed:
        listed = "\n".join(f"- {suite_verdict.row_name(row)}: {row['error']}" for row in failed)
        parts.append(f"## Rows that could not be measured\n\n{listed}\n")
    kept = [{name: value for name, value in row.items() if name not in PART} for row in rows]
    text = "\n".join(filter(None, parts)) + f"\n```\n{command}\n```\n\n{environment()}\n"
    atomic_write(store.folder / "results.json", json.dumps(kept, indent=1, allow_nan=False) + "\n")
    atomic_write(store.folder / "results.md", text)
    return text


def complete(store: Store, key: Key, row: Row) -> Row:
    """The row with the verdict's figures, told anew from the kept evidence: the verdict may have
    changed since.
    """
    from benchmarks.measure.evidence import load_evidence
    from benchmarks.suite.rows import PROBES, evidence_path
    from tflite_export.quality.accuracy_estimate import judge

    paths = {probe: evidence_path(store, key, probe) for probe in PROBES}
    if "error" in row or not all(path.exists() for path in paths.values()):
        return row
    verdict = judge({probe: load_evidence(path) for probe, path in paths.items()})
    return {
        **row,
        "predicted_agreement": verdict["predicted_agreement"],
        "band": verdict["band"],
        "level": verdict["level"],
        "predicted_sqnr_db": verdict["worst_head_sqnr_db"],
        "sentence": verdict["sentence"],
        "clipped": max(layer["clipped"] for layer in verdict["layers"]),
    }


def _model_part(folder: pathlib.Path, entry: Entry, rows: list[Row]) -> str:
    if not rows:
        return ""
    score = TASKS[entry.task]
    parts = [
        f"## {entry.name} (float {COLUMNS[score][0].removeprefix('int8 ')} "
        f"{rows[0][f'float_{score}']:.3f})\n"
    ]
    for scheme in dict.fromkeys(row["scheme"] for row in rows):
        mine = [
            {**row, "calibration": f"{name_of(row['source'])}, {row['num_images']}"}
            for row in rows
            if row["scheme"] == scheme
        ]
        parts.append(f"{scheme}:\n\n{table.markdown(mine, by='calibration', columns=SHOWN)}\n")
        parts += [
            f"![{name}]({name})"
            for name in _plots(folder, entry, mine, score, suffix=f"{entry.name}-{scheme}")
        ]
    if entry.mlperf_tiny:
        parts.append(
            f"\nThe dotted line at {entry.mlperf_tiny:g} is MLPerf Tiny's accuracy "
            "threshold for this model. It is a mark to "
            "read the plot by: these are no MLPerf results, and the evaluation set is not MLPerf's."
        )
    return "\n".join(parts) + "\n"


def _plots(
    folder: pathlib.Path, entry: Entry, rows: list[Row], score: str, *, suffix: str
) -> list[str]:
    labels = {
        score: f"{COLUMNS[score][0].removeprefix('int8 ')}, integer",
        "agreement": "agreement with float",
        "sqnr_db": "SQNR of outputs, dB",
    }
    columns = {name: label for name, label in labels.items() if name in rows[0]}
    lines = {"float": rows[0][f"float_{score}"]} | (
        {"MLPerf Tiny threshold": entry.mlperf_tiny} if entry.mlperf_tiny else {}
    )
    names = [f"sizes-{suffix}.png"]
    plots.size_curves(rows, folder / names[0], columns=columns, lines={score: lines})
    largest = _common_size(rows)
    same = [row for row in rows if row["num_images"] == largest]
    ablation = [row for row in same if row["source"] in ("real", *GENERATED, *ABLATION)]
    if len({row["source"] for row in ablation}) > 1:
        names.append(f"ablation-{suffix}.png")
        plots.scores(
            ablation,
            folder / names[-1],
            columns=columns,
            reference={score: rows[0][f"float_{score}"]},
        )
    first = {row["source"]: row for row in same if row["seed"] == 0}
    if "real" in first and len(first) > 1:
        names.append(f"ranges-{suffix}.png")
        others = {source: row["ranges"] for source, row in first.items() if source != "real"}
        plots.range_ratios(first["real"]["ranges"], others, folder / names[-1])
    if first and all(row["gaps"] for row in first.values()):
        names.append(f"gaps-{suffix}.png")
        plots.layer_gaps({source: row["gaps"] for source, row in first.items()}, folder / names[-1])
    return names


def _common_size(rows: Sequence[Row]) -> int:
    """The set size with the most sources; of equals the largest."""
    sources: dict[int, set[str]] = {}
    for row in rows:
        sources.setdefault(row["num_images"], set()).add(row["source"])
    return max(sources, key=lambda size: (len(sources[size]), size))
