"""The losses of a search's winner beside the baseline's: the same samples in the same steps, from the same weights.

Leaves out what the differences mean (core/parity.py).
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune.core.candidate import Candidate, short_name
from autotune.core.outcome import Crashed, Measured, Outcome, OutOfMemory
from autotune.core.parity import Parity
from autotune.journal import write_json
from autotune.task import Compare

STEPS = 10  # optimizer steps that are compared
FILE = "losses.json"
ANOTHER_ORDER = 1


def kept_losses(baseline: Candidate, best: Candidate, out: Path) -> Parity | None:
    """What an earlier sitting found in `out`; None where it compared others, or nothing."""
    file = out / FILE
    if not file.exists():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    return Parity(**kept["losses"]) if kept["of"] == _question(baseline, best) else None


def compare_losses(
    baseline: Candidate, best: Candidate, perform: Callable[[Candidate, Compare], Outcome], out: Path
) -> Parity | str:
    """Train the first steps of both, and the baseline's in another order; or why that could not be done.

    What is found is kept in `out`, for when a search goes on.
    """
    trainings = {"baseline": (baseline, 0), "best": (best, 0), "reordered": (baseline, ANOTHER_ORDER)}
    losses = {}
    for name, (candidate, order) in trainings.items():
        outcome = perform(candidate, Compare(steps=STEPS, order=order))
        if not isinstance(outcome, Measured):
            why = outcome.message if isinstance(outcome, Crashed | OutOfMemory) else outcome.kind.replace("_", " ")
            return f"{short_name(candidate)}: {why}"
        losses[name] = [step.loss for step in (*outcome.warmup_steps, *outcome.steps)]
    if not all(losses.values()):
        return "no step reported a loss"
    parity = Parity(**losses)
    write_json(out / FILE, {"of": _question(baseline, best), "losses": asdict(parity)})
    return parity


def _question(baseline: Candidate, best: Candidate) -> dict[str, Any]:
    return {"baseline": baseline.to_dict(), "best": best.to_dict(), "steps": STEPS}


def needed_s(baseline: Measured, best: Measured) -> float:
    """Seconds that a comparison takes, about: each training loads, and its first step takes as long as two."""
    return sum(outcome.load_s + (STEPS + 1) * outcome.step_s for outcome in (baseline, best, baseline))
