"""Losses beside the baseline's: by the real trainer, on the same samples in each step, however a candidate batches."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from autotune.core.candidate import Candidate
from autotune.core.outcome import Crashed, Measured
from autotune.core.trials.parity import NotCompared, Parity
from autotune.core.trials.reserve import COMPARED_STEPS
from autotune.core.trials.trial import Trial
from autotune.core.workload import Workload
from autotune.search.losses import compare_losses
from autotune.train import sft
from autotune.train.measure import train
from autotune.train.task import Compare, Task
from tests import stand_ins
from tests.core import examples
from tests.search.conftest import MakeBench, asked

MakeTask = Callable[..., Task]


@pytest.fixture
def batched(candidate: Candidate) -> list[Candidate]:
    """The plain candidate, and others that batch the same samples in other ways."""
    packed = replace(candidate, batching="pack_bfd", max_length=1024, packed_length=1024)
    return [
        candidate,
        replace(candidate, per_device_train_batch_size=1, gradient_accumulation_steps=8),
        replace(candidate, batching="group_by_length", per_device_train_batch_size=2, gradient_accumulation_steps=4),
        replace(packed, per_device_train_batch_size=1, gradient_accumulation_steps=4),
    ]


def steps_of(trainer: sft.Trainer) -> list[list[list[int]]]:
    """The tokens of each step's samples, in no order."""
    accumulation = trainer.args.gradient_accumulation_steps
    assert len(trainer.shared_batches) % accumulation == 0
    steps = []
    for begin in range(0, len(trainer.shared_batches), accumulation):
        numbers = [number for micro in trainer.shared_batches[begin : begin + accumulation] for number in micro]
        samples = []
        for row in trainer.train_dataset.select(numbers):
            rest = list(row["input_ids"])
            for length in row.get("seq_lengths") or [len(rest)]:
                samples.append(rest[:length])
                rest = rest[length:]
        steps.append(sorted(samples))
    return steps


def test_every_step_has_the_same_samples(batched: list[Candidate], make_task: MakeTask) -> None:
    """However they are split, sorted and packed; another order has the same samples in other steps."""
    plain, *others = (
        steps_of(sft.build_trainer(make_task(candidate=candidate, goal=Compare(steps=3)))) for candidate in batched
    )
    assert [len(step) for step in plain] == [8, 8, 8]
    for other in others:
        assert other == plain
    reordered = steps_of(sft.build_trainer(make_task(goal=Compare(steps=3, order=1))))
    assert reordered != plain
    assert sorted(sample for step in reordered for sample in step) == sorted(
        sample for step in plain for sample in step
    )


def test_only_samples_that_every_candidate_trains_are_compared(
    candidate: Candidate, make_task: MakeTask, workload: Workload
) -> None:
    """TRL drops what has no label within max_length, so that another candidate would train other samples."""
    shortest = int(np.median(workload.data.lengths.tokens))
    goal, cut = Compare(steps=3, learned_within=shortest), replace(candidate, max_length=shortest)
    compared = [steps_of(sft.build_trainer(make_task(candidate=each, goal=goal))) for each in (candidate, cut)]
    assert [len(step) for step in compared[1]] == [8, 8, 8]
    begins = [[sorted(sample[:shortest] for sample in step) for step in steps] for steps in compared]
    assert begins[0] == begins[1]


def test_other_rounding_moves_losses_by_its_own_size(batched: list[Candidate], make_task: MakeTask) -> None:
    """In fp32 without autocast, splitting, sorting and packing move them by a millionth; another order far more."""

    def losses(candidate: Candidate, goal: Compare) -> list[float]:
        plain = replace(candidate, mixed_precision="no", torch_threads=None)
        outcome = train(make_task(candidate=plain, goal=goal), lambda event: None)
        assert isinstance(outcome, Measured)
        return [step.loss for step in (*outcome.warmup_steps, *outcome.steps)]

    plain, *others = (losses(candidate, Compare(steps=2)) for candidate in batched)
    assert len(plain) == 2
    for other in others:
        assert other == pytest.approx(plain, rel=1e-5)
    assert losses(batched[0], Compare(steps=2, order=1)) != pytest.approx(plain, rel=1e-3)


BASELINE = Trial(number=0, role="baseline", candidate=examples.candidate(), outcome=stand_ins.measured())
BEST = replace(BASELINE, number=1, role="search", candidate=examples.candidate(tuned_allocator=False))


def test_what_was_compared_is_kept(make_bench: MakeBench) -> None:
    """A search that goes on does not train again; another winner was not compared."""
    bench = make_bench()
    found = compare_losses(bench, BASELINE, BEST)
    assert isinstance(found, Parity)
    assert found.difference == pytest.approx(0.1)
    assert found.between_orders == pytest.approx(0.2)
    assert len(found.best) == COMPARED_STEPS
    again = make_bench()
    assert compare_losses(again, BASELINE, BEST) == found
    other = replace(BEST, candidate=replace(BEST.candidate, attention="eager"))
    assert isinstance(compare_losses(again, BASELINE, other), Parity)
    for each, trained in ((bench, [BASELINE, BEST, BASELINE]), (again, [BASELINE, other, BASELINE])):
        assert [task.candidate for task, _ in asked(each)] == [trial.candidate for trial in trained]


def test_what_fails_is_said(make_bench: MakeBench) -> None:
    """In a word, with the candidate that failed; nothing is kept."""
    bench = make_bench(Crashed(message="no such kernel", log_tail="", wall_s=0.0))
    found = compare_losses(bench, BASELINE, BEST)
    assert isinstance(found, NotCompared)
    assert found.not_compared.endswith("no such kernel")
    assert isinstance(compare_losses(bench, BASELINE, BEST), Parity)


@pytest.mark.parametrize(
    ("seconds", "spent_s", "why"),
    [(60.0, 0.0, "it would have taken 35.1 s; raise budget.minutes"), (600.0, 590.0, "10.0 s were left")],
)
def test_without_time_it_is_not_done(make_bench: MakeBench, seconds: float, spent_s: float, why: str) -> None:
    """It may take a fifth of the budget, and what is left of it; the result says what was missing."""
    bench = replace(make_bench(seconds=seconds), spent_before_s=spent_s)
    found = compare_losses(bench, BASELINE, BEST)
    assert isinstance(found, NotCompared)
    assert why in found.not_compared


def test_a_training_that_hangs_is_given_up(make_bench: MakeBench) -> None:
    """After twice the seconds that all three are expected to take."""
    bench = make_bench()
    compare_losses(bench, BASELINE, BEST)
    assert [limit_s for _, limit_s in asked(bench)] == pytest.approx([2 * 35.1] * 3)
