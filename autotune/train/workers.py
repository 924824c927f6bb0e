"""The parent's side of training: give a task to a worker process, and turn whatever happens to it into an outcome.

On a CPU each task gets a fresh fork of a server that has already imported torch, transformers and TRL. On CUDA nothing
forks: importing bitsandbytes (hence TRL) initialises CUDA, which a forked child cannot use. There a worker is spawned,
kept for tasks with the same environment, and replaced after any outcome but Measured.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import psutil

from autotune.child import KILLED_S
from autotune.core.hardware import Device
from autotune.core.outcome import Crashed, Measured, Outcome, OutOfMemory, TimedOut, outcome_from_dict
from autotune.core.units import format_bytes
from autotune.train.fork_server import start_fork_server, variables_set
from autotune.train.task import Task, environment
from autotune.train.worker import log_tail, serve

POLL_S = 0.05  # how often the parent looks at a worker's memory and clock
GOODBYE_S = 5.0  # how long a worker may take to end by itself

OnEvent = Callable[[Mapping[str, Any]], None]


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    variables: Mapping[str, str]


class Workers:
    """The processes that train, at most one at a time. Use as a context manager: leaving it ends them all.

    device_uuid: the GPU to pin, None on a CPU.
    memory_limit_bytes: resident size at which a worker is ended on a CPU; None does not watch.
    """

    def __init__(self, *, device: Device, device_uuid: str | None, memory_limit_bytes: int | None) -> None:
        self.device = device
        self.device_uuid = device_uuid
        self.memory_limit_bytes = memory_limit_bytes
        self._context: ForkServerContext | SpawnContext = (
            multiprocessing.get_context("forkserver") if device == "cpu" else multiprocessing.get_context("spawn")
        )
        self._worker: _Worker | None = None

    def __enter__(self) -> "Workers":
        if self.device == "cpu":  # the imports take 10 s: they pass while this process does other work
            start_fork_server(environment(True, "cpu", None))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(kill=kind is not None)

    def perform(self, task: Task, *, limit_s: float | None, on_event: OnEvent | None = None) -> Outcome:
        """Give `task` to a worker, and return its outcome.

        limit_s: seconds after which the worker is killed and the outcome is TimedOut; None waits.
        on_event: called with each event that the worker sends (worker.py), in order.
        Whatever is raised meanwhile, Ctrl-C too, the worker is ended first.
        """
        try:
            outcome = self._perform(task, limit_s, on_event or (lambda event: None))
        except BaseException:
            self._end(kill=True)
            raise
        if self.device == "cpu" or not isinstance(outcome, Measured):
            self._end(kill=not isinstance(outcome, Measured))
        return outcome

    def _perform(self, task: Task, limit_s: float | None, on_event: OnEvent) -> Outcome:
        started = time.monotonic()
        worker = self._worker_for(task)
        try:
            worker.connection.send(task)
        except OSError:  # the worker died while it was idle; a fresh one gets one try
            self._end(kill=True)
            worker = self._worker_for(task)
            worker.connection.send(task)
        while True:
            wall_s = time.monotonic() - started
            try:
                event = worker.connection.recv() if worker.connection.poll(POLL_S) else None
            except (EOFError, OSError):
                return self._post_mortem(worker, task, wall_s)
            if event is not None and event["event"] == "outcome":
                # Timed here, because a spawned worker imports for many seconds before it can look at a clock.
                return outcome_from_dict({**event["outcome"], "wall_s": time.monotonic() - started})
            if event is not None:
                on_event(event)
            if limit_s is not None and wall_s > limit_s:
                return TimedOut(limit_s=limit_s, wall_s=wall_s)
            if (resident := self._over_limit(worker)) is not None:
                limit = format_bytes(self.memory_limit_bytes or 0)
                message = f"resident size of {format_bytes(resident)} passed the limit of {limit}"
                return OutOfMemory(message=message, peak_bytes=resident, wall_s=wall_s)

    def _worker_for(self, task: Task) -> _Worker:
        variables = environment(task.candidate.tuned_allocator, self.device, self.device_uuid)
        if self._worker is not None and self._worker.variables != variables:
            self._end(kill=False)
        if self._worker is None:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=serve, args=(theirs,), name="autotune-worker")
            with variables_set(variables):
                process.start()
            theirs.close()
            self._worker = _Worker(process, ours, variables)
        return self._worker

    def _over_limit(self, worker: _Worker) -> int | None:
        if self.memory_limit_bytes is None or self.device != "cpu" or worker.process.pid is None:
            return None
        try:
            resident = int(psutil.Process(worker.process.pid).memory_info().rss)
        except psutil.Error:
            return None
        return resident if resident > self.memory_limit_bytes else None

    def _post_mortem(self, worker: _Worker, task: Task, wall_s: float) -> Outcome:
        """Say why a worker ended before it sent an outcome."""
        worker.process.join(GOODBYE_S)
        code = worker.process.exitcode
        if code == -signal.SIGKILL:  # which was not sent here
            message = "killed from outside (SIGKILL), as the kernel does when memory runs out"
            return OutOfMemory(message=message, peak_bytes=None, wall_s=wall_s)
        died = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        return Crashed(message=f"worker died with {died}", log_tail=log_tail(task.log_path), wall_s=wall_s)

    def _end(self, *, kill: bool) -> None:
        """End the worker and its whole process group, and reap it."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        try:
            if not kill:
                try:
                    worker.connection.send(None)
                    worker.process.join(GOODBYE_S)
                except OSError:
                    pass
        finally:
            if worker.process.pid is not None:
                _kill_group(worker.process.pid)
            worker.process.join(KILLED_S)
            worker.connection.close()


def _kill_group(pid: int) -> None:
    """Kill the group that a worker leads, or the worker alone while it does not lead one yet."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
            return
        except ProcessLookupError:
            continue
