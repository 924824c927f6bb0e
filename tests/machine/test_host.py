"""Cores and memory under control groups of both versions, on file systems that the test lays out."""

import os
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from autotune.core.units import GIB, MIB
from autotune.errors import AutotuneError
from autotune.machine.host import check_semaphores, count_cores, read_host

V1_MOUNT = "32 31 0:29 {mounted} /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n"
V2_MOUNT = "41 31 0:38 {mounted} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
CPUINFO = "processor\t: 0\nmodel name\t: Testor 9000\nflags\t\t: fpu amx_bf16 avx2\n"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 8 cores and 64 GiB, 40 of them available."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=40 * GIB))


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/cpuinfo": CPUINFO, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def version_2(root: Path, groups: dict[str, dict[str, str]], own: str = "/", mounted: str = "/") -> Path:
    files = {f"sys/fs/cgroup{group}/{name}": text for group, parts in groups.items() for name, text in parts.items()}
    mount = V2_MOUNT.format(mounted=mounted)
    return lay_out(root, {"proc/self/cgroup": f"0::{own}\n", "proc/self/mountinfo": mount, **files})


def version_1(root: Path, files: dict[str, str], own: str = "/", mounted: str = "/") -> Path:
    mounts = "".join(V1_MOUNT.format(mounted=mounted, name=name) for name in ("cpu", "memory"))
    groups = f"4:memory:{own}\n1:cpu,cpuacct:{own}\n9:name=systemd:/\n0::/\n"
    files = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    return lay_out(root, {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files})


def test_no_control_groups(tmp_path: Path) -> None:
    """Then the machine's own figures stand, and the processor is named."""
    host = read_host(lay_out(tmp_path, {}))
    assert (host.cores, host.memory_bytes, host.free_bytes) == (8, 64 * GIB, 40 * GIB)
    assert (host.name, host.supports_bf16) == ("Testor 9000", True)
    own = psutil.Process().memory_info().rss
    assert abs(host.used_by_others_bytes - (24 * GIB - own)) < 64 * MIB


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1)]
)
def test_a_quota_of_version_2(tmp_path: Path, quota: str, cores: int) -> None:
    """A fraction of a core is rounded up; `max` is no limit."""
    assert count_cores(version_2(tmp_path, {"": {"cpu.max": quota}})) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 8), ("250000", 3)])
def test_a_quota_of_version_1(tmp_path: Path, quota: str, cores: int) -> None:
    """-1 is no limit; controllers that share a mount are found by their name."""
    files = {"cpu/cpu.cfs_quota_us": quota, "cpu/cpu.cfs_period_us": "100000"}
    assert count_cores(version_1(tmp_path, files)) == cores


def test_affinity_narrows_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smaller of what is allowed and what may be used."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert count_cores(version_2(tmp_path, {"": {"cpu.max": "400000 100000"}})) == 1


def test_the_tightest_level_counts(tmp_path: Path) -> None:
    """A group inside a group has at most what the outer one has."""
    groups = {
        "/outer": {"cpu.max": "200000 100000", "memory.max": str(8 * GIB), "memory.current": str(6 * GIB)},
        "/outer/inner": {"cpu.max": "400000 100000", "memory.max": "max", "memory.current": str(1 * GIB)},
    }
    host = read_host(version_2(tmp_path, groups, own="/outer/inner"))
    assert (host.cores, host.memory_bytes, host.free_bytes) == (2, 8 * GIB, 2 * GIB)


def test_pages_of_files_are_free(tmp_path: Path) -> None:
    """The kernel gives them up before it refuses memory: a large download must not look like a full machine."""
    group = {
        "memory.max": str(8 * GIB),
        "memory.current": str(7 * GIB),
        "memory.stat": f"anon 1\ninactive_file {5 * GIB}\n",
    }
    assert read_host(version_2(tmp_path, {"": group})).free_bytes == 6 * GIB


def test_memory_of_version_1(tmp_path: Path) -> None:
    """Its "no limit" is a huge number, its own sums count the groups below."""
    files = {
        "memory/memory.limit_in_bytes": str(4 * GIB),
        "memory/memory.usage_in_bytes": str(3 * GIB),
        "memory/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}\n",
    }
    host = read_host(version_1(tmp_path, files))
    assert (host.memory_bytes, host.free_bytes) == (4 * GIB, 2 * GIB)
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("9223372036854771712")
    assert read_host(tmp_path).memory_bytes == 64 * GIB


@pytest.mark.parametrize("own", ["/docker/abc", "/docker/abc/inner"])
def test_a_container_whose_mount_is_its_own_group(tmp_path: Path, own: str) -> None:
    """Without a namespace /proc/self/cgroup names the host's path; mountinfo says that it is mounted here."""
    root = version_2(tmp_path, {"": {"cpu.max": "300000 100000"}}, own=own, mounted="/docker/abc")
    assert count_cores(root) == 3


def test_the_id_of_a_machine(tmp_path: Path) -> None:
    """Stays with the machine, changes with its cores and its machine-id, and names no one."""
    root = lay_out(tmp_path, {"etc/machine-id": "0123456789abcdef\n"})
    first = read_host(root).uuid
    assert first == read_host(root).uuid
    assert "0123456789abcdef" not in first
    (root / "etc/machine-id").write_text("fedcba\n")
    other = read_host(root).uuid
    version_2(root, {"": {"cpu.max": "200000 100000"}})
    assert len({first, other, read_host(root).uuid}) == 3


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real files of the machine that runs the test parse, and nobody gets more than there is."""
    monkeypatch.undo()
    host = read_host()
    assert 1 <= host.cores <= (os.cpu_count() or 1)
    assert 0 < host.free_bytes <= host.memory_bytes


@pytest.mark.parametrize(("high", "total"), [("max", 8 * GIB), (str(3 * GIB), 3 * GIB), (str(32 * GIB), 8 * GIB)])
def test_a_soft_limit_of_version_2_is_a_limit(tmp_path: Path, high: str, total: int) -> None:
    """Above memory.high a process is slowed down until it hardly moves."""
    group = {"memory.max": str(8 * GIB), "memory.high": high, "memory.current": str(GIB)}
    host = read_host(version_2(tmp_path, {"": group}))
    assert (host.memory_bytes, host.free_bytes) == (total, total - GIB)


def test_a_group_with_less_memory_and_fewer_cores(tmp_path: Path) -> None:
    """Both limits hold together, in both versions."""
    limits = {"memory.max": str(4 * GIB), "memory.current": str(GIB), "cpu.max": "150000 100000"}
    second = read_host(version_2(tmp_path / "2", {"/job": limits}, own="/job"))
    old = {
        "memory/memory.limit_in_bytes": str(4 * GIB),
        "memory/memory.usage_in_bytes": str(GIB),
        "cpu/cpu.cfs_quota_us": "150000",
        "cpu/cpu.cfs_period_us": "100000",
    }
    first = read_host(version_1(tmp_path / "1", old))
    assert {(host.cores, host.memory_bytes, host.free_bytes) for host in (first, second)} == {(2, 4 * GIB, 3 * GIB)}


@pytest.mark.parametrize("code", [2, 13, 28, 30, 38])
def test_without_shared_memory_there_are_words(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """No /dev/shm, one that is full or read-only, or a kernel without semaphores."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    check_semaphores()
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", fail)
    with pytest.raises(AutotuneError, match="/dev/shm: cannot be written"):
        check_semaphores()
