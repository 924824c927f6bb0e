"""The trainer's own pieces."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler

from autotune.core.batches.batches import balanced, sampled_order
from autotune.core.knobs import KNOBS
from autotune.train.sft import GroupedByLength, sft_config
from autotune.train.task import Task
from tests.core.examples import candidate
from tests.core.test_candidate import OTHER_VALUES


@pytest.mark.parametrize("knob", [name for name, knob in KNOBS.items() if knob.passed_on])
def test_a_knob_that_is_passed_on_reaches_trl(knob: str, make_task: Callable[..., Task]) -> None:
    """TRL's configuration has an argument of that name, and the candidate's value."""
    changed = replace(candidate(mixed_precision="no"), **{knob: OTHER_VALUES[knob]})
    assert getattr(sft_config(make_task(candidate=changed)), knob) == OTHER_VALUES[knob]


def test_grouping_has_an_order_of_its_own_for_each_epoch() -> None:
    """A run that resumes in its second epoch must meet the second epoch's order, not the first one's again."""
    lengths = torch.randint(1, 100, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    straight, resumed = (GroupedByLength(LengthGroupedSampler(8, lengths=lengths), seed=1) for _ in range(2))
    first = list(straight)
    straight.set_epoch(1)
    resumed.set_epoch(1)
    second = list(straight)
    assert second == list(resumed)
    assert sorted(first) == sorted(second) == list(range(400))
    assert first != second


@pytest.mark.parametrize("rows", [60, 400, 5000])
def test_the_simulated_groups_are_those_of_the_sampler(rows: int) -> None:
    """The same rows as if transformers had drawn them: micro-batches as long, but for the longest that comes first."""
    asked = candidate(batching="group_by_length", per_device_train_batch_size=8, gradient_accumulation_steps=2)
    lengths = np.random.default_rng(0).integers(1, 10**6, rows)
    real = list(LengthGroupedSampler(16, lengths=lengths.tolist(), generator=torch.Generator().manual_seed(0)))
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).numpy()
    simulated = drawn[sampled_order(lengths[drawn], asked)]
    assert np.count_nonzero(simulated != np.array(real)) <= 2


@pytest.mark.parametrize(("micro_batches", "longest"), [(2, 200), (4, 4000), (8, 4000), (3, 30)])
def test_rebalanced_steps_are_those_of_the_sampler(micro_batches: int, longest: int) -> None:
    """As many rows in each micro-batch of a hundred steps as transformers puts there, in its order of cost or not."""
    steps, rows = 100, 24
    tokens = np.random.default_rng(1).integers(1, longest, (steps, rows))
    sampler = BatchRebalanceSampler(tokens.ravel().tolist(), rows, 1, micro_batches, shuffle=False)
    real = np.array([len(each) for each in sampler]).reshape(steps, micro_batches)
    found = balanced(-np.sort(-tokens, axis=1), micro_batches)
    assert np.sort(found, axis=1).tolist() == np.sort(real, axis=1).tolist()
    assert (found != rows // micro_batches).any()
