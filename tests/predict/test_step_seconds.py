"""Seconds of many candidates: few kinds of steps are traced for them, the ones that tell most first."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.core.candidate import Candidate
from autotune.core.knobs import KNOBS
from autotune.core.time.law import OperatorGroup, TimeLaw
from autotune.core.time.many_candidates import TimeParts
from autotune.errors import NotPredicted
from autotune.predict.laws import Laws, TimedStep
from autotune.predict.memory import MemoryPredictor
from autotune.predict.step_seconds import StepSeconds, predict_step_seconds
from autotune.predict.time import calibrated_speed
from autotune.trace.profiles import Profiles
from autotune.trace.request import TraceRequest
from tests.core.examples import CPU, candidate, lengths
from tests.core.test_candidate import OTHER_VALUES
from tests.core.time.test_law import MACHINE
from tests.stand_ins import predictor

STEPS = (candidate(), candidate(batching="batch_rebalance"), candidate(batching="pack_bfd", packed_length=448))
SHORT = lengths([90, 100, 110, 120])
NO_WORK = TimeLaw(micro_step={}, step_end={}, operators={})


def predicted(
    candidates: Sequence[Candidate], first: Sequence[Candidate] = (), of: MemoryPredictor | None = None
) -> StepSeconds:
    """Predict candidates on short rows of a machine that was probed."""
    of = of or predictor(MACHINE, lengths=SHORT)
    speed = calibrated_speed(of.training.hardware)
    return predict_step_seconds(candidates, first=first, until=math.inf, batches=of.batches, laws=of.laws, speed=speed)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[TraceRequest]:
    """What was to be traced, in order; for the last one of each call there was no time, and no step does any work."""
    asked: list[TraceRequest] = []

    def trace_missing(profiles: Profiles, requests: Iterable[TraceRequest], **rest: Any) -> dict[Any, NotPredicted]:
        these = list(requests)
        asked.extend(these)
        return {each: NotPredicted("no time") for each in these[-1:]}

    monkeypatch.setattr(Profiles, "trace_missing", trace_missing)
    monkeypatch.setattr(Laws, "time", lambda laws, step: NO_WORK)
    return asked


def test_kinds_of_steps_are_traced_together(traced: list[TraceRequest]) -> None:
    """Each once, in the order of the candidates. A kind without time left is neither predicted nor traced later.

    Recomputing some layers has no kind of its own.
    """
    full, off = candidate(checkpointing="full"), candidate(checkpointing="off")
    some = candidate(checkpointing="every_n", every_n_layers=2)
    found = predicted([full, replace(full, max_length=99), off, some])
    assert [each.candidate.checkpointing for each in traced] == ["full", "off"]
    assert np.isnan(found.spent).any(axis=1).tolist() == np.isnan(found.useful_tokens).tolist()
    assert np.isnan(found.useful_tokens).tolist() == [False, False, True, True]
    assert {each: str(problem) for each, problem in found.problems.items()} == {off: "no time", some: "no time"}


def test_kinds_that_others_tell_nothing_of_are_traced_before_the_rest(traced: list[TraceRequest]) -> None:
    """What must be known comes first, then whatever has a new value of some knob."""
    full, off = candidate(checkpointing="full"), candidate(checkpointing="off")
    others = [
        off,
        replace(off, attention="eager"),
        replace(full, attention="eager"),
        replace(off, optimizer="adafactor"),
    ]
    predicted(others, first=[full])
    assert [(each.candidate.checkpointing, each.candidate.attention) for each in traced] == [
        ("full", "sdpa"),
        ("off", "sdpa"),
        ("off", "eager"),
        ("off", "sdpa"),
        ("full", "eager"),
    ]


def test_a_step_counts_its_own_micro_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced for many has two of them."""
    asked: list[TimedStep] = []

    def time(laws: Laws, step: TimedStep) -> TimeLaw:
        asked.append(step)
        return NO_WORK

    monkeypatch.setattr(Profiles, "trace_missing", lambda profiles, requests, **rest: {})
    monkeypatch.setattr(Laws, "time", time)
    predicted([candidate(gradient_accumulation_steps=1)])
    assert {(step.request.candidate.gradient_accumulation_steps, step.accumulation) for step in asked} == {(2, 1)}


@pytest.mark.parametrize("why", ["no speed", "no dataset", "offloaded", "fewer threads"])
def test_what_nobody_knows_is_not_traced(traced: list[TraceRequest], why: str) -> None:
    """Seconds are unknown without a probe, without lengths, over a bus, and on fewer threads than a probe uses."""
    of = predictor(CPU if why == "no speed" else MACHINE, lengths=None if why == "no dataset" else SHORT)
    threads = 1 if why == "fewer threads" else None
    found = predicted([candidate(activation_offloading=why == "offloaded", torch_threads=threads)], of=of)
    assert np.isnan(found.spent).all()
    assert (traced, found.problems) == ([], {})


@pytest.mark.parametrize("knob", KNOBS)
def test_what_is_kept_is_for_those_who_have_it_in_common(
    knob: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A predictor that has seen a candidate says of another one what a new predictor says.

    The seconds of the other come from something else, unless the table of knobs says that they do not depend on this
    knob. Nothing is traced: a profile is the request for it, and a law has operators named after all that made it.
    """

    def time_law(profile: TraceRequest, **asked: Any) -> TimeLaw:
        item = f"{profile.candidate} {asked}"
        row = OperatorGroup(item=item, what="copy", dtype="uint8", sides=(), factor=1.0, launched=True)
        return TimeLaw(micro_step={row: 1.0}, step_end={row: 1.0}, operators={})

    def made_from(predictor: MemoryPredictor, one: Candidate) -> Any:
        """What the seconds of a candidate are made from, as plain values; None where they are unknown."""
        parts: list[TimeParts] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "autotune.predict.step_seconds.seconds_of_candidates",
                lambda these, speed: parts.extend(these) or np.zeros((len(these), 4)),
            )
            found = predicted([one], of=predictor)
        plain = [(each.law.to_dict(), each.epoch.monomials.tolist(), each.accumulation) for each in parts]
        return plain, found.useful_tokens.tolist() if plain else None

    monkeypatch.setattr(Profiles, "trace_missing", lambda profiles, requests, **rest: {})
    monkeypatch.setattr(Profiles, "load", lambda profiles, request: request)
    monkeypatch.setattr("autotune.predict.laws.time_law", time_law)
    machine = replace(MACHINE, cores=OTHER_VALUES["torch_threads"])  # with fewer threads nothing is predicted
    differs = []
    for number, one in enumerate(STEPS):
        other = replace(one, **{knob: OTHER_VALUES[knob]})
        seen, new = (
            predictor(machine, lengths=lengths(range(20, 420)), home=tmp_path / name)
            for name in (f"seen {number}", f"new {number}")
        )
        before, after = made_from(seen, one), made_from(seen, other)
        assert after == made_from(new, other)
        differs.append(after != before)
    assert any(differs) is bool(KNOBS[knob].changes)
