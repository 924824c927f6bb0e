"""The forecaster: candidates that share what it keeps are those that have it in common."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core.candidate import Candidate
from autotune.core.knobs import KNOBS
from autotune.core.time.law import TimeLaw
from autotune.predict.forecaster import Forecaster
from autotune.trace.profiles import ProfileRequest
from tests import stand_ins
from tests.core.examples import candidate, lengths
from tests.core.test_candidate import OTHER_VALUES
from tests.core.time.test_law import MACHINE

STEPS = (candidate(), candidate(batching="batch_rebalance"), candidate(batching="pack_bfd", packed_length=448))


@pytest.fixture(autouse=True)
def laws_that_say_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace nothing: a profile is the request for it, and a law counts operators named after all that made it."""

    def load_profile(request: ProfileRequest, **rest: Any) -> ProfileRequest:
        return request

    def time_law(profile: ProfileRequest, **asked: Any) -> TimeLaw:
        return TimeLaw(micro_step=(), step_end=(), operators={f"{profile.candidate} {asked}": 1.0})  # type: ignore[dict-item]

    monkeypatch.setattr("autotune.predict.forecaster.load_profile", load_profile)
    monkeypatch.setattr("autotune.predict.forecaster.time_law", time_law)


def timed(forecaster: Forecaster, one: Candidate) -> Any:
    """What the time of a candidate's step is made from, as plain values; None with offloading, which is not timed."""
    if (parts := forecaster.time_parts(one)) is None:
        return None
    return parts.law.to_dict(), parts.epoch.monomials.tolist(), parts.useful_tokens, parts.accumulation


@pytest.mark.parametrize("knob", KNOBS)
def test_what_is_kept_is_for_those_who_have_it_in_common(knob: str, tmp_path: Path) -> None:
    """A forecaster that has seen a candidate says of another one what a new forecaster says.

    The time of the other differs, unless the table of knobs says that the prediction leaves this knob out.
    """
    differs = []
    for number, one in enumerate(STEPS):
        other = replace(one, **{knob: OTHER_VALUES[knob]})
        seen, new = (
            replace(stand_ins.forecaster(MACHINE), lengths=lengths(range(20, 420)), home=tmp_path / name)
            for name in (f"seen {number}", f"new {number}")
        )
        before, after = timed(seen, one), timed(seen, other)
        assert after == timed(new, other)
        differs.append(after != before)
    assert any(differs) is bool(KNOBS[knob].changes)
