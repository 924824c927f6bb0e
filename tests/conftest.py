"""What several tests share: the shipped tiny model, tokenized rows, and a fork server that is started once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from autotune.core.candidate import Candidate
from autotune.core.recipe import Recipe
from autotune.core.workload import Workload
from autotune.data.describe import describe
from autotune.train.task import Measure, Task
from autotune.train.workers import Workers

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # its thread would still be waiting for the network when a test ends


def pytest_configure() -> None:
    """Give each of several processes that test cores of its own: threads that share them wait for each other."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        allowed, workers = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        os.sched_setaffinity(0, allowed[int(worker.removeprefix("gw")) :: workers] or allowed)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A cache of the tests' own, one for all processes of a test run: what one of them traced, another finds."""
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "home"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Eight samples a step, so that micro-batches of 1, 2, 4 and 8 exist."""
    return Recipe(effective_batch_size=8)


@pytest.fixture(scope="session")
def workload(home: Path, recipe: Recipe) -> Workload:
    """`tiny` on the demo data. The lock makes other processes wait instead of tokenizing the same rows."""
    with FileLock(home / "workload.lock"):
        return describe(
            model="tiny", data="demo", columns={}, recipe=recipe, seed=42, home=home, progress=lambda line: None
        )


@pytest.fixture(scope="session")
def candidate(workload: Workload) -> Candidate:
    """A plain legal candidate of eight samples a step.

    On one thread, so that tests do not fight over the cores, and in fp32: where a CPU has no instructions for bf16 a
    step takes many times as long.
    """
    return Candidate(
        max_length=512,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        method="full",
        mixed_precision="no",
        torch_threads=1,
    )


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Workers on the CPU; the fork server behind them outlives a test, as in a search."""
    with Workers(device="cpu", device_uuid=None, memory_limit_bytes=None) as workers:
        yield workers


@pytest.fixture
def make_task(workload: Workload, recipe: Recipe, candidate: Candidate, tmp_path: Path):
    """Build a task of `tiny` on the demo data; keywords replace its fields."""

    def make(**changes: object) -> Task:
        values: dict[str, object] = {
            "candidate": candidate,
            "recipe": recipe,
            "model_path": workload.model.path,
            "tokenized_path": workload.data.tokenized_path,
            "seed": 42,
            "device": "cpu",
            "output_dir": str(tmp_path / "out"),
            "log_path": str(tmp_path / "log.txt"),
            "goal": Measure(budget_s=600, precision=0.0, most_steps=3),
        }
        return Task(**{**values, **changes})  # type: ignore[arg-type]

    return make
