"""Files that are written whole or not at all, and the lock of a directory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autotune.errors import UsageError
from autotune.files import check_can_be_made, lock, make_directory, write_json, write_text


def test_a_file_is_written_and_nothing_else_stays(tmp_path: Path) -> None:
    """The temporary file takes the name of the old one, which is gone."""
    for value in ({"a": 1}, {"a": 2}):
        write_json(tmp_path / "x.json", value)
    assert (tmp_path / "x.json").read_text() == '{\n  "a": 2\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, say: the old content is still there, and no temporary file."""
    write_text(tmp_path / "x", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/x'"):
        write_text(tmp_path / "x", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "old")]


def test_a_new_file_has_the_permissions_that_the_user_asks_for(tmp_path: Path) -> None:
    """Others may read a result where the umask lets them."""
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_a_directory_is_one_process_s_until_that_ends(tmp_path: Path) -> None:
    """A second process is refused while the first has the lock; kill -9 gives it back."""
    code = f"import pathlib, time; from autotune.files import lock; kept = lock(pathlib.Path({str(tmp_path)!r})); "
    code += "print('locked', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match=r"out=.*: another process is writing there"):
            lock(tmp_path)
        other.send_signal(signal.SIGKILL)
    with lock(tmp_path):
        pass


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training there is better than refusing to."""

    def unsupported(stream: object, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with lock(tmp_path):
        pass


def test_a_place_for_results_is_judged_without_making_it(tmp_path: Path) -> None:
    """The nearest directory that exists must take files; nothing is left there."""
    check_can_be_made(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["/proc/nowhere/out", "{}/file", "{}/file/out"])
def test_a_place_that_takes_no_files_is_refused(out: str, tmp_path: Path) -> None:
    """A file in its place, or a file system that lets nobody write."""
    (tmp_path / "file").touch()
    place = Path(out.format(tmp_path))
    with pytest.raises(UsageError, match="name another out"):
        check_can_be_made(place)
    with pytest.raises(UsageError, match="name another out"):
        make_directory(place)


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first byte that is written says so."""

    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(UsageError, match="No space left on device"):
        check_can_be_made(tmp_path)
