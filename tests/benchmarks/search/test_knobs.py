"""benchmarks/search/knobs.py: pairs differ in one thing, a knob that starts later must pay, illegal pairs are named."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.candidate import differences
from autotune.core.outcome import Crashed, Measured, Outcome
from autotune.core.recipe import Recipe
from autotune.core.space.context import Context
from autotune.core.workload import Workload
from autotune.errors import UsageError
from autotune.machine.installed import installed
from autotune.search.request import SearchRequest
from benchmarks.machines import plain_cpu
from benchmarks.rows import read
from benchmarks.search import knobs
from benchmarks.search.knobs import compared, measure, pairs
from tests import stand_ins


@pytest.fixture
def request_(home: Path, recipe: Recipe, tmp_path: Path) -> SearchRequest:
    return stand_ins.search_request(home, recipe, tmp_path / "out")


def ran(rate: float, step_s: float, starting_s: float = 0.0) -> Measured:
    return replace(stand_ins.measured(), useful_tokens_per_s=rate, step_s=step_s, wall_s=starting_s)


def test_a_pair_differs_in_one_thing(request_: SearchRequest, workload: Workload) -> None:
    """A knob and what follows from it, or the recipe; packing is compared as a whole."""
    context = Context(installed=installed(), hardware=plain_cpu(), workload=workload)
    found = list(pairs(request_, workload, context))
    assert len({pair.name for pair in found}) == len(found) > 15
    for pair in found:
        changed = set(differences(pair.without, pair.with_it)) - {"every_n_layers"}
        if pair.name.startswith("neftune"):
            assert (changed, pair.recipe != request_.recipe) == (set(), True)
        elif not pair.name.startswith("pack"):
            assert len(changed) == 1
        elif pair.name.startswith("packed_length"):
            assert "packed_length" in changed
            assert "batching" not in changed


def test_rows_by_a_formula(request_: SearchRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ratio of the made-up truth; what a CPU cannot have is named with its reason; only what was asked for."""
    stand_ins.train_by_formula(monkeypatch)
    file = tmp_path / "knobs.jsonl"
    rows = list(measure(request_, plain_cpu(), ["tuned_allocator", "batch_rebalance", "use_kernels"], file))
    assert read(file) == json.loads(json.dumps(rows))
    by_name = {row["name"]: row for row in rows}
    assert by_name["tuned_allocator"]["speedup"]["ratio"] == pytest.approx(1.2)
    assert by_name["batch_rebalance"]["speedup"]["ratio"] == pytest.approx(1.3)
    assert by_name["tuned_allocator"]["speedup"]["rounds"] == knobs.ROUNDS
    assert "not legal" in by_name["use_kernels"]["why"]
    assert len(rows) == 3


def test_words_of_a_search_are_kept_to(request_: SearchRequest, workload: Workload, tmp_path: Path) -> None:
    """A fixed knob is in every pair that does not compare it; a knob that is none is refused with those that are."""
    fixed = replace(request_, fixed={"optimizer": "adafactor"})
    context = Context(installed=installed(), hardware=plain_cpu(), workload=workload)
    for pair in pairs(fixed, workload, context):
        assert pair.name.startswith("optimizer") or pair.without.optimizer == "adafactor"
    with pytest.raises(UsageError, match="--only: got rebalance, expected one of attention, batch_rebalance"):
        list(measure(request_, plain_cpu(), ["rebalance"], tmp_path / "knobs.jsonl"))


def test_what_takes_long_to_start_must_pay() -> None:
    """Ten seconds of compiling, half a second saved in each step: twenty steps. Later rounds find it compiled. What is
    slower never pays, and what starts as soon pays at once."""
    warm: dict[str, Outcome] = {"without": ran(100.0, 2.0, 5.0), "with": ran(133.0, 1.5, 5.0)}
    rounds: list[dict[str, Outcome]] = [{**warm, "with": ran(133.0, 1.5, 15.0)}, warm]
    assert compared([warm, warm])["pays_after_steps"] == 0
    found = compared(rounds)
    assert found["speedup"]["ratio"] == pytest.approx(1.33)
    assert found["pays_after_steps"] == pytest.approx(20.0)
    slower: list[dict[str, Outcome]] = [{"without": ran(100.0, 2.0, 5.0), "with": ran(90.0, 2.2, 15.0)}] * 2
    assert compared(slower)["pays_after_steps"] is None
    crashed: list[dict[str, Outcome]] = [
        {"without": ran(100.0, 2.0), "with": Crashed(message="", log_tail="", wall_s=1.0)}
    ]
    assert compared(crashed)["speedup"] is None
