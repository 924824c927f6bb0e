"""The answer of a search in one sentence, whatever it found."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core.outcome import Crashed, OutOfMemory
from autotune.search.findings import Findings
from tests.search.examples import BASELINE, BEST, HAND, VERDICT, findings, speedup

NO_MEMORY = replace(BASELINE, outcome=OutOfMemory(message="", peak_bytes=None, wall_s=1.0))
CRASHED = replace(HAND, outcome=Crashed(message="", log_tail="", wall_s=1.0))


def won(trial: Any, **changes: Any) -> dict[str, Any]:
    """A verdict for a trial without any comparison; keywords add some."""
    plain = {"once": None, "speedup": None, "speedup_by_hand": None, "repeats": {}}
    return {"verdict": replace(VERDICT, best=trial, **{**plain, **changes})}


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({}, "2.00 times TRL's defaults in useful tokens per second (95 % interval 1.80 to 2.20)"),
        (
            won(BEST, speedup=speedup(0.95, 0.8, 1.1)),
            "not distinguishable from TRL's defaults: 0.95 times their useful tokens per second (95 % interval 0.80 to "
            "1.10)",
        ),
        (
            won(BEST, speedup=speedup(1.5, 0.0, math.inf)),
            "not distinguishable from TRL's defaults: 1.50 times their useful tokens per second (one step was measured "
            "of each, so the error is not known)",
        ),
        (
            won(BEST, once=speedup(1.96, 1.4, 2.6)),
            "about 2.0 times TRL's defaults in useful tokens per second, each measured once: no time was left to "
            "measure them again; raise budget.minutes",
        ),
        ({"baseline": NO_MEMORY, **won(BEST)}, "200 useful tokens/s; TRL's defaults do not fit in memory"),
        (won(BEST), "200 useful tokens/s; TRL's defaults could not be compared"),
        (
            won(BASELINE, repeats={0: [100.0], 2: [90.0]}),
            "no candidate is really faster: the answer is the baseline",
        ),
        (
            won(BASELINE, repeats={0: [100.0], 2: []}),
            "all others failed when they were measured again: the answer is the baseline",
        ),
        (
            won(BASELINE),
            "no time was left to measure the best again: the answer is the baseline; raise budget.minutes",
        ),
        (
            {"trials": (BASELINE, CRASHED), **won(BASELINE)},
            "nothing could be measured beside the baseline: the answer is the baseline",
        ),
    ],
)
def test_the_answer(tmp_path: Path, changes: dict[str, Any], answer: str) -> None:
    """What it is worth with its interval, or why it is the baseline, and what to do for more."""
    assert findings(tmp_path, **changes).answer == answer


def test_a_changed_knob_has_a_receipt_or_is_named(tmp_path: Path) -> None:
    """The reference by hand is the winner without the allocator, and the space has a winner with checkpointing; nothing
    is known of another batching."""
    found: Findings = findings(tmp_path)
    assert found.without_receipt == ("batching",)
    assert {receipt.knob for receipt in found.receipts} == {"checkpointing", "attention", "tuned_allocator"}
