"""Measure a training: the time, memory, tokens and loss of each optimizer step of the real trainer.

Runs inside a worker. Leaves out the processes (worker.py, workers.py).
"""

import contextlib
import gc
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from autotune.core.hardware import Device
from autotune.core.outcome import Diverged, Measured, Outcome, Step, epoch_rate
from autotune.core.trials.racing import is_outpaced
from autotune.machine.disturbance import Look, disturbed_share, look
from autotune.machine.host import count_cores
from autotune.machine.malloc import keep_pages
from autotune.train import sft
from autotune.train.saving import TrySaving
from autotune.train.task import Measure, Task, Train, last_checkpoint

USUAL_THREADS = min(torch.get_num_threads(), count_cores())
REFERENCE_S = 0.2  # seconds of reference products
REFERENCE_SIZE = {"cpu": 1024, "cuda": 8192}  # rows and columns: some 20 ms on two cores; large enough to fill a GPU
REFERENCE_WARMUP = 3  # products; the first ones of a process start threads and touch fresh pages

PROC_STATUS = Path("/proc/self/status")

Send = Callable[[dict[str, Any]], None]


def train(task: Task, send: Send) -> Outcome:
    """Train as `task` says, send an event per step, and return Measured or Diverged. Raises what training raises."""
    started = time.perf_counter()
    if task.device == "cuda":
        gc.collect()  # a trainer and its callbacks are a reference cycle; an earlier trial's would count here
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()  # an out-of-memory error then reports the peak of this trial
        limit_allocator(task.allocator_limit_bytes)
    else:
        if task.candidate.tuned_allocator:
            keep_pages()
    reference_before = reference_flops_per_s(task.device)
    torch.set_num_threads(task.candidate.torch_threads or USUAL_THREADS)
    memory = MemoryPeaks(task.device)
    clock = StepClock(task, started, send, memory)
    trainer = sft.build_trainer(task, callbacks=[clock, *([TrySaving()] if isinstance(task.goal, Train) else [])])
    clock.trainer = trainer
    load_s = time.perf_counter() - started
    send({"event": "loaded", "load_s": load_s})
    checkpoint = last_checkpoint(Path(task.output_dir)) if isinstance(task.goal, Train) else None
    if checkpoint is not None and _is_the_end(checkpoint):  # where transformers 5.23 would train one more step
        trainer._load_from_checkpoint(str(checkpoint))
    else:
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if clock.diverged is not None:
        step, loss = clock.diverged
        return Diverged(step=step, loss=str(loss), wall_s=time.perf_counter() - started)
    if isinstance(task.goal, Train):
        trainer.save_model(task.output_dir)
    peak_bytes, reserved_bytes, host_peak_bytes = clock.peaks or memory.peaks()
    return _measured(
        clock,
        peak_bytes=peak_bytes,
        reserved_bytes=reserved_bytes,
        host_peak_bytes=host_peak_bytes,
        reference_flops_per_s=(reference_before, reference_flops_per_s(task.device)),
        load_s=load_s,
        started=started,
    )


def _measured(clock: "StepClock", *, started: float, **rest: Any) -> Measured:
    steps = clock.steps or clock.warmup  # a run of a single step has only its warm-up
    if not steps:  # a run that was resumed with nothing left to train
        return Measured(
            useful_tokens_per_s=0.0,
            relative_error=None,
            step_s=0.0,
            steps=(),
            warmup_steps=(),
            ended_by="steps",
            padding_epoch=0.0,
            wall_s=time.perf_counter() - started,
            **rest,
        )
    epoch = clock.trainer.epoch
    positions, tokens = sum(step.positions for step in steps), sum(clock.tokens[-len(steps) :])
    if epoch is None:  # a run trains all that there is
        epoch_positions, epoch_useful = positions, sum(step.useful for step in steps)
        padding_epoch, steps_per_epoch = 1 - tokens / positions, len(steps)
    else:
        epoch_positions, epoch_useful = int(epoch.positions.sum()), int(epoch.useful.sum())
        padding_epoch, steps_per_epoch = 1 - float(epoch.tokens.sum()) / epoch_positions, len(epoch.steps)
    rate = epoch_rate(steps, epoch_positions=epoch_positions, epoch_useful=epoch_useful)
    return Measured(
        useful_tokens_per_s=rate.useful_tokens_per_s,
        relative_error=rate.relative_error,
        step_s=epoch_useful / rate.useful_tokens_per_s / steps_per_epoch,
        steps=tuple(clock.steps),
        warmup_steps=tuple(clock.warmup),
        ended_by=clock.ended_by,
        padding_epoch=padding_epoch,
        wall_s=time.perf_counter() - started,
        **rest,
    )


def why_stop(
    goal: Measure, steps: Sequence[Step], *, spent_s: float, epoch_positions: int, epoch_useful: int
) -> str | None:
    """Say why a trial ends after these steps: `precision`, `outpaced`, `steps` or `budget`; None when it goes on.

    spent_s: seconds since the trial began. epoch_positions, epoch_useful: of the whole epoch.
    """
    n = len(steps)
    if n < 2:  # one step has no standard error
        return None
    whole = {"epoch_positions": epoch_positions, "epoch_useful": epoch_useful}
    error = epoch_rate(steps, **whole).relative_error
    seconds = sum(step.seconds for step in steps)
    if n >= goal.least_steps and seconds >= goal.least_s and error is not None and error <= goal.precision:
        return "precision"
    if goal.pace is not None and is_outpaced(goal.pace, steps, **whole):
        return "outpaced"
    if n >= goal.most_steps:
        return "steps"
    return "budget" if spent_s + seconds / n > goal.budget_s else None


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Time each optimizer step from the end of the one before, so that loading its data counts. End a trial in time."""

    trainer: sft.Trainer

    def __init__(self, task: Task, started: float, send: Send, memory: "MemoryPeaks") -> None:
        self.task = task
        self.started = started
        self.send = send
        self.memory = memory
        # The peaks of a trial, at the end of the warm-up, which has the worst batch. On a CPU the resident size grows
        # with every new shape (from 0.25 to 1 GiB in 50 steps of `tiny`), so longer trials would look worse.
        self.peaks: tuple[int, int | None, int] | None = None
        self.warmup: list[Step] = []
        self.steps: list[Step] = []
        self.tokens: list[int] = []  # of each step without padding; those of the warm-up come first
        self.diverged: tuple[int, float] | None = None  # the optimizer step, and the loss there
        self.ended_by = "steps"
        self._begin: Any = None  # of the step that is trained now
        self._span: tuple[Any, Any] = (None, None)  # begin and end of the last step
        self._looks: list[Look] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._looks = [look()]
        self._begin = self._mark()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._span = self._begin, self._mark()
        self._looks = [*self._looks[-1:], look()]
        self._begin = self._mark()  # a look takes time, which belongs to no step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Note a step: Trainer logs each right after its end, with the loss. Its summary at the end has no loss."""
        if logs is None or "loss" not in logs:
            return
        counts, self.trainer.step_counts = self.trainer.step_counts, []
        order = self.trainer.order
        step = Step(
            number=order[(state.global_step - 1) % len(order)] if order else state.global_step,
            seconds=self._seconds(),
            rows=sum(count.rows for count in counts),
            positions=sum(count.positions for count in counts),
            useful=sum(count.useful for count in counts),
            loss=float(logs["loss"]),
            disturbed=disturbed_share(self._looks[0], self._looks[-1]),
        )
        # A run needs no warm-up, but its first step is slow.
        goal = self.task.goal
        warmup = len(self.warmup) < (goal.warmup_steps(self.task.device) if isinstance(goal, Measure) else 1)
        if warmup:
            self.warmup.append(step)
            if isinstance(goal, Measure) and len(self.warmup) == goal.warmup_steps(self.task.device):
                self.peaks = self.memory.peaks()
        else:
            self.steps.append(step)
        self.tokens.append(sum(count.tokens for count in counts))
        self.send(
            {
                "event": "step",
                "step": asdict(step),
                "warmup": warmup,
                "global_step": state.global_step,
                "max_steps": state.max_steps,
            }
        )
        if not math.isfinite(step.loss):
            self.diverged = state.global_step, step.loss
            control.should_training_stop = True
        elif isinstance(self.task.goal, Measure) and (reason := self._why_stop(self.task.goal)):
            self.ended_by = reason
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.send({"event": "saved", "global_step": state.global_step})

    def _why_stop(self, goal: Measure) -> str | None:
        epoch = self.trainer.epoch
        assert epoch is not None  # a trial always has one
        whole = {"epoch_positions": int(epoch.positions.sum()), "epoch_useful": int(epoch.useful.sum())}
        return why_stop(goal, self.steps, spent_s=time.perf_counter() - self.started, **whole)

    def _mark(self) -> Any:
        if self.task.device == "cpu":
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _seconds(self) -> float:
        begin, end = self._span
        if self.task.device == "cpu":
            return float(end - begin)
        end.synchronize()  # Trainer has just read the loss, so the device is at the end of the step already
        return float(begin.elapsed_time(end)) / 1000


class MemoryPeaks:
    """Peaks of memory: torch's own counters on CUDA; on the host the resident size above that at the beginning."""

    def __init__(self, device: Device) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.empty_cache()  # the reference product's blocks must not count as reserved for the training
            torch.cuda.reset_peak_memory_stats()
        with contextlib.suppress(OSError):  # not every kernel has this file
            PROC_STATUS.with_name("clear_refs").write_text("5")  # VmHWM starts anew (proc(5))
        self.idle_bytes = psutil.Process().memory_info().rss

    def peaks(self) -> tuple[int, int | None, int]:
        """(peak bytes of the device, reserved bytes on CUDA, peak bytes of the host)."""
        host = max(0, _resident_peak() - self.idle_bytes)
        if self.device == "cpu":
            return host, None, host
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved(), host


def _resident_peak() -> int:
    """Peak resident size in bytes since it was reset; where /proc has none, since the process started."""
    with contextlib.suppress(OSError):
        for line in PROC_STATUS.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def limit_allocator(limit_bytes: int | None) -> None:
    """Limit what torch's CUDA allocator may hold; None removes the limit of an earlier task."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if limit_bytes is None else min(1.0, limit_bytes / total))


def reference_flops_per_s(device: Device) -> float:
    """Measure the rate of one fixed matrix product over 0.2 s: what this device can do at this moment.

    It is a median: a process that interferes for a tenth of a second says nothing about the trial. The product runs on
    the usual number of threads, whatever number the candidate has.
    """
    torch.set_num_threads(USUAL_THREADS)
    size = REFERENCE_SIZE[device]
    left = torch.ones(size, size, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(REFERENCE_WARMUP):
        left @ left
    wait()
    times = [time.perf_counter()]
    while times[-1] - times[0] < REFERENCE_S:
        left @ left
        wait()
        times.append(time.perf_counter())
    return 2 * size**3 / median(end - begin for begin, end in pairwise(times))


def _is_the_end(checkpoint: Path) -> bool:
    """Whether nothing is left to train after a checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return bool(state["global_step"] >= state["max_steps"])
