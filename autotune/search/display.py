"""What a search shows while it works: a live table in a terminal, elsewhere the same table line by line.

Writes to the console that it is given (stderr for the command line) and nowhere else.
"""

import math
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

HEADINGS = ("trial", "why", "useful tokens/s", "memory", "candidate")
PLAIN = "{:<5}  {:<8}  {:>15}  {:>9}  {:>12}  {}"  # a plain line: HEADINGS, with the time left before the candidate


class SearchDisplay:
    """The trials of a search as they come. A context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._trials: list[Trial] = []
        self._current: tuple[int, str, Candidate] | None = None
        self._steps = 0
        self._ends_at: float | None = None
        self._stopping = ""  # what stopping now would cost, in words
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
        """Set how much time the search has left from now; None when it has no limit."""
        self._ends_at = None if seconds_left is None else time.monotonic() + seconds_left

    def set_most_to_gain(self, share: float | None) -> None:
        """Show what stopping now would cost.

        share: no candidate that is left is believed to exceed the best rate by more than this share of it. None shows
        nothing: the share is not known, or no further candidate will be tried.
        """
        before, self._stopping = self._stopping, "" if share is None else _stopping_cost(share)
        if self._live is None and self._stopping not in ("", before):
            self.line(self._stopping)

    def begin(self, number: int, role: str, candidate: Candidate) -> None:
        """Show that a trial starts."""
        self._current, self._steps = (number, role, candidate), 0

    def event(self, event: Mapping[str, Any]) -> None:
        """Follow the events of the worker."""
        if event["event"] == "step":
            self._steps += 1

    def end(self, trial: Trial) -> None:
        """Show the outcome of a trial."""
        self._current = None
        if self._live is None:
            if not self._trials:
                self.line(_plain(HEADINGS, "time left"))
            self.line(_plain(_cells(trial), self._left()))
        self._trials.append(trial)

    def _left(self) -> str:
        return "" if self._ends_at is None else format_duration(max(0.0, self._ends_at - time.monotonic()))

    def _table(self) -> Table:
        best = max((trial.rate for trial in self._trials if trial.rate is not None), default=None)
        left = f"{self._left()} left" if self._left() else ""
        words = ("" if best is None else f"best {best:.0f}", self._stopping, left)
        table = Table(caption="; ".join(word for word in words if word), box=None)
        for heading in HEADINGS:
            table.add_column(heading, overflow="fold", justify="right" if "/" in heading else "left")
        for trial in self._trials:
            table.add_row(*_cells(trial))
        if self._current is not None:
            number, role, candidate = self._current
            table.add_row(f"{number:04d}", _words(role), f"step {self._steps} ...", "", short_name(candidate))
        return table


def _stopping_cost(share: float) -> str:
    """Say in words what is lost at most when no further candidate is tried. share: of the best rate, rounded up."""
    believed = "no candidate that is left is believed to"
    if share >= 1:
        return f"{believed} be more than {math.ceil(10 + 10 * share) / 10} times as fast as the best"
    return f"{believed} beat the best by more than {max(1, math.ceil(100 * share))} %"


def _cells(trial: Trial) -> Sequence[str]:
    """A trial as the words of a row, in the order of HEADINGS."""
    outcome = trial.outcome
    memory = ""
    if isinstance(outcome, Measured):
        error = "" if outcome.relative_error is None else f" ±{outcome.relative_error:.0%}"
        result, memory = f"{outcome.useful_tokens_per_s:.0f}{error}", format_bytes(outcome.peak_bytes)
    else:
        result = _words(outcome.kind)
        if isinstance(outcome, OutOfMemory) and outcome.peak_bytes is not None:
            memory = format_bytes(outcome.peak_bytes)
    return f"{trial.number:04d}", _words(trial.role), result, memory, short_name(trial.candidate)


def _plain(cells: Sequence[str], left: str) -> str:
    *columns, candidate = cells
    return PLAIN.format(*columns, left, candidate)


def _words(name: str) -> str:
    return name.replace("_", " ")
