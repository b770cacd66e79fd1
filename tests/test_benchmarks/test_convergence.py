"""Quality against steps: rows of whole runs and of runs looked at on their way, and a table by
hand.
"""

import json

import commands
import numpy as np
import pytest

from benchmarks.convergence import summary


@pytest.fixture(scope="module")
def arguments(work):
    return [
        f"--model={work}/good.keras",
        f"--evaluation={work}/good.npz",
        f"--output_dir={work}/convergence",
        "--num_images=4",
        "--batch_size=2",
        "--steps=20,4",
        "--reference_steps=4,20",
        "--seeds=1",
    ]


def rows_after(work, *arguments):
    code, out, err = commands.call("benchmarks.convergence", *arguments)
    assert (code, err) == (0, "")
    rows = json.loads((work / "convergence" / "results.json").read_text())
    return {(row["source"], row["steps"]): row["gap"] for row in rows}, out


def test_rows_lost_come_back_the_same_and_nothing_else_is_run(work, arguments):
    """A run of 20 steps that is looked at after 4 is the same as one that is not."""
    first, out = rows_after(work, *arguments)
    assert list(first) == [("ours", 4), ("ours", 20), ("reference", 4), ("reference", 20)]
    assert out.count(": gap ") == 4 and first["ours", 20] < first["ours", 4]
    path = work / "convergence" / "results.json"
    path.write_text(json.dumps([row for row in json.loads(path.read_text()) if row["steps"] == 4]))
    again, out = rows_after(work, *arguments)
    assert again == first and out.count(": gap ") == 2
    assert all(
        (work / "convergence" / name).stat().st_size for name in ("results.md", "convergence.png")
    )


def test_a_folder_of_other_arguments_is_refused(work, arguments):
    rows_after(work, *arguments)
    code, _, err = commands.call("benchmarks.convergence", *arguments, "--num_images=3")
    assert code == 1 and err.startswith("error: ") and "other arguments" in err


def test_the_table_holds_means_deviations_and_median_times_over_seeds():
    rows = [
        {
            "source": "ours",
            "steps": 5,
            "seed": seed,
            "gap": gap,
            "sqnr_db": 10.0,
            "seconds": seconds,
        }
        for seed, gap, seconds in ((0, 0.1, 1.0), (1, 0.2, 2.0), (2, 0.6, 9.0))
    ]
    line = [cell.strip() for cell in summary(rows).splitlines()[2].strip("|").split("|")]
    deviation = np.sqrt((0.2**2 + 0.1**2 + 0.3**2) / 3)  # from the mean of 0.3
    assert line == ["ours", "5", f"0.300 ± {deviation:.3f}", "10.000 ± 0.000", "", "2.0", "3"]
