"""benchmarks/rows.py: rows say when and with what they were made, and are found again by that."""

import math
from dataclasses import replace
from pathlib import Path

from benchmarks.rows import RowFile, errors, read


def test_rows_of_other_versions_are_others(tmp_path: Path) -> None:
    """Only what was made under the same conditions is found again; `identity` says which count."""
    file = RowFile(path=tmp_path / "new" / "rows.jsonl", about={"versions": {"torch": "1"}, "commit": "a"})
    row = file.add({"name": "x", "error": 0.5})
    assert row == {"at": row["at"], "name": "x", "error": 0.5, "versions": {"torch": "1"}, "commit": "a"}
    assert file.own() == file.own(name="x") == [row]
    assert file.own(name="y") == []
    later = replace(file, about={"versions": {"torch": "1"}, "commit": "b"})
    assert later.own() == []
    assert replace(later, identity=("versions",)).own() == [row]


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    """A kill in the middle of a line costs that line."""
    file = RowFile(path=tmp_path / "rows.jsonl", about={})
    first = file.add({"name": "first"})
    with file.path.open("a") as stream:
        stream.write('{"name": "cut o')
    second = file.add({"name": "second"})
    assert read(file.path) == [first, second]
    assert read(tmp_path / "none.jsonl") == []


def test_a_row_has_no_numbers_that_json_has_not(tmp_path: Path) -> None:
    """Other programs could not read the file; what is no number is null."""
    file = RowFile(path=tmp_path / "rows.jsonl", about={})
    assert file.add({"high": math.inf, "losses": (math.nan, 1.0)})["losses"] == [None, 1.0]
    assert "NaN" not in (text := file.path.read_text())
    assert '"high": null' in text


def test_errors_are_summed_up_by_their_size() -> None:
    """Too low and too high alike; without any error nothing is known."""
    summed = errors([-0.03, 0.01, 0.02])
    assert (summed["count"], summed["median_abs_error"], summed["max_abs_error"]) == (3, 0.02, 0.03)
    assert 0.02 < summed["p95_abs_error"] < 0.03
    assert errors([]) == {"count": 0, "median_abs_error": None, "p95_abs_error": None, "max_abs_error": None}
