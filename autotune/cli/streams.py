"""stdin, stdout and stderr as they really are: in any encoding, closed, or with a reader that has gone away.

Leaves out what is written on them (main.py, application.py).
"""

import codecs
import os
import select
import sys

# Stands for what an encoding lacks. Any other character that it lacks becomes a question mark.
PLAIN = {"±": "+-", "█": "#", "×": "x", "÷": "/", "°": " degrees", "²": "^2", "…": "..."}


def prepare() -> None:
    """Make the standard streams usable, whatever started this process.

    A stream that is closed gets /dev/null: the next file that anybody opens would otherwise take its place. A character
    that the encoding of stdout or stderr lacks is replaced, and is no error.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  # for as long as we run
    codecs.register_error("autotune.plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="autotune.plain")


def reader_is_gone() -> bool:
    """Whether nobody reads stdout or stderr any more, as after `autotune probe | head -1`."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)  # POLLERR is always told
    return any(event & select.POLLERR for _, event in poll.poll(0))


def flush() -> None:
    """Write what is still buffered. Raises OSError where it cannot be written."""
    sys.stdout.flush()
    sys.stderr.flush()


def discard(*descriptors: int) -> None:
    """Send all further output to /dev/null, also what is still buffered: Python would fail over it at its end."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors:
        os.dup2(nothing, descriptor)
    os.close(nothing)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end
