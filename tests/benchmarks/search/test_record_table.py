"""benchmarks/search/record_table.py: what is measured next, and going on after a kill."""

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autotune.core.candidate import Candidate, Fidelity
from autotune.core.outcome import Crashed, Measured, Outcome, OutOfMemory
from autotune.core.space.enumerate import enumerate_space
from autotune.core.workload import Workload
from autotune.errors import UsageError
from autotune.machine.installed import installed
from autotune.search.display import SearchDisplay
from autotune.search.predicted_memory import Prediction
from autotune.search.predictions import Predictions
from autotune.search.request import workload_of
from autotune.search.search import search
from autotune.train.task import Measure, Task
from autotune.train.workers import Workers
from benchmarks.search import record_table
from benchmarks.search.commands import request_of
from benchmarks.search.record_table import SPACES, record
from benchmarks.search.table import (
    LEAST_REPEATS,
    Table,
    deviation,
    leaders,
    load,
    load_whole,
)
from tests import stand_ins
from tests.core.examples import CPU, candidate

HEADER = {"kind": "table", "name": "made up", "candidates": 40, "seed": 42, "standard_error": 0.02, "begun": "now"}
SPACE = tuple(candidate(max_length=length) for length in range(64, 64 * 41, 64))
FALLBACKS = tuple(candidate(tuned_allocator=False, max_length=length) for length in (64, 128, 192))
REFERENCES = (("baseline", FALLBACKS),)
NO_MEMORY = OutOfMemory(message="", peak_bytes=None, wall_s=1.0)


def rated(rate: float, speed: float = 1.0) -> Measured:
    """A trial at a rate, while the machine was at a speed."""
    return replace(stand_ins.measured(), useful_tokens_per_s=rate * speed, reference_flops_per_s=(speed, speed))


class Machine:
    """Rates that grow with the length, with a noise of 3 % that depends on the candidate and its repeat alone."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.left = dies_after

    def __call__(self, candidate: Candidate, number: int, table: Table) -> Outcome:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left = None if self.left is None else self.left - 1
        repeat = sum(row.candidate == candidate for row in table.rows)
        return rated(candidate.max_length * random.Random(f"{candidate.max_length} {repeat}").lognormvariate(0, 0.03))


def recorded(file: Path, attempt: Callable[..., Outcome], header: dict[str, Any] = HEADER) -> Table:
    """The table that a machine gives in one go."""
    assert record(file, header, candidates=SPACE, references=REFERENCES, attempt=attempt)
    return load(file)


def trials(table: Table) -> list[tuple[int, str, Candidate]]:
    """What was tried, in order."""
    return [(row.round, row.role, row.candidate) for row in table.rows]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """A whole table, recorded in one go."""
    return recorded(tmp_path_factory.mktemp("table") / "t.jsonl", Machine())


def test_each_candidate_once_at_random_then_the_leaders_until_they_are_known(table: Table) -> None:
    """Round 0 is the whole space in an order of its own; then the best tenth is repeated to the standard error."""
    assert trials(table)[0] == (0, "baseline", FALLBACKS[0])
    first = [row.candidate for row in table.rows if row.round == 0 and row.role == "search"]
    assert sorted(first, key=SPACE.index) == list(SPACE)
    assert first != list(SPACE)
    rates = table.rates()
    assert len(leaders(rates)) == 4
    for leader in leaders(rates):
        assert len(rates[leader]) >= LEAST_REPEATS
        assert deviation(rates) / len(rates[leader]) ** 0.5 <= 0.02
    orders = [[row.candidate for row in table.rows if row.round == number] for number in (1, 2, 3)]
    assert all(len(set(order)) == len(order) == 4 for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert [row.number for row in table.rows] == list(range(len(table.rows)))


@pytest.mark.parametrize("dies_after", [0, 1, 17, 43])
def test_a_killed_recording_goes_on_as_if_it_had_not_been(tmp_path: Path, table: Table, dies_after: int) -> None:
    """A row that was torn off is measured again; the others are kept, and the same trials follow in the same order."""
    file = tmp_path / "killed.jsonl"
    with pytest.raises(KeyboardInterrupt):
        recorded(file, Machine(dies_after))
    kept = file.read_text()
    file.write_text(kept + '{"order": 5, "round": 0, "rol')
    again = recorded(file, Machine(), {**HEADER, "begun": "later"})
    assert trials(again) == trials(table)
    assert again.rates() == table.rates()
    assert file.read_text().startswith(kept)


def test_a_header_that_was_torn_off_is_begun_anew(tmp_path: Path) -> None:
    """A kill while the table is begun costs nothing."""
    file = tmp_path / "t.jsonl"
    file.write_text('{"kind": "tab')
    assert recorded(file, Machine()).header == HEADER


def test_time_that_is_up_leaves_the_rest_for_another_time(tmp_path: Path) -> None:
    """Nothing is begun when it may not go on, and that is said."""
    file, ticks = tmp_path / "t.jsonl", itertools.count()
    arguments: dict[str, Any] = {"candidates": SPACE, "references": REFERENCES, "attempt": Machine()}
    assert not record(file, HEADER, **arguments, may_go_on=lambda: next(ticks) < 7)
    assert len(load(file).rows) == 7
    assert record(file, HEADER, **arguments)


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    """Rows of two machines, or of two spaces, never share a table; nor is anything else taken for one."""
    file = tmp_path / "t.jsonl"
    recorded(file, Machine())
    with pytest.raises(UsageError, match="table of another seed"):
        recorded(file, Machine(), {**HEADER, "seed": 43})
    for text in ('{"date": "2026-11-21"}\n', "[1]\n"):
        file.write_text(text)
        with pytest.raises(UsageError, match="is no table"):
            load(file)
    file.write_text(json.dumps(HEADER) + '\n{"candidate": {"knob_of_another_version": 1}}\n')
    with pytest.raises(UsageError, match="has a row that this version does not know"):
        load(file)


def test_what_is_scored_must_be_whole(tmp_path: Path) -> None:
    """Of a table that is not, luck would pass for skill; both are told."""
    file, ticks = tmp_path / "t.jsonl", itertools.count()
    arguments: dict[str, Any] = {"candidates": SPACE, "references": REFERENCES, "attempt": Machine()}
    record(file, HEADER, **arguments, may_go_on=lambda: next(ticks) < 7)
    with pytest.raises(UsageError) as told:
        load_whole(file)
    first, second = told.value.problems
    assert "6 of 40 candidates are measured" in first
    assert "nothing is measured 6 times" in second
    record(file, HEADER, **arguments)
    assert len(load_whole(file).outcomes()) == 40


def test_a_reference_falls_back_and_what_fails_is_not_repeated(tmp_path: Path) -> None:
    """A reference comes down until it has the memory; a candidate that fails has no rate, not even from before."""
    fastest = SPACE[-1]

    def attempt(candidate: Candidate, number: int, table: Table) -> Outcome:
        if candidate in FALLBACKS[:2]:
            return NO_MEMORY
        if candidate == fastest and any(row.candidate == fastest for row in table.rows):
            return Crashed(message="", log_tail="", wall_s=1.0)
        return Machine()(candidate, number, table)

    table = recorded(tmp_path / "t.jsonl", attempt)
    assert [row.candidate for row in table.rows if row.role == "baseline"] == list(FALLBACKS)
    assert Counter(row.candidate for row in table.rows)[fastest] == 2
    assert fastest not in table.rates()


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_a_command_line_of_a_search(name: str) -> None:
    """What a space fixes, a user could fix, and its trials have the time that a search gives by default."""
    words = SPACES[name]
    request = request_of([*words, *([] if "data=demo" in words else ["data=demo"])])
    fixed = [word for word in words if word.startswith("candidate.")]
    assert fixed == [f"candidate.{knob}={value}" for knob, value in request.fixed.items()]
    assert (request.fidelity, request.minutes) == (Fidelity.close, 30)


def test_tiny_has_the_asked_number_of_candidates(workload: Workload) -> None:
    """`tiny` on the demo data is a space of 300 to 600 candidates on two cores."""
    request = request_of(SPACES["tiny-demo"])
    space = enumerate_space(
        workload=replace(workload, recipe=request.recipe),
        hardware=CPU,
        installed=installed(),
        fidelity=request.fidelity,
        fixed=request.fixed,
    )
    assert 300 <= space.legal <= 600


def test_a_row_is_what_a_search_would_measure(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers get a search's very tasks, of another seed in each round; the table names no path of this machine."""
    tasks: list[Task] = []

    def perform(workers: Workers, task: Task, *, limit_s: float, on_event: Any = None) -> Outcome:
        tasks.append(task)
        return rated(stand_ins.formula_rate(task.candidate))

    monkeypatch.setattr(Workers, "perform", perform)
    monkeypatch.setattr(Workers, "__enter__", lambda workers: workers)
    monkeypatch.setattr(record_table, "hardware_of", lambda words: CPU)
    monkeypatch.setattr(Predictions, "predict", lambda predictions, candidate: Prediction(fits=True))
    stand_ins.predict_by_formula(monkeypatch)
    stand_ins.predict_seconds_by_formula(monkeypatch, 1.0)
    file = tmp_path / "t.jsonl"
    fixed = ("candidate.checkpointing=off", "candidate.optimizer=adamw_torch_fused", "candidate.mixed_precision=bf16")
    assert record_table.main(["tiny-demo", *fixed, f"home={home}", "--out", str(file)]) == 0
    by_table, tasks = tasks, []
    request = request_of((*SPACES["tiny-demo"], *fixed, f"home={home}"))
    workload = workload_of(request, progress=print)
    display = SearchDisplay(Console(quiet=True))
    search(replace(request, out=tmp_path / "out", trials=6), workload, CPU, display=display)
    paths = {"output_dir": "", "log_path": ""}
    of_table = {replace(task, **paths) for task in by_table}
    first = [task for task in tasks if isinstance(task.goal, Measure) and task.goal.worst_first]
    of_search = {replace(task, **paths, goal=replace(task.goal, pace=None)) for task in first}  # type: ignore[type-var]
    assert len(of_search) == 6
    assert of_search <= of_table
    assert [task.seed for task in by_table] == [42 + row.round for row in load(file).rows]
    header = json.loads(file.read_text().splitlines()[0])
    assert header["candidates"] == len({row.candidate for row in load(file).rows if row.role == "search"})
    assert str(home) not in file.read_text()
    assert str(tmp_path) not in file.read_text()
