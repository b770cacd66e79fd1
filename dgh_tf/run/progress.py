"""cli: what a run tells while it goes on: metrics.jsonl, and a progress bar or plain lines with the
time left.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

from dgh_tf.common import console
from dgh_tf.run.tensorboard import Summaries


class Metrics:
    """metrics.jsonl: one line per report; lines after the step that a run resumes from are
    dropped.
    """

    def __init__(self, folder: pathlib.Path | None, *, keep_until: int, tensorboard: bool):
        """folder: None keeps the rows in memory alone (workers beside the chief). tensorboard:
        write summaries, too.
        """
        self.summaries = Summaries(folder) if folder and tensorboard else None
        self._path = folder / "metrics.jsonl" if folder else None
        self.rows: list[dict] = []
        if self._path is None:
            return
        if self._path.exists():
            for line in self._path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    break  # the run was killed while writing this line
                if row.get("step", keep_until + 1) <= keep_until:
                    self.rows.append(row)
        self._path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    @property
    def last(self) -> dict[str, float]:
        return {
            key: value
            for key, value in (self.rows or [{}])[-1].items()
            if key not in ("step", "rate")
        }

    def add(self, progress) -> None:
        """A report from within a step that was told of already is left out."""
        if self.rows and self.rows[-1]["step"] == progress.step:
            return
        row = {"step": progress.step, **progress.losses, "rate": round(progress.rate, 1)}
        self.rows.append(row)
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.summaries:
            self.summaries.add(
                progress.step, {name: value for name, value in row.items() if name != "step"}
            )


class ProgressBar:
    """A tqdm bar on a terminal, a plain line every ten seconds otherwise."""

    def __init__(self, steps: int, *, done: int, has_statistics: bool = True):
        """done: steps of an earlier process. has_statistics: whether there is a BN gap to show."""
        self._steps, self._shown = steps, 0.0
        self._figure = ("BN gap", "bn") if has_statistics else ("loss", "loss")
        self._first: tuple[float, int] | None = (
            None  # time and step of the first report: what came before is compilation
        )
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=done, unit="step")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.close()

    def show(self, progress) -> None:
        label, name = self._figure
        figure = f"{label} {progress.losses[name]:.4g}"
        text = f"{progress.rate:.0f} images*steps/s, {figure}"
        if self._bar:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(progress.step - self._bar.n)
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now, progress.step
            console.say(f"step {progress.step}/{self._steps}, compiled; {figure}")
        elif now - self._shown > 10 or progress.step == self._steps:
            self._shown, (began, at) = now, self._first
            left = (now - began) / max(progress.step - at, 1) * (self._steps - progress.step)
            console.say(f"step {progress.step}/{self._steps}, {text}, {left:.0f} s left")
