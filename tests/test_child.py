"""A child: it answers, and whatever happens to it or to its parent, nothing is left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from autotune import child
from autotune.child import Unanswered, ask
from autotune.errors import UsageError

PATIENCE_S = 60.0


def double(number: int, *, progress: Callable[[str], None]) -> int:
    print("a library talks")
    progress("half way")
    return 2 * number


def refuse() -> None:
    raise UsageError("first: wrong", "second: wrong, too")


def fail() -> None:
    print("\r 10%|#", end="")
    print("\na warning", file=sys.stderr)
    raise ValueError("no such kernel")


def leave(code: int) -> None:
    sys.stderr.write("the end\n")
    sys.stderr.flush()
    os._exit(code)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang(begun: str | None = None, *, progress: Callable[[str], None] = print) -> None:
    """Start another process, say so, and never end."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    progress(str(other.pid))
    if begun is not None:
        Path(begun).write_text(f"{os.getpid()} {other.pid}")
    time.sleep(600)


def answer_and_stay() -> str:
    """Answer, but leave a process behind that holds the pipes."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    return "answered"


def children() -> list[int]:
    return [process.pid for process in psutil.Process().children(recursive=True)]


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def test_an_answer_comes_back() -> None:
    """With progress on its way and the output beside it; the child is gone afterwards."""
    before, lines, output = children(), [], []
    assert ask(double, 21, progress=lines.append, on_output=output.append) == 42
    assert (lines, output) == (["half way"], ["a library talks"])
    assert children() == before


def test_a_variable_is_the_child_s_alone() -> None:
    """It is set before the child starts, and not here."""
    assert ask(os.getenv, "AUTOTUNE_TEST", variables={"AUTOTUNE_TEST": "x"}) == "x"
    assert "AUTOTUNE_TEST" not in os.environ


def test_an_error_of_ours_comes_back_whole() -> None:
    """The same type, with every problem of its own."""
    with pytest.raises(UsageError) as error:
        ask(refuse)
    assert error.value.problems == ("first: wrong", "second: wrong, too")


def test_what_fails_says_why() -> None:
    """The exception in a line, and the last lines of output without bars."""
    with pytest.raises(Unanswered) as error:
        ask(fail)
    assert (error.value.reason, error.value.timed_out, error.value.code) == ("ValueError: no such kernel", False, 1)
    assert error.value.last_lines[0] == "a warning"
    assert error.value.last_lines[-1] == "ValueError: no such kernel"


@pytest.mark.parametrize(
    ("function", "arguments", "code", "lines"), [(leave, (7,), 7, ("the end",)), (be_killed, (), -9, ())]
)
def test_a_child_that_dies(function: Callable[..., Any], arguments: tuple[Any, ...], code: int, lines: Any) -> None:
    """Its exit code and its last words are all there is."""
    with pytest.raises(Unanswered) as error:
        ask(function, *arguments)
    assert (error.value.reason, error.value.timed_out) == (None, False)
    assert (error.value.code, error.value.last_lines) == (code, lines)


def test_a_child_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that ends before it listens is no hang, however long the question is."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'out of luck'\nexit 7\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(Unanswered) as error:
        ask(len, b"x" * 2**24)
    assert (error.value.code, error.value.last_lines) == (7, ("out of luck",))


def test_a_child_that_hangs_is_ended() -> None:
    """In time, and with what it started."""
    before, lines = children(), []
    started = time.monotonic()
    with pytest.raises(Unanswered) as error:
        ask(hang, progress=lines.append, limit_s=3.0)
    assert error.value.timed_out
    assert time.monotonic() - started < 30
    assert children() == before
    wait_for(lambda: is_gone(int(lines[0])))


def test_what_a_child_leaves_behind_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it has answered; the answer does not wait for it."""
    monkeypatch.setattr(child, "POLL_S", 0.1)
    before = children()
    started = time.monotonic()
    assert ask(answer_and_stay) == "answered"
    assert time.monotonic() - started < child.GOODBYE_S
    assert children() == before


def test_ctrl_c_ends_the_child() -> None:
    """Whatever is raised here while it works: it is gone before the exception goes on."""
    before, lines = children(), []

    def interrupt(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(hang, progress=interrupt)
    assert children() == before
    wait_for(lambda: is_gone(int(lines[0])))


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """Also when the parent is killed, which runs no clean-up; and with it what the child started."""
    begun = tmp_path / "begun"
    code = f"from autotune.child import ask; from tests.test_child import hang; ask(hang, {str(begun)!r})"
    root = str(Path(__file__).parents[1])
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root})
    pids = wait_for(lambda: begun.exists() and begun.read_text().split())
    parent.kill()
    parent.wait()
    for pid in pids:
        wait_for(lambda pid=int(pid): is_gone(pid))
