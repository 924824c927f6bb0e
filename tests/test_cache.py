"""Directories of the cache: whole or not there."""

import os
from pathlib import Path

import pytest

from autotune import cache
from autotune.errors import AutotuneError, UsageError


def fill(directory: Path) -> None:
    (directory / "rows").mkdir()
    (directory / "rows" / "a.bin").write_bytes(b"abcdef")
    (directory / "b.txt").write_text("b")


def test_a_built_directory_is_whole_and_is_not_built_again(tmp_path: Path) -> None:
    """What is there is used; filling happens once."""
    calls: list[Path] = []

    def counted(fresh: Path) -> None:
        calls.append(fresh)
        fill(fresh)

    for _ in range(2):
        directory = cache.build(tmp_path / "x", counted)
    assert cache.is_whole(directory)
    assert len(calls) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert cache.checksums(directory).keys() == {"rows/a.bin", "b.txt"}


@pytest.mark.parametrize("damage", ["truncated", "changed", "deleted", "seal"])
def test_a_damaged_directory_is_made_anew(tmp_path: Path, damage: str) -> None:
    """Any change of any file is noticed, and the directory is then built again in the same place."""
    directory = cache.build(tmp_path / "x", fill)
    victim = directory / "rows" / "a.bin"
    match damage:
        case "truncated":
            victim.write_bytes(b"abc")
        case "changed":
            victim.write_bytes(b"abcdeX")
        case "deleted":
            victim.unlink()
        case "seal":
            (directory / cache.SEAL).write_text("{")
    assert not cache.is_whole(directory)
    cache.build(directory, fill)
    assert cache.is_whole(directory)
    assert victim.read_bytes() == b"abcdef"


def test_a_touched_file_of_the_same_content_is_still_whole(tmp_path: Path) -> None:
    """Copying a cache to another place changes times, not content."""
    directory = cache.build(tmp_path / "x", fill)
    os.utime(directory / "b.txt", (1, 1))
    assert cache.is_whole(directory)


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    """Half a directory is never seen, not even under a temporary name."""

    def fail(fresh: Path) -> None:
        fill(fresh)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cache.build(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []


def test_of_two_builders_the_slower_takes_what_the_faster_made(tmp_path: Path) -> None:
    """Two processes may build the same directory at once; both succeed and one result stays."""

    def slower(fresh: Path) -> None:
        cache.build(tmp_path / "x", fill)
        fill(fresh)

    directory = cache.build(tmp_path / "x", slower)
    assert cache.is_whole(directory)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_what_killed_builders_left_is_removed_after_a_day(tmp_path: Path) -> None:
    """A killed build must not fill the disk for ever, and a running one must not lose its files."""
    old, running = tmp_path / ".x.old", tmp_path / ".x.running"
    for directory in (old, running):
        directory.mkdir()
    os.utime(old, (1, 1))
    cache.build(tmp_path / "x", fill)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x.running", "x"]


def test_a_cache_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    """The message names the directory and the key that moves it."""
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"home: cannot write .*file.* home=DIR"):
        cache.build(tmp_path / "file" / "x", fill)


def test_a_place_where_nothing_can_be_made_is_one_too() -> None:
    """/proc says that there is no such file, of directories that it would have to make."""
    with pytest.raises(UsageError, match=r"home: cannot write /proc/nowhere .* home=DIR"):
        cache.write_text(Path("/proc/nowhere/file"), "")


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
def test_a_full_disk_is_told(tmp_path: Path, error: Exception) -> None:
    """No room left is no traceback, whichever library finds out."""

    def full(fresh: Path) -> None:
        raise error

    with pytest.raises(AutotuneError, match="no room left"):
        cache.build(tmp_path / "x", full)


def test_a_cache_is_tried_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that can be written stays empty; a full or a wrong one is told, as when the work is kept there."""
    cache.check_writable(tmp_path / "hardware")
    assert list((tmp_path / "hardware").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="home: cannot write"):
        cache.check_writable(tmp_path / "file")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AutotuneError, match="no room left"):
        cache.check_writable(tmp_path / "hardware")
