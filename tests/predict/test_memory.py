"""The memory of candidates: what is quick agrees with the whole estimate, which is kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.hardware import Hardware
from autotune.core.step.profile import Profile
from autotune.predict.memory import MemoryPredictor
from autotune.trace.profiles import Profiles
from autotune.trace.request import TraceRequest
from tests.core.examples import A100, CPU, candidate, lengths, workload
from tests.core.step.test_profile import step
from tests.stand_ins import training

DEEP = replace(workload().model, layers=9)
ASKED = candidate(per_device_train_batch_size=2, gradient_accumulation_steps=2)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[TraceRequest]:
    """The requests whose profile was loaded: a step of five layers in two micro-steps."""
    asked: list[TraceRequest] = []

    def load(profiles: Profiles, request: TraceRequest) -> Profile:
        asked.append(request)
        return step(5)

    monkeypatch.setattr(Profiles, "load", load)
    return asked


def predictor(hardware: Hardware, home: Path) -> MemoryPredictor:
    of = training(hardware, facts=DEEP, lengths=lengths(range(20, 420)))
    return MemoryPredictor.of(of, home=home, progress=print)


@pytest.mark.parametrize("hardware", [A100, CPU], ids=["cuda", "cpu"])
def test_the_quick_answer_is_part_of_the_estimate(
    loaded: list[TraceRequest], tmp_path: Path, hardware: Hardware
) -> None:
    """The peak of a step, and the host's bytes; the estimate adds other phases and what fragments."""
    found = predictor(hardware, tmp_path)
    step = found.worst_step(ASKED)
    estimate = found.estimate(step)
    assert step.peak == estimate.peak
    assert step.host_bytes == estimate.host_peak_bytes
    assert set(estimate.demand.phases) == {"training", "evaluation", "saving", "loading"}
    assert (estimate.demand.reserved_bytes == step.peak.bytes) is (hardware is CPU)  # there is no allocator
    assert set(loaded) == {step.request}


def test_the_peak_is_that_of_the_worst_batch(loaded: list[TraceRequest], tmp_path: Path) -> None:
    """By hand, of nine layers: 500 bytes and 100 a layer are there. For each of 2 x 419 positions every layer has saved
    10 bytes, and the head's backward makes 5 while the logits, 50, are still there."""
    found = predictor(A100, tmp_path).worst_step(ASKED)
    assert found.peak.bytes == 500 + 9 * 100 + 2 * 419 * (9 * 10 + 50 + 5)
    assert found.peak.phase == "backward"


def test_an_estimate_is_kept(loaded: list[TraceRequest], tmp_path: Path) -> None:
    """A second process reads it, and replays nothing; another allocator is another question."""
    first, again = predictor(A100, tmp_path), predictor(A100, tmp_path)
    estimate = first.estimate(first.worst_step(ASKED))
    count = len(loaded)
    assert again.estimate(again.worst_step(ASKED)) == estimate
    assert len(loaded) == count
    again.estimate(again.worst_step(replace(ASKED, tuned_allocator=False)))
    assert len(loaded) == count + 1
