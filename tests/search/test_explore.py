"""Exploring: which candidates are tried, and when it ends."""

from collections.abc import Sequence
from io import StringIO

import pytest

from autotune.core.candidate import Candidate
from autotune.core.space.enumerate import Space
from autotune.core.units import MIB
from autotune.search.bench import Bench
from autotune.search.explore import Exploration, explore, in_space
from tests import stand_ins
from tests.core.examples import CPU, candidate
from tests.search.conftest import MakeBench

BASELINE = candidate(checkpointing="full", tuned_allocator=False)
BY_HAND = candidate(tuned_allocator=False)
# Predicted peaks of 1.5 to 16.5 GiB, and rates that fall with the rows.
CANDIDATES = tuple(
    candidate(per_device_train_batch_size=rows, gradient_accumulation_steps=8 // rows, checkpointing=checkpointing)
    for rows in (1, 2, 4, 8)
    for checkpointing in ("off", "full")
)


def space_of(candidates: Sequence[Candidate]) -> Space:
    """A space of these alone."""
    count = len(candidates)
    return Space(candidates=tuple(candidates), legal=count, enumerated=count, removed={}, values={}, left_out={})


def explored(bench: Bench) -> Exploration:
    """Explore behind the two references."""
    references = [bench.try_candidate(each, role) for role, each in (("baseline", BASELINE), ("by_hand", BY_HAND))]
    return explore(bench, space_of(CANDIDATES), *references)


def test_candidates_are_tried_while_there_is_room(make_bench: MakeBench) -> None:
    """The budget of trials counts the references; each candidate is tried once."""
    bench = make_bench(trials=5, legal=CANDIDATES, sampler="random")
    assert explored(bench) == Exploration(believed={}, ruled_out=0)
    tried = [trial.candidate for trial in bench.trials if trial.role == "search"]
    assert len(set(tried)) == len(tried) == 3


def test_nothing_is_predicted_where_nothing_will_be_tried(make_bench: MakeBench) -> None:
    """Predicting the rates of a whole space takes its time."""
    said = StringIO()
    assert explored(make_bench(trials=2, legal=CANDIDATES, sampler="roofline", said=said)).believed == {}
    assert "predicting" not in said.getvalue()


def test_what_does_not_fit_is_passed_over(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted, and the search ends when all that fits was tried."""
    monkeypatch.setattr("autotune.core.memory.estimate.MEMORY_SHARE", 4600 * MIB / CPU.memory_bytes)
    said = StringIO()
    bench = make_bench(legal=CANDIDATES, sampler="random", said=said)
    found = explored(bench)
    fitting = [each for each in CANDIDATES if stand_ins.formula_peak(each).bytes <= 4600 * MIB]
    assert {trial.candidate for trial in bench.trials if trial.role == "search"} == set(fitting)
    assert found.ruled_out == len(CANDIDATES) - len(fitting)
    assert "every candidate that fits has been tried" in said.getvalue()


def test_it_ends_when_none_that_is_left_can_win(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates of all others are believed, and what stopping would cost was said on the way."""
    stand_ins.predict_seconds_by_formula(monkeypatch, factor=1.5)
    said = StringIO()
    bench = make_bench(legal=CANDIDATES, sampler="roofline", said=said)
    found = explored(bench)
    tried = {trial.candidate for trial in bench.trials if trial.role == "search"}
    assert max(CANDIDATES, key=stand_ins.formula_rate) in tried
    assert found.believed.keys() == set(CANDIDATES) - tried
    assert f"no further candidate is tried: none of the {len(found.believed)} candidates left" in said.getvalue()
    assert "no candidate that is left is believed to beat the best by more than" in said.getvalue()


def test_a_reference_as_the_space_has_it() -> None:
    """The allocator is tuned there, unless it is fixed; and it has what the user fixed."""
    assert in_space(BASELINE, {}) == candidate(checkpointing="full")
    assert in_space(BASELINE, {"checkpointing": "off", "tuned_allocator": False}) == BY_HAND
