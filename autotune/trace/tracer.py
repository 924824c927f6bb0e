"""The tracer: runs traces in other processes, which see no GPU.

On a machine with a GPU, a process that imports bitsandbytes (hence TRL) takes half a gigabyte of the GPU. The process
that predicts must not do that. The two parts of a trace run in parallel, and so do several traces. Leaves out the cache
of profiles (profiles.py).
"""

import contextlib
import io
import logging
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from autotune.child import end_with_parent
from autotune.core.step.deepening import with_growth
from autotune.core.step.profile import Profile
from autotune.errors import NotPredicted, UsageError
from autotune.machine.host import check_semaphores
from autotune.trace.request import TraceRequest
from autotune.train.fork_server import start_fork_server

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
MOST_PROCESSES = 8  # each takes half a gigabyte of host memory


def start_tracer() -> None:
    """Begin to import the libraries that a trace needs, and do not wait for them. A trace is likely to follow."""
    start_fork_server(NO_GPU)


def trace_apart(request: TraceRequest) -> Profile:
    """Trace one request in two processes, and return its profile.

    Raises NotPredicted when it cannot be traced or a process dies, and UsageError when the recipe names modules that
    the model does not have.
    """
    with _processes(2) as pool:
        try:
            return _join(*_submit(pool, request))
        except BrokenProcessPool:
            raise NotPredicted("the process that traced it died, perhaps because memory ran out") from None


def trace_many(
    requests: Sequence[TraceRequest], *, until: float, processes: int
) -> Generator[Profile | NotPredicted | None, None, None]:
    """Trace several requests, and yield their profiles in order. For one that cannot be traced, yield the reason.

    until: as time.monotonic() counts. For a request that has not begun by then, None is yielded.
    processes: how many run at once. Raises UsageError as trace_apart does.
    """
    done, count = 0, min(2 * len(requests), max(2, processes), MOST_PROCESSES)
    while done < len(requests):
        with _processes(count) as pool:
            for found in _trace_in(pool, requests[done:], until=until, ahead=count):
                if isinstance(found, BrokenProcessPool):
                    break
                done += 1
                yield found
            else:
                return
        try:  # when a process dies, the whole pool is lost; this request may be the cause, so it is traced alone
            yield trace_apart(requests[done])
        except NotPredicted as error:
            yield error
        done += 1


def _trace_in(
    pool: ProcessPoolExecutor, requests: Sequence[TraceRequest], *, until: float, ahead: int
) -> Iterator[Profile | NotPredicted | BrokenProcessPool | None]:
    """Trace in order, `ahead` requests at a time, so that no process waits for the next."""
    begun: list[tuple[Future[Any], Future[Any]]] = []
    for place in range(len(requests)):
        try:
            while len(begun) < min(len(requests), place + ahead) and time.monotonic() < until:
                begun.append(_submit(pool, requests[len(begun)]))
            yield _join(*begun[place]) if place < len(begun) else None
        except BrokenProcessPool as error:
            yield error
        except NotPredicted as error:
            yield error


def _submit(pool: ProcessPoolExecutor, request: TraceRequest) -> tuple[Future[Any], Future[Any]]:
    return pool.submit(_all_shapes, request), pool.submit(_deeper, request)


def _join(all_shapes: Future[Any], beside: Future[Any]) -> Profile:
    """Make the profile from a trace's two parts. Raises NotPredicted, and BrokenProcessPool when a process died."""
    profile, deeper = all_shapes.result(), beside.result()
    try:
        return profile if deeper is None else with_growth(profile, *deeper)
    except ValueError as error:
        raise NotPredicted(str(error)) from error


def _all_shapes(request: TraceRequest) -> Profile:
    """Trace the first part of a request. Runs in a process of the pool."""
    with _quietly():
        from autotune.trace.trace import set_up_trace, trace_all_shapes

        return trace_all_shapes(set_up_trace(request))


def _deeper(request: TraceRequest) -> tuple[Profile, tuple[int, int, int]] | None:
    """Trace the second part, and return it with its shape; None where the first part has all layers."""
    with _quietly():
        from autotune.trace.trace import set_up_trace, trace_deeper

        setup = set_up_trace(request)
        return None if setup.is_whole else (trace_deeper(setup), setup.shapes[0])


@contextlib.contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Make a pool of processes that are gone afterwards, whatever happens. None of them starts further ones."""
    check_semaphores()
    context = start_fork_server(NO_GPU)
    with ProcessPoolExecutor(count, mp_context=context, initializer=end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            for process in (pool._processes or {}).values():
                process.kill()
            raise


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hide what the libraries print, because nobody is training. Whatever they raise becomes NotPredicted.

    Their own exceptions may not be picklable, so they could not cross to the parent.
    """
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except (NotPredicted, UsageError):
        raise
    except Exception as error:
        raise NotPredicted(f"{type(error).__name__}: {error}") from None
    finally:
        logging.disable(logging.NOTSET)
