"""The losses of a search's winner beside the baseline's: the same samples in the same steps, from the same weights.

They are compared where the budget has the time. Leaves out what the differences mean (core/trials/parity.py), and how
long it takes (core/trials/reserve.py).
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autotune.core.batches.trained import KEEPS_EVERY_TOKEN
from autotune.core.candidate import Candidate, short_name
from autotune.core.outcome import Crashed, Measured, OutOfMemory
from autotune.core.trials.budget import LEAST_S
from autotune.core.trials.parity import NotCompared, Parity
from autotune.core.trials.reserve import COMPARED_STEPS, comparison_s
from autotune.core.trials.trial import Trial
from autotune.core.units import format_duration
from autotune.files import write_json
from autotune.search.bench import Bench
from autotune.train.task import Compare

FILE = "losses.json"
ANOTHER_ORDER = 1
LONGEST = 2  # times the seconds that are expected; trainings that are not done then are killed


def compare_losses(bench: Bench, baseline: Trial, best: Trial) -> Parity | NotCompared:
    """Compare the losses of two trials' candidates, or say why they are not compared.

    What an earlier sitting found is not trained again.
    """
    if (kept := _kept(baseline.candidate, best.candidate, bench.request.out)) is not None:
        return kept
    if not isinstance(baseline.outcome, Measured) or not isinstance(best.outcome, Measured):
        return NotCompared(not_compared="the baseline was not measured")
    needed_s = comparison_s(baseline.outcome, best.outcome, reading_s=bench.reading_s)
    if not bench.budget.has_room_for_comparison(needed_s):
        return NotCompared(not_compared=f"it would have taken {format_duration(needed_s)}; raise budget.minutes")
    left_s = bench.left_s()
    if left_s is not None and left_s < needed_s:
        left = format_duration(max(0.0, left_s))
        return NotCompared(not_compared=f"{left} were left, and it takes {format_duration(needed_s)}")
    bench.display.line("comparing the losses of the first steps with the baseline's")
    return _train(bench, baseline.candidate, best.candidate, deadline=bench.now() + LONGEST * needed_s)


def _train(bench: Bench, baseline: Candidate, best: Candidate, *, deadline: float) -> Parity | NotCompared:
    """Train the first steps of both, and the baseline's once more in another order; keep what is found in the run
    directory."""
    folder = bench.request.out / "losses"
    folder.mkdir(exist_ok=True)
    within = min(each.row_length for each in (baseline, best) if each.batching not in KEEPS_EVERY_TOKEN)
    trainings = {"baseline": (baseline, 0), "best": (best, 0), "reordered": (baseline, ANOTHER_ORDER)}
    losses = {}
    for name, (candidate, order) in trainings.items():
        goal = Compare(steps=COMPARED_STEPS, order=order, learned_within=within)
        limit_s = max(LEAST_S, deadline - bench.now())
        outcome = bench.train(candidate, goal, folder, limit_s=limit_s)
        if not isinstance(outcome, Measured):
            why = outcome.message if isinstance(outcome, Crashed | OutOfMemory) else outcome.kind.replace("_", " ")
            return NotCompared(not_compared=f"{short_name(candidate)}: {why}")
        losses[name] = [step.loss for step in (*outcome.warmup_steps, *outcome.steps)]
    if not all(losses.values()):
        return NotCompared(not_compared="no step reported a loss")
    parity = Parity(**losses)
    write_json(bench.request.out / FILE, {"of": _question(baseline, best), "losses": asdict(parity)})
    return parity


def _kept(baseline: Candidate, best: Candidate, out: Path) -> Parity | None:
    """What an earlier sitting found; None where it compared other candidates, or none."""
    file = out / FILE
    if not file.exists():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    return Parity(**kept["losses"]) if kept["of"] == _question(baseline, best) else None


def _question(baseline: Candidate, best: Candidate) -> dict[str, Any]:
    return {"baseline": baseline.to_dict(), "best": best.to_dict(), "steps": COMPARED_STEPS}
