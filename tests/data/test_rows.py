"""The rows of a file: the same from every kind of file, and what cannot be read is told with its place."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from autotune.data import rows
from autotune.data.rows import Row, kind_of_file, of_table, rows_of_file

ROWS = [{"question": "a", "answer": "b"}, {"question": "c", "answer": "d"}]


def compressed(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    else:
        with pa.output_stream(path, compression="zstd") as out:
            out.write(content)
    return path


def fields(path: Path) -> list[dict[str, Any]]:
    assert [row.problem for row in rows_of_file(path) if row.problem] == []
    return [row.fields for row in rows_of_file(path)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv"])
def test_compressed_files_are_read_like_the_file_inside(kind: str, suffix: str, tmp_path: Path) -> None:
    """By the suffix behind the file's own, in any case."""
    text = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        ".json": json.dumps(ROWS, indent=1),
        ".csv": "question,answer\na,b\nc,d\n",
    }[kind]
    path = compressed(tmp_path / f"rows{kind}{suffix}", text.encode())
    assert kind_of_file(path) == kind
    assert fields(path) == ROWS


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_tables_are_read_through_one_opening(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that are read from their end, and are compressed as a whole."""
    table, content = pa.Table.from_pylist(ROWS), {}
    pq.write_table(table, tmp_path / "plain")
    content["parquet"] = (tmp_path / "plain").read_bytes()
    with pa.ipc.new_file(str(tmp_path / "plain"), table.schema) as writer:
        writer.write_table(table)
    content["arrow"] = (tmp_path / "plain").read_bytes()
    opened: list[Path] = []
    monkeypatch.setattr(rows, "_opened", lambda file, real=rows._opened: opened.append(file) or real(file))
    for kind, whole in content.items():
        path = tmp_path / f"rows.{kind}{suffix}"
        path = compressed(path, whole) if suffix else path
        if not suffix:
            path.write_bytes(whole)
        assert [row.fields for row in rows_of_file(path)] == ROWS
        assert len(opened) == {"parquet": 1, "arrow": 3}[kind]  # of Arrow's two formats the second is tried


def test_a_torn_archive_is_told(tmp_path: Path) -> None:
    """As a file that cannot be read, not as a crash."""
    path = compressed(tmp_path / "rows.jsonl.gz", b"x" * 10_000)
    path.write_bytes(path.read_bytes()[:-20])
    [row] = rows_of_file(path)
    assert row.problem.startswith("cannot be read (")


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_files_are_read(form: str, tmp_path: Path) -> None:
    """The stream format, which `save_to_disk` writes, and the file format."""
    table = pa.Table.from_pylist(ROWS)
    new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with new(str(tmp_path / "rows.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert fields(tmp_path / "rows.arrow") == ROWS


def test_nulls_that_fill_a_tables_structs_are_no_values(tmp_path: Path) -> None:
    """Parquet gives every struct the keys of all rows. In JSON a null is what the file says."""
    rows = [
        {"tools": [{"name": "a", "parameters": {"x": {"type": "string"}}}]},
        {"tools": [{"name": "b", "parameters": {"y": 1}}]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert fields(tmp_path / "rows.parquet") == rows
    (tmp_path / "rows.jsonl").write_text(json.dumps({"tools": [{"name": None}]}) + "\n")
    assert fields(tmp_path / "rows.jsonl") == [{"tools": [{"name": None}]}]
    assert of_table({"answer": None, "messages": [{"content": None, "role": "user"}]}) == {
        "answer": None,
        "messages": [{"role": "user"}],
    }


@pytest.mark.parametrize(
    "text", ['{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}', '{\n "data": [\n{"text": "a"},{"text": "b"}]\n}']
)
def test_an_object_with_one_list_of_objects_holds_its_rows(text: str, tmp_path: Path) -> None:
    """As services export data, in one line or in many."""
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert [(row.where, row.fields["text"]) for row in rows_of_file(path)] == [
        ("rows.json data row 1", "a"),
        ("rows.json data row 2", "b"),
    ]


def test_a_single_row_of_messages_is_a_row(tmp_path: Path) -> None:
    """Its list of messages is no list of rows."""
    path = tmp_path / "rows.json"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text(json.dumps(row))
    assert list(rows_of_file(path)) == [Row(where="rows.json:1", fields=row)]


def test_an_object_with_several_lists_says_what_it_has(tmp_path: Path) -> None:
    """It does not say which are the rows."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": [{"text": "a"}], "test": [{"text": "b"}]}, indent=1))
    [row] = rows_of_file(path)
    assert row.problem == "is one JSON object with train, test, expected a list of objects, or one object a line"
