"""Workers that stand in for the real one where the machine cannot show the case: no GPU, or a process that hangs."""

import os
import signal
import time
from multiprocessing.connection import Connection

from autotune.core.outcome import Crashed, Measured, outcome_to_dict
from autotune.worker import begin

device_is_initialised = False  # as CUDA would be in a process that imported the trainer


def measured() -> Measured:
    """An outcome of made-up figures."""
    return Measured(
        useful_tokens_per_s=100.0,
        relative_error=0.01,
        step_s=1.0,
        peak_bytes=1,
        reserved_bytes=None,
        host_peak_bytes=1,
        steps=(),
        warmup_steps=(),
        ended_by="steps",
        reference_flops_per_s=(1.0, 1.0),
        padding_drawn=0.0,
        padding_epoch=0.0,
        load_s=0.0,
        wall_s=1.0,
    )


def serve_and_say_who(connection: Connection) -> None:
    """Say in each step event which process this is and whether it inherited an initialised device; seed 13 fails."""
    while (task := connection.recv()) is not None:
        connection.send({"event": "step", "pid": os.getpid(), "inherited": device_is_initialised})
        outcome = Crashed(message="as asked", log_tail="", wall_s=0.0) if task.seed == 13 else measured()
        connection.send({"event": "outcome", "outcome": outcome_to_dict(outcome)})


def serve_and_hang(connection: Connection) -> None:
    """Take a task and never answer, deaf to every signal that can be ignored; start as the real worker does."""
    begin()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection.recv()
    connection.send({"event": "loaded", "load_s": 0.0, "pid": os.getpid()})
    time.sleep(3600)
