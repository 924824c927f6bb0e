"""Files that are written whole or not at all, and a directory that one process takes for itself.

Leaves out what the cache adds (cache.py): directories, checksums, and messages about its place.
"""

import fcntl
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import IO, Any

from autotune.errors import UsageError


def make_directory(out: Path) -> None:
    """Make the directory for results. Raises UsageError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out={out}: cannot be made ({_reason(error)}); name another out") from error


def check_can_be_made(out: Path) -> None:
    """Judge whether results can be written to the directory `out`, without making it. Raises UsageError."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"out={out}: is a file, expected a directory; name another out")
    place = next(place for place in (out, *out.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=place) as scratch:
            scratch.write(b"x")
            scratch.flush()
    except OSError as error:
        raise UsageError(
            f"out={out}: nothing can be written in {place} ({_reason(error)}); name another out"
        ) from error


def lock(out: Path) -> IO[str]:
    """Take a directory for this process until the file that this returns is closed.

    The kernel gives the lock back when the process ends, also after `kill -9`. On a file system without locks nobody is
    kept out. Raises UsageError when another process has the directory.
    """
    stream = (out / ".lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise UsageError(f"out={out}: another process is writing there; wait for it or name another out") from None
    except OSError:  # a file system without locks cannot tell
        pass
    return stream


def write_json(file: Path, value: Any) -> None:
    """Write plain values as JSON, whole or not at all."""
    write_text(file, json.dumps(value, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a text file under a temporary name beside its own, then rename it: it is whole or not there."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())  # else a power cut may leave the new name with an empty file
        temporary.replace(file)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(file)  # of a full disk Python says no name
        raise


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
