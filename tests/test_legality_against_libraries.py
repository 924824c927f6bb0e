"""The rules of core/legality.py against the installed trl, transformers, bitsandbytes and torch, on this machine.

Legal candidates really train a step, and whatever a rule says a library refuses is refused by that library. The rules
that show on a GPU alone are left to a machine that has one.
"""

import random
from collections.abc import Callable

from autotune.core.candidate import KNOBS, Candidate, Fidelity, short_name
from autotune.core.space import enumerate_space
from autotune.core.workload import Workload
from autotune.installed import installed
from autotune.sft import build_trainer
from autotune.task import Measure, Task
from tests.core.examples import CPU

SAMPLES = 12
POOL = 2000  # candidates among which the sample is chosen

MakeTask = Callable[..., Task]


def sample(workload: Workload, *, seed: int) -> list[Candidate]:
    """Draw candidates of the free space that show every value of every knob at least once, SAMPLES at least."""
    space = enumerate_space(
        workload=workload, hardware=CPU, installed=installed(), fidelity=Fidelity.free, fixed={}
    )
    pool = random.Random(seed).sample(space.candidates, POOL)
    unseen = {(knob, value) for knob in KNOBS for value in space.values[knob]}
    chosen: list[Candidate] = []
    while unseen:
        best = max(pool, key=lambda c: sum((knob, getattr(c, knob)) in unseen for knob in KNOBS))
        shown = {(knob, getattr(best, knob)) for knob in KNOBS}
        assert shown & unseen, f"no candidate has {unseen}"
        chosen.append(best)
        unseen -= shown
    return chosen + pool[: max(0, SAMPLES - len(chosen))]


def train_a_step(task: Task) -> float:
    """Construct the trainer and take one optimizer step; its loss."""
    trainer = build_trainer(task)
    trainer.args.max_steps = 1
    return float(trainer.train().training_loss)


def test_legal_candidates_train(workload: Workload, make_task: MakeTask) -> None:
    """Every sampled legal candidate constructs a trainer and takes a step with a plausible loss."""
    for number, candidate in enumerate(sample(workload, seed=0)):
        loss = train_a_step(make_task(candidate=candidate, work=Measure(budget_s=600, most_steps=1), seed=number))
        assert 5 < loss < 9, short_name(candidate)  # ln(1152) = 7.05 for a model that knows nothing
