"""Predicted rates: what many candidates share is predicted once, and the rest is guessed from them."""

from dataclasses import replace

import numpy as np
import pytest

from autotune.core.candidate import Candidate
from autotune.core.outcome import Outcome, OutOfMemory
from autotune.core.trials.trial import Trial
from autotune.errors import NotPredicted
from tests.core.examples import CPU, candidate
from tests.stand_ins import measured, predict_seconds, predictions


def test_what_is_not_predicted_is_guessed_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Knobs that time does not depend on are predicted once; shares of what seconds are spent on add up to one."""
    asked: list[Candidate] = []

    def tokens(candidate: Candidate) -> int:
        asked.append(candidate)
        if candidate.per_device_train_batch_size == 16:
            raise NotPredicted("too large to trace")
        return 100 * candidate.per_device_train_batch_size

    predict_seconds(monkeypatch, lambda candidate: 1.0, tokens)
    said: list[str] = []
    candidates = [candidate(per_device_train_batch_size=rows) for rows in (1, 2, 4, 16)]
    found = predictions(CPU, said.append).predict_rates([*candidates, replace(candidates[0], dataloader_num_workers=2)])
    assert found.rates[[0, 1, 2, 4]].tolist() == pytest.approx([100.0, 200.0, 400.0, 100.0])
    assert 100 < found.rates[3] < 400
    assert found.step_s.tolist() == pytest.approx([1.0] * 5)
    assert np.allclose(found.shares, [0.1, 0.6, 0.2, 0.1])
    assert not found.doubt[[0, 1, 2, 4]].any()
    assert found.doubt[3] > np.log([100, 200, 400, 100]).std()
    assert len(asked) == 4
    assert len(said) == 1


def test_what_was_measured_and_predicted_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicted seconds beside the measured ones of a trial; nothing of one that failed, was not predicted, or has what
    the prediction leaves out."""
    predict_seconds(monkeypatch, lambda candidate: 1.0, lambda candidate: 100)
    one, other, third = (candidate(per_device_train_batch_size=rows) for rows in (1, 2, 4))
    compiled = replace(one, torch_compile=True)
    found = predictions(CPU)
    found.predict_rates([one, other, compiled])
    failed = OutOfMemory(message="", peak_bytes=None, wall_s=1.0)
    outcomes: dict[Candidate, Outcome] = {
        one: replace(measured(), step_s=1.5),
        other: failed,
        third: measured(),
        compiled: measured(),
    }
    trials = [
        Trial(number=n, role="search", candidate=each, outcome=outcome)
        for n, (each, outcome) in enumerate(outcomes.items())
    ]
    [taught] = found.rates.taught(trials, data="of conversations")
    assert "of conversations" in taught.name
    assert taught.spent == pytest.approx((0.1, 0.6, 0.2, 0.1))
    assert taught.step_s == 1.5
