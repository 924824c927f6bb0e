"""The tracer: traces training steps in processes of its own, which see no GPU.

Where there is a GPU, importing bitsandbytes (hence TRL) takes half a gigabyte of it for the process that does so; the
one that plans must not. A trace's two parts run beside each other, and so do several traces. Leaves out what is kept of
it (profiles.py).
"""

import contextlib
import io
import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from autotune.child import end_with_parent
from autotune.core.step.profile import Profile, with_growth
from autotune.errors import NotPredicted, UsageError
from autotune.train.fork_server import start_fork_server

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
MOST_PROCESSES = 8  # each of half a gigabyte


def start_tracer() -> None:
    """Begin the imports of a trace that is likely to follow, and do not wait for them."""
    start_fork_server(NO_GPU)


def trace_apart(asked: Mapping[str, Any]) -> Profile:
    """The profile of a request, given as the fields of trace.TraceRequest.

    Raises NotPredicted when it cannot be traced, or when what traces it dies, UsageError when the recipe asks for what
    the model has not.
    """
    with _processes(2) as pool:
        try:
            return _join(*_submit(pool, asked))
        except BrokenProcessPool:
            raise NotPredicted("the process that traced it died, perhaps for want of memory") from None


def trace_many(
    asked: Sequence[Mapping[str, Any]], *, until: float, processes: int
) -> Generator[Profile | NotPredicted | None, None, None]:
    """The profiles of several requests, in their order; in place of one that cannot be traced the reason.

    until: of time.monotonic(); in place of what has not begun then is None. processes: at once. Raises UsageError as
    trace_apart does.
    """
    done, count = 0, min(2 * len(asked), max(2, processes), MOST_PROCESSES)
    while done < len(asked):
        with _processes(count) as pool:
            for found in _trace_in(pool, asked[done:], until=until, ahead=count):
                if isinstance(found, BrokenProcessPool):
                    break
                done += 1
                yield found
            else:
                return
        try:  # whichever it was that died took the others with it
            yield trace_apart(asked[done])
        except NotPredicted as error:
            yield error
        done += 1


def _trace_in(
    pool: ProcessPoolExecutor, asked: Sequence[Mapping[str, Any]], *, until: float, ahead: int
) -> Iterator[Profile | NotPredicted | BrokenProcessPool | None]:
    """Trace in order, `ahead` requests at a time, so that no process waits for the next."""
    begun: list[tuple[Future[Any], Future[Any]]] = []
    for place in range(len(asked)):
        try:
            while len(begun) < min(len(asked), place + ahead) and time.monotonic() < until:
                begun.append(_submit(pool, asked[len(begun)]))
            yield _join(*begun[place]) if place < len(begun) else None
        except BrokenProcessPool as error:
            yield error
        except NotPredicted as error:
            yield error


def _submit(pool: ProcessPoolExecutor, asked: Mapping[str, Any]) -> tuple[Future[Any], Future[Any]]:
    return pool.submit(_all_shapes, dict(asked)), pool.submit(_deeper, dict(asked))


def _join(all_shapes: Future[Any], beside: Future[Any]) -> Profile:
    """The profile out of a trace's two parts. Raises NotPredicted, and BrokenProcessPool when a process died."""
    try:
        profile, deeper = all_shapes.result(), beside.result()
    except _NotTraced as error:
        raise NotPredicted(str(error)) from None
    try:
        return profile if deeper is None else with_growth(profile, *deeper)
    except ValueError as error:
        raise NotPredicted(str(error)) from error


class _NotTraced(Exception):
    """Why there is no profile. Crosses the process, which the libraries' exceptions may not."""


def _all_shapes(asked: dict[str, Any]) -> Profile:
    """The first of a request's two traces. Runs in a process that traces."""
    with _told():
        from autotune.trace.request import TraceRequest
        from autotune.trace.trace import set_up_trace, trace_all_shapes

        return trace_all_shapes(set_up_trace(TraceRequest(**asked)))


def _deeper(asked: dict[str, Any]) -> tuple[Profile, tuple[int, int, int]] | None:
    """The second, and its shape; None where the first holds all layers. Runs in a process that traces."""
    with _told():
        from autotune.trace.request import TraceRequest
        from autotune.trace.trace import set_up_trace, trace_deeper

        setup = set_up_trace(TraceRequest(**asked))
        return None if setup.is_whole else (trace_deeper(setup), setup.shapes[0])


@contextlib.contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that are gone afterwards, whatever happens. None of them has children, which would outlive it."""
    context = start_fork_server(NO_GPU)
    with ProcessPoolExecutor(count, mp_context=context, initializer=end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            for process in (pool._processes or {}).values():
                process.kill()
            raise


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Say in words that cross the process what the libraries raise over a model, whatever it is."""
    with _quiet():
        try:
            yield
        except (NotPredicted, UsageError):
            raise
        except Exception as error:
            raise _NotTraced(f"{type(error).__name__}: {error}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the libraries and the trainer tell their user to ourselves: nobody is training."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
