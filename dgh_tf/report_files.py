"""cli: what report.html says of integer files: their proof, ranges, verdict and targets, from the .json files of the folder."""
from __future__ import annotations

import html
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from dgh_tf.report_page import table

_CLASS = {"fine": "fine", "doubtful": "doubtful", "do not ship": "no"}


def found(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The proofs that convert left (F.json beside F.tflite) and verdicts, by file name. Files that cannot be read are passed over."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(data, dict) and (data.get("fully_integer") or {"level", "sentence"} <= set(data)):
            results[path.name] = data
    return results


def section(files: Mapping[str, dict[str, Any]]) -> str:
    """HTML of all files; a hint how to get one where there is none."""
    if not files:
        return ('<p class="dim">No integer file lies in this folder yet. Write one here with <code>python -m tflite_export.convert '
                "--output=THIS_FOLDER/model.tflite ...</code>, then this page anew with <code>python -m dgh_tf.report "
                "--output_dir=THIS_FOLDER</code>.</p>")
    return "".join(_one(name, data) for name, data in files.items())


def _one(name: str, data: dict[str, Any]) -> str:
    verdict = data if "sentence" in data else data.get("verdict")
    parts = [f"<h3>{html.escape(name.removesuffix('.json') + '.tflite' if data.get('fully_integer') else name)}</h3>"]
    if data.get("fully_integer"):
        operators = ", ".join(f"{count} {kind}" for kind, count in data.get("operators", {}).items())
        ends = sorted({str(end.get("dtype", "")).lower() for end in data.get("inputs", []) + data.get("outputs", [])})
        facts = {"scheme": data.get("scheme", ""), "size": f"{data.get('bytes', 0) / 1024:.0f} KiB (float32 weights "
                 f"{data.get('float_weight_bytes', 0) / 1024:.0f} KiB)", "inputs and outputs": ", ".join(ends),
                 "operators, all integer": operators,
                 "sha256": data.get("sha256", {}).get("tflite", "")}
        parts.append(table([[key, html.escape(str(value))] for key, value in facts.items()], kind="facts"))
    if isinstance(verdict, dict) and "sentence" in verdict:
        parts.append(_verdict(verdict))
    for key in ("targets", "target"):
        if isinstance(data.get(key), (dict, list)):
            parts.append(f"<h3>Targets</h3>{nested(data[key])}")
    return "".join(parts)


def _verdict(verdict: dict[str, Any]) -> str:
    kind = _CLASS.get(verdict.get("level"), "")
    reasons = "".join(f"<li>{html.escape(str(reason))}</li>" for reason in verdict.get("reasons", []))
    text = f'<div class="verdict {kind}"><b>{html.escape(str(verdict["sentence"]))}</b>{f"<ul>{reasons}</ul>" if reasons else ""}</div>'
    rows = [[html.escape(str(row["tensor"])[-60:]), html.escape(str(row["operator"])), *(f"{v:.4g}" for v in (*row["range"], *row["seen"])),
             f"{row['sqnr_db']:.1f}", f"{row['clipped']:.2%}"] for row in verdict.get("layers", [])]
    head = ["tensor", "operator", "low", "high", "seen low", "seen high", "SQNR, dB", "cut off"]
    if not rows:
        return text
    return f"{text}<details><summary>Ranges of {len(rows)} tensors</summary>{table(rows, head=head, numbers=6)}</details>"


def nested(value: Any) -> str:
    """Any JSON value as HTML: objects and lists of objects as tables."""
    if isinstance(value, dict):
        return table([[html.escape(str(key)), nested(each)] for key, each in value.items()], kind="facts") if value else ""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        keys = list(dict.fromkeys(key for each in value for key in each))
        return table([[nested(each.get(key, "")) for key in keys] for each in value], head=[html.escape(key) for key in keys])
    if isinstance(value, list):
        return ", ".join(map(nested, value))
    return html.escape(f"{value:.5g}" if isinstance(value, float) else str(value))
