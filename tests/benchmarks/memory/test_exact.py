"""benchmarks/memory/exact.py: its rows are the whole product, and a difference anywhere is one."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from autotune.core.recipe import METHODS
from autotune.core.step.profile import Profile, monomials
from autotune.trace.request import TraceRequest, reduced
from benchmarks.memory.exact import (
    ACCUMULATIONS,
    CHECKPOINTINGS,
    DEPTHS,
    EAGER_ONLY,
    WHOLE,
    LiveBytes,
    cases,
    compare,
    is_exact,
    summary,
)
from tests.core.memory.test_law import replayed
from tests.core.step.test_profile import step


def test_the_rows_are_the_whole_product() -> None:
    """Every architecture, method, checkpointing, accumulation and device, once; and models of real depth."""
    rows = [
        (case.model, knobs.method, knobs.checkpointing, knobs.gradient_accumulation_steps, case.capability is None)
        for case in cases()
        for knobs in [case.candidate]
        if case.layers == DEPTHS[case.model]
    ]
    wanted = {
        (model, method, mode, *others)
        for model, method, mode, *others in product(DEPTHS, METHODS, CHECKPOINTINGS, ACCUMULATIONS, (True, False))
        if not (model in EAGER_ONLY and mode == "selective")
    }
    assert len(rows) == len(set(rows))
    assert set(rows) == wanted
    assert {case.model for case in cases() if case.layers == WHOLE.get(case.model)} == set(WHOLE)


def test_a_step_is_gone_through_op_by_op() -> None:
    """Its peak is the replay's, and what each phase holds adds up."""
    shape = monomials(2, 100, 0)
    gone = LiveBytes(step(5), shape, 1)
    assert gone.peak_bytes == replayed(step(5), shape)
    assert all(sum(held.values()) == gone.peak_bytes for held in gone.peaks)
    assert [phase for _, phase, _ in gone.ends] == ["load", "forward", "loss", "backward", "clip", "optimizer", "over"]


@pytest.mark.parametrize("name", ["peak_difference", "items_difference", "ends_differences"])
def test_one_byte_is_a_difference(name: str) -> None:
    """Whichever of the three it is in."""
    same = {"peak_difference": 0, "items_difference": {}, "ends_differences": {}}
    assert is_exact(same)
    assert not is_exact({**same, name: 1 if name == "peak_difference" else {"weights": 1}})


def test_the_law_is_of_the_reduced_request_and_the_truth_of_the_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as it is used: the law as an estimate asks for it, the whole trace on the row's own device."""
    case = next(
        case for case in cases() if case.capability == (8, 6) and case.candidate.gradient_accumulation_steps == 4
    )
    asked: list[TraceRequest] = []

    def note(request: TraceRequest, *_: Any) -> Profile:
        asked.append(request)
        return step(5)

    case = replace(case, capability=(8, 9))
    monkeypatch.setattr("autotune.trace.trace.trace", note)
    monkeypatch.setattr("autotune.trace.trace.trace_whole", note)
    compare(case)
    law, truth = asked
    assert reduced(law) == law
    assert (law.capability, law.candidate.gradient_accumulation_steps) == ((8, 6), 2)
    assert (truth.capability, truth.candidate) == (case.capability, case.candidate)


def test_the_summary_says_of_how_many_rows() -> None:
    """A file of few hours is a sample, and by architecture it shows how large a one."""
    exact = {"peak_difference": 0, "items_difference": {}, "ends_differences": {}}
    rows = [{**exact, "case": case.key} for case in cases()[:40]]
    rows[0]["peak_difference"] = -3
    found = summary(rows)
    assert (found["count"], found["of"], found["exact"], found["largest_peak_difference"]) == (40, len(cases()), 39, 3)
    parts = found["architectures"]
    assert set(parts) == set(DEPTHS)
    assert sum(part["count"] for part in parts.values()) == 40
    assert all(0 < part["count"] < part["of"] for part in parts.values())  # of all, though there are few
