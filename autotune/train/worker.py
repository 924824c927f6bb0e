"""The worker: the process that trains, for a trial or for a run, and reports events over a pipe as plain data.

Importing this module is cheap. The process imports the heavy libraries when it trains, unless it was forked from a
server that already has them (fork_server.py). A worker serves one task after another until its pipe closes. It leads a
process group of its own, so that its parent can end it together with its data loaders. It ends that group itself when
its parent is gone.

Events are dictionaries with the key `event`:
    loaded      {load_s}
    step        {step: core.outcome.Step as a dict, warmup, global_step, max_steps}
    saved       {global_step}
    outcome     {outcome: as core.outcome.outcome_to_dict}, always the last of a task
"""

import os
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from autotune.child import end_with_parent
from autotune.core.hardware import Device
from autotune.core.outcome import Crashed, Outcome, OutOfMemory, outcome_to_dict
from autotune.train.task import Task

LOG_TAIL_LINES = 20
OUT_OF_MEMORY_WORDS = (  # in the text of errors that have no class of their own
    "out of memory",
    "can't allocate memory",  # torch's CPU allocator
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def serve(connection: Connection) -> None:
    """Serve tasks from `connection` until it closes or sends None. Runs in a process of its own."""
    begin()
    while True:
        try:
            task: Task | None = connection.recv()
        except EOFError:
            return
        if task is None:
            return
        _redirect_output(task.log_path)
        connection.send({"event": "outcome", "outcome": outcome_to_dict(perform(task, connection))})


def begin() -> None:
    """Lead a process group, leave Ctrl-C to the parent, and end with the parent."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def perform(task: Task, connection: Connection) -> Outcome:
    """Train as `task` says, send the events, and return the outcome. Whatever training raises is an outcome."""
    started = time.perf_counter()
    try:
        from autotune.train import measure

        return measure.train(task, connection.send)
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        message = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        wall_s = time.perf_counter() - started
        if _is_out_of_memory(error):
            return OutOfMemory(message=message, peak_bytes=_peak_bytes(task.device), wall_s=wall_s)
        return Crashed(message=message, log_tail=log_tail(task.log_path), wall_s=wall_s)


def log_tail(log_path: str) -> str:
    """Return the last lines of a worker's log; empty without a log."""
    try:
        lines = Path(log_path).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_TAIL_LINES:])


def _peak_bytes(device: Device) -> int | None:
    """Peak of the GPU memory that torch allocated; None on a CPU, where nothing counts it."""
    torch = sys.modules.get("torch")
    return None if torch is None or device == "cpu" else int(torch.cuda.max_memory_allocated())


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS)


def _redirect_output(log_path: str) -> None:
    """Send all that this process and its libraries write, C code too, to the task's log."""
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
