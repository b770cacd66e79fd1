"""What a run tells while it goes on: metrics.jsonl, and a progress bar or plain lines with the
time left.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time
from typing import TYPE_CHECKING

from dgh_tf.common import console
from dgh_tf.common.files import atomic_write, naming
from dgh_tf.common.run_folder import read_metrics
from dgh_tf.common.text import rounded
from dgh_tf.run.tensorboard import Summaries

if TYPE_CHECKING:
    from dgh_tf.generation.update import Progress


class Metrics:
    """metrics.jsonl: one line per report; lines after the step that a run resumes from are
    dropped.
    """

    def __init__(self, folder: pathlib.Path | None, *, keep_until: int, tensorboard: bool) -> None:
        """folder: None keeps the rows in memory alone (workers beside the chief). tensorboard:
        write summaries, too.
        """
        self.summaries = Summaries(folder) if folder and tensorboard else None
        self._path = folder / "metrics.jsonl" if folder else None
        self.rows: list[dict] = []
        if self._path is None:
            return
        known = read_metrics(self._path.parent, unfinished=True)
        self.rows = [row for row in known if row["step"] <= keep_until]
        atomic_write(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))

    @property
    def last(self) -> dict[str, float]:
        return {
            key: value
            for key, value in (self.rows or [{}])[-1].items()
            if key not in ("step", "rate")
        }

    def add(self, progress: Progress) -> None:
        """A report from within a step that was told of already is left out."""
        if self.rows and self.rows[-1]["step"] == progress.step:
            return
        row = {"step": progress.step, **progress.losses, "rate": round(progress.rate, 1)}
        self.rows.append(row)
        if self._path:
            with naming(self._path), self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.summaries:
            self.summaries.add(
                progress.step, {name: value for name, value in row.items() if name != "step"}
            )


class TimeLeft:
    """Lines with the time left for work of known length, none for what is over soon."""

    SECONDS = 10.0  # between lines

    def __init__(self, total: int, *, what: str, done: int = 0) -> None:
        """total: of what is counted, `done` of it before. what: its name, as "images written"."""
        self._total, self._what, self._first = total, what, done
        self._began = self._told = time.monotonic()

    def left(self, done: int) -> float:
        """Seconds that the rest takes at the pace so far."""
        pace = (time.monotonic() - self._began) / max(done - self._first, 1)
        return pace * (self._total - done)

    def due(self) -> bool:
        """Whether it is time for another line; asks for the next one from now on."""
        if time.monotonic() - self._told < self.SECONDS:
            return False
        self._told = time.monotonic()
        return True

    def tell(self, done: int) -> None:
        """Says how far the work is, if it is time for that."""
        if self.due():
            console.say(f"{done}/{self._total} {self._what}, {self.left(done):.0f} s left")


class Lines:
    """Lines on several works on the same images, one after the other: called with what is being
    done, and how many images have it behind them.
    """

    def __init__(self, total: int) -> None:
        """total: of images."""
        self._total, self._what = total, ""
        self._left = TimeLeft(total, what="")

    def __call__(self, what: str, images: int) -> None:
        if what != self._what:
            # the first batch may have waited for compilation: it does not count for the pace
            self._what, self._left = what, TimeLeft(self._total, what=what, done=images)
        self._left.tell(images)


class ProgressBar:
    """A tqdm bar on a terminal, a plain line every ten seconds otherwise."""

    def __init__(self, steps: int, *, done: int, has_statistics: bool = True) -> None:
        """done: steps of an earlier process. has_statistics: whether there is a BN gap to show."""
        self._steps = steps
        self._figure = ("BN gap", "bn") if has_statistics else ("loss", "loss")
        self._left: TimeLeft | None = None  # from the first report on: before it was compilation
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=done, unit="step")

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.close()

    def show(self, progress: Progress) -> None:
        label, name = self._figure
        figure = f"{label} {rounded(progress.losses[name], digits=4)}"
        text = f"{progress.rate:.0f} images*steps/s, {figure}"
        if self._bar:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(progress.step - self._bar.n)
            return
        if self._left is None:
            self._left = TimeLeft(self._steps, what="steps", done=progress.step)
            console.say(f"step {progress.step}/{self._steps}, compiled; {figure}")
        elif self._left.due() or progress.step == self._steps:
            left = self._left.left(progress.step)
            console.say(f"step {progress.step}/{self._steps}, {text}, {left:.0f} s left")
