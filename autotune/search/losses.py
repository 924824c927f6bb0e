"""The losses of a search's winner beside the baseline's: the same samples in the same steps, from the same weights.

They are compared where the budget has the time for it. Leaves out what the differences mean (core/trials/parity.py).
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autotune.core.candidate import Candidate, short_name
from autotune.core.outcome import Crashed, Measured, Outcome, OutOfMemory
from autotune.core.trials.budget import LEAST_S, Budget, beside_s
from autotune.core.trials.parity import Parity
from autotune.core.trials.trial import Trial
from autotune.core.units import format_duration
from autotune.files import write_json
from autotune.train.task import Compare

STEPS = 10  # optimizer steps that are compared
FILE = "losses.json"
ANOTHER_ORDER = 1
LONGEST = 2  # times the seconds that are expected, until what is left of it is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class LossComparison:
    """What a comparison works with.

    out: the search's directory. spent_s: seconds that the search has taken so far. reading_s: seconds of reading the
    weights, where trials did not. perform: trains a candidate, given the seconds at which it is given up. say: shows a
    line.
    """

    out: Path
    budget: Budget
    spent_s: Callable[[], float]
    reading_s: float
    perform: Callable[[Candidate, Compare, float], Outcome]
    say: Callable[[str], None]

    def reserve_s(self, baseline: Measured, best: Measured) -> float:
        """Seconds to keep for it: none where it would take too many, or time is not limited."""
        needed = needed_s(baseline, best, self.reading_s)
        return needed if self.budget.seconds is not None and self.budget.has_room_for_comparison(needed) else 0.0

    def run(self, baseline: Trial, best: Trial) -> Parity | str:
        """The losses, or why there are none."""
        if (kept := kept_losses(baseline.candidate, best.candidate, self.out)) is not None:
            return kept
        if not isinstance(baseline.outcome, Measured) or not isinstance(best.outcome, Measured):
            return "the baseline was not measured"
        needed = needed_s(baseline.outcome, best.outcome, self.reading_s)
        if not self.budget.has_room_for_comparison(needed):
            return f"it would have taken {format_duration(needed)}; raise budget.minutes"
        left_s = self.budget.left_s(self.spent_s())
        if left_s is not None and left_s < needed:
            return f"{format_duration(max(0.0, left_s))} were left, and it takes {format_duration(needed)}"
        self.say("comparing the losses of the first steps with the baseline's")
        deadline = time.monotonic() + LONGEST * needed

        def perform(candidate: Candidate, goal: Compare) -> Outcome:
            return self.perform(candidate, goal, max(LEAST_S, deadline - time.monotonic()))

        return compare_losses(baseline.candidate, best.candidate, perform, self.out)


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


def needed_s(baseline: Measured, best: Measured, reading_s: float) -> float:
    """Seconds that a comparison takes, about: each training starts and reads, and its first step takes as long as two.

    reading_s: of each, beside what its trial took to start.
    """
    return sum(beside_s(each) + reading_s + (STEPS + 1) * each.step_s for each in (baseline, best, baseline))
