"""Outcomes: the rate of an epoch from its steps, and plain values for files."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.outcome import (
    Crashed,
    Diverged,
    Measured,
    Outcome,
    OutOfMemory,
    Step,
    TimedOut,
    epoch_rate,
    outcome_from_dict,
    outcome_to_dict,
)
from autotune.errors import UsageError

steps = st.builds(
    Step,
    number=st.integers(1, 1000),
    seconds=st.floats(1e-3, 1e3),
    rows=st.integers(1, 64),
    positions=st.integers(1, 10**5),
    useful=st.integers(0, 10**5),
    loss=st.floats(0, 20),
)


def step(seconds: float, positions: int) -> Step:
    return Step(number=1, seconds=seconds, rows=1, positions=positions, useful=positions // 2, loss=1.0)


MEASURED = Measured(
    useful_tokens_per_s=12.5,
    relative_error=0.02,
    step_s=1.5,
    peak_bytes=123,
    reserved_bytes=None,
    host_peak_bytes=456,
    steps=(step(1.0, 10), step(2.0, 20)),
    warmup_steps=(step(3.0, 30),),
    ended_by="precision",
    reference_flops_per_s=(1e9, 1.1e9),
    padding_epoch=0.12,
    load_s=0.5,
    wall_s=9.0,
)


@pytest.mark.parametrize(
    ("seconds", "positions", "rate", "error"),
    [
        ([1.0, 2.0], [10, 20], 5.0, 0.0),  # 0.1 s a position; 300 positions take 30 s and hold 150 useful tokens
        ([1.0, 3.0], [10, 10], 2.5, 0.5),  # 0.2 s; residuals of 1 s twice: sqrt(2 / 2) / 2 s
        ([4.0], [40], 5.0, None),  # one step has no spread
    ],
)
def test_epoch_rate_by_hand(seconds: list[float], positions: list[int], rate: float, error: float | None) -> None:
    """The ratio estimator and its standard error, counted by hand."""
    found = epoch_rate(
        [step(s, p) for s, p in zip(seconds, positions, strict=True)], epoch_positions=300, epoch_useful=150
    )
    assert found.useful_tokens_per_s == pytest.approx(rate)
    assert found.relative_error == (None if error is None else pytest.approx(error))


@given(st.lists(steps, min_size=1, max_size=20), st.floats(1.5, 10))
def test_a_faster_machine_is_faster_by_that_factor(measured: list[Step], factor: float) -> None:
    """Seconds divided by a factor multiply the rate by it, and leave the relative error."""
    faster = [
        Step(
            number=s.number,
            seconds=s.seconds / factor,
            rows=s.rows,
            positions=s.positions,
            useful=s.useful,
            loss=s.loss,
        )
        for s in measured
    ]
    slow = epoch_rate(measured, epoch_positions=1000, epoch_useful=500)
    fast = epoch_rate(faster, epoch_positions=1000, epoch_useful=500)
    assert fast.useful_tokens_per_s == pytest.approx(factor * slow.useful_tokens_per_s)
    if slow.relative_error is not None:
        assert fast.relative_error == pytest.approx(slow.relative_error, abs=1e-9)
        assert math.isfinite(slow.relative_error)


def test_no_steps_have_no_rate() -> None:
    """A rate out of nothing is a mistake of the caller."""
    with pytest.raises(ValueError, match="no measured steps"):
        epoch_rate([], epoch_positions=1, epoch_useful=1)


@pytest.mark.parametrize(
    "outcome",
    [
        MEASURED,
        OutOfMemory(message="CUDA out of memory", peak_bytes=None, wall_s=1.0),
        TimedOut(limit_s=60.0, wall_s=61.0),
        Crashed(message="killed", log_tail="last line", wall_s=2.0),
        Diverged(step=3, loss="nan", wall_s=4.0),
    ],
)
def test_every_kind_survives_json(outcome: Outcome) -> None:
    """An outcome in a journal reads back as the same outcome, and its kind stands first."""
    values = outcome_to_dict(outcome)
    assert next(iter(values)) == "kind"
    assert outcome_from_dict(json.loads(json.dumps(values))) == outcome


def test_a_field_that_an_earlier_version_wrote_is_passed_over() -> None:
    """Searches that an earlier version began go on, and recorded tables stay readable."""
    assert outcome_from_dict({**outcome_to_dict(MEASURED), "padding_drawn": 0.1}) == MEASURED


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"kind": "guessed"}, "outcome.kind: got 'guessed', expected one of measured, out_of_memory"),
        ({}, "outcome.kind: got None"),
        ([], "outcome.kind: got None"),
        ({"kind": "timed_out", "limit_s": 1.0}, "outcome.wall_s: missing, expected a number"),
    ],
)
def test_anything_else_is_refused(values: object, problem: str) -> None:
    """A torn or foreign line is no outcome, and the error says where."""
    with pytest.raises(UsageError, match=f"^{re.escape(problem)}"):
        outcome_from_dict(values)
