"""Predicted against publicly measured peaks of GPU memory: torch's own counters, from other people's runs.

    python -m benchmarks.memory.accuracy --points measured_points.jsonl --models models.json --json

Each row of the points says what was run and what `torch.cuda.max_memory_allocated` gave (points.py reads it). No hub
and no GPU is needed. A hash of their id splits the rows into `tune`, which may be looked at while the code is changed,
and `blind`, which may not. Rows of eager attention, and rows measured with libraries that take other paths than the
installed ones (`stack_matches` false), are counted in groups of their own.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autotune.core.memory.allocator import AllocatorSettings
from autotune.core.memory.law import Peak, memory_law, peak
from autotune.core.memory.replay import replay
from autotune.core.step.deepening import deepen
from autotune.core.step.profile import Profile
from benchmarks.command import Answer, command, say
from benchmarks.memory.points import Point, Skipped, half, profile_of, read, read_files
from benchmarks.rows import Row, RowFile, errors, versions

DEFAULTS = AllocatorSettings(expandable_segments=False)
STEPS = 3  # optimizer steps that the replayed allocator sees


def options(parser: argparse.ArgumentParser) -> None:
    """Name the rows, and the file for the errors of each."""
    parser.add_argument("--points", type=Path, required=True, help="JSON lines, a measured row each")
    add_points(parser)


def add_points(parser: argparse.ArgumentParser) -> None:
    """Add the options that go with rows of points."""
    models = "JSON object of architectures by the names that the rows have; the catalogue has the others"
    parser.add_argument("--models", type=Path, help=models)
    parser.add_argument("--half", choices=("tune", "blind"), help="only these rows")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append each row's prediction here")


def answer(arguments: argparse.Namespace) -> Answer:
    """Predict every row, and sum up the errors."""
    points, models = read_files(arguments.points, arguments.models)
    profiles: dict[str, Profile] = {}

    def row_of(values: Mapping[str, Any]) -> Row:
        point = read(values, models)
        predicted, reserved = predict(point, values, profiles)
        allocated = predicted.bytes + point.spec.workspace_bytes
        measured, measured_reserved = round(values["peak_alloc_bytes"]), values.get("peak_reserved_bytes")
        return {
            "group": group(point),
            "stack_matches": point.stack_matches,
            "predicted_allocated_bytes": allocated,
            "predicted_reserved_bytes": reserved,
            "measured_bytes": measured,
            "measured_reserved_bytes": measured_reserved,
            "error": allocated / measured - 1,
            "reserved_error": reserved / measured_reserved - 1 if measured_reserved else None,
            "phase": predicted.phase,
        }

    rows, skipped = collect(points, arguments.half, row_of)
    keep(rows, arguments.out)
    groups: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: (row["group"], row["half"])):
        groups.setdefault(f"{row['group']} {row['half']}", []).append(row["error"])
    if reserved := [row["reserved_error"] for row in rows if row["reserved_error"] is not None]:
        groups["reserved"] = reserved
    return {
        "rows": rows,
        "skipped": skipped,
        **errors([row["error"] for row in rows]),
        "groups": {name: errors(found) for name, found in groups.items()},
    }


def collect(
    points: Sequence[Mapping[str, Any]], wanted: str | None, row_of: Callable[[Mapping[str, Any]], Row]
) -> tuple[list[Row], list[Row]]:
    """Make the rows of a half, or of both, and list those that were skipped with the reason.

    row_of: makes a row with an `error`, or raises Skipped.
    """
    found, skipped = [], []
    for values in points:
        about = {"id": values["id"], "half": half(values["id"])}
        if wanted not in (None, about["half"]):
            continue
        try:
            found.append({**about, **row_of(values)})
            say(f"{found[-1]['error']:+7.2%}  {values['id']}")
        except Skipped as reason:
            skipped.append({"id": values["id"], "why": str(reason)})
    return found, skipped


def keep(rows: Sequence[Row], out: Path | None) -> None:
    """Append the rows to a file with the versions that predicted them; do nothing without a file."""
    if out is not None:
        for row in rows:
            RowFile(path=out, about={"versions": versions()}).add(row)


def group(point: Point) -> str:
    """Name the group that a row is counted in."""
    if not point.stack_matches:
        return "other stack"
    return "eager" if point.request.candidate.attention == "eager" else "same stack"


def predict(point: Point, values: Mapping[str, Any], profiles: dict[str, Profile]) -> tuple[Peak, int]:
    """Predict the peak of a row's tensors and its reserved bytes. Raises Skipped where its step cannot be traced."""
    traced = profile_of(point, values, profiles)
    profile = deepen(traced, point.layers)
    steps = [[point.batch] * profile.micro_steps] * STEPS
    replayed = replay(profile, steps, accumulation=point.accumulation, settings=DEFAULTS)
    law = memory_law(traced, layers=point.layers, accumulation=point.accumulation)
    return peak(law, point.batch.monomials), replayed.reserved_bytes + point.spec.workspace_bytes


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
