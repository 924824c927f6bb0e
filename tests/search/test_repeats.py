"""The second measurement: what the end of a repeat says about a contender, and about the time."""

from dataclasses import replace

import pytest

from autotune.core.outcome import Crashed, TimedOut
from autotune.core.trials.trial import Trial
from autotune.search.bench import Bench
from autotune.search.journal import Journal
from autotune.search.repeats import Repeats, measure_again
from tests.core.examples import candidate
from tests.search.conftest import MakeBench
from tests.stand_ins import measured

CRASHED = Crashed(message="as asked", log_tail="", wall_s=0.0)


@pytest.fixture
def contenders(journal: Journal) -> list[Trial]:
    """The two trials that a search has measured."""
    for role, which in (("baseline", candidate()), ("search", candidate(checkpointing="off"))):
        journal.end(journal.begin(which, role), measured())
    return list(journal.trials)


def again(bench: Bench, contenders: list[Trial], leave_s: float = 0.0) -> Repeats:
    return measure_again(bench, contenders, leave_s=leave_s)


def killed(limit_s: float) -> TimedOut:
    return TimedOut(limit_s=limit_s, wall_s=limit_s)


def test_who_is_killed_because_the_time_is_up_is_not_out(make_bench: MakeBench, contenders: list[Trial]) -> None:
    """The rounds before count, and with more time the one that was cut short is measured to its end."""
    done = replace(measured(), useful_tokens_per_s=90.0)
    bench = make_bench(done, done, done, killed(1.0))
    found = again(bench, contenders)
    assert found.contenders == contenders
    assert [len(outcomes) for outcomes in found.rounds] == [2]
    found = again(make_bench(measured()), contenders)
    assert found.contenders == contenders
    assert [[outcome.useful_tokens_per_s for outcome in outcomes] for outcomes in found.rounds] == [[90, 90], [100, 90]]


def test_who_takes_too_long_is_out(make_bench: MakeBench, contenders: list[Trial]) -> None:
    """With time enough, it was the contender."""
    bench = make_bench()
    found = again(make_bench(measured(), killed(bench.patience_s())), contenders)
    assert found.contenders == contenders[:1]
    assert found.failed == {1}
    assert [len(outcomes) for outcomes in found.rounds] == [1]


def test_where_all_fail_nobody_is_left_and_the_next_sitting_measures_them_again(
    make_bench: MakeBench, contenders: list[Trial]
) -> None:
    """That was the machine, so the round is passed over."""
    assert again(make_bench(CRASHED, CRASHED), contenders) == Repeats(contenders=[], failed={0, 1}, rounds=[])
    found = again(make_bench(), contenders)
    assert found.contenders == contenders
    assert [len(outcomes) for outcomes in found.rounds] == [2, 2]


def test_who_fails_in_a_round_that_is_cut_short_is_out(make_bench: MakeBench, contenders: list[Trial]) -> None:
    """Also when the search goes on without any time."""
    out = Repeats(contenders=contenders[1:], failed={0}, rounds=[])
    assert again(make_bench(CRASHED, killed(1.0)), contenders) == out
    assert again(make_bench(seconds=0.0), contenders) == out


@pytest.mark.parametrize(("leave_s", "rounds"), [(0.0, 4), (15.0, 2)])
def test_what_follows_waits_for_the_planned_rounds(
    make_bench: MakeBench, contenders: list[Trial], leave_s: float, rounds: int
) -> None:
    """A round of two steps takes eight of twenty seconds: two take their time before the comparison of losses."""
    bench = make_bench(*[measured()] * 8, seconds=20.0)
    assert len(again(bench, contenders, leave_s).rounds) == rounds
