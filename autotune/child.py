"""A child: another Python that answers one question, says how far it is, and never outlives this process.

`ask` starts it, listens, and reaps it whatever happens: an answer, an error, a time limit, Ctrl-C. When this process is
killed, the connection between the two closes; the child notices and ends itself with everything that it started.

Leaves out the processes that train and trace (train/workers.py, trace/tracer.py). They live longer, and a fork server
starts them with their libraries already imported. They share `end_with_parent`.
"""

import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from autotune.errors import AutotuneError

POLL_S = 1.0  # how often `ask` looks at the clock, and whether the child is still there
GOODBYE_S = 10.0  # how long a child may take to end once it has answered
KILLED_S = 60.0  # how long a killed child may take to be gone: one that is stuck in a driver must not hold the parent
LAST_LINES = 12  # of the child's output are kept for an error
BAR = "%|"  # what every progress bar of tqdm holds; bars say nothing about an error

_START = "import sys; sys.path[:] = sys.argv[2:]; from autotune.child import answer; answer(int(sys.argv[1]))"


class Unanswered(Exception):
    """A child ended, or was ended, before it answered.

    reason: the exception that it raised, in a line; None when it could not say.
    timed_out: whether the time limit ended it.
    code: its exit code, negative for the signal that killed it; None when it is not known.
    last_lines: the end of its output, without progress bars.
    """

    def __init__(self, *, reason: str | None, timed_out: bool, code: int | None, last_lines: tuple[str, ...]) -> None:
        super().__init__(reason or next(reversed(last_lines), "no output"))
        self.reason = reason
        self.timed_out = timed_out
        self.code = code
        self.last_lines = last_lines


def ask(
    function: Callable[..., Any],
    *arguments: Any,
    variables: Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
    on_output: Callable[[str], None] = lambda line: None,
    limit_s: float | None = None,
) -> Any:
    """Call `function` with `arguments` in a new Python process and return what it returns.

    function: of a module, so that the child can import it. It, its arguments and its answer must be picklable.
    variables: further environment variables of the child.
    progress: gets the lines that the function passes to its keyword argument `progress`; None: it has no such argument.
    on_output: gets each line that the child writes to stdout or stderr, and each state of a progress bar.
    limit_s: seconds after which the child is killed; None waits.
    Raises what the function raises if that is an AutotuneError, and Unanswered if there is no answer.
    """
    ours, theirs = multiprocessing.Pipe()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs.fileno()), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                env={**os.environ, **(variables or {})},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # it leads a group, and Ctrl-C reaches this process alone
            )
        try:
            with suppress(OSError):  # the child is gone already; its output says why
                ours.send((function, arguments, progress is not None))
            return _listen(process, ours, progress or (lambda line: None), on_output, limit_s)
        finally:
            with suppress(ProcessLookupError):  # it ended by itself, and so did what it started
                os.killpg(process.pid, signal.SIGKILL)
            assert process.stdout is not None
            process.stdout.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(KILLED_S)


def answer(handle: int) -> None:
    """Answer the question that comes over the connection `handle`, a file descriptor. The child runs nothing else."""
    connection = Connection(handle)
    function, arguments, tells = connection.recv()
    end_with_parent(connection)
    keywords = {"progress": lambda line: connection.send(("progress", line))} if tells else {}
    try:
        connection.send(("answer", function(*arguments, **keywords)))
    except AutotuneError as error:
        connection.send(("error", error))
    except Exception as error:
        traceback.print_exc()
        connection.send(("reason", f"{type(error).__name__}: {error}"))
        sys.exit(1)


def end_with_parent(sentinel: Connection | int | None = None) -> None:
    """End this process, and the group that it leads, as soon as its parent is gone, even by `kill -9`.

    sentinel: becomes readable when the parent is gone; by default that of multiprocessing's parent process.
    """
    if sentinel is None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _listen(
    process: subprocess.Popen[bytes],
    connection: Connection,
    progress: Callable[[str], None],
    on_output: Callable[[str], None],
    limit_s: float | None,
) -> Any:
    """Follow a child until it has answered and ended."""
    assert process.stdout is not None
    output = _Lines(process.stdout.fileno())
    last_lines: deque[str] = deque(maxlen=LAST_LINES)
    deadline = math.inf if limit_s is None else time.monotonic() + limit_s
    kind: str = "nothing"
    value: Any = None
    listening: list[Any] = [connection, process.stdout]
    while listening and time.monotonic() < deadline:
        ready: list[Any] = wait(listening, timeout=max(0.0, min(POLL_S, deadline - time.monotonic())))
        if process.stdout in ready:
            for line in output.read():
                on_output(line)
                if BAR not in line:
                    last_lines.append(line)
            if output.ended:
                listening.remove(process.stdout)
        if connection in ready:
            try:
                said, what = connection.recv()
            except (EOFError, OSError):
                listening.remove(connection)
                continue
            if said == "progress":
                progress(what)
            else:
                kind, value = said, what
                deadline = time.monotonic() + GOODBYE_S
        if not ready and process.poll() is not None:
            break  # a process that it started keeps the pipes open
    if kind == "answer":
        return value
    if kind == "error":
        raise value
    timed_out = kind == "nothing" and time.monotonic() >= deadline
    if not timed_out:
        with suppress(subprocess.TimeoutExpired):
            process.wait(GOODBYE_S)
    raise Unanswered(
        reason=value if kind == "reason" else None,
        timed_out=timed_out,
        code=process.poll(),
        last_lines=tuple(last_lines),
    )


class _Lines:
    """Splits what comes through a pipe into lines as soon as they end; progress bars end with a carriage return."""

    def __init__(self, descriptor: int) -> None:
        self.ended = False
        self._descriptor = descriptor
        self._rest = b""

    def read(self) -> Iterator[str]:
        """The lines that have ended by now, without blank ones."""
        chunk = os.read(self._descriptor, 2**16)
        self.ended = not chunk
        *lines, self._rest = re.split(rb"[\r\n]", self._rest + (chunk or b"\n"))
        yield from (text for line in lines if (text := line.decode(errors="replace").strip()))
