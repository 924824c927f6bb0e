"""Short trainings for benchmarks: their rows of tokens, their tasks, and several of them side by side.

Leaves out what is trained, and what a speed-up is worth (core/trials/comparison.py).
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from autotune.core.candidate import Candidate, short_name
from autotune.core.hardware import Hardware
from autotune.core.memory.estimate import room_of
from autotune.core.outcome import Measured, Outcome
from autotune.core.recipe import Recipe
from autotune.core.trials.comparison import speedup
from autotune.train.task import Measure, Task
from autotune.train.workers import Workers
from benchmarks.command import say

TOKENS = range(5, 500)  # in the vocabulary of every model that is measured


class Performs(Protocol):
    """Trains a task, as autotune.train.workers.Workers does."""

    def perform(self, task: Task, *, limit_s: float | None) -> Outcome: ...


def write_samples(lengths: Sequence[int], path: Path, *, shuffled: bool, seed: int = 0) -> None:
    """Write samples of random tokens as the trainer reads them.

    lengths: in the order in which micro-batches take the samples. shuffled: whether the trainer draws its rows in its
    seeded order, so that each sample must stand where that order finds it; packed rows are not drawn.
    """
    from accelerate.data_loader import SeedableRandomSampler
    from datasets import Dataset

    if shuffled:
        order = list(SeedableRandomSampler(range(len(lengths)), data_seed=seed))
        lengths = [length for _, length in sorted(zip(order, lengths, strict=True))]
    generator = random.Random(seed)
    tokens = [generator.choices(TOKENS, k=length) for length in lengths]
    Dataset.from_dict({"input_ids": tokens, "labels": tokens}).save_to_disk(path)


def task_of_steps(
    candidate: Candidate, recipe: Recipe, folder: Path, *, steps: int, limit_s: float, **more: Any
) -> Task:
    """Return a task that measures exactly `steps` optimizer steps, behind those that warm up.

    folder: of its output and its log. more: further fields of a task, such as the paths of model and rows.
    """
    return Task(
        candidate=candidate,
        recipe=recipe,
        output_dir=str(folder / "out"),
        log_path=str(folder / "log.txt"),
        goal=Measure(budget_s=limit_s, precision=0.0, least_steps=steps, most_steps=steps),
        **more,
    )


def workers_on(hardware: Hardware) -> Workers:
    """Return the workers of a search on a machine. On a CPU they are ended when they take more memory than it gives."""
    limit = room_of(hardware).limit_bytes if hardware.kind == "cpu" else None
    return Workers(device=hardware.kind, device_uuid=hardware.uuid, memory_limit_bytes=limit)


def side_by_side(
    tasks: Mapping[str, Task], workers: Performs, *, rounds: int, limit_s: float
) -> list[dict[str, Outcome]]:
    """Train every task in every round, back and forth, so that a drift of the machine cancels.

    Return the outcomes of each round by name. Each round has a seed of its own, so that it draws other steps of the
    epoch; the same steps would err alike every time.
    """
    found = []
    for number in range(rounds):
        outcomes: dict[str, Outcome] = {}
        for name in list(tasks)[::-1] if number % 2 else list(tasks):
            task = replace(tasks[name], seed=tasks[name].seed + number)
            outcomes[name] = workers.perform(task, limit_s=limit_s)
            say(f"round {number}, {name}: {outcomes[name].kind}, {short_name(tasks[name].candidate)}")
        found.append(outcomes)
    return found


def over(rounds: Sequence[Mapping[str, Outcome]], name: str, against: str) -> dict[str, Any] | None:
    """Return how much faster one training is than another, as a row has it; None unless both ran in every round.

    All trainings that ran in every round tell how noisy the machine is.
    """
    names = rounds[0] if rounds else ()
    whole = [each for each in names if all(isinstance(outcomes[each], Measured) for outcomes in rounds)]
    if not {name, against} <= set(whole):
        return None
    ran = [[outcome for each in whole if isinstance(outcome := outcomes[each], Measured)] for outcomes in rounds]
    return {**asdict(speedup(ran, whole.index(name), whole.index(against))), "rounds": len(ran)}


def kinds_and_rates(rounds: Sequence[Mapping[str, Outcome]], name: str) -> dict[str, Any]:
    """Return the kinds of a training's outcomes, one a round, and the rates of those that were measured."""
    outcomes = [each[name] for each in rounds]
    return {
        "outcomes": [outcome.kind for outcome in outcomes],
        "useful_tokens_per_s": [each.useful_tokens_per_s for each in outcomes if isinstance(each, Measured)],
    }
