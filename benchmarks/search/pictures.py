"""The picture of docs/search.md: regret by trials of every rule, an SVG file from what search_quality.py found.

    python -m benchmarks.search.quality --table FILE... --json > quality.json
    python -m benchmarks.search.pictures quality.json --out docs/search

A panel for each table, medians over the seeds. It reads in light and in dark themes, as memory_pictures.py's do.
"""

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.memory.pictures import GAP, HEIGHT, LEFT, STYLE, TOP, WIDTH

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
LEAST, MOST = 0.005, 1.0  # regret that is drawn, on a logarithmic scale
LINES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
LEGEND_ROWS = 2


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quality", type=Path, help="what search_quality.py printed with --json")
    parser.add_argument("--out", type=Path, required=True, help="the directory of the picture")
    arguments = parser.parse_args()
    tables = json.loads(arguments.quality.read_text(encoding="utf-8"))["tables"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "regret.svg"
    new = path.with_suffix(".new")
    new.write_text(svg(tables), encoding="utf-8")
    os.replace(new, path)
    print(path)


def svg(tables: Sequence[Mapping[str, Any]]) -> str:
    """The panels side by side below their legend."""
    top = TOP + 16 * (LEGEND_ROWS - 1)
    width, height = LEFT + len(tables) * (WIDTH + GAP), top + HEIGHT + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"><style>{STYLE}</style>']
    names = list(COLOURS)
    in_row = math.ceil(len(names) / LEGEND_ROWS)
    for place, name in enumerate(names):
        x, y = LEFT + (place % in_row) * (width - LEFT) / in_row, 12 + 16 * (place // in_row)
        parts.append(f'<rect x="{x:.0f}" y="{y - 8}" width="14" height="3" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{x + 18:.0f}" y="{y - 3}">{name}</text>')
    for line in LINES:
        y = top + height_of(line)
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{line:.0%}</text>')
        parts.append(f'<line x1="{LEFT}" x2="{width - GAP}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for place, table in enumerate(tables):
        parts += panel(table, LEFT + place * (WIDTH + GAP), top)
    return "\n".join([*parts, "</svg>", ""])


def panel(table: Mapping[str, Any], left: float, top: float) -> list[str]:
    """The curves of one table."""
    parts = [f'<text x="{left}" y="{top - 6}">{table["name"]}, {table["candidates"]} candidates</text>']
    most = max(len(found["curve"]) for found in table["rules"].values())
    for name, colour in COLOURS.items():
        curve = table["rules"][name]["curve"]
        points = " ".join(
            f"{left + WIDTH * (trials - 0.5) / most:.1f},{top + height_of(regret):.1f}"
            for trials, regret in enumerate(curve, 1)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for trials in (1, *range(4, most + 1, 4)):
        x = left + WIDTH * (trials - 0.5) / most
        parts.append(f'<text x="{x:.1f}" y="{top + HEIGHT + 14}" text-anchor="middle">{trials}</text>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{top + HEIGHT + 30}" text-anchor="middle">trials</text>')
    return parts


def height_of(regret: float) -> float:
    """Pixels below a panel's top."""
    inside = min(max(regret, LEAST), MOST)
    return HEIGHT * math.log(MOST / inside) / math.log(MOST / LEAST)


if __name__ == "__main__":
    main()
