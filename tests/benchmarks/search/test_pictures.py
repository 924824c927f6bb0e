"""benchmarks/search_pictures.py: a curve of every rule in every panel, at the height of its regret."""

from xml.etree import ElementTree

import pytest

from benchmarks.memory.pictures import HEIGHT
from benchmarks.search.pictures import COLOURS, LEAST, MOST, height_of, svg


def test_every_rule_has_a_curve() -> None:
    """Whole XML, a point for each trial, and a panel for each table."""
    rules = {name: {"curve": [0.5, 0.1, 0.0]} for name in COLOURS}
    tables = [{"name": name, "candidates": 9, "rules": rules} for name in ("one", "two")]
    root = ElementTree.fromstring(svg(tables))
    curves = root.findall("{*}polyline")
    assert len(curves) == 2 * len(COLOURS)
    assert all(len(curve.attrib["points"].split()) == 3 for curve in curves)
    assert {text.text for text in root.findall("{*}text")} >= {"one, 9 candidates", "two, 9 candidates", *COLOURS}


def test_heights_are_logarithmic() -> None:
    """From all of the rate at the top to half a percent at the bottom, and nothing leaves the panel."""
    assert (height_of(MOST), height_of(LEAST), height_of(0.0)) == (0.0, pytest.approx(HEIGHT), pytest.approx(HEIGHT))
    assert height_of(0.01) - height_of(0.1) == pytest.approx(height_of(0.1) - height_of(1.0))
