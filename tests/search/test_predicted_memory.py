"""The memory of a search's candidates: they fit as `autotune estimate` says, on the device and on the host."""

from dataclasses import replace
from typing import Any

import pytest

from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.memory.estimate import Demand, MemoryEstimate
from autotune.core.memory.law import Peak
from autotune.core.outcome import Outcome, OutOfMemory
from autotune.core.trials.trial import Trial
from autotune.errors import NotPredicted
from autotune.predict.memory import MemoryPredictor, WorstStep
from autotune.search.predicted_memory import CalibratedMemory, Miss
from tests.core.examples import A100, CPU, candidate
from tests.stand_ins import measured, predictor, worst_step

PEAK = Peak(bytes=2**30, phase="backward", op="mm", items={"weights": 2**30})
HOST_BYTES = 2**32
OTHER_PHASES = {"loading": 3 * 2**29}  # half as much again as training


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    """Candidates for which the whole estimate was made: nothing is traced, the answers are made up."""
    asked: list[Candidate] = []

    def step(predictor: MemoryPredictor, candidate: Candidate) -> WorstStep:
        return worst_step(candidate, PEAK, HOST_BYTES)

    def estimate(predictor: MemoryPredictor, step: WorstStep) -> MemoryEstimate:
        asked.append(step.candidate)
        demand = Demand(
            peak=PEAK,
            phases={"training": PEAK.bytes, **OTHER_PHASES},
            reserved_bytes=2**31,
            allowance_bytes=2**20,
            host_items={"libraries": HOST_BYTES},
        )
        return MemoryEstimate(demand=demand, room=predictor.room)

    monkeypatch.setattr(MemoryPredictor, "worst_step", step)
    monkeypatch.setattr(MemoryPredictor, "estimate", estimate)
    return asked


def memory(hardware: Hardware) -> CalibratedMemory:
    """The memory of a training's candidates, before any trial."""
    return CalibratedMemory(predictor=predictor(hardware))


@pytest.mark.parametrize("hardware", [A100, CPU], ids=["cuda", "cpu"])
@pytest.mark.parametrize(("free", "fits"), [(None, True), (HOST_BYTES, True), (HOST_BYTES - 1, False)])
def test_the_host_must_have_what_is_asked_of_it(
    replayed: list[Candidate], hardware: Hardware, free: int | None, fits: bool
) -> None:
    """To the byte, where its free memory is known."""
    found = memory(replace(hardware, host_free_bytes=free)).predict(candidate())
    assert (found.fits, found.host_bytes) == (fits, None if fits else HOST_BYTES)


def test_on_a_gpu_every_phase_and_fragmentation_count(replayed: list[Candidate]) -> None:
    """To the byte, what `autotune estimate` calls needed."""
    needed = OTHER_PHASES["loading"] + 2**20
    for missing, fits in ((0, True), (1, False)):
        hardware = replace(A100, memory_bytes=2**34, used_by_others_bytes=int(0.9 * 2**34) - needed + missing)
        assert memory(hardware).predict(candidate()).fits is fits
    assert len(replayed) == 2


def test_on_a_cpu_nothing_is_replayed(replayed: list[Candidate]) -> None:
    """There is no allocator that could fragment, so the law alone answers."""
    assert memory(CPU).predict(candidate()).fits
    assert replayed == []


@pytest.mark.parametrize("is_traced", [True, False])
def test_a_query_does_not_trace(replayed: list[Candidate], monkeypatch: pytest.MonkeyPatch, is_traced: bool) -> None:
    """What is known without a trace is answered; the rest is not known."""
    monkeypatch.setattr(MemoryPredictor, "is_traced", lambda predictor, candidate: is_traced)
    assert memory(A100).is_known_to_fit(candidate()) is is_traced
    assert not memory(replace(A100, host_free_bytes=1)).is_known_to_fit(candidate())
    assert len(replayed) == is_traced


def trial(number: int, outcome: Outcome, **changes: Any) -> Trial:
    """A trial of the search; keywords change its candidate."""
    return Trial(number=number, role="search", candidate=candidate(**changes), outcome=outcome)


def learn(found: CalibratedMemory, trial: Trial) -> Miss | None:
    """Predict, then learn from the trial, as a bench does."""
    return found.learn(trial, found.predict(trial.candidate))


def test_a_miss_stays_as_it_was_found(replayed: list[Candidate]) -> None:
    """A later peak that would have ruled the failed trial out does not overturn it, nor when both are learned again."""
    found, again = memory(A100), memory(A100)
    failed = trial(0, OutOfMemory(message="no memory", peak_bytes=7, wall_s=1.0))
    large = trial(1, replace(measured(), peak_bytes=2 * found.limit_bytes), per_device_train_batch_size=2)
    miss = learn(found, failed)
    assert miss is not None
    needed = OTHER_PHASES["loading"] + 2**20
    assert (miss.number, miss.predicted_bytes, miss.limit_bytes) == (0, needed, found.limit_bytes)
    learn(found, large)
    for each in (failed, large):
        learn(again, each)
    assert found.misses == again.misses == [miss]


def test_what_was_ruled_out_is_no_miss(replayed: list[Candidate]) -> None:
    """The last of the fallbacks is tried although it is predicted not to fit."""
    found = memory(A100)
    learn(found, trial(0, replace(measured(), peak_bytes=2 * found.limit_bytes)))
    learn(found, trial(1, OutOfMemory(message="no memory", peak_bytes=7, wall_s=1.0), per_device_train_batch_size=8))
    assert found.misses == []


def test_what_cannot_be_traced_counts_as_fitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for a trial to say, which then teaches nothing; nothing is known of its memory."""

    def step(predictor: MemoryPredictor, candidate: Candidate) -> WorstStep:
        raise NotPredicted("of another kind")

    monkeypatch.setattr(MemoryPredictor, "worst_step", step)
    found = memory(A100)
    assert found.predict(candidate()).fits
    assert str(found.predict(candidate()).problem) == "of another kind"
    assert found.predicted(candidate()) is None
    assert learn(found, trial(0, measured())) is None
    assert found.calibrations == {}
