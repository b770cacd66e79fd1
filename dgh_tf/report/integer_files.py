"""cli: what report.html says of integer files: their proof, ranges, verdict and targets, from the
.json files of the folder.
"""

from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dgh_tf.report.template import table

_CLASS = {"fine": "fine", "doubtful": "doubtful", "do not ship": "no"}


def found(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The proofs that convert left (F.json beside F.tflite) and verdicts, by file name. Files that
    cannot be read are passed over.
    """
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        told = isinstance(data, dict) and (
            data.get("fully_integer")
            or data.get("layers_compared")
            or {"level", "sentence"} <= set(data)
        )
        if told:
            results[path.name] = data
    return results


def section(files: Mapping[str, dict[str, Any]]) -> str:
    """HTML of all files; a hint how to get one where there is none."""
    if not files:
        return (
            '<p class="dim">No integer file lies in this folder yet. Write one here '
            "with <code>python -m tflite_export.convert "
            "--output=THIS_FOLDER/model.tflite ...</code>, then this page anew with "
            "<code>python -m dgh_tf.report "
            "--output_dir=THIS_FOLDER</code>.</p>"
        )
    return "".join(_one(name, data) for name, data in files.items())


def _one(name: str, data: dict[str, Any]) -> str:
    verdict = data if "sentence" in data else data.get("verdict")
    parts = [
        "<h3>"
        + html.escape(name.removesuffix(".json") + ".tflite" if data.get("fully_integer") else name)
        + "</h3>"
    ]
    if data.get("fully_integer"):
        operators = ", ".join(
            f"{count} {kind}" for kind, count in data.get("operators", {}).items()
        )
        ends = sorted(
            {
                str(end.get("dtype", "")).lower()
                for end in data.get("inputs", []) + data.get("outputs", [])
            }
        )
        facts = {
            "scheme": data.get("scheme", ""),
            "algorithm": data.get("algorithm", ""),
            "size": (
                f"{data.get('bytes', 0) / 1024:.0f} KiB (float32 weights "
                f"{data.get('float_weight_bytes', 0) / 1024:.0f} KiB)"
            ),
            "inputs and outputs": ", ".join(ends),
            "operators, all integer": operators,
            "sha256": data.get("sha256", {}).get("tflite", ""),
        }
        parts.append(
            table([[key, html.escape(str(value))] for key, value in facts.items()], kind="facts")
        )
    if isinstance(verdict, dict) and "sentence" in verdict:
        parts.append(_verdict(verdict))
    if isinstance(data.get("targets"), dict) and data["targets"]:
        parts.append(
            "<h3>Targets</h3>"
            + "".join(_target(target, verdict) for target, verdict in data["targets"].items())
        )
    if isinstance(data.get("layers_compared"), list):
        parts.append(_compared(data["layers_compared"]))
    return "".join(parts)


def _target(name: str, verdict: dict[str, Any]) -> str:
    """One target: its line, and behind it how it was found, its figures and every operator it does
    not take.
    """
    kind = "fine" if verdict.get("fully_mapped") else "doubtful"
    facts = {"how": verdict.get("how", ""), **verdict.get("figures", {})}
    rows = [
        [html.escape(str(row.get(key, ""))[-80:]) for key in ("operator", "tensor", "why")]
        for row in verdict.get("fallback", [])
    ]
    more = table(rows, head=["not mapped", "tensor", "why"]) if rows else ""
    return (
        f'<div class="verdict {kind}">{html.escape(str(verdict.get("summary", name)))}</div>'
        f"<details><summary>{html.escape(name)}: "
        f"figures{' and operators that it leaves out' if rows else ''}</summary>"
        f"{nested(facts)}{more}</details>"
    )


def _compared(rows: list[dict[str, Any]]) -> str:
    """Layers of several calibrations side by side, worst first."""
    names = list(rows[0]["files"]) if rows else []
    head = [
        "tensor",
        "operator",
        *(html.escape(text) for name in names for text in (f"{name}, dB", "cut off")),
    ]
    lines = [
        [
            html.escape(str(row["tensor"])[-60:]),
            html.escape(str(row["operator"])),
            *(
                text
                for name in names
                for text in (
                    f"{row['files'][name]['sqnr_db']:.1f}",
                    f"{row['files'][name]['clipped']:.2%}",
                )
            ),
        ]
        for row in rows
    ]
    return (
        "<p>Quantization error of every layer on the same images, worst "
        f"first.</p>{table(lines, head=head, numbers=2 * len(names))}"
    )


def _verdict(verdict: dict[str, Any]) -> str:
    kind = _CLASS.get(verdict.get("level"), "")
    reasons = "".join(
        f"<li>{html.escape(str(reason))}</li>" for reason in verdict.get("reasons", [])
    )
    text = (
        '<div class="verdict '
        f'{kind}"><b>{html.escape(str(verdict["sentence"]))}</b>'
        f"{f'<ul>{reasons}</ul>' if reasons else ''}</div>"
    )
    rows = [
        [
            html.escape(str(row["tensor"])[-60:]),
            html.escape(str(row["operator"])),
            *(f"{v:.4g}" for v in (*row["range"], *row["seen"])),
            f"{row['sqnr_db']:.1f}",
            f"{row['clipped']:.2%}",
        ]
        for row in verdict.get("layers", [])
    ]  # worst first
    head = ["tensor", "operator", "low", "high", "seen low", "seen high", "SQNR, dB", "cut off"]
    if not rows:
        return text
    return (
        f"{text}<details><summary>Errors and ranges of {len(rows)} tensors, worst first</summary>"
        f"{table(rows, head=head, numbers=6)}</details>"
    )


def nested(value: Any) -> str:
    """Any JSON value as HTML: objects and lists of objects as tables."""
    if isinstance(value, dict):
        return (
            table(
                [[html.escape(str(key)), nested(each)] for key, each in value.items()], kind="facts"
            )
            if value
            else ""
        )
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        keys = list(dict.fromkeys(key for each in value for key in each))
        return table(
            [[nested(each.get(key, "")) for key in keys] for each in value],
            head=[html.escape(key) for key in keys],
        )
    if isinstance(value, list):
        return ", ".join(map(nested, value))
    return html.escape(f"{value:.5g}" if isinstance(value, float) else str(value))
