"""Every outcome, by really making it happen, and that no process outlives its trial."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from pathlib import Path

import psutil
import pytest
import torch

from autotune.core.outcome import Crashed, Diverged, Measured, OutOfMemory, TimedOut
from autotune.train import workers as module
from autotune.train.task import Measure, environment
from autotune.train.worker import perform
from autotune.train.workers import Workers
from tests import stand_ins


def workers_alive() -> list[psutil.Process]:
    """Descendants of this process that are not multiprocessing's own servers, less those that are gone already."""
    servers = ("forkserver", "resource_tracker")
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and not _is_server(child, servers)
    ]


def _is_server(process: psutil.Process, names: tuple[str, ...]) -> bool:
    # A fork of the server has the server's own command line; the server is the one whose parent we are.
    return process.ppid() == os.getpid() and any(name in " ".join(process.cmdline()) for name in names)


def test_a_trial_measures_the_real_trainer(workers: Workers, make_task) -> None:
    """Rate, steps, loss, memory and padding of a trial are those of steps that were really trained."""
    outcome = workers.perform(make_task(), limit_s=600)
    assert isinstance(outcome, Measured)
    assert [len(outcome.warmup_steps), len(outcome.steps)] == [2, 3]
    assert outcome.warmup_steps[0].positions < outcome.warmup_steps[1].positions
    assert all(step.rows == 8 and 0 < step.useful < step.positions and step.seconds > 0 for step in outcome.steps)
    assert all(0 <= step.disturbed <= 1 for step in outcome.steps)
    assert outcome.ended_by == "steps"
    assert outcome.peak_bytes > 2**20
    assert 0 < outcome.padding_epoch < 1
    assert workers_alive() == []


def test_memory_over_the_limit_is_an_outcome(make_task) -> None:
    """On a CPU the parent watches the worker's resident size, and ends it."""
    with Workers(device="cpu", device_uuid=None, memory_limit_bytes=2**20) as workers:
        outcome = workers.perform(make_task(), limit_s=600)
    assert isinstance(outcome, OutOfMemory)
    assert outcome.peak_bytes is not None
    assert outcome.peak_bytes > 2**20
    assert workers_alive() == []


def test_the_kernels_kill_is_out_of_memory(workers: Workers, make_task) -> None:
    """A worker that is killed from outside counts as out of memory, as the kernel kills."""

    def kill(event: object) -> None:
        for worker in workers_alive():
            worker.send_signal(signal.SIGKILL)

    outcome = workers.perform(make_task(), limit_s=600, on_event=kill)
    assert isinstance(outcome, OutOfMemory)
    assert workers_alive() == []


def test_an_allocation_that_fails_is_out_of_memory(workers: Workers, make_task, candidate, recipe) -> None:
    """torch's CPU allocator raises a plain RuntimeError; it is known by its words."""
    huge = replace(recipe, lora_rank=2**40)
    outcome = workers.perform(make_task(candidate=replace(candidate, method="lora"), recipe=huge), limit_s=600)
    assert isinstance(outcome, OutOfMemory)


@pytest.mark.parametrize(("device", "peak_bytes"), [("cuda", 7), ("cpu", None)])
def test_a_gpu_that_is_full_tells_its_peak(
    make_task, monkeypatch: pytest.MonkeyPatch, device: str, peak_bytes: int | None
) -> None:
    """torch counts what it had allocated when it ran out of memory; on a CPU nothing does."""

    def train(task: object, send: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("autotune.train.measure.train", train)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    here, _ = Pipe()
    outcome = perform(make_task(device=device), here)
    assert isinstance(outcome, OutOfMemory)
    assert outcome.peak_bytes == peak_bytes


def test_a_trial_that_takes_too_long_is_timed_out(workers: Workers, make_task) -> None:
    """The parent keeps the time whatever the worker does."""
    outcome = workers.perform(make_task(goal=Measure(budget_s=999, precision=0.0, most_steps=9999)), limit_s=3)
    assert isinstance(outcome, TimedOut)
    assert outcome.wall_s < 10
    assert workers_alive() == []


def test_a_hung_worker_is_timed_out(workers: Workers, make_task, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that ignores every signal but the last is ended all the same."""
    monkeypatch.setattr(module, "serve", stand_ins.serve_and_hang)
    assert isinstance(workers.perform(make_task(), limit_s=1), TimedOut)
    assert workers_alive() == []


def test_a_crash_is_an_outcome_with_the_last_lines_of_its_log(workers: Workers, make_task) -> None:
    """What the libraries raise becomes Crashed, with what stood in the log."""
    outcome = workers.perform(make_task(model_path="/there/is/no/model"), limit_s=600)
    assert isinstance(outcome, Crashed)
    assert "Traceback" in outcome.log_tail or "Error" in outcome.log_tail
    assert workers_alive() == []


def test_an_infinite_loss_is_diverged(workers: Workers, make_task, recipe) -> None:
    """A learning rate that blows the weights up ends the trial at the first loss that is not finite."""
    wild = replace(recipe, learning_rate=1e30, warmup_ratio=0.0, max_grad_norm=0.0)
    outcome = workers.perform(make_task(recipe=wild, goal=Measure(budget_s=600, most_steps=20)), limit_s=600)
    assert isinstance(outcome, Diverged)


def test_ctrl_c_ends_the_worker(workers: Workers, make_task) -> None:
    """Whatever is raised in the parent, the worker is gone before it goes on."""

    def interrupt(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workers.perform(make_task(), limit_s=600, on_event=interrupt)
    assert workers_alive() == []


def test_same_batching_same_samples_whatever_the_micro_batch(workers: Workers, make_task, candidate) -> None:
    """Steps of candidates with one way of batching hold the same samples, so they are compared step by step."""
    goal = Measure(budget_s=600, precision=0.0, most_steps=3, worst_first=False)
    by_micro_batch = []
    for size in (2, 8):
        variant = replace(candidate, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
        outcome = workers.perform(make_task(candidate=variant, goal=goal), limit_s=600)
        assert isinstance(outcome, Measured)
        by_micro_batch.append([(step.number, step.rows, step.useful) for step in outcome.steps])
    assert by_micro_batch[0] == by_micro_batch[1]


def test_rebalanced_steps_hold_the_samples_of_random_steps(workers: Workers, make_task, candidate) -> None:
    """`batch_rebalance` is exact: the samples of each step are those that random order has there."""
    goal = Measure(budget_s=600, precision=0.0, most_steps=3, worst_first=False)
    seen = []
    for batching in ("random", "batch_rebalance"):
        outcome = workers.perform(make_task(candidate=replace(candidate, batching=batching), goal=goal), limit_s=600)
        assert isinstance(outcome, Measured)
        seen.append([(step.number, step.rows, step.useful) for step in outcome.steps])
    assert seen[0] == seen[1]


class TestSpawnedWorkers:
    """On CUDA, with a stand-in for the initialised device: this machine may have none."""

    def test_serves_several_tasks_and_is_replaced_after_a_failure(
        self, make_task, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One process while all goes well; a fresh one after a failure; never one that inherited our device."""
        monkeypatch.setattr(module, "serve", partial(stand_ins.serve_and_say_who, fails=2))
        monkeypatch.setattr(stand_ins, "device_is_initialised", True)
        said: list[dict[str, object]] = []
        with Workers(device="cuda", device_uuid=None, memory_limit_bytes=None) as workers:
            for _ in range(4):
                workers.perform(make_task(device="cuda"), limit_s=60, on_event=said.append)
        pids = [event["pid"] for event in said]
        assert pids[0] == pids[1] == pids[2] != pids[3]
        assert not any(event["inherited"] for event in said)
        assert workers_alive() == []

    def test_another_allocator_needs_another_process(
        self, make_task, candidate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`expandable_segments` is read when CUDA is initialised, so it cannot change within a process."""
        monkeypatch.setattr(module, "serve", stand_ins.serve_and_say_who)
        said: list[dict[str, object]] = []
        with Workers(device="cuda", device_uuid=None, memory_limit_bytes=None) as workers:
            for tuned in (True, False):
                task = make_task(candidate=replace(candidate, tuned_allocator=tuned), device="cuda")
                workers.perform(task, limit_s=60, on_event=said.append)
        assert said[0]["pid"] != said[1]["pid"]


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_user_s_allocator_settings_are_kept_but_for_the_knob(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever variable has them; a worker gets the one that torch reads first."""
    monkeypatch.setenv(name, "expandable_segments:False,roundup_power2_divisions:[256:1,>:8],max_split_size_mb:64")
    found = environment(True, "cuda", None)
    assert found["PYTORCH_ALLOC_CONF"] == (
        "roundup_power2_divisions:[256:1,>:8],max_split_size_mb:64,expandable_segments:True"
    )


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_kill_9_of_the_parent_ends_the_worker(device: str, tmp_path: Path) -> None:
    """A worker watches its parent and ends its whole group when the parent is gone."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT_SCRIPT.format(device=device))
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(root)}
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)


PARENT_SCRIPT = """
from types import SimpleNamespace

from autotune.train import fork_server, workers as module
from tests import stand_ins


if __name__ == "__main__":
    module.serve, fork_server.PRELOAD = stand_ins.serve_and_hang, []
    task = SimpleNamespace(candidate=SimpleNamespace(tuned_allocator=True))
    with module.Workers(device="{device}", device_uuid=None, memory_limit_bytes=None) as workers:
        workers.perform(task, limit_s=None, on_event=lambda event: print(event["pid"], flush=True))
"""
