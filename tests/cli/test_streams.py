"""The standard streams as they really are: other encodings, readers that leave, streams that are closed or full."""

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from autotune.cli import streams

# `autotune probe` with an answer of its own, which is as many lines as its word says.
PRINTS = """
import sys
from autotune.cli import application
from autotune.cli.main import main

count = int(sys.argv[1])
LINE = "260 GFLOP/s \\u00b17% \\u2588\\u4e2d"
application.JOBS = {"probe": lambda settings, job: "\\n".join([LINE] * count)}
sys.exit(main(["probe"]))
"""


def started(lines: int, variables: Mapping[str, str] | None = None, **keywords: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", PRINTS, str(lines)]
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONIOENCODING"}
    return subprocess.Popen(command, env={**environ, **(variables or {})}, stderr=subprocess.PIPE, **keywords)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"PYTHONIOENCODING": "ascii"}, b"260 GFLOP/s +-7% #?\n"),
        ({"PYTHONIOENCODING": "latin-1"}, b"260 GFLOP/s \xb17% #?\n"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"260 GFLOP/s +-7% #?\n"),
        ({"PYTHONIOENCODING": "utf-8", "TERM": "dumb"}, "260 GFLOP/s ±7% █中\n".encode()),
    ],
)
def test_the_answer_comes_in_any_encoding(variables: Mapping[str, str], said: bytes) -> None:
    """What an encoding lacks is replaced by something plain."""
    with started(1, variables, stdout=subprocess.PIPE) as process:
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, said, b"")


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_may_leave(lines: int) -> None:
    """As `head` does: the exit code is that of SIGPIPE, and nothing is said."""
    reading, writing = os.pipe()
    os.close(reading)
    with started(lines, stdout=writing) as process:
        os.close(writing)
        assert (process.communicate()[1], process.returncode) == (b"", 141)


def test_a_full_disk_behind_stdout_is_told() -> None:
    """The answer is lost, and the exit code says so."""
    with open("/dev/full", "wb") as full, started(1, stdout=full) as process:
        said = process.communicate()[1]
    assert process.returncode == 1
    assert said == b"autotune: stdout: the answer cannot be written (No space left on device)\n"


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_a_stream_may_be_closed(closed: str, tmp_path: Path) -> None:
    """No file that is opened later gets its place, so that nothing is written into it."""
    command = f'"$0" -c "$1" 1 {closed} > {tmp_path}/out'
    done = subprocess.run(["bash", "-c", command, sys.executable, PRINTS])
    assert (done.returncode, (tmp_path / "out").read_text()) == (0, "260 GFLOP/s ±7% █中\n")


def test_preparing_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests and notebooks call the command line in a process whose streams are not the usual ones."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    for _ in range(2):
        streams.prepare()
    print("±")
    assert sys.stdout.getvalue() == "±\n"  # type: ignore[attr-defined]
