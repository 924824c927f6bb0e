"""The tracer: traces training steps in a process of its own, which sees no GPU.

Where there is a GPU, importing bitsandbytes (hence TRL) takes half a gigabyte of it for the process that does so; the
one that plans must not. A trace's two parts run beside each other. Leaves out what is kept of it (profiles.py).
"""

import contextlib
import io
import logging
import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from autotune.core.profile import Profile
from autotune.errors import NotPredicted
from autotune.fork_server import start_fork_server

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


def start_tracer() -> None:
    """Begin the imports of a trace that is likely to follow, and do not wait for them."""
    start_fork_server(NO_GPU)


def trace_apart(asked: Mapping[str, Any]) -> Profile:
    """The profile of a request, given as the fields of trace.TraceRequest.

    Raises NotPredicted when it cannot be traced, or when what traces it dies.
    """
    with _one_process(start_fork_server(NO_GPU)) as pool:
        try:
            found = pool.submit(_trace, dict(asked)).result()
        except BrokenProcessPool:
            raise NotPredicted("the process that traced it died, perhaps for want of memory") from None
    if isinstance(found, str):
        raise NotPredicted(found)
    return found


def _trace(asked: dict[str, Any]) -> Profile | str:
    """The profile, or why there is none. Runs in the process that traces."""
    with _quiet():
        try:
            from autotune.assembly import with_growth
            from autotune.trace import TraceRequest, plan_trace, trace_all_shapes, trace_deeper

            plan = plan_trace(TraceRequest(**asked))
            if plan.is_whole:
                return trace_all_shapes(plan)
            with _one_process(multiprocessing.get_context("fork")) as pool:
                deeper: Future[Profile] = pool.submit(trace_deeper, plan)
                return with_growth(trace_all_shapes(plan), deeper.result(), plan.shapes[0])
        except Exception as error:  # whatever the libraries raise over this model, there is no prediction of it
            return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _one_process(context: Any) -> Iterator[ProcessPoolExecutor]:
    """A process that is gone afterwards, whatever happens."""
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            yield pool
        except BaseException:
            for process in (pool._processes or {}).values():
                process.kill()
            raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the libraries and the trainer tell their user to ourselves: nobody is training."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
