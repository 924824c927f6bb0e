"""The rows of a benchmark: JSON lines that are appended to, and found again by what they were made with.

Leaves out what a row says.
"""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def own_rows(file: Path, about: Mapping[str, Any], names: Sequence[str] = ("device", "versions")) -> list[Row]:
    """The rows that say the same as `about` under these names; one that does not say is another's."""
    return [row for row in read(file) if all(row.get(name) == about[name] for name in names)]


def read(file: Path) -> list[Row]:
    """The rows of a file, none when it is not there. A last line that was cut off is passed over."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def append(file: Path, row: Row) -> None:
    """Append a line, behind the rest of one that was cut off, and have it on the disk before going on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    cut_off = file.exists() and not file.read_bytes().endswith(b"\n")
    with file.open("a", encoding="utf-8") as stream:
        stream.write("\n" * cut_off + json.dumps(row) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def commit_of_checkout() -> str | None:
    """The commit that is checked out; None where git cannot tell."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def now() -> str:
    """This moment, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def today() -> str:
    """This day."""
    return time.strftime("%Y-%m-%d")
