"""Disturbances: what others took counts, what this process's own threads took from each other does not."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.machine.disturbance import Look, disturbed_share, look

BEFORE = Look(clock_s=100.0, own_s=50.0, waited_s={"1": 5.0}, busy_s=900.0, stolen_s=3.0, stalled_s=1.0)


def after(*, seconds: float = 10.0, own: float, waited: Mapping[str, float], others: float, **more: float) -> Look:
    """A look `seconds` later. own, others: core time since then. more: `stolen`, `stalled`, since then."""
    return replace(
        BEFORE,
        clock_s=100.0 + seconds,
        own_s=50.0 + own,
        waited_s={thread: 5.0 * (thread == "1") + each for thread, each in waited.items()},
        busy_s=900.0 + own + others,
        stolen_s=3.0 + more.get("stolen", 0.0),
        stalled_s=1.0 + more.get("stalled", 0.0),
    )


def test_core_time_that_others_had_is_a_share_of_what_was_needed() -> None:
    """Two threads needed 20 s of two cores, and others had 13 of them."""
    assert disturbed_share(BEFORE, after(own=7.0, waited={"1": 6.0, "2": 7.0}, others=13.0)) == pytest.approx(13 / 20)


def test_own_threads_that_wait_for_each_other_are_not_disturbed() -> None:
    """Nothing else ran, so four threads on two cores waited for their sisters."""
    assert disturbed_share(BEFORE, after(own=20.0, waited=dict.fromkeys("1234", 5.0), others=0.0)) == 0.0


def test_others_on_cores_that_nobody_else_wanted_are_no_disturbance() -> None:
    assert disturbed_share(BEFORE, after(own=10.0, waited={"1": 0.0}, others=10.0)) == 0.0


def test_a_hypervisor_takes_by_the_share_that_this_process_ran() -> None:
    """Of 4 stolen seconds 3 would have been ours: we had 15 of the 20 busy seconds."""
    found = disturbed_share(BEFORE, after(own=15.0, waited={"1": 0.0}, others=5.0, stolen=4.0))
    assert found == pytest.approx(3 / 18)


def test_memory_that_is_short_is_a_share_of_the_seconds() -> None:
    assert disturbed_share(BEFORE, after(own=20.0, waited={}, others=0.0, stalled=2.5)) == pytest.approx(0.25)


def test_a_thread_that_has_ended_is_forgotten() -> None:
    assert disturbed_share(BEFORE, after(own=10.0, waited={"2": 0.0}, others=10.0)) == 0.0


def test_counters_are_read_where_linux_keeps_them(tmp_path: Path) -> None:
    """Of the cores that this process may use, and of all its threads."""
    mine, other = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0)) + 1
    for thread, waited in (("7", 1_500_000_000), ("8", 250_000_000)):
        folder = tmp_path / "proc/self/task" / thread
        folder.mkdir(parents=True)
        (folder / "schedstat").write_text(f"9000000000 {waited} 12\n")
    (tmp_path / "proc/stat").write_text(
        "cpu  9 9 9 9 9 9 9 9 9 9\n"
        f"cpu{mine} 100 200 300 5000 70 40 60 80 0 0\n"
        f"cpu{other} 1000 0 0 0 0 0 0 1000 0 0\n"
        "intr 1 2 3\n"
    )
    (tmp_path / "proc/pressure").mkdir()
    (tmp_path / "proc/pressure/memory").write_text(
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    )
    ticks = os.sysconf("SC_CLK_TCK")
    found = look(tmp_path)
    assert found.waited_s == {"7": 1.5, "8": 0.25}
    assert (found.busy_s, found.stolen_s, found.stalled_s) == (700 / ticks, 80 / ticks, 2.5)


def test_a_system_that_tells_nothing_reports_nothing(tmp_path: Path) -> None:
    before = look(tmp_path)
    assert before.waited_s == {}
    assert disturbed_share(before, look(tmp_path)) == 0.0


def test_this_machine_is_read() -> None:
    before = look()
    sum(range(10**6))
    after = look()
    assert after.own_s > before.own_s
    assert 0 <= disturbed_share(before, after) <= 1
