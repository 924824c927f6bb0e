"""The plan of a search: a candidate fits as `autotune estimate` says that it fits, on the device and on the host."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.memory.estimate import Demand, MemoryEstimate
from autotune.core.memory.law import Peak
from autotune.core.outcome import Outcome, OutOfMemory
from autotune.core.time.law import TimeLaw
from autotune.core.trials.trial import Trial
from autotune.errors import NotPredicted
from autotune.predict.forecaster import Forecaster
from autotune.search.predictions import Predictions
from autotune.trace.profiles import ProfileRequest
from tests.core.examples import A100, CPU, candidate, lengths
from tests.core.time.test_law import MACHINE
from tests.stand_ins import forecaster, measured, predict_seconds

PEAK = Peak(bytes=2**30, phase="backward", op="mm", items={"weights": 2**30})
HOST_BYTES = 2**32
OTHER_PHASES = {"loading": 3 * 2**29}  # half as much again as training


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    """Candidates for which the whole estimate was made: nothing is traced, the answers are made up."""
    asked: list[Candidate] = []

    def memory(forecaster: Forecaster, candidate: Candidate) -> MemoryEstimate:
        asked.append(candidate)
        demand = Demand(
            peak=PEAK,
            phases={"training": PEAK.bytes, **OTHER_PHASES},
            reserved_bytes=2**31,
            allowance_bytes=2**20,
            host_items={"libraries": HOST_BYTES},
        )
        return MemoryEstimate(demand=demand, room=forecaster.room)

    monkeypatch.setattr(Forecaster, "peak", lambda forecaster, candidate: PEAK)
    monkeypatch.setattr(Forecaster, "host_bytes", lambda forecaster, candidate: HOST_BYTES)
    monkeypatch.setattr(Forecaster, "memory", memory)
    return asked


def plan(hardware: Hardware, said: list[str] | None = None) -> Predictions:
    """A plan for a machine that has learned nothing yet."""
    return Predictions(forecaster=forecaster(hardware), progress=print if said is None else said.append)


@pytest.mark.parametrize("hardware", [A100, CPU], ids=["cuda", "cpu"])
@pytest.mark.parametrize(("free", "fits"), [(None, True), (HOST_BYTES, True), (HOST_BYTES - 1, False)])
def test_the_host_must_have_what_is_asked_of_it(
    replayed: list[Candidate], hardware: Hardware, free: int | None, fits: bool
) -> None:
    """To the byte, where its free memory is known; a refusal is explained once."""
    said: list[str] = []
    found = plan(replace(hardware, host_free_bytes=free), said)
    assert [found.predict(candidate(per_device_train_batch_size=rows)).fits for rows in (1, 2)] == [fits, fits]
    assert len([line for line in said if "of the host's memory" in line]) == (0 if fits else 1)


def test_on_a_gpu_every_phase_and_fragmentation_count(replayed: list[Candidate]) -> None:
    """To the byte, what `autotune estimate` calls needed."""
    needed = OTHER_PHASES["loading"] + 2**20
    for missing, fits in ((0, True), (1, False)):
        hardware = replace(A100, memory_bytes=2**34, used_by_others_bytes=int(0.9 * 2**34) - needed + missing)
        assert plan(hardware).predict(candidate()).fits is fits
    assert len(replayed) == 2


def test_on_a_cpu_nothing_is_replayed(replayed: list[Candidate]) -> None:
    """There is no allocator that could fragment, so the law alone answers."""
    assert plan(CPU).predict(candidate()).fits
    assert replayed == []


@pytest.mark.parametrize("is_traced", [True, False])
def test_a_query_neither_traces_nor_reports(
    replayed: list[Candidate], monkeypatch: pytest.MonkeyPatch, is_traced: bool
) -> None:
    """What is known without a trace is answered, what the host cannot hold without a word; the rest is not known."""
    monkeypatch.setattr(Forecaster, "is_traced", lambda forecaster, candidate: is_traced)
    said: list[str] = []
    assert plan(A100, said).is_known_to_fit(candidate()) is is_traced
    assert not plan(replace(A100, host_free_bytes=1), said).is_known_to_fit(candidate())
    assert (len(replayed), said) == (is_traced, [])


def trial(number: int, outcome: Outcome, **changes: Any) -> Trial:
    """A trial of the search; keywords change its candidate."""
    return Trial(number=number, role="search", candidate=candidate(**changes), outcome=outcome)


def test_a_miss_stays_as_it_was_found(replayed: list[Candidate]) -> None:
    """A later peak that would have ruled the failed trial out does not overturn it, nor when both are learned again."""
    found, again = plan(A100), plan(A100)
    failed = trial(0, OutOfMemory(message="no memory", peak_bytes=7, wall_s=1.0))
    large = trial(1, replace(measured(), peak_bytes=2 * found.limit_bytes), per_device_train_batch_size=2)
    found.learn(failed)
    [miss] = found.misses
    needed = OTHER_PHASES["loading"] + 2**20
    assert (miss.number, miss.predicted_bytes, miss.limit_bytes) == (0, needed, found.limit_bytes)
    found.learn(large)
    for each in (failed, large):
        again.learn(each)
    assert found.misses == again.misses == [miss]


def test_what_was_ruled_out_is_no_miss(replayed: list[Candidate]) -> None:
    """The last of the fallbacks is tried although it is predicted not to fit."""
    found = plan(A100)
    found.learn(trial(0, replace(measured(), peak_bytes=2 * found.limit_bytes)))
    found.learn(trial(1, OutOfMemory(message="no memory", peak_bytes=7, wall_s=1.0), per_device_train_batch_size=8))
    assert found.misses == []


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
    speeds = plan(CPU, said).speeds([*candidates, replace(candidates[0], dataloader_num_workers=2)])
    assert speeds.rates[[0, 1, 2, 4]].tolist() == pytest.approx([100.0, 200.0, 400.0, 100.0])
    assert 100 < speeds.rates[3] < 400
    assert speeds.step_s.tolist() == pytest.approx([1.0] * 5)
    assert np.allclose(speeds.shares, [0.1, 0.6, 0.2, 0.1])
    assert not speeds.doubt[[0, 1, 2, 4]].any()
    assert speeds.doubt[3] > np.log([100, 200, 400, 100]).std()
    assert len(asked) == 4
    assert len(said) == 1


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[ProfileRequest]:
    """What was to be traced, in order; for the last one of each call there was no time."""
    asked: list[ProfileRequest] = []

    def trace_missing(requests: Iterable[ProfileRequest], **rest: Any) -> dict[Any, str]:
        asked.extend(requests)
        return {asked[-1].identity: "no time"}

    monkeypatch.setattr("autotune.predict.forecaster.trace_missing", trace_missing)
    return asked


def thrifty() -> Forecaster:
    """One that traces what many candidates have in common."""
    return replace(forecaster(MACHINE), lengths=lengths([90, 100, 110, 120]), thrifty=True)


def test_kinds_of_steps_are_traced_together(traced: list[ProfileRequest]) -> None:
    """Each once, in the order of who has it; one that there was no time for is not predicted, nor traced after all.

    Recomputing some layers has no kind of its own.
    """
    found = thrifty()
    full, off = candidate(checkpointing="full"), candidate(checkpointing="off")
    some = candidate(checkpointing="every_n", every_n_layers=2)
    found.trace_ahead([full, replace(full, max_length=99), off, some], until=1.0)
    assert [each.candidate.checkpointing for each in traced] == ["full", "off"]
    for _ in range(2):
        with pytest.raises(NotPredicted, match="no time"):
            found.time_parts(off)


def test_kinds_that_others_tell_nothing_of_are_traced_before_the_rest(traced: list[ProfileRequest]) -> None:
    """What must be known comes first, then whatever has a new value of some knob."""
    full, off = candidate(checkpointing="full"), candidate(checkpointing="off")
    others = [
        off,
        replace(off, attention="eager"),
        replace(full, attention="eager"),
        replace(off, optimizer="adafactor"),
    ]
    thrifty().trace_ahead(others, first=[full])
    assert [(each.candidate.checkpointing, each.candidate.attention) for each in traced] == [
        ("full", "sdpa"),
        ("off", "sdpa"),
        ("off", "eager"),
        ("off", "sdpa"),
        ("full", "eager"),
    ]


def test_a_step_counts_its_own_micro_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced for many has two of them."""
    asked: list[tuple[int, int]] = []

    def time_law(found: Forecaster, candidate: Candidate, batch: Batch, accumulation: int) -> TimeLaw:
        asked.append((candidate.gradient_accumulation_steps, accumulation))
        return TimeLaw(micro_step=(), step_end=(), operators={})

    monkeypatch.setattr(Forecaster, "_time_law", time_law)
    thrifty().time_parts(candidate(gradient_accumulation_steps=1))
    assert set(asked) == {(2, 1)}


def test_what_was_measured_and_predicted_teaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicted seconds beside the measured ones of a trial; nothing of one that failed, was not predicted, or has what
    the prediction leaves out."""
    predict_seconds(monkeypatch, lambda candidate: 1.0, lambda candidate: 100)
    one, other, third = (candidate(per_device_train_batch_size=rows) for rows in (1, 2, 4))
    compiled = replace(one, torch_compile=True)
    found = plan(CPU)
    found.speeds([one, other, compiled])
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
    [taught] = found.taught(trials, data="of conversations")
    assert "of conversations" in taught.name
    assert taught.spent == pytest.approx((0.1, 0.6, 0.2, 0.1))
    assert taught.step_s == 1.5
