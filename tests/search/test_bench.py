"""The bench: what a trial is given, how long it may take, and what is kept of it."""

import math
from dataclasses import replace
from io import StringIO

import pytest

from autotune.core.outcome import OutOfMemory, TimedOut
from autotune.core.trials.budget import TRIAL_SHARE
from autotune.core.trials.trial import Role
from autotune.search.bench import Bench
from autotune.train.task import Compare, Measure
from tests.core.examples import candidate
from tests.search.conftest import MakeBench, asked
from tests.stand_ins import measured

SLOW, FAST = candidate(checkpointing="full"), candidate(checkpointing="off")


def goal_of(bench: Bench) -> Measure:
    """What the last trial was to measure."""
    goal = asked(bench)[-1][0].goal
    assert isinstance(goal, Measure)
    return goal


def test_a_trial_is_predicted_recorded_and_shown(make_bench: MakeBench) -> None:
    """Its folder has the outcome, its row the rate, and its prediction stands beside it."""
    said = StringIO()
    bench = make_bench(measured(), said=said)
    trial = bench.try_candidate(SLOW, "baseline")
    assert list(bench.trials) == [trial]
    assert (bench.journal.folder(0) / "outcome.json").exists()
    assert "baseline" in said.getvalue()
    assert bench.predictions.memory.predicted(SLOW) is not None


def test_an_interrupted_trial_leaves_nothing(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing about its candidate; the seconds that it took count."""

    def interrupt(*task: object, **how: object) -> None:
        raise KeyboardInterrupt

    bench = replace(make_bench(), spent_before_s=7.0)
    monkeypatch.setattr(bench.workers, "perform", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.try_candidate(SLOW, "baseline")
    assert not bench.trials
    assert not bench.journal.folder(0).exists()
    assert bench.journal.spent_s == 7.0


def test_a_miss_of_the_prediction_is_said(make_bench: MakeBench) -> None:
    """A trial that was predicted to fit and ran out of memory."""
    said = StringIO()
    make_bench(OutOfMemory(message="", peak_bytes=None, wall_s=1.0), said=said).try_candidate(SLOW, "baseline")
    assert "trial 0 ran out of memory" in said.getvalue()


def test_only_candidates_of_the_space_race(make_bench: MakeBench) -> None:
    """A trial of the search must keep up with the fastest of the space; references and repeats are measured whole."""
    bench = make_bench(legal=[SLOW, FAST], seconds=600.0)
    for role in ("baseline", "search", "by_hand"):
        trial = bench.try_candidate(FAST, role)
        assert (goal_of(bench).pace is not None) is (role == "search")
        assert goal_of(bench).budget_s == pytest.approx(TRIAL_SHARE * 600)
    bench.repeat(trial, replace(goal_of(bench), budget_s=math.inf), round=0)
    assert bench.trials[-1].of == trial.number
    assert goal_of(bench).budget_s == math.inf


@pytest.mark.parametrize(
    ("device", "mixture", "draws"), [("cpu", False, False), ("cuda", False, True), ("cuda", True, False)]
)
def test_weights_are_drawn_where_speed_does_not_depend_on_them(
    make_bench: MakeBench, device: str, mixture: bool, draws: bool
) -> None:
    """On a GPU, for trials of a dense model; a comparison of losses reads the real ones, which takes its time."""
    bench = make_bench(device=device, model={"is_mixture_of_experts": mixture})
    bench.try_candidate(SLOW, "baseline")
    bench.train(SLOW, Compare(steps=1), bench.request.out, limit_s=1.0)
    assert [task.random_weights for task, _ in asked(bench)] == [draws, False]
    assert (bench.reading_s > 0) is draws


def test_limits_by_hand(make_bench: MakeBench) -> None:
    """The baseline has two fifths of the time. A later trial has three shares and twice what the baseline took, and a
    repeat may use what is reserved."""
    bench = make_bench(*[replace(measured(), wall_s=5.0)] * 4, seconds=60.0)
    first = bench.try_candidate(SLOW, "baseline")
    bench.try_candidate(FAST, "by_hand")
    bench.try_candidate(FAST, "search")
    bench.repeat(first, Measure(budget_s=1.0), round=0)
    baseline, by_hand, search, repeat = (limit_s for _, limit_s in asked(bench))
    assert baseline == pytest.approx(24.0)
    assert by_hand == bench.patience_s() == pytest.approx(3 * 4 + 2 * 5)
    assert search == pytest.approx(22.0)
    assert repeat == pytest.approx(22.0)
    late = replace(bench, spent_before_s=50.0)
    late.try_candidate(FAST, "search")
    late.repeat(first, Measure(budget_s=1.0), round=1)
    search, repeat = (limit_s for _, limit_s in asked(late)[-2:])
    assert (search, repeat) == (1.0, pytest.approx(10.0))


@pytest.mark.parametrize("role", ["baseline", "by_hand", "search"])
def test_who_was_cut_off_by_a_shorter_budget_was_not_tried(make_bench: MakeBench, role: Role) -> None:
    """With more time it may run: it says nothing yet, and does not count in the budget of trials."""
    short = make_bench(TimedOut(limit_s=4.0, wall_s=4.0), seconds=10.0)
    trial = short.try_candidate(FAST, role)
    assert short.tried() == [trial]
    assert make_bench(seconds=600.0).tried() == []


def test_what_comes_last_has_all_the_time_that_is_left(make_bench: MakeBench) -> None:
    """Nothing follows that time must be kept for. It must still fit in the time, and in the budget of trials."""
    bench = make_bench(*[replace(measured(), wall_s=5.0)] * 4, seconds=60.0)
    first = bench.try_candidate(SLOW, "baseline")
    late = replace(bench, spent_before_s=50.0)
    assert late.has_room_at_the_end(first)
    trial = late.try_at_the_end(FAST)
    assert (trial.role, asked(late)[-1][1]) == ("search", pytest.approx(10.0))
    assert goal_of(late).pace is None
    assert not replace(bench, spent_before_s=56.0).has_room_at_the_end(first)
    assert not replace(bench, budget=replace(bench.budget, trials=2)).has_room_at_the_end(first)
