"""A bench whose trials end as a test says, and whose clock stands still."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autotune.core.candidate import Candidate
from autotune.core.hardware import Device
from autotune.core.outcome import Outcome
from autotune.core.trials.budget import Budget
from autotune.search.bench import Bench
from autotune.search.display import SearchDisplay
from autotune.search.journal import Journal
from autotune.train.task import Task
from tests import stand_ins
from tests.core import examples


@dataclass
class StandIns:
    """Stand for the processes that train: keep what was asked, and answer with `ends`, then by the formula."""

    ends: list[Outcome] = field(default_factory=list)
    device: Device = "cpu"
    asked: list[tuple[Task, float | None]] = field(default_factory=list)

    def perform(self, task: Task, *, limit_s: float | None, on_event: Any = None) -> Outcome:
        """Answer at once."""
        self.asked.append((task, limit_s))
        return (
            self.ends.pop(0) if self.ends else stand_ins.formula_outcome(task.candidate, task.goal, stand_ins.FORMULA)
        )


def asked(bench: Bench) -> list[tuple[Task, float | None]]:
    """The tasks that a bench has given to its workers, and after how many seconds each would have been killed."""
    found: Any = bench.workers
    return list(found.asked)


MakeBench = Callable[..., Bench]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """The record of a search that has tried nothing yet."""
    journal = Journal(tmp_path / "out", {})
    yield journal
    journal.close()


@pytest.fixture
def make_bench(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeBench:
    """Build a bench on that record.

    ends: outcomes of its trials. seconds, trials: its budget. legal: the space. device: what its workers train on.
    said: gets what it shows. Other keywords change the request.
    """
    stand_ins.predict_by_formula(monkeypatch)

    def make(
        *ends: Outcome,
        seconds: float | None = None,
        trials: int | None = None,
        legal: Sequence[Candidate] = (),
        device: Device = "cpu",
        model: Mapping[str, Any] | None = None,
        said: StringIO | None = None,
        **request: Any,
    ) -> Bench:
        workload = examples.workload(model=dict(model or {}))
        return Bench(
            request=stand_ins.search_request(tmp_path, workload.recipe, journal.out, **request),
            workload=workload,
            hardware=examples.CPU,
            legal=frozenset(legal),
            predictions=stand_ins.predictions(examples.CPU, lambda line: None),
            journal=journal,
            workers=StandIns(list(ends), device),  # type: ignore[arg-type]
            display=SearchDisplay(Console(file=said or StringIO(), width=200)),
            budget=Budget(seconds=seconds, trials=trials),
            started_at=0.0,
            spent_before_s=0.0,
            now=lambda: 0.0,
        )

    return make
