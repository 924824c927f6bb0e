"""The fork server: a process that has imported torch, transformers and TRL, and forks processes that have them, too.

The imports take 10 s. Workers on a CPU (workers.py) and traces (trace/tracer.py) then pay for them once.
"""

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

PRELOAD = ["autotune.train.preload"]  # imported before the server forks


def start_fork_server(variables: Mapping[str, str]) -> ForkServerContext:
    """Start the fork server, unless it runs already, and do not wait for it. variables: added to its environment."""
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
    """Start processes without stderr: libraries warn when they are imported. A worker writes to its log instead."""
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)
