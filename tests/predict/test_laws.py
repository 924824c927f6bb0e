"""Laws: each is derived once from a profile, and read back from the cache."""

from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.batches.batches import Batch
from autotune.core.step.profile import Profile
from autotune.errors import NotPredicted
from autotune.predict.laws import Laws, TimedStep
from autotune.trace.profiles import Profiles
from autotune.trace.request import TraceRequest
from tests.core.examples import CPU, candidate, workload
from tests.core.step.test_profile import step
from tests.stand_ins import training

DEEP = replace(workload().model, layers=9)
BATCH = Batch(rows=2, positions=64, labels=126)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[TraceRequest]:
    """The requests that were traced: each gives a step of five layers, without work."""
    asked: list[TraceRequest] = []

    def trace_apart(request: TraceRequest) -> Profile:
        asked.append(request)
        return step(5)

    monkeypatch.setattr("autotune.trace.profiles.trace_apart", trace_apart)
    return asked


def laws_in(home: Path) -> Laws:
    return Laws(training=training(CPU, facts=DEEP), profiles=Profiles(home=home, progress=print))


def test_candidates_with_one_trace_share_a_law(loaded: list[TraceRequest], tmp_path: Path) -> None:
    """Those that differ in what no trace depends on; the number of micro-steps makes another law of one profile."""
    laws = laws_in(tmp_path)
    first, again = (laws.training.request(candidate(max_length=length), BATCH) for length in (64, 128))
    law = laws.memory(first, accumulation=2)
    assert laws.memory(again, accumulation=2) is law
    assert laws.memory(again, accumulation=4) is not law
    other = laws.training.request(candidate(checkpointing="full"), BATCH)
    assert laws.memory(other, accumulation=2) is not law
    assert loaded == [first, other]


def test_a_law_that_is_kept_needs_no_profile(loaded: list[TraceRequest], tmp_path: Path) -> None:
    """A second process reads the laws of memory and of time, and no profile."""
    for count in (1, 1):
        laws = laws_in(tmp_path)
        request = laws.training.request(candidate(), BATCH)
        memory = laws.memory(request, accumulation=1)
        timed = laws.time(TimedStep.of(candidate(), request, accumulation=1))
        assert len(loaded) == count
    assert memory.to_dict()["owners"] == ("weights", "activations", "workspace", "logits and loss", "gradients")
    assert timed.micro_step == {}


def test_a_deep_profile_has_all_layers(loaded: list[TraceRequest], tmp_path: Path) -> None:
    """As a law does; it is made once."""
    laws = laws_in(tmp_path)
    request = laws.training.request(candidate(), BATCH)
    assert laws.deep_profile(request).layers == 9
    assert laws.deep_profile(request) is laws.deep_profile(request)
    assert len(loaded) == 1


@pytest.mark.parametrize("knobs", [{"tf32": True}, {"checkpointing": "selective"}, {"gradient_accumulation_steps": 3}])
def test_what_decides_the_time_makes_another_law(
    loaded: list[TraceRequest], tmp_path: Path, knobs: dict[str, object]
) -> None:
    """Products in tf32, a policy of recomputing, and micro-steps, though some of them share a trace."""
    laws = laws_in(tmp_path)

    def of(**changes: object) -> TimedStep:
        one = candidate(**changes)
        return TimedStep.of(one, laws.training.request(one, BATCH), accumulation=one.gradient_accumulation_steps)

    assert laws.time(of()) is laws.time(of(max_length=64))
    assert laws.time(of(**knobs)) is not laws.time(of())


def test_what_cannot_be_traced_is_refused_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept of it."""

    def load(profiles: Profiles, request: TraceRequest) -> Profile:
        raise NotPredicted("cannot be traced")

    monkeypatch.setattr(Profiles, "load", load)
    laws = laws_in(tmp_path)
    for _ in range(2):
        with pytest.raises(NotPredicted):
            laws.memory(laws.training.request(candidate(), BATCH), accumulation=1)
    assert not laws.profiles.has(laws.training.request(candidate(), BATCH))
    assert list(tmp_path.rglob("*.json")) == []
