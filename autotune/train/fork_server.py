"""The fork server: a process that has imported torch, transformers and TRL, and forks others that begin with them.

The import takes 10 s, which workers on a CPU (workers.py) and traces (trace/tracer.py) then pay once.
"""

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

PRELOAD = ["autotune.train.preload"]  # what it imports before it forks


def start_fork_server(variables: Mapping[str, str]) -> ForkServerContext:
    """Start the fork server unless it runs already, with further environment variables, and do not wait for it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with variables_set(variables), _silent():
        forkserver.ensure_running()
    return context


@contextmanager
def variables_set(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that start inside."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _silent() -> Iterator[None]:
    """Give the processes that start inside no stderr: libraries warn when imported. A worker has its log instead."""
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)
