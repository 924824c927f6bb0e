"""Losses beside the baseline's: by the real trainer, on the same samples in each step, however a candidate batches."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.candidate import Candidate
from autotune.core.outcome import Crashed, Measured, Outcome
from autotune.core.trials.parity import Parity
from autotune.search.losses import STEPS, compare_losses, kept_losses, needed_s
from autotune.train import sft
from autotune.train.measure import train
from autotune.train.task import Compare, Task
from tests import stand_ins

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


def test_what_was_compared_is_kept(candidate: Candidate, tmp_path: Path) -> None:
    """A search that goes on does not train again; another winner was not compared."""
    asked: list[Candidate] = []

    def perform(candidate: Candidate, goal: Compare) -> Outcome:
        asked.append(candidate)
        return replace(stand_ins.measured(), steps=stand_ins.formula_losses(candidate, goal))

    best = replace(candidate, tuned_allocator=False)
    found = compare_losses(candidate, best, perform, tmp_path)
    assert isinstance(found, Parity)
    assert found.difference == pytest.approx(0.1)
    assert found.between_orders == pytest.approx(0.2)
    assert len(found.best) == STEPS
    assert asked == [candidate, best, candidate]
    assert kept_losses(candidate, best, tmp_path) == found
    assert kept_losses(candidate, replace(best, attention="eager"), tmp_path) is None


def test_what_fails_is_said(candidate: Candidate, tmp_path: Path) -> None:
    """In a word, with the candidate that failed; nothing is kept."""
    crashed = Crashed(message="no such kernel", log_tail="", wall_s=0.0)
    found = compare_losses(candidate, candidate, lambda candidate, goal: crashed, tmp_path)
    assert isinstance(found, str)
    assert found.endswith("no such kernel")
    assert kept_losses(candidate, candidate, tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_the_time_it_needs_by_hand() -> None:
    """Three trainings of eleven steps, what their trials took beside steps, and reading where those did not read."""
    trial = stand_ins.measured()
    steps_s = sum(step.seconds for step in (*trial.warmup_steps, *trial.steps))
    slow, fast = (replace(trial, step_s=seconds, wall_s=steps_s + 3.0) for seconds in (2.0, 1.0))
    assert needed_s(slow, fast, 0.0) == pytest.approx(2 * (3 + 22) + 3 + 11)
    assert needed_s(slow, fast, 10.0) == pytest.approx(2 * (3 + 22) + 3 + 11 + 30)
