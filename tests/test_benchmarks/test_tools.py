"""python -m benchmarks.tools: refusals at once, and the demo in every tool, each in an environment
of its own (slow; set DGH_BUILD_ENVIRONMENTS=1).
"""

import json
import os

import commands
import pytest

from benchmarks.tools.tools import TOOLS


@pytest.mark.parametrize("tools", ["litert,litert", "no_such_tool", ""])
def test_unknown_and_repeated_tools_are_refused_before_any_work(tmp_path, tools):
    code, _, err = commands.call(
        "benchmarks.tools",
        f"--tools={tools}",
        f"--environments={tmp_path}/environments",
        f"--output_dir={tmp_path}/out",
    )
    assert code == 1 and "--tools=" in err and all(name in err for name in TOOLS)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("DGH_BUILD_ENVIRONMENTS"),
    reason="set DGH_BUILD_ENVIRONMENTS=1: it installs other quantizers",
)
def test_every_tool_quantizes_the_demo_and_a_second_run_only_reads(tmp_path):
    arguments = (
        f"--environments={tmp_path}/environments",
        f"--output_dir={tmp_path}/out",
        "--sources=real,noise",
        "--seeds=1",
        "--num_images=32",
    )
    code, out, err = commands.call("benchmarks.tools", *arguments)
    assert code == 0, err
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    agreement = {(row["tool"], row["source"]): row["agreement"] for row in rows}
    for tool in TOOLS:  # measured: 0.99 and above from real images, 0.86 and below from noise
        assert agreement[tool, "real"] >= 0.95 > agreement[tool, "noise"] + 0.05
    code, again, _ = commands.call("benchmarks.tools", *arguments)
    assert code == 0 and "6 of 6 rows are done already" in again
