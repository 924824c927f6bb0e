"""Files that are written whole or not at all, and a directory that one process takes for itself."""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from autotune.errors import UsageError


def lock(out: Path) -> IO[str]:
    """Take a directory for this process until the file that this returns is closed.

    Raises UsageError when another process has it.
    """
    stream = (out / ".lock").open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel gives it back, also after kill -9
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
    """Write a text file, whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)
