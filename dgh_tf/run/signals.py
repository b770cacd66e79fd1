"""Signals that end a run. Before and after the steps they raise, as in every command; during
the steps the first one is only remembered, so that the run stops between two batches and is saved.
"""

from __future__ import annotations

import signal

from dgh_tf.common import console

_NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Attributes: number: of the first signal that came since `remember`, None before."""

    def __init__(self) -> None:
        self.number: int | None = None

    def remember(self) -> None:
        """From now on the first signal sets `number`, and a second one ends the process at once."""
        for number in _NUMBERS:
            signal.signal(number, self._remembered)

    def _remembered(self, number: int, _frame: object) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)

    def raise_at_once(self) -> None:
        """From now on signals raise KeyboardInterrupt or console.Terminated."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.catch_terminations()
