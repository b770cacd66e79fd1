"""Folders of runs as generate and convert leave them, for tests of the page."""

import json
import pathlib

import numpy as np

from dgh_tf.report import page as report

EVIL = "<script>alert(1)</script>"
MANIFEST = {
    "model": "folder/<b>net.keras",
    "images_sha256": "1" * 64,
    "shapes": {"input": [6, 32, 32, 3]},
    "files": {"input": "images.npy"},
    "seed": 0,
    "input_range": [
        {"low": [0.0], "high": [255.0], "found": "first statistics: byte & more"},
    ],
    "augmentation": ["flips"],
    "lambda": {"output": 0.0041111},
    "gap_start": {"bn": 2.0, "input": 0.5},
    "gap_end": {"bn": 0.01, "input": 0.02},
    "seconds": 203.2,
    "finished": "2026-01-02 03:04 UTC",
    "machine": "a processor, 2 logical CPUs",
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
        "spread/head of <two> and $\\bad$": 3.0 * s,
        "rate": 5.0,
    }
    for s in (1, 2, 4)
]
CONV = "net_1/relu_{0}_1/Relu;net_1/bn_{0}_1/batchnorm/add_1;net_1/conv_{0}_1/convolution"


def layer(number, *, sqnr=12.3, clipped=0.03):
    return {
        "tensor": CONV.format(number),
        "operator": "CONV_2D",
        "range": [-1.0, 1.0],
        "seen": [-2.0, 0.5],
        "sqnr_db": sqnr,
        "clipped": clipped,
    }


PROOF = {
    "fully_integer": True,
    "scheme": "int8",
    "algorithm": "minmax",
    "algorithm_notes": {"head": "logits", "seed": 3},
    "operators": {"CONV_2D": 3},
    "inputs": [{"dtype": "INT8"}],
    "outputs": [{"dtype": "INT8"}],
    "bytes": 2048,
    "float_weight_bytes": 8192,
    "sha256": {"tflite": "3" * 64},
    "versions": {"tensorflow": "2.21.0"},
    "verdict": {
        "level": "doubtful",
        "predicted_agreement": 0.8,
        "band": [0.75, 0.9],
        "sentence": "Doubtful: <80%>. Look first at ...rmalization/sub1, ...b. More follows.",
        "reasons": ["the ranges change by 30%", "CONV_2D ...tch_norm/sub1 cuts off 3%"],
        "layers": [layer(number) for number in range(1, 13)],
    },
    "targets": {
        "ethos-u55-128": {
            "how": "compiled",
            "fully_mapped": False,
            "operators_mapped": 2,
            "operators_cpu": 1,
            "fallback": [{"operator": "TILE", "tensor": CONV.format(9), "why": EVIL}],
            "notes": ["a note"],
            "figures": {"cycles": 12345, "sram_kib": 32.671, "live_peak_at": CONV.format(4)},
            "summary": "not shown",
        },
        "cpu": {
            "how": "measured",
            "fully_mapped": True,
            "operators_mapped": 3,
            "operators_cpu": 0,
            "fallback": [],
            "notes": [],
            "figures": {
                "latency_ms": 0.25,
                "float_latency_ms": 1.0,
                "speedup": 4.0,
                "float_model_bytes": 16384,
            },
            "summary": "not shown",
        },
    },
}


def write(folder: pathlib.Path, images: np.ndarray, *, low=0.0, high=255.0, **manifest):
    """A finished run's files, with `manifest` over MANIFEST; returns the manifest."""
    np.save(folder / "images.npy", images.astype(np.float32))
    report.write_preview(folder, images, low=low, high=high)
    whole = {
        **MANIFEST,
        "shapes": {"input": list(images.shape)},
        "input_range": [{"low": [low], "high": [high], "found": "first statistics: byte & more"}],
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(whole))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METRICS))
    return whole
