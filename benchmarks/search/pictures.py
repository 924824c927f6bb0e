"""The picture of docs/search.md: regret by trials of every rule, from the answer of quality.py.

    python -m benchmarks.search.quality --table FILE... --json > quality.json
    python -m benchmarks.search.pictures quality.json --out docs/search

There is a panel for each table, with medians over the seeds.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import Answer, command
from benchmarks.pictures import picture

COLOURS: Mapping[str, str] = {
    "roofline": "#ee6677",
    "tpe": "#4477aa",
    "tpe alone": "#9988dd",
    "gp": "#66ccee",
    "gp alone": "#44aa99",
    "random": "#228833",
    "grid": "#ccbb44",
    "largest batch that fits": "#aa3377",
    "batches until speed falls": "#bb5500",
    "TRL's defaults": "#888888",
}
LEAST, MOST = 0.005, 1.0  # the range of regret that is drawn, on a logarithmic scale
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def options(parser: argparse.ArgumentParser) -> None:
    """Name the answer and the directory."""
    parser.add_argument("quality", type=Path, help="what quality.py printed with --json")
    parser.add_argument("--out", type=Path, required=True, help="the directory of the picture")


def answer(arguments: argparse.Namespace) -> Answer:
    """Draw the picture."""
    file = arguments.out / "regret.svg"
    draw(json.loads(arguments.quality.read_text(encoding="utf-8"))["tables"], file)
    return {"files": [str(file)]}


def draw(tables: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw a curve for each rule of each table. A regret outside the range is drawn at its border."""
    with picture(file, len(tables), legend=COLOURS, columns=5) as axes:
        axes[0].set_yscale("log")
        axes[0].set_ylim(LEAST, MOST)
        axes[0].set_yticks(TICKS, [f"{tick:.0%}" for tick in TICKS], minor=False)
        axes[0].minorticks_off()
        for axis, table in zip(axes, tables, strict=True):
            for name, colour in reversed(list(COLOURS.items())):  # the first on top of the others
                curve = [min(max(regret, LEAST), MOST) for regret in table["rules"][name]["curve"]]
                axis.plot(range(1, len(curve) + 1), curve, color=colour, clip_on=False, zorder=3)  # over the axes
            axis.set_title(f"{table['name']}, {table['candidates']} candidates")
            axis.set_xticks([1, *range(4, len(curve) + 1, 4)])
            axis.set_xlabel("trials")


main = command(__doc__, answer, options, lambda found: found["files"])

if __name__ == "__main__":
    sys.exit(main())
