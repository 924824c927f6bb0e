"""Our tokens against TRL's: the sweep finds them equal, and would find a difference."""

import json
from pathlib import Path

import pytest

from benchmarks.data import templates
from benchmarks.data.shapes import ROWS, SHAPES
from benchmarks.rows import RESULTS, read


@pytest.mark.parametrize(("name", "equal", "refused"), [("mistral", 16, 11), ("qwen-3", 16, 11)])
def test_a_template_gives_the_tokens_of_trl(name: str, equal: int, refused: int, tmp_path: Path) -> None:
    """From every form and kind of file. Neither template marks answers, so both refuse to learn them alone."""
    row = templates.compared(name, SHAPES[name], templates.written(tmp_path), tmp_path)
    assert row["different"] == []
    assert (len(row["equal"]), len(row["refused"])) == (equal, refused)
    assert all("marks no answers" in why for why in row["refused"].values())


def test_another_token_is_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One label that is not TRL's is enough."""
    files, rows = templates.written(tmp_path)["text"], ROWS["text"]
    templates.compared("marked", SHAPES["marked"], {}, tmp_path)  # writes the model
    usual = templates.LOSSES["usual"]
    assert templates.compared_case(tmp_path / "model", files, rows, usual) == ("equal", "")
    wrong = [([1, 2], [1, 2])] * len(rows)
    monkeypatch.setattr(templates, "of_trl", lambda *_: wrong)
    assert templates.compared_case(tmp_path / "model", files, rows, usual)[0] == "different"


def test_the_committed_rows_have_no_difference() -> None:
    """And are of all templates."""
    rows = {row["template"]: row for row in read(RESULTS / "templates.jsonl")}
    assert rows.keys() == templates.templates().keys()
    assert [json.dumps(row) for row in rows.values() if row["different"]] == []
