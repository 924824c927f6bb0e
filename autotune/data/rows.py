"""The rows of one file of training data, each with the place that it came from.

Rows are read one at a time, so that memory does not grow with the file (a .json list is the exception). A compressed
file (.jsonl.gz, .csv.zst) is read like the file inside. Leaves out which files are read (source.py) and what a row
means (forms.py).
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from autotune.data import COMPRESSED
from autotune.errors import first_line

CELL_CHARACTERS = 2**31 - 1  # csv's own limit, 131,072, is less than one long document


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row, or the problem that there is instead. where: its file and line."""

    where: str
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


def kind_of_file(file: Path) -> str:
    """Return the suffix that says how a file is read, in small letters: that of what is inside a compressed file."""
    inner = file.with_suffix("") if file.suffix.lower() in COMPRESSED else file
    return inner.suffix.lower()


def rows_of_file(file: Path) -> Iterator[Row]:
    """Read the rows of a file. A file that cannot be read gives one row with the problem."""
    try:
        yield from READERS[kind_of_file(file)](file)
    except UnicodeDecodeError as error:
        yield Row(where=file.name, problem=f"is not UTF-8 ({error.reason})")
    except (OSError, EOFError) as error:
        yield Row(where=file.name, problem=f"cannot be read ({first_line(error)})")


def _opened(file: Path) -> BinaryIO:
    """Open a file for reading bytes, decompressed."""
    if file.suffix.lower() not in COMPRESSED:
        return file.open("rb")
    import pyarrow as pa

    return io.BufferedReader(pa.input_stream(file, compression={".gz": "gzip", ".zst": "zstd"}[file.suffix.lower()]))


def _json_rows(file: Path) -> Iterator[Row]:
    """Read a list of objects, one object a line, or an object with one list of objects, as `{"data": [...]}`."""
    with _opened(file) as content:
        lines = (line for line in io.TextIOWrapper(content, "utf-8-sig") if line.strip())
        first, second = next(lines, ""), next(lines, "")
    if not first or (second and _is_object(first)):
        yield from _json_lines(file)
        return
    try:
        with _opened(file) as content:
            value = json.loads(content.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        yield Row(where=f"{file.name}:{error.lineno}", problem=f"is not JSON ({error.msg}, column {error.colno})")
        return
    where = f"{file.name} row"
    if isinstance(value, dict):
        lists = {key: inner for key, inner in value.items() if _is_list_of_objects(inner)}
        if len(lists) != 1:
            yield from _one_object(file, value)
            return
        [(key, value)] = lists.items()
        where = f"{file.name} {key} row"
    if not isinstance(value, list):
        yield Row(where=file.name, problem="is one JSON value, expected a list of objects, or one object a line")
        return
    for number, one in enumerate(value, 1):
        yield _object(f"{where} {number}", one)


def _one_object(file: Path, value: dict[str, Any]) -> Iterator[Row]:
    """A file with a single object: its only row, if that has a line of its own."""
    with _opened(file) as content:
        lines = sum(1 for line in content if line.strip())
    if lines == 1:
        yield _object(f"{file.name}:1", value)
    else:
        has = ", ".join(list(value)[:8]) or "no keys"
        yield Row(
            where=file.name,
            problem=f"is one JSON object with {has}, expected a list of objects, or one object a line",
        )


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _is_list_of_objects(value: object) -> bool:
    """Whether a value is such a list, and not the messages of a single row."""
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        return False
    return not all("role" in one or "from" in one for one in value)


def _json_lines(file: Path) -> Iterator[Row]:
    with _opened(file) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file.name}:{number}"
            try:
                yield _object(where, json.loads(line.rstrip(b"\r\n").decode("utf-8-sig")))
            except json.JSONDecodeError as error:
                yield Row(where=where, problem=f"is not JSON ({error.msg}, column {error.colno})")
            except UnicodeDecodeError as error:
                yield Row(where=where, problem=f"is not UTF-8 ({error.reason})")


def _object(where: str, value: object) -> Row:
    if isinstance(value, dict):
        return Row(where=where, fields=value)
    return Row(where=where, problem=f"is {str(value)[:40]!r}, expected an object with fields")


def _csv_rows(file: Path) -> Iterator[Row]:
    csv.field_size_limit(CELL_CHARACTERS)
    with _opened(file) as content:
        reader = csv.DictReader(io.TextIOWrapper(content, "utf-8-sig", newline=""), restkey="\0more", strict=True)
        try:
            for cells in reader:
                where = f"{file.name}:{reader.line_num}"
                if "\0more" in cells:
                    yield Row(where=where, problem=f"has more cells than the header's {len(reader.fieldnames or ())}")
                else:
                    yield Row(where=where, fields=dict(cells))
        except csv.Error as error:
            yield Row(where=f"{file.name}:{reader.line_num + 1}", problem=f"is not CSV ({error})")


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _opened(file) as content:
            # a parquet file is read from its end, so that a compressed one must be read whole
            seekable = io.BytesIO(content.read()) if file.suffix.lower() in COMPRESSED else content
            yield from _of_batches(file, pq.ParquetFile(seekable).iter_batches(batch_size=1000))
    except (pa.ArrowException, OSError) as error:
        yield Row(where=file.name, problem=f"is not parquet ({first_line(error)})")


def _arrow_rows(file: Path) -> Iterator[Row]:
    """Read a file of Arrow's stream format, which `Dataset.save_to_disk` writes, or of its file format."""
    import pyarrow as pa

    try:
        with _opened(file) as content:
            try:
                batches: Any = pa.ipc.open_stream(content)
            except pa.ArrowInvalid:
                with _opened(file) as again:
                    file_format = pa.ipc.open_file(pa.py_buffer(again.read()))
                batches = (file_format.get_batch(number) for number in range(file_format.num_record_batches))
            yield from _of_batches(file, batches)
    except (pa.ArrowException, OSError) as error:
        yield Row(where=file.name, problem=f"is not Arrow ({first_line(error)})")


def _of_batches(file: Path, batches: Any) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for fields in batch.to_pylist():
            number += 1
            yield Row(where=f"{file.name} row {number}", fields=of_table(fields))


def of_table(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a table without the nulls that fill its structs. A column that is null stays.

    A table gives every struct the keys of all rows. TRL drops these nulls, too (`remove_none_values`).
    """
    return {name: _without_nulls(value) for name, value in fields.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".json": _json_rows,
    ".jsonl": _json_lines,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
