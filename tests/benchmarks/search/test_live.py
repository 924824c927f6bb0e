"""benchmarks/search/live.py: the search asks for the table's space, and is scored by the table."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from autotune.core.recipe import Recipe
from autotune.errors import UsageError
from benchmarks.search.commands import request_of, words_of
from benchmarks.search.live import score
from benchmarks.search.table import Table, TableRow, load
from tests.benchmarks.search.test_quality import DEFAULT, RATES, SPACE, ran

TABLES = sorted((Path(__file__).parents[3] / "benchmarks" / "results").glob("table_*.jsonl"))
HARDWARE = {"name": "a machine", "cores": 2}
TABLE = Table(
    header={"name": "made up", "hardware": HARDWARE, "data_fingerprint": "f"},
    rows=tuple(
        TableRow(order=order, round=0, role="search", candidate=candidate, outcome=ran(rate), measured_at="now")
        for order, (candidate, rate) in enumerate(RATES.items())
    ),
)
FOUND: dict[str, Any] = {
    "hardware": HARDWARE | {"memory_bytes": 1},
    "workload": {"data": {"fingerprint": "f"}},
    "best": {"candidate": SPACE[6].to_dict()},
    "trials": [
        {"role": "baseline", "candidate": DEFAULT.to_dict()},
        *({"role": "search", "candidate": each.to_dict()} for each in (SPACE[0], DEFAULT, SPACE[6])),
        {"role": "repeat", "candidate": SPACE[6].to_dict()},
    ],
    "speedup": 1.5,
    "speedup_interval": [1.4, 1.6],
    "wall_s": {"search": 30.0, "second_measurement": 8.0, "total": 40.0},
    "versions": {"torch": "2"},
}


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_the_search_is_of_the_tables_space(file: Path) -> None:
    """Its words are understood as what the header says."""
    header = load(file).header
    request = request_of(words_of(header, "demo"))
    recipe = {key: tuple(value) if isinstance(value, list) else value for key, value in header["recipe"].items()}
    assert asdict(request.recipe) == asdict(Recipe(**recipe))
    assert (request.model, request.data) == (header["model"], "demo")
    assert (request.fixed, request.fidelity.name) == (header["fixed"], header["fidelity"])


def test_a_search_is_scored_by_the_tables_rates() -> None:
    """What is not in the table has no regret; the time is all of the search's, beside a trial of each candidate."""
    found = score(FOUND, TABLE)
    assert found["regret"] == pytest.approx(1 - 110 / 120)
    assert found["regrets_of_trials"] == [pytest.approx(1 - 60 / 120), None, pytest.approx(1 - 110 / 120)]
    assert found["share_of_exhaustive"] == pytest.approx(40 / (10 * len(SPACE)))


def test_another_machine_and_other_data_are_refused() -> None:
    """Both are said at once."""
    other = FOUND | {"hardware": {"name": "another", "cores": 2}, "workload": {"data": {"fingerprint": "g"}}}
    with pytest.raises(UsageError) as error:
        score(other, TABLE)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["hardware", "--data"]
