"""When a trial ends, what its reference product says, and what only a GPU would do (torch's functions faked)."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from autotune.core.outcome import Step
from autotune.train.measure import (
    REFERENCE_SIZE,
    USUAL_THREADS,
    StepClock,
    _measured,
    limit_allocator,
    reference_flops_per_s,
    why_stop,
)
from autotune.train.sft import Counts
from autotune.train.task import Measure, Train


def test_a_smaller_gpu_is_imitated_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is a share of the device, never more than all of it, and a task without one has the whole device."""
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    for limit in (250, 4000, None):
        limit_allocator(limit)
    assert shares == [0.25, 1.0, 1.0]


@pytest.mark.parametrize(("seconds", "reason"), [(0.5, None), (1.5, "precision")])
def test_steps_that_agree_end_a_trial_when_they_took_long_enough(seconds: float, reason: str | None) -> None:
    """Three that took half a second each may agree by chance."""
    steps = [Step(number=n, seconds=seconds, rows=1, positions=100, useful=90, loss=1.0) for n in range(3)]
    assert why_stop(Measure(budget_s=600), steps, spent_s=9.0, epoch_positions=200, epoch_useful=180) == reason


@pytest.mark.parametrize(("steps", "padding"), [(1, 0.25), (2, 0.5)])
def test_padding_is_that_of_the_steps_that_count(steps: int, padding: float) -> None:
    """Of a run of one step its warm-up counts, else what comes behind it: 75 and 50 tokens in 100 positions."""
    task: Any = SimpleNamespace(device="cpu", goal=Train(save_steps=1))
    nothing: Any = SimpleNamespace()
    clock: Any = StepClock(task, 0.0, lambda event: None, nothing)
    clock.trainer = SimpleNamespace(order=[], epoch=None)
    clock.on_train_begin(None, None, None)
    for number, tokens in zip(range(1, 1 + steps), (75, 50), strict=False):
        clock.trainer.step_counts = [Counts(rows=1, positions=100, tokens=tokens, useful=40)]
        clock.on_step_end(None, None, None)
        clock.on_log(None, SimpleNamespace(global_step=number, max_steps=steps), nothing, logs={"loss": 1.0})
    found = _measured(
        clock,
        started=0.0,
        peak_bytes=1,
        reserved_bytes=None,
        host_peak_bytes=1,
        reference_flops_per_s=(1.0, 1.0),
        load_s=0.0,
    )
    assert found.padding_epoch == pytest.approx(padding)


def test_what_gets_in_between_does_not_slow_the_reference_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of 10 ms, and one that waited for a tenth of a second: the rate is that of 10 ms."""
    ticks = iter(np.cumsum([0.0, *[0.01] * 8, 0.1, *[0.01] * 20]).tolist())
    monkeypatch.setattr("autotune.train.measure.time.perf_counter", lambda: next(ticks))
    assert reference_flops_per_s("cpu") == pytest.approx(2 * REFERENCE_SIZE["cpu"] ** 3 / 0.01)


def test_the_reference_product_does_not_depend_on_the_candidates_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial on one thread of two is held against the same product as the others."""
    told: list[int] = []
    monkeypatch.setattr("autotune.train.measure.torch.set_num_threads", told.append)
    monkeypatch.setattr("autotune.train.measure.REFERENCE_S", 1e-9)
    reference_flops_per_s("cpu")
    assert told == [USUAL_THREADS]
