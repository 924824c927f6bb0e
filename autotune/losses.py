"""The losses of a search's winner beside the baseline's: the same samples in the same steps, from the same weights.

Leaves out what the differences mean (core/parity.py).
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from autotune.core.candidate import Candidate, short_name
from autotune.core.outcome import Measured, Outcome
from autotune.core.parity import Parity
from autotune.journal import write_json
from autotune.task import Compare

STEPS = 10  # optimizer steps that are compared
FILE = "losses.json"
ANOTHER_ORDER = 1


def compare_losses(
    baseline: Candidate, best: Candidate, perform: Callable[[Candidate, Compare], Outcome], out: Path
) -> Parity | str:
    """Train the first steps of both, and the baseline's in another order; or why that could not be done.

    What is found is kept in `out`, for when a search goes on.
    """
    file, of = out / FILE, {"baseline": baseline.to_dict(), "best": best.to_dict(), "steps": STEPS}
    if file.exists() and (kept := json.loads(file.read_text(encoding="utf-8")))["of"] == of:
        return Parity(**kept["losses"])
    trainings = {"baseline": (baseline, 0), "best": (best, 0), "reordered": (baseline, ANOTHER_ORDER)}
    losses = {}
    for name, (candidate, order) in trainings.items():
        outcome = perform(candidate, Compare(steps=STEPS, order=order))
        if not isinstance(outcome, Measured):
            return f"{short_name(candidate)}: {outcome.kind.replace('_', ' ')}"
        losses[name] = [step.loss for step in (*outcome.warmup_steps, *outcome.steps)]
    if min(map(len, losses.values())) < STEPS:
        return f"the dataset has fewer than {STEPS} steps"
    parity = Parity(**losses)
    write_json(file, {"of": of, "losses": asdict(parity)})
    return parity


def needed_s(baseline: Measured, best: Measured) -> float:
    """Seconds that a comparison takes, about: each training loads, and its first step takes as long as two."""
    return sum(outcome.load_s + (STEPS + 1) * outcome.step_s for outcome in (baseline, best, baseline))
