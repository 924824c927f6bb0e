"""Findings of a search that was made up: TRL's defaults, settings by hand, and a winner, measured in two rounds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.core.outcome import Measured
from autotune.core.space.enumerate import Space
from autotune.core.trials.comparison import Speedup
from autotune.core.trials.receipts import Known, receipts
from autotune.core.trials.trial import Role, Trial
from autotune.core.trials.verdict import Verdict
from autotune.search.findings import Findings
from tests import stand_ins
from tests.core import examples

DEFAULTS = examples.candidate(checkpointing="full", tuned_allocator=False)
BY_HAND = replace(DEFAULTS, checkpointing="off", batching="group_by_length")
WINNER = replace(BY_HAND, tuned_allocator=True)
RECOMPUTED = replace(WINNER, checkpointing="full")
EAGER = replace(WINNER, attention="eager")


def outcome(rate: float, **changes: Any) -> Measured:
    """A trial's outcome at a rate."""
    return replace(stand_ins.measured(), useful_tokens_per_s=rate, peak_bytes=2**30, **changes)


def trial(number: int, role: Role, candidate: Any, rate: float) -> Trial:
    """A trial that was measured."""
    return Trial(number=number, role=role, candidate=candidate, outcome=outcome(rate))


BASELINE = trial(0, "baseline", DEFAULTS, 100.0)
HAND = trial(1, "by_hand", BY_HAND, 150.0)
BEST = trial(2, "search", WINNER, 200.0)
KNOWN = {
    WINNER: Known(rate=200.0, deviation=0.0, trial=2, trials=3),
    RECOMPUTED: Known(rate=160.0, deviation=0.01, trial=None),
    EAGER: Known(rate=198.0, deviation=0.2, trial=None),
}
REFERENCES = {BY_HAND: Known(rate=150.0, deviation=0.0, trial=1, trials=3)}


def speedup(ratio: float, low: float, high: float) -> Speedup:
    """A ratio with its interval."""
    return Speedup(ratio=ratio, low=low, high=high)


VERDICT = Verdict(
    best=BEST,
    once=None,
    speedup=speedup(2.0, 1.8, 2.2),
    speedup_by_hand=speedup(1.3, 0.9, 1.9),
    repeats={0: [90.0, 110.0], 1: [150.0, 160.0], 2: [190.0, 210.0]},
)


def findings(out: Path, *, request: dict[str, Any] | None = None, **changes: Any) -> Findings:
    """All of it; keywords change it, and `request` what was asked for."""
    workload = examples.workload()
    asked = stand_ins.search_request(out, workload.recipe, out, **(request or {}))
    made = Findings(
        request=asked,
        workload=workload,
        hardware=examples.CPU,
        space=Space(
            candidates=(WINNER, RECOMPUTED, EAGER),
            legal=3,
            enumerated=8,
            removed={"a reason": 5},
            values={},
            left_out={"attention=flash_attention_2": "is not installed"},
        ),
        versions={"trl": "1.16"},
        trials=(BASELINE, HAND, BEST),
        defaults=DEFAULTS,
        baseline=BASELINE,
        by_hand=HAND,
        verdict=VERDICT,
        parity=None,
        estimates={},
        calibrations={},
        misses=(),
        known=KNOWN,
        receipts=receipts(WINNER, KNOWN, references=REFERENCES),
        runner_up=EAGER,
        ruled_out=1,
        wall_s={"search": 3.0, "second_measurement": 6.0, "total": 70.0},
    )
    return replace(made, **changes)
