"""What a search shows while it works: a live table in a terminal, plain lines elsewhere.

Writes to the console that it is given (stderr for the command line) and nowhere else.
"""

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from autotune.core.candidate import Candidate, short_name
from autotune.core.outcome import Measured, OutOfMemory
from autotune.core.trials.trial import Trial
from autotune.core.units import format_bytes, format_duration


class SearchDisplay:
    """The trials of a search as they come. A context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._trials: list[Trial] = []
        self._current: tuple[int, str, Candidate] | None = None
        self._steps = 0
        self._ends: float | None = None
        self._live: Live | None = None

    def __enter__(self) -> "SearchDisplay":
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self._table, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def line(self, text: str) -> None:
        """Show one line of progress."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def set_end(self, seconds_left: float | None) -> None:
        """Say how much time the search has left from now; None when it has no limit."""
        self._ends = None if seconds_left is None else time.monotonic() + seconds_left

    def begin(self, number: int, role: str, candidate: Candidate) -> None:
        """Show that a trial starts."""
        self._current, self._steps = (number, role, candidate), 0

    def event(self, event: Mapping[str, Any]) -> None:
        """Follow the events of the worker."""
        if event["event"] == "step":
            self._steps += 1

    def end(self, trial: Trial) -> None:
        """Show what became of a trial."""
        self._current = None
        self._trials.append(trial)
        if self._live is None:
            self.line("  ".join(word for word in (*_cells(trial)[:5], self._best(), self._left()) if word))

    def _best(self) -> str:
        best = max((trial.rate for trial in self._trials if trial.rate is not None), default=None)
        return "" if best is None else f"best {best:.0f}"

    def _left(self) -> str:
        return "" if self._ends is None else f"{format_duration(max(0.0, self._ends - time.monotonic()))} left"

    def _table(self) -> Table:
        table = Table(caption="  ".join(word for word in (self._best(), self._left()) if word), box=None)
        for heading in ("trial", "why", "candidate", "useful tokens/s", "memory"):
            table.add_column(heading, overflow="fold", justify="right" if "/" in heading else "left")
        for trial in self._trials:
            table.add_row(*_cells(trial))
        if self._current is not None:
            number, role, candidate = self._current
            table.add_row(f"{number:04d}", role, short_name(candidate), f"step {self._steps} ...", "")
        return table


def _cells(trial: Trial) -> Sequence[str]:
    """A trial as the words of a row: number, role, candidate, rate, memory."""
    outcome = trial.outcome
    memory = ""
    if isinstance(outcome, Measured):
        error = "" if outcome.relative_error is None else f" ±{outcome.relative_error:.0%}"
        result, memory = f"{outcome.useful_tokens_per_s:.0f}{error}", format_bytes(outcome.peak_bytes)
    else:
        result = outcome.kind.replace("_", " ")
        if isinstance(outcome, OutOfMemory) and outcome.peak_bytes is not None:
            memory = format_bytes(outcome.peak_bytes)
    return f"{trial.number:04d}", trial.role.replace("_", " "), short_name(trial.candidate), result, memory
