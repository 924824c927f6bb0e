"""benchmarks/search/live.py: the search asks for the table's space, and is scored by the table."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pytest

from autotune.core.recipe import Recipe
from autotune.core.trials.trial import Role, Trial
from autotune.errors import UsageError
from autotune.search.result import Result
from autotune.search.run_directory import result_of
from benchmarks.search.commands import request_of, words_of
from benchmarks.search.live import score
from benchmarks.search.table import Table, load
from tests.benchmarks.search.test_quality import DEFAULT, RATES, SPACE, ran
from tests.search.examples import findings

TABLES = sorted((Path(__file__).parents[3] / "benchmarks" / "results").glob("table_*.jsonl"))
HARDWARE: dict[str, Any] = {"name": "a machine", "cores": 2}
TABLE = Table(
    header={"name": "made up", "hardware": HARDWARE, "data_fingerprint": "f"},
    rows=tuple(
        Trial(number=order, round=0, role="search", candidate=candidate, outcome=ran(rate))
        for order, (candidate, rate) in enumerate(RATES.items())
    ),
)


def found(out: Path) -> Result:
    """A search that tried three candidates of the table's space, one of which the table lacks, on its machine."""
    tried = [
        (DEFAULT, "baseline"),
        (SPACE[0], "search"),
        (DEFAULT, "search"),
        (SPACE[6], "search"),
        (SPACE[6], "repeat"),
    ]
    made = result_of(findings(out))
    trials = tuple(replace(made.best, candidate=each, role=cast(Role, role)) for each, role in tried)
    return replace(made, best=trials[3], trials=trials, hardware=replace(made.hardware, **HARDWARE),
                   workload=replace(made.workload, data=replace(made.workload.data, fingerprint="f")),
                   wall_s={"total": 40.0})  # fmt: skip


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.stem)
def test_the_search_is_of_the_tables_space(file: Path) -> None:
    """Its words are understood as what the header says."""
    header = load(file).header
    request = request_of(words_of(header, "demo"))
    recipe = {key: tuple(value) if isinstance(value, list) else value for key, value in header["recipe"].items()}
    assert asdict(request.recipe) == asdict(Recipe(**recipe))
    assert (request.model, request.data) == (header["model"], "demo")
    assert (request.fixed, request.fidelity.name) == (header["fixed"], header["fidelity"])


def test_a_search_is_scored_by_the_tables_rates(tmp_path: Path) -> None:
    """What is not in the table has no regret; the time is all of the search's, beside a trial of each candidate."""
    row = score(found(tmp_path), TABLE)
    assert row["regret"] == pytest.approx(1 - 110 / 120)
    assert row["regrets_of_trials"] == [pytest.approx(1 - 60 / 120), None, pytest.approx(1 - 110 / 120)]
    assert row["share_of_exhaustive"] == pytest.approx(40 / (10 * len(SPACE)))


def test_another_machine_and_other_data_are_refused(tmp_path: Path) -> None:
    """Both are said at once."""
    with pytest.raises(UsageError) as error:
        score(result_of(findings(tmp_path)), TABLE)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["hardware", "--data"]
