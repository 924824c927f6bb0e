"""Find training data by name, and read its rows, each with the place that it came from.

A name is `demo`, a file (.json, .jsonl, .csv, .parquet), a directory of such files, or a dataset on the hub. Rows are
read one at a time, so that memory does not grow with the file (a .json list is the exception). Leaves out what a row
means (forms.py) and how it is tokenized (tokenization.py).
"""

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.data import SUFFIXES
from autotune.data.forms import EXPECTED, FIELDS, BadRow, Dialect, Form, TrlForm, convert, form_of, trl_form_of
from autotune.demo import CONVERSATIONS
from autotune.errors import UsageError, first_line

OPTIONS = ("demo",)
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")
# Words in a file's name by which the hub recognises splits that are not for training.
HELD_OUT = re.compile(r"(^|[^a-z])(test|testing|valid|validation|val|dev|eval|evaluation)([^a-z]|$)")
NAMING = "data.columns='{prompt: A, completion: B}' says which column is which"
PROBLEMS_SHOWN = 20
PROGRESS_ROWS = 50_000
CHUNK_BYTES = 2**20
CELL_CHARACTERS = 2**31 - 1  # csv's own limit, 131,072, is less than one long document


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Data that was found, before it is read.

    files: none for a dataset on the hub, which then stands in `hub` (id, configuration or None).
    columns: our field -> its name in the data. content_hash: of all bytes, or of the hub's revision.
    """

    name: str
    path: str
    files: tuple[Path, ...]
    columns: Mapping[str, str]
    content_hash: str
    hub: tuple[str, str | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row, or the problem that there is instead. where: its file and line."""

    where: str
    fields: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one pass over all rows has found.

    trl_form: TRL's form after conversion. chat: rows hold messages, so a chat template is needed.
    extras: columns beside the form's own (`tools`, `chat_template_kwargs`) that some row has.
    characters: of each row's text, shape (N,), int64, N >= 1.
    """

    form: Form
    trl_form: TrlForm
    chat: bool
    extras: tuple[str, ...]
    characters: NDArray[np.int64]


def locate_data(name: str, columns: Mapping[str, str], progress: Callable[[str], None]) -> Source:
    """Find the data that `name` means, without reading rows. Raises UsageError."""
    if unknown := [field for field in columns if field not in FIELDS]:
        raise UsageError(*(f"data.columns.{field}: is not a field of autotune{_nearest(field)}" for field in unknown))
    path = CONVERSATIONS if name == "demo" else Path(name).expanduser()
    files: tuple[Path, ...]
    if name and path.is_dir():
        files = _files_in(path, progress)
    elif path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"data={name}: ends in {path.suffix!r}, expected one of {', '.join(SUFFIXES)}")
        files = (path,)
    elif (match := HUB_ID.fullmatch(name)) and not name.startswith(".") and path.suffix.lower() not in SUFFIXES:
        return _on_hub(name, match["id"], match["config"], columns, progress)
    else:
        raise UsageError(
            f"data={name}: no such file; expected {', '.join(OPTIONS)}, a file ({', '.join(SUFFIXES)}), "
            "a directory of such files, or a dataset on the hub like owner/name or owner/name:configuration"
        )
    short = name if name == "demo" else path.name
    return Source(name=short, path=str(path.resolve()), files=files, columns=columns, content_hash=_hash(files))


def rows_of(source: Source) -> Iterator[Row]:
    """Read the rows one after another, in the order of the files, with `columns` applied."""
    if source.hub:
        dataset = load_hub_dataset(*source.hub)
        rows = (Row(where=f"{source.name} row {n}", fields=fields) for n, fields in enumerate(dataset, 1))
        yield from (_renamed(row, source.columns) for row in rows)
    for file in source.files:
        reader = {".json": _json_rows, ".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}
        empty = True
        for row in reader[file.suffix.lower()](file):
            empty = False
            yield _renamed(row, source.columns)
        if empty:
            yield Row(where=file.name, problem=f"holds no rows, expected {EXPECTED}")


def survey(source: Source, progress: Callable[[str], None]) -> Survey:
    """Read every row once and check that all fit one form. Raises UsageError with the rows that do not.

    It shows the first PROBLEMS_SHOWN different problems, each at the first row that has it, and counts the others.
    """
    form: Form | None = None
    trl_form: tuple[TrlForm, bool] | None = None
    extras: set[str] = set()
    characters: list[int] = []
    problems: dict[str, tuple[str, int]] = {}  # the first place of each, and how many rows have it
    more = 0
    for row in rows_of(source):
        try:
            row_form, converted = _convert_in_form(row, form, tuple(source.columns))
            if trl_form and trl_form_of(converted) != trl_form:
                raise BadRow(f"is {_form_name(*trl_form_of(converted))}, the rows before are {_form_name(*trl_form)}")
        except BadRow as bad:
            where, count = problems.get(str(bad), (row.where, 0))
            if count or len(problems) < PROBLEMS_SHOWN:
                problems[str(bad)] = where, count + 1
            else:
                more += 1
            continue
        form, trl_form = row_form, trl_form_of(converted)
        extras |= converted.keys() & {"tools", "chat_template_kwargs"}
        characters.append(len(str(converted)))
        if len(characters) % PROGRESS_ROWS == 0:
            progress(f"read {len(characters):,} rows of {source.name}")
    if problems or form is None or trl_form is None:
        raise UsageError(
            *(
                f"{where}: {problem}" + (f" ({count - 1:,} more rows like this)" if count > 1 else "")
                for problem, (where, count) in problems.items()
            ),
            *([f"and {more:,} more rows with problems"] if more else []),
        )
    return Survey(
        form=form,
        trl_form=trl_form[0],
        chat=trl_form[1],
        extras=tuple(sorted(extras)),
        characters=np.array(characters, dtype=np.int64),
    )


def converted_rows(source: Source, form: Form, dialect: Dialect) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row in TRL's own form) for every row. `survey` must have checked the data."""
    for row in rows_of(source):
        try:
            yield row.where, convert(row.fields, form, dialect)
        except BadRow as bad:
            raise UsageError(f"{row.where}: {bad}") from None


def load_hub_dataset(hub_id: str, config: str | None) -> Any:
    """Load split `train` of a dataset on the hub, from the cache where it has it. Raises UsageError."""
    from datasets import DownloadConfig, load_dataset

    try:
        return load_dataset(hub_id, config, split="train", download_config=DownloadConfig(max_retries=1))
    except ConnectionError:
        why = "is neither a file here nor in the cache, and the hub cannot be reached"
    except Exception as error:  # a dataset may raise anything; its name is the user's to mend
        why = f"cannot be loaded ({first_line(error)})"
    raise UsageError(f"data={hub_id}: {why}; a configuration is named by {hub_id}:configuration")


def _on_hub(
    name: str, hub_id: str, config: str | None, columns: Mapping[str, str], progress: Callable[[str], None]
) -> Source:
    progress(f"loading {name} from the hub or its cache")
    dataset = load_hub_dataset(hub_id, config)
    return Source(
        name=name, path=name, files=(), columns=columns, content_hash=str(dataset._fingerprint), hub=(hub_id, config)
    )


def _files_in(directory: Path, progress: Callable[[str], None]) -> tuple[Path, ...]:
    """List the data files of a directory, without those whose names say that they are for evaluation."""
    files = sorted(p for p in directory.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
    training = tuple(p for p in files if not HELD_OUT.search(p.stem.lower()))
    if files and not training:
        training = tuple(files)
    if held_out := [p.name for p in files if p not in training]:
        progress(f"left out of training, by its name: {', '.join(held_out)}")
    if not training:
        there = sorted(p.name for p in directory.iterdir())[:5]
        raise UsageError(
            f"data={directory}: holds no file ending in {', '.join(SUFFIXES)}; it has {', '.join(there) or 'nothing'}"
        )
    return training


def _convert_in_form(row: Row, form: Form | None, named: tuple[str, ...]) -> tuple[Form, dict[str, Any]]:
    if row.problem:
        raise BadRow(row.problem)
    fitting = form_of(row.fields, named)
    if fitting is None:
        missing = [field for field in form.required if field not in row.fields] if form else []
        has = ", ".join(list(row.fields)[:8]) or "no fields"
        expected = f"{' and '.join(missing)} too, like the rows before" if missing else f"{EXPECTED}; {NAMING}"
        raise BadRow(f"fits no form: has {has}; expected {expected}")
    if form and fitting is not form:
        raise BadRow(f"is {fitting.name}, the rows before are {form.name}")
    return fitting, convert(row.fields, fitting, Dialect())


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    if not columns or row.problem:
        return row
    if absent := [theirs for theirs in columns.values() if theirs not in row.fields]:
        has = ", ".join(list(row.fields)[:8])
        return Row(where=row.where, problem=f"has no {' or '.join(absent)}, which data.columns names; it has {has}")
    rest = {name: value for name, value in row.fields.items() if name not in columns.values()}
    return Row(where=row.where, fields={**rest, **{ours: row.fields[theirs] for ours, theirs in columns.items()}})


def _json_rows(file: Path) -> Iterator[Row]:
    """Read a list of objects, or one object a line."""
    try:
        with file.open(encoding="utf-8-sig") as text:
            first = next((line for line in text if line.strip()), "")
            if not first or _is_object(first):
                yield from _json_lines(file)
                return
        values = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        yield Row(where=f"{file.name}:{error.lineno}", problem=f"is not JSON ({error.msg}, column {error.colno})")
    except UnicodeDecodeError as error:
        yield Row(where=file.name, problem=f"is not UTF-8 ({error.reason})")
    else:
        if not isinstance(values, list):
            yield Row(where=file.name, problem="is one JSON value, expected a list of objects, or one object a line")
            return
        for number, value in enumerate(values, 1):
            yield _object(f"{file.name} row {number}", value)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _json_lines(file: Path) -> Iterator[Row]:
    with file.open("rb") as lines:
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
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, restkey="\0more", strict=True)
        try:
            for cells in reader:
                where = f"{file.name}:{reader.line_num}"
                if "\0more" in cells:
                    yield Row(where=where, problem=f"has more cells than the header's {len(reader.fieldnames or ())}")
                else:
                    yield Row(where=where, fields=dict(cells))
        except csv.Error as error:
            yield Row(where=f"{file.name}:{reader.line_num + 1}", problem=f"is not CSV ({error})")
        except UnicodeDecodeError as error:
            yield Row(where=file.name, problem=f"is not UTF-8 ({error.reason})")


def _parquet_rows(file: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1000):
            for fields in batch.to_pylist():
                number += 1
                yield Row(where=f"{file.name} row {number}", fields=fields)
    except (pa.ArrowException, OSError) as error:
        yield Row(where=file.name, problem=f"is not parquet ({first_line(error)})")


def _hash(files: tuple[Path, ...]) -> str:
    digest = blake2b(digest_size=16)
    for path in files:
        digest.update(f"\0{path.suffix.lower()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _form_name(form: TrlForm, chat: bool) -> str:
    return form.replace("_", " and ") + (" as messages" if chat and form != "messages" else "")


def _nearest(field: str) -> str:
    near = difflib.get_close_matches(field, FIELDS, n=1)
    return f", did you mean {near[0]}?" if near else f", expected one of {', '.join(FIELDS)}"
