"""The rows of a benchmark: JSON lines that are appended to, and found again by what they were made with; and how its
command line refuses what it cannot do.

Leaves out what a row says.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from autotune.errors import AutotuneError

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


def refuse(error: AutotuneError) -> NoReturn:
    """End a benchmark that cannot do what was asked: every problem on stderr, the exit code of the command line."""
    print(*error.problems, sep="\n", file=sys.stderr)
    sys.exit(error.exit_code)


def count(word: str) -> int:
    """A number of the command line that is at least 1."""
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"got {word}, expected a number from 1")
    return int(word)


def now() -> str:
    """This moment, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def today() -> str:
    """This day."""
    return time.strftime("%Y-%m-%d")
