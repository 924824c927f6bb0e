"""Find training data by name, and check that all its rows have one form.

A name is `demo`, a file, a directory of files or one that `save_to_disk` has written, or a dataset on the hub. Leaves
out which part of a dataset is trained on (splits.py), how a file is read (rows.py), what a row means (forms.py) and
how it is tokenized (tokenization.py).
"""

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.core.units import count_of
from autotune.data import COMPRESSED, SUFFIXES
from autotune.data.forms import (
    EXPECTED,
    FIELDS,
    BadRow,
    Dialect,
    Form,
    TrlForm,
    convert,
    form_of,
    refuse_what_is_not_sft,
    trl_form_of,
    unused_in,
    uses_tools,
)
from autotune.data.marks import is_marked
from autotune.data.rows import Row, kind_of_file, of_table, rows_of_file
from autotune.data.splits import choose_split, files_in
from autotune.demo import CONVERSATIONS
from autotune.errors import UsageError, first_line

OPTIONS = ("demo",)
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")
NAMING = "data.columns='{prompt: A, completion: B}' says which column is which"
PROBLEMS_SHOWN = 20
PROGRESS_ROWS = 50_000
CHUNK_BYTES = 2**20
EXPECTED_FILES = f"{', '.join(SUFFIXES)}, each also with {' or '.join(COMPRESSED)} behind it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Data that was found, before it is read.

    files: none for a dataset on the hub, which then stands in `hub` (id, configuration or None).
    split: that the data comes from, None where it has no splits. columns: our field -> its name in the data.
    content_hash: of all bytes, or of the hub's revision.
    """

    name: str
    path: str
    files: tuple[Path, ...]
    columns: Mapping[str, str]
    content_hash: str
    split: str | None = None
    hub: tuple[str, str | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What one pass over all rows has found.

    trl_form: TRL's form after conversion. chat: rows hold messages, so a chat template is needed.
    extras: columns beside the form's own (`tools`, `chat_template_kwargs`) that some row has.
    unused: columns that are not trained on, with the number of rows that hold something there.
    marked, with_tools: rows that mark messages as learned or not, and rows with tools or calls of them.
    characters: of each row's text, shape (N,), int64, N >= 1.
    """

    form: Form
    trl_form: TrlForm
    chat: bool
    extras: tuple[str, ...]
    unused: Mapping[str, int]
    marked: int
    with_tools: int
    characters: NDArray[np.int64]


class Problems:
    """The first PROBLEMS_SHOWN different problems of rows, each at the first row that has it. Counts the others."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[str, int]] = {}  # problem -> its first place, and how many rows have it
        self._more = 0

    def __bool__(self) -> bool:
        return bool(self._shown)

    def add(self, where: str, problem: str) -> None:
        """Count a problem of the row at `where`."""
        first, count = self._shown.get(problem, (where, 0))
        if count or len(self._shown) < PROBLEMS_SHOWN:
            self._shown[problem] = first, count + 1
        else:
            self._more += 1

    def lines(self) -> list[str]:
        """Write the problems for UsageError, one line each."""
        lines = [
            f"{where}: {problem}" + (f" ({count_of(count - 1, 'more row')} like this)" if count > 1 else "")
            for problem, (where, count) in self._shown.items()
        ]
        return lines + ([f"and {count_of(self._more, 'more row')} with problems"] if self._more else [])


def locate_data(
    name: str, columns: Mapping[str, str], progress: Callable[[str], None], *, split: str | None = None
) -> Source:
    """Find the data that `name` means, without reading rows. split: the one to train on; None: splits.py chooses.

    Raises UsageError.
    """
    if unknown := [field for field in columns if field not in FIELDS]:
        raise UsageError(*(f"data.columns.{field}: is not a field of autotune{_nearest(field)}" for field in unknown))
    path = CONVERSATIONS if name == "demo" else Path(name).expanduser()
    files: tuple[Path, ...]
    chosen = None
    if name and path.is_dir():
        chosen, files = files_in(path, split, progress)
    elif path.is_file():
        if split is not None:
            raise UsageError(f"data.split={split}: {name} is one file; directories and datasets of the hub have splits")
        if kind_of_file(path) not in SUFFIXES:
            raise UsageError(f"data={name}: ends in {path.suffix!r}, expected one of {EXPECTED_FILES}")
        files = (path,)
    elif (match := HUB_ID.fullmatch(name)) and not name.startswith(".") and kind_of_file(path) not in SUFFIXES:
        return _on_hub(name, match["id"], match["config"], columns, split, progress)
    else:
        raise UsageError(
            f"data={name}: no such file; expected {', '.join(OPTIONS)}, a file ({', '.join(SUFFIXES)}), "
            "a directory of such files, or a dataset on the hub like owner/name or owner/name:configuration"
        )
    short = name if name == "demo" else path.name
    return Source(
        name=short, path=str(path.resolve()), files=files, columns=columns, content_hash=_hash(files), split=chosen
    )


def rows_of(source: Source) -> Iterator[Row]:
    """Read the rows one after another, in the order of the files, with `columns` applied."""
    if source.hub:
        dataset = load_hub_dataset(*source.hub)[source.split]
        rows = (Row(where=f"{source.name} row {n}", fields=of_table(fields)) for n, fields in enumerate(dataset, 1))
        yield from (_renamed(row, source.columns) for row in rows)
    for file in source.files:
        empty = True
        for row in rows_of_file(file):
            empty = False
            yield _renamed(row, source.columns)
        if empty:
            yield Row(where=file.name, problem=f"holds no rows, expected {EXPECTED}")


def survey(source: Source, progress: Callable[[str], None]) -> Survey:
    """Read every row once and check that all fit one form. Raises UsageError with the rows that do not."""
    form: Form | None = None
    trl_form: tuple[TrlForm, bool] | None = None
    extras: set[str] = set()
    unused: Counter[str] = Counter()
    marked = with_tools = 0
    characters: list[int] = []
    problems = Problems()
    for row in rows_of(source):
        try:
            row_form, converted = _convert_in_form(row, form, tuple(source.columns))
            if trl_form and trl_form_of(converted) != trl_form:
                raise BadRow(f"is {_form_name(*trl_form_of(converted))}, the rows before are {_form_name(*trl_form)}")
            marked += is_marked(converted)
        except BadRow as bad:
            problems.add(row.where, str(bad))
            continue
        form, trl_form = row_form, trl_form_of(converted)
        extras |= converted.keys() & {"tools", "chat_template_kwargs"}
        with_tools += uses_tools(converted)
        unused.update(unused_in(row.fields, form, converted))
        characters.append(len(str(converted)))
        if len(characters) % PROGRESS_ROWS == 0:
            progress(f"read {count_of(len(characters), 'row')} of {source.name}")
    if problems or form is None or trl_form is None:
        raise UsageError(*problems.lines())
    return Survey(
        form=form,
        trl_form=trl_form[0],
        chat=trl_form[1],
        extras=tuple(sorted(extras)),
        unused=dict(unused),
        marked=marked,
        with_tools=with_tools,
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
    """Load a dataset on the hub, from the cache where it has it, as a mapping of its splits. Raises UsageError."""
    from datasets import DownloadConfig, load_dataset

    try:
        return load_dataset(hub_id, config, download_config=DownloadConfig(max_retries=1))
    except ConnectionError:
        why = "is neither a file here nor in the cache, and the hub cannot be reached"
    except Exception as error:  # a dataset may raise anything; its name is the user's to mend
        why = f"cannot be loaded ({first_line(error)})"
    raise UsageError(f"data={hub_id}: {why}; a configuration is named by {hub_id}:configuration")


def _on_hub(
    name: str,
    hub_id: str,
    config: str | None,
    columns: Mapping[str, str],
    split: str | None,
    progress: Callable[[str], None],
) -> Source:
    progress(f"loading {name} from the hub or its cache")
    there = load_hub_dataset(hub_id, config)
    chosen = choose_split({str(one): str(one) for one in there}, split, where=name, progress=progress)
    return Source(
        name=name,
        path=name,
        files=(),
        columns=columns,
        content_hash=str(there[chosen]._fingerprint),
        split=chosen,
        hub=(hub_id, config),
    )


def _convert_in_form(row: Row, form: Form | None, named: tuple[str, ...]) -> tuple[Form, dict[str, Any]]:
    if row.problem:
        raise BadRow(row.problem)
    refuse_what_is_not_sft(row.fields)
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
