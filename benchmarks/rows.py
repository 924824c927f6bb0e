"""Rows: the measurements of a benchmark, one JSON object a line, each with its time, its device and its versions.

A file is appended to and never rewritten. A benchmark that was stopped finds the rows of this version and device again
and goes on behind them. Rows from before 2026-11-30 may say `date` in place of `at`. `errors` sums up the errors of
rows.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from autotune.machine.installed import installed
from autotune.trace.profiles import STACK

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFile:
    """A file of rows. about: what every row says of its origin, such as device and versions.

    identity: the names in `about` by which rows are recognized as made under the same conditions; None means all.
    """

    path: Path
    about: Mapping[str, Any]
    identity: Sequence[str] | None = None

    def add(self, row: Mapping[str, Any]) -> Row:
        """Append a row with its time and its origin, and return it whole."""
        whole: Row = plain({"at": now(), **row, **self.about})
        append(self.path, whole)
        return whole

    def own(self, **wanted: Any) -> list[Row]:
        """Read the rows that were made under the same conditions, and that have the `wanted` values."""
        names = self.about if self.identity is None else self.identity
        asked = {**{name: self.about[name] for name in names}, **wanted}
        return [row for row in read(self.path) if all(row.get(name) == value for name, value in asked.items())]


def read(file: Path) -> list[Row]:
    """Read the rows of a file, none if it does not exist. A line that was cut off is passed over."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def plain(value: Any, parse_float: Callable[[str], float] = float) -> Any:
    """Return a value as JSON has it. NaN and infinity become None, because JSON has no such numbers."""
    return json.loads(json.dumps(value), parse_float=parse_float, parse_constant=lambda name: None)


def append(file: Path, row: Mapping[str, Any]) -> None:
    """Append a line, and have it on the disk when this returns. A line that was cut off before it is closed first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cut_off = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as stream:
        stream.write("\n" * cut_off + json.dumps(row) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def errors(found: Sequence[float]) -> dict[str, Any]:
    """Count errors; return the median, the 95th percentile and the largest of their absolute values, None without any.

    found: relative errors of predictions, predicted / measured - 1.
    """
    absolute = list(map(abs, found))
    return {
        "count": len(absolute),
        "median_abs_error": median(absolute) if absolute else None,
        "p95_abs_error": float(np.quantile(absolute, 0.95)) if absolute else None,
        "max_abs_error": max(absolute, default=None),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of the libraries that a trace depends on."""
    return {name: installed().versions.get(name) for name in STACK}


def commit_of_checkout() -> str | None:
    """Return the commit that is checked out; None where git cannot tell."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def now() -> str:
    """Return this moment, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
