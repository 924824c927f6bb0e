"""Short trainings for benchmarks: rows of tokens in the order in which the trainer takes them, and the task itself."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.memory.estimate import room_of
from autotune.core.recipe import Recipe
from autotune.train.task import Measure, Task
from autotune.train.workers import Workers

TOKENS = range(5, 500)  # in the vocabulary of every model that is measured


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
