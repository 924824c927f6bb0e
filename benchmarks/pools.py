"""Pools of processes for tracing and training. They start with the imports done, and print nothing."""

import multiprocessing
import os
from multiprocessing.pool import Pool


def quiet_pool(processes: int, *, tasks_each: int) -> Pool:
    """Return a pool behind a fork server. tasks_each: after so many tasks a new process takes the place of the old."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["autotune.train.preload", "autotune.trace.trace"])
    return context.Pool(processes, initializer=be_quiet, maxtasksperchild=tasks_each)


def be_quiet() -> None:
    """Send what this process and its libraries print to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
