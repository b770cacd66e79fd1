"""The phases of a command add up to its seconds, and name functions that are there."""

import importlib
import json
import operator
import pathlib
import subprocess
import sys
import time

import pytest

from benchmarks import startup
from benchmarks.measure import phases

COMMAND = """
import time
from fractions import Fraction  # an import of its own
import slow_import
def spend(seconds):
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass
spend(0.2)
"""


@pytest.mark.parametrize("module", phases.PHASES)
def test_every_phase_names_a_function_of_this_tree(module):
    for name in phases.PHASES[module]:
        assert callable(operator.attrgetter(name)(importlib.import_module(module)))


def test_seconds_inside_another_phase_count_for_the_inner_one():
    clock = phases.Clock()
    with clock.phase("outer"):
        time.sleep(0.05)
        with clock.phase("inner"):
            time.sleep(0.2)
    wall = {name: seconds for name, (seconds, _) in clock.figures().items()}
    assert 0.05 <= wall["outer"] < 0.2 <= wall["inner"]


def test_a_command_runs_as_it_would_and_its_imports_are_told_apart(tmp_path):
    (tmp_path / "command.py").write_text(COMMAND)
    busy = "import time\nbegan = time.process_time()\n"
    busy += "while time.process_time() - began < 0.3:\n    pass\n"
    (tmp_path / "slow_import.py").write_text(busy)
    subprocess.run(
        [sys.executable, phases.__file__, "figures.json", "command"], cwd=tmp_path, check=True
    )
    found = json.loads((tmp_path / "figures.json").read_text())
    assert 0.3 <= found["imports"][1] < 0.45
    assert 0.2 <= found["rest"][1] < 0.35


def test_the_medians_of_runs_and_a_phase_that_one_lacks():
    runs = [
        startup.Run({"all": w}, {"all": p, **more})
        for w, p, more in ((3.0, 2.0, {"steps": 1.0}), (9.0, 8.0, {"steps": 3.0}), (4.0, 3.0, {}))
    ]
    middle = startup.median(runs)
    assert middle.wall["all"] == 4.0
    assert middle.processor == {"all": 3.0, "steps": 1.0}


def test_a_failing_command_is_told(tmp_path):
    with pytest.raises(ValueError, match="ended with 1"):
        startup.run_once(
            pathlib.Path(phases.__file__).parents[2], tmp_path, "verdict", ["--model=demo"]
        )
