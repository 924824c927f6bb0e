"""The trainer's own pieces."""

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from autotune.sft import GroupedByLength


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
