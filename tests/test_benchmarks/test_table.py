"""The results table is this text, and its deviations are those of the statistics a textbook
gives.
"""

import pytest

from benchmarks.data.sources import SOURCES
from benchmarks.output import table
from benchmarks.output.names import name_of

ROWS = [
    {"source": "real", "seed": 0, "top1": 0.60, "sqnr_db": 11.0, "generation_seconds": None},
    {
        "source": "synthetic",
        "seed": 0,
        "top1": 0.61,
        "sqnr_db": 12.5,
        "generation_seconds": 30.0,
        "map": None,
    },
    {"source": "real", "seed": 1, "top1": 0.62, "sqnr_db": 13.0, "generation_seconds": None},
    {"source": "noise", "seed": 0, "top1": 0.13, "sqnr_db": float("inf")},
]
COLUMNS = {
    "top1": ("top-1", 3),
    "map": ("mAP", 3),
    "sqnr_db": ("SQNR, dB", 1),
    "generation_seconds": ("seconds", 0),
}

GOLDEN = """\
| source    |         top-1 |   SQNR, dB |   seconds |   seeds |
|:----------|--------------:|-----------:|----------:|--------:|
| real      | 0.610 ± 0.014 | 12.0 ± 1.4 |         - |       2 |
| synthetic |         0.610 |       12.5 |        30 |       1 |
| noise     |         0.130 |        inf |         - |       1 |"""


def test_table_is_this_text_without_the_column_nobody_measured():
    assert table.markdown(ROWS, by="source", columns=COLUMNS) == GOLDEN


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # By hand: mean 4, squared gaps 4 + 0 + 4 over n - 1 = 2 is 4, root 2.
        ([2.0, 4.0, 6.0], "4.00 ± 2.00"),
        ([2.0, None, 6.0], "4.00 ± 2.83"),
        ([1.5], "1.50"),
        ([None], "-"),
        ([], "-"),
        ([float("inf"), 1.0], "inf"),
    ],
)
def test_mean_and_sample_deviation_by_hand(values, expected):
    assert table.mean_std(values, digits=2) == expected


def test_every_source_has_a_name_of_its_own_in_words():
    names = [name_of(source) for source in SOURCES]
    assert len(set(names)) == len(SOURCES)
    assert not any("_" in name for name in names)
    assert name_of("synthetic") == "generated" and name_of("with_4_real") == "generated with 4 real"
