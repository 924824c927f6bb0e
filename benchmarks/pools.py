"""Pools of processes that begin with the imports of a trace, and say nothing: what the libraries print is not a row."""

import multiprocessing
import os
from multiprocessing.pool import Pool


def quiet_pool(processes: int, *, tasks_each: int | None = None) -> Pool:
    """A pool behind a fork server. tasks_each: after which a process is replaced; None keeps it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["autotune.train.preload", "autotune.trace.trace"])
    return context.Pool(processes, initializer=_be_quiet, maxtasksperchild=tasks_each)


def _be_quiet() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
