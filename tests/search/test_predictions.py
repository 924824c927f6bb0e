"""What a search tells the user of its predictions: each thing once."""

from dataclasses import replace

import pytest

from autotune.core.candidate import Candidate
from autotune.core.memory.law import Peak
from autotune.errors import NotPredicted
from autotune.predict.memory import MemoryPredictor, WorstStep
from tests.core.examples import CPU, candidate
from tests.stand_ins import predictions, worst_step

PEAK = Peak(bytes=2**20, phase="backward", op="mm", items={"weights": 2**20})


def said_of(monkeypatch: pytest.MonkeyPatch, host_bytes: int | None) -> list[str]:
    """Predict two candidates for a host with 1 GiB free. host_bytes: what each needs; None if it cannot be traced."""

    def step(predictor: MemoryPredictor, candidate: Candidate) -> WorstStep:
        if host_bytes is None:
            raise NotPredicted("of another kind")
        return worst_step(candidate, PEAK, host_bytes)

    monkeypatch.setattr(MemoryPredictor, "worst_step", step)
    said: list[str] = []
    found = predictions(replace(CPU, host_free_bytes=2**30), said.append)
    for rows in (1, 2):
        found.predict(candidate(per_device_train_batch_size=rows))
    return said


def test_what_the_host_cannot_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it needs and what is free; nothing of what fits."""
    [line] = said_of(monkeypatch, 2**31)
    assert "need 2 GiB of the host's memory, and 1 GiB are free: they are not tried" in line
    assert said_of(monkeypatch, 2**29) == []


def test_what_cannot_be_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason."""
    [line] = said_of(monkeypatch, None)
    assert line.endswith("are not predicted: of another kind")
