"""Calibration sources as tables, plots, the README and the docs call them. Flags and results.json
keep their short keys.
"""

from __future__ import annotations

from benchmarks.data.sources import HINTED

_NAMES = {
    "synthetic": "generated",
    "real": "real",
    "noise": "uniform noise",
    "gaussian": "N(0,1) noise",
    "start": "start images",
    "proxy": "two public photographs",
    "per_batch": "statistics per batch",
    "no_augmentation": "no augmentation",
    "no_stretching": "no stretching",
    "no_statistics": "no statistics",
    **{source: f"generated with {count} real" for source, count in HINTED.items()},
}


def name_of(source: str) -> str:
    """A source by its name, such as "generated" for "synthetic"; any other text with spaces for its
    underscores.
    """
    return _NAMES.get(source, source.replace("_", " "))
