"""benchmarks/search/pictures.py: a curve of every rule in every panel, at the height of its regret."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.search.pictures import COLOURS, LEAST, MOST, draw


def test_every_rule_has_a_curve_at_its_height(tmp_path: Path) -> None:
    """A point for each trial in each table; heights are logarithmic, and a regret of 0 is at the border."""
    rules = {name: {"curve": [MOST, MOST / 10, 0.0]} for name in COLOURS}
    tables = [{"name": name, "candidates": 9, "rules": rules} for name in ("one", "two")]
    draw(tables, tmp_path / "regret.svg")
    root = ElementTree.parse(tmp_path / "regret.svg").getroot()
    styles = [(path.get("d", ""), path.get("style", "")) for path in root.findall(".//{*}path")]
    curves = [d for d, style in styles if any(f"stroke: {colour}" in style for colour in COLOURS.values())]
    curves = [d for d in curves if d.count("L") == 2]
    assert len(curves) == 2 * len(COLOURS)
    top, middle, bottom = (float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", curves[0]))
    assert (bottom - top) / (middle - top) == pytest.approx(2.301, rel=0.01)  # log10(MOST / LEAST)
    assert MOST / LEAST == 200
    words = {text.text for text in root.findall(".//{*}text")}
    assert words >= {"one, 9 candidates", "two, 9 candidates", *COLOURS}
