"""Results.json and ranges.json of a folder: rows added one by one, each whole on disk before
the next begins.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from benchmarks.measure.evaluation import Ranges, compare_ranges
from dgh_tf.common.console import say
from dgh_tf.common.files import atomic_write, read_json, require_checksum, with_checksum

FIGURES = {"top1": "top-1", "map": "mAP", "agreement": "agreement", "sqnr_db": "SQNR dB"}


@dataclasses.dataclass(frozen=True)
class Job:
    """One row to measure.

    Attributes:
      name: for its line of progress.
      alike: from the closest to the widest, the groups of rows that take about as long.
      done: whether the row is there already.
      measure: measures the row and keeps it; returns its figures as text.
    """

    name: str
    alike: tuple[Hashable, ...]
    done: Callable[[], bool]
    measure: Callable[[], str]


def figures_of(row: dict[str, Any]) -> str:
    """The scores of a row for its line of progress."""
    known = {name: row[name] for name in FIGURES if row.get(name) is not None}
    return ", ".join(f"{FIGURES[name]} {value:.3f}" for name, value in known.items())


def run_jobs(
    jobs: Sequence[Job],
    *,
    minutes: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Measures every row that is not there yet, with a line each and the time left.

    Args:
      jobs: the rows, in the order to measure them.
      minutes: stop before the row that would begin after so many; 0 for no limit.
      clock: gives seconds.
    Returns: False where the limit ended it.
    """
    times: list[tuple[tuple[Hashable, ...], float]] = []
    began, known = clock(), 0
    for position, job in enumerate(jobs):
        if job.done():
            known += 1
            continue
        if minutes and clock() - began > 60 * minutes:
            say(f"--minutes={minutes:g} are over; the same command goes on from here")
            return False
        start = clock()
        figures = job.measure()
        times.append((job.alike, clock() - start))
        left = time_left(times, [other.alike for other in jobs[position + 1 :]])
        say(
            f"[{position + 1}/{len(jobs)}] {job.name}: {figures}; {times[-1][1]:.0f} s, "
            f"at most {left:.0f} s left"
        )
    if known:
        say(f"{known} of {len(jobs)} rows are done already")
    return True


def time_left(
    times: Sequence[tuple[tuple[Hashable, ...], float]],
    missing: Sequence[tuple[Hashable, ...]],
) -> float:
    """Seconds that the missing rows will take: each the mean of its closest group measured so far,
    else of all.
    """
    if not times:
        return float("nan")

    def expected(alike: tuple[Hashable, ...]) -> float:
        for group in alike:
            known = [seconds for groups, seconds in times if group in groups]
            if known:
                return sum(known) / len(known)
        return sum(seconds for _, seconds in times) / len(times)

    return sum(map(expected, missing))


class Results:
    """The rows of one folder, told apart by the fields of `key`; a row's field `run` names the
    arguments it came from.
    """

    def __init__(
        self, folder: str | pathlib.Path, *, run: str, key: tuple[str, ...] = ("source", "seed")
    ) -> None:
        """Reads what an earlier run of the same arguments left.

        Args:
          folder: of the results.
          run: names the arguments that rows come from.
          key: fields that tell rows apart; "source" among them.
        Raises:
          ValueError: the folder's files are damaged or come from other arguments.
        """
        self.folder, self.run, self.key = pathlib.Path(folder), run, key
        self.rows: list[dict[str, Any]] = list(map(self._sound, self._read("results.json", [])))
        self._ranges: dict[str, Ranges] = self._sound(self._read("ranges.json", {}))
        others = sorted({str(row.get("run")) for row in self.rows} - {run})
        if others:
            raise ValueError(
                f"{self.folder} holds results of other arguments, data or another "
                f"model (run {others[0]}, "
                f"now {run}). Give another --output_dir, or the same arguments to go on with it."
            )

    def _read(self, name: str, empty: Any) -> Any:
        path = self.folder / name
        if not path.exists():
            return empty
        try:
            data = read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}. Remove it or give another --output_dir.") from error
        if type(data) is not type(empty) or (
            name == "results.json" and not all(isinstance(row, dict) for row in data)
        ):
            raise ValueError(
                f"{path} does not hold benchmark results. Remove it or give another --output_dir."
            )
        return data

    def _sound(self, data: dict[str, Any]) -> dict[str, Any]:
        """A row, or the ranges, without the checksum. Raises ValueError where it does not fit."""
        try:
            require_checksum(data, self.folder)
        except ValueError as error:
            raise ValueError(
                f"{error}. Remove results.json and ranges.json, or give another --output_dir."
            ) from error
        return {name: value for name, value in data.items() if name != "checksum"}

    def _values(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(field) for field in self.key)

    def done(self, *key: Any) -> bool:
        """Whether the row with these values of the key is there already."""
        return any(self._values(row) == key for row in self.rows)

    def ranges(self, *key: Any) -> Ranges:
        """Tensor ranges of a done row."""
        return self._ranges.get("/".join(map(str, key)), {})

    def add(self, row: dict[str, Any], ranges: Ranges) -> None:
        """Adds a row, compares all rows' ranges with the real ones of the same key, and writes both
        files.
        """
        self._ranges["/".join(map(str, self._values(row)))] = ranges
        self.rows.append({**row, "run": self.run})
        for each in self.rows:  # all: the real row may come last
            real = self.ranges(*self._values({**each, "source": "real"}))
            each.update(compare_ranges(real, self.ranges(*self._values(each))))
        # ranges first: a run killed in between repeats the row and overwrites its ranges
        ranges_text = json.dumps(with_checksum(self._ranges), indent=1)
        atomic_write(self.folder / "ranges.json", ranges_text)
        rows = [with_checksum(each) for each in self.rows]
        atomic_write(
            self.folder / "results.json", json.dumps(rows, indent=1, allow_nan=False) + "\n"
        )
