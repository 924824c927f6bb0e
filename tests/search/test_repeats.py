"""The second measurement: what a repeat's end says of a contender, and of the time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core.candidate import Candidate
from autotune.core.outcome import Crashed, Outcome, TimedOut
from autotune.core.trials.budget import Budget
from autotune.core.trials.trial import Trial
from autotune.search.journal import Journal
from autotune.search.repeats import Repeats
from tests.core.examples import candidate
from tests.stand_ins import measured

PATIENCE_S = 60.0
CRASHED = Crashed(message="as asked", log_tail="", wall_s=0.0)


@pytest.fixture
def journal(tmp_path: Path):
    """Of a search that has measured two candidates."""
    journal = Journal(tmp_path, {})
    for role, which in (("baseline", candidate()), ("search", candidate(checkpointing="off"))):
        journal.end(journal.begin(which, role), measured())
    yield journal
    journal.close()


def repeats(journal: Journal, ends: list[Outcome], *, seconds: float | None = None, leave_s: float = 0.0) -> Repeats:
    """Whose repeats end so, one after another, and then as they are expected to. The clock stands still."""

    def perform(which: Candidate, role: Any, goal: Any, **repeat: int) -> Trial:
        number = journal.begin(which, role, **repeat)
        return journal.end(number, ends.pop(0) if ends else measured())

    return Repeats(
        journal=journal,
        budget=Budget(seconds=seconds, trials=2),
        spent_s=lambda: 0.0,
        leave_s=leave_s,
        patience_s=PATIENCE_S,
        perform=perform,
    )


def killed(limit_s: float) -> TimedOut:
    return TimedOut(limit_s=limit_s, wall_s=limit_s)


def test_who_is_killed_because_the_time_is_up_is_not_out(journal: Journal) -> None:
    """The rounds before count, and with more time the one that was cut short is measured to its end."""
    contenders = list(journal.trials)
    done = replace(measured(), useful_tokens_per_s=90.0)
    left, rounds = repeats(journal, [done, done, done, killed(PATIENCE_S / 2)]).run(contenders)
    assert left == contenders
    assert [len(outcomes) for outcomes in rounds] == [2]
    left, rounds = repeats(journal, []).run(contenders)
    assert left == contenders
    assert [[outcome.useful_tokens_per_s for outcome in outcomes] for outcomes in rounds] == [[90, 90], [100, 90]]


def test_who_takes_too_long_is_out(journal: Journal) -> None:
    """With time enough, it was the contender."""
    contenders = list(journal.trials)
    left, rounds = repeats(journal, [measured(), killed(PATIENCE_S)]).run(contenders)
    assert left == contenders[:1]
    assert [len(outcomes) for outcomes in rounds] == [1]


def test_where_all_fail_nobody_is_left_and_the_next_sitting_measures_them_again(journal: Journal) -> None:
    """That was the machine, so the round is passed over."""
    contenders = list(journal.trials)
    assert repeats(journal, [CRASHED, CRASHED]).run(contenders) == ([], [])
    left, rounds = repeats(journal, []).run(contenders)
    assert left == contenders
    assert [len(outcomes) for outcomes in rounds] == [2, 2]


def test_who_fails_in_a_round_that_is_cut_short_is_out(journal: Journal) -> None:
    """Also when the search goes on without any time."""
    contenders = list(journal.trials)
    assert repeats(journal, [CRASHED, killed(PATIENCE_S / 2)]).run(contenders) == (contenders[1:], [])
    assert repeats(journal, [], seconds=0.0).run(contenders) == (contenders[1:], [])


@pytest.mark.parametrize(("leave_s", "rounds"), [(0.0, 4), (15.0, 2)])
def test_what_follows_waits_for_the_planned_rounds(journal: Journal, leave_s: float, rounds: int) -> None:
    """A round of two steps takes eight of twenty seconds: two take their time before the comparison of losses."""
    _, found = repeats(journal, [], seconds=20.0, leave_s=leave_s).run(list(journal.trials))
    assert len(found) == rounds
