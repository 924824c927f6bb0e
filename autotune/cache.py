"""Directories and files of the cache that are whole or not there.

A directory is filled under a temporary name, sealed with a list of its files, then renamed into place. Whoever finds
the seal broken builds the directory again. Leaves out what the directories hold and how their names are chosen.
"""

import errno
import json
import os
import secrets
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autotune import files
from autotune.errors import AutotuneError, UsageError

SEAL = "sealed.json"
STALE_SECONDS = 24 * 3600  # a temporary directory of this age belonged to a process that was killed
CHUNK_BYTES = 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)
TRIED_BYTES = 2**16  # more than the file of a probe


def is_whole(directory: Path) -> bool:
    """Whether `directory` was sealed and every file in it is still as it was then.

    A file of the same size and modification time is taken as unchanged; one that was only copied or touched is
    read and compared by its checksum.
    """
    try:
        seal = json.loads((directory / SEAL).read_text(encoding="utf-8"))
        return all(_is_unchanged(directory / name, *facts) for name, facts in seal.items())
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def checksums(directory: Path) -> dict[str, int]:
    """Read the CRC-32 of every file of a sealed directory, taken when it was sealed."""
    seal = json.loads((directory / SEAL).read_text(encoding="utf-8"))
    return {name: facts[2] for name, facts in seal.items()}


def build(directory: Path, fill: Callable[[Path], None]) -> Path:
    """Fill and seal `directory` unless it is whole already, and return it.

    `fill` writes into an empty directory that is renamed to `directory` at the end, so a failure leaves nothing, and
    of two processes that build at once both succeed. Raises UsageError when the cache cannot be written.
    """
    if is_whole(directory):
        return directory
    with _errors_explained(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(directory)
        fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            fill(fresh)
            _seal(fresh)
            _move_into_place(fresh, directory)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return directory


def remember(path: Path, question: Any, answer: Callable[[], Any], progress: Callable[[str], None]) -> Any:
    """Return the answer to a question, as plain JSON values: from the file `path`, else from `answer`, kept there.

    The file holds the question too. If the file is damaged or holds another question, it is made anew and `progress`
    says so.
    """
    question = json.loads(json.dumps(question))
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["question"] != question:
            raise ValueError("it answers another question")
        return kept["answer"]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        progress(f"{path} is damaged or not ours ({type(error).__name__}: {error}); it is made anew")
    found = json.dumps({"question": question, "answer": answer()})
    write_text(path, found)
    return json.loads(found)["answer"]


def write_text(path: Path, text: str) -> None:
    """Write a file of the cache, whole or not at all. Raises UsageError when the cache cannot be written."""
    with _errors_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, text)


def check_writable(directory: Path) -> None:
    """Write a small file there and remove it. Raises as `write_text` does, at once and not after the work."""
    probe = directory / f".writable.{secrets.token_hex(4)}"
    write_text(probe, "x" * TRIED_BYTES)
    probe.unlink(missing_ok=True)


@contextmanager
def _errors_explained(path: Path) -> Iterator[None]:
    """Raise our own errors where the cache is full or not writable; any other error passes unchanged."""
    try:
        yield
    except Exception as error:
        # Libraries that are written in Rust or C++ have errors of their own for a full disk, with the system's words.
        if (isinstance(error, OSError) and error.errno in FULL) or os.strerror(errno.ENOSPC) in str(error):
            raise AutotuneError(f"home: no room left for {path}; free some, or name another by home=DIR") from error
        if not isinstance(error, OSError):
            raise
        nowhere = error.errno == errno.ENOENT and not path.parent.exists()  # /proc lets nobody make a directory
        if nowhere or error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            reason = error.strerror
            raise UsageError(f"home: cannot write {path.parent} ({reason}); name another place by home=DIR") from error
        raise


def _move_into_place(fresh: Path, directory: Path) -> None:
    if directory.exists() and not is_whole(directory):
        broken = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        directory.rename(broken)  # aside first, so that nobody opens a directory that is being deleted
        shutil.rmtree(broken, ignore_errors=True)
    try:
        fresh.rename(directory)
    except OSError:
        if not is_whole(directory):
            raise  # otherwise another process was faster, and its directory is as good


def _seal(directory: Path) -> None:
    seal = {}
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        stat = path.stat()
        seal[path.relative_to(directory).as_posix()] = (stat.st_size, stat.st_mtime_ns, _crc32(path))
    (directory / SEAL).write_text(json.dumps(seal), encoding="utf-8")


def _is_unchanged(path: Path, size: int, mtime_ns: int, crc: int) -> bool:
    stat = path.stat()
    return stat.st_size == size and (stat.st_mtime_ns == mtime_ns or _crc32(path) == crc)


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def _remove_stale(directory: Path) -> None:
    for leftover in directory.parent.glob(f".{directory.name}.*"):
        if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)
