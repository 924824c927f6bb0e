"""The command line of a benchmark: its options, `--json`, and its exit code.

The answer goes to stdout when the benchmark is over; progress goes to stderr. Exit codes are those of `autotune`: 0
done, 1 could not be done, 2 wrong input, 130 interrupted.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pprint import pformat
from typing import Any

from autotune.errors import AutotuneError
from benchmarks.rows import plain

Answer = Mapping[str, Any]
Main = Callable[..., int]


def command(
    doc: str | None,
    answer: Callable[[argparse.Namespace], Answer],
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> Main:
    """Make the `main` of a benchmark.

    doc: the module's docstring, which `--help` shows. answer: does the work; its result is one JSON object. options:
    adds the benchmark's own options.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        options(parser)
        parser.add_argument("--json", action="store_true", help="print the whole answer as one JSON object")
        arguments = parser.parse_intermixed_args(argv)
        try:
            found = answer(arguments)
        except AutotuneError as error:
            print(*error.problems, sep="\n", file=sys.stderr)
            return error.exit_code
        except KeyboardInterrupt:
            print("interrupted; the rows so far are kept, and the same command goes on", file=sys.stderr)
            return 130
        print(json.dumps(plain(found)) if arguments.json else in_short(found))
        return 0

    return main


def in_short(found: Answer) -> str:
    """Return an answer for people: its rows are counted and not listed, and numbers have four digits."""
    counted = {name: len(value) if name == "rows" else value for name, value in found.items()}
    rounded = plain(counted, lambda digits: float(f"{float(digits):.4g}"))
    return pformat(rounded, width=120, compact=True, sort_dicts=False)


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


def count(word: str) -> int:
    """Read a whole number of at least 1 from the command line."""
    if not word.isdecimal() or not int(word):
        raise argparse.ArgumentTypeError(f"got {word}, expected a number from 1")
    return int(word)


def add_out(parser: argparse.ArgumentParser, file: Path) -> None:
    """Add `--out`, the file that rows are appended to."""
    parser.add_argument(
        "--out", type=Path, default=file, metavar="FILE", help=f"append rows here (default: {file.name})"
    )
