"""Show a run while it works: a bar in a terminal, a line now and then elsewhere.

Writes only to the console that it is given, which is stderr on the command line.
"""

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from autotune.core.units import format_duration

PLAIN_EVERY_S = 15.0  # between two plain lines of a run's progress


class RunDisplay:
    """Show the steps of a run as they come. Use as a context manager.

    steps: the steps so far, as in the worker's events.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps: list[Mapping[str, Any]] = []
        self._bar: Progress | None = None
        self._said_at = -math.inf

    def __enter__(self) -> "RunDisplay":
        if self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self.console)
            self._bar.add_task("loading", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def line(self, text: str) -> None:
        """Show one line of progress."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def event(self, event: Mapping[str, Any]) -> None:
        """Show an event of the worker (train/worker.py)."""
        if event["event"] != "step":
            return
        step, done, total = event["step"], event["global_step"], event["max_steps"]
        self.steps.append(step)
        recent = self.steps[-20:]
        seconds = sum(each["seconds"] for each in recent)
        rate = sum(each["useful"] for each in recent) / seconds
        words = f"loss {step['loss']:.3f}  {rate:.0f} useful tokens/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=total, completed=done, description=words)
        elif done == total or time.monotonic() - self._said_at > PLAIN_EVERY_S:
            self._said_at = time.monotonic()
            left = format_duration((total - done) * seconds / len(recent))
            self.line(f"step {done}/{total}  {words}  {left} left")
