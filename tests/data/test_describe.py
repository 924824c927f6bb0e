"""Describing a workload: rows are tokenized once, kept, sampled where they are many, and made anew when damaged."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autotune import cache
from autotune.core.recipe import Recipe
from autotune.core.workload import Workload
from autotune.data.describe import describe
from autotune.data.tokenization import TokenizationRequest, tokenize
from autotune.errors import AutotuneError, UsageError
from tests.data.test_tokenization import EXCHANGE, TEXT, TURNS, request_for, rows_in, write


def describe_file(home: Path, data: Path, lines: list[str] | None = None, **options: Any) -> Workload:
    return describe(
        model="tiny",
        data=str(data),
        columns={},
        recipe=options.pop("recipe", Recipe()),
        seed=options.pop("seed", 0),
        home=home,
        progress=(lines if lines is not None else []).append,
        **options,
    )


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[TokenizationRequest]:
    """Tokenize in this process, which has imported TRL already; gives the requests that were answered."""
    requests: list[TokenizationRequest] = []

    def here(request: TokenizationRequest, out: Path, progress: Any) -> None:
        requests.append(request)
        tokenize(request, out)

    monkeypatch.setattr("autotune.data.describe._tokenize_apart", here)
    return requests


def test_rows_are_tokenized_once(home: Path, tmp_path: Path, in_process: list[TokenizationRequest]) -> None:
    """The second description reads what the first kept; another option, or another letter, is tokenized anew."""
    data = write(tmp_path / "a.jsonl", [EXCHANGE, EXCHANGE])
    first, second = describe_file(home, data), describe_file(home, data)
    assert len(in_process) == 1
    assert second.data.tokenized_path == first.data.tokenized_path
    assert second.data.lengths.tokens.tolist() == first.data.lengths.tokens.tolist()
    assert (first.data.form, first.data.rows_in_file, first.data.coverage_error) == ("prompt_completion", 2, 0.0)
    everything = describe_file(home, data, recipe=Recipe(completion_only_loss=False))
    assert everything.data.lengths.labels.sum() > first.data.lengths.labels.sum()
    assert everything.data.fingerprint == first.data.fingerprint
    other = describe_file(home, write(data, [EXCHANGE]))
    assert len(in_process) == 3
    assert other.data.fingerprint != first.data.fingerprint


def test_damaged_rows_are_made_anew(home: Path, tmp_path: Path, in_process: list[TokenizationRequest]) -> None:
    """A cut Arrow file is noticed before a trial reads it."""
    data = write(tmp_path / "a.jsonl", [TEXT, {"text": "of milk"}])
    path = Path(describe_file(home, data).data.tokenized_path)
    (arrow,) = path.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-100])
    again = describe_file(home, data)
    assert len(in_process) == 2
    assert cache.is_whole(Path(again.data.tokenized_path).parent)
    assert len(rows_in(path.parent)) == 2


def test_many_rows_are_sampled(home: Path, tmp_path: Path, in_process: list[TokenizationRequest]) -> None:
    """The sample is seeded, holds the longest row, and its error is what the rows left out can make of the mean."""
    rows = [{"text": "cup of milk " * (1 + number % 7)} for number in range(300)] + [{"text": "milk " * 90}]
    data = write(tmp_path / "a.jsonl", rows)
    sampled = describe_file(home, data, most_rows=150).data
    assert (sampled.lengths.rows, sampled.rows_in_file) == (150, 301)
    assert describe_file(home, data, most_rows=150).data.tokenized_path == sampled.tokenized_path
    assert describe_file(home, data, most_rows=150, seed=1).data.tokenized_path != sampled.tokenized_path
    assert len(in_process) == 2
    whole = describe_file(home, data, most_rows=None).data
    assert (whole.lengths.rows, whole.coverage_error) == (301, 0.0)
    assert sampled.lengths.longest == whole.lengths.longest
    off = abs(sampled.lengths.tokens.mean() / whole.lengths.tokens.mean() - 1)
    assert 0.01 < sampled.coverage_error < 0.2
    assert off < 2 * sampled.coverage_error
    assert describe_file(home, data, most_rows=150).data.lengths.rows == 301  # all rows are there, so no sample is used


def test_tokenizing_apart_gives_the_same_and_is_quick_again(home: Path, tmp_path: Path) -> None:
    """In its own process, with progress; afterwards no library is imported, and it takes no second."""
    data = write(tmp_path / "a.jsonl", [{"messages": TURNS}, {"messages": TURNS[:2]}])
    lines: list[str] = []
    apart = describe_file(home, data, lines)
    assert "tokenizing 2 rows of a.jsonl" in lines
    found = request_for(apart.model, data)
    tokenize(found, tmp_path)
    assert rows_in(Path(apart.data.tokenized_path).parent) == rows_in(tmp_path)
    code = """
import sys, time
from pathlib import Path
from autotune.core.recipe import Recipe
from autotune.data.describe import describe
start = time.process_time()
describe(model="tiny", data=sys.argv[1], columns={}, recipe=Recipe(), seed=0, home=Path(sys.argv[2]), progress=print)
assert not {"torch", "transformers", "trl", "datasets"} & set(sys.modules)
assert time.process_time() - start < 1
"""
    done = subprocess.run([sys.executable, "-c", code, str(data), str(home)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_problems_come_back_from_the_other_process(tmp_path: Path) -> None:
    """What tokenization refuses is the same error here as there, and nothing is kept."""
    home = tmp_path / "home"
    with pytest.raises(UsageError, match=r"^recipe\.assistant_only_loss=true: a\.jsonl is text in strings"):
        describe_file(home, write(tmp_path / "a.jsonl", [TEXT]), recipe=Recipe(assistant_only_loss=True))
    assert list((home / "tokenized").iterdir()) == []


def test_a_process_that_dies_is_told_with_its_last_lines(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed or broken tokenization is no UsageError and no hang."""
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\necho 'out of luck' >&2\nexit 7\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(AutotuneError, match=r"tokenizing a.jsonl failed \(exit code 7\): out of luck"):
        describe_file(home, write(tmp_path / "a.jsonl", [{"text": "never seen before"}]))


def test_progress_is_read_off_the_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar becomes a line of text, once a second at most; a warning of TRL is passed on; other output is not."""
    from autotune.data import describe

    lines: list[str] = []
    output = describe._Output(lines.append)
    bar = "Tokenizing train dataset (num_proc=2):  12%|# | 12/1000 [00:00<?, ? examples/s]"
    output.read(bar)
    monkeypatch.setattr(describe, "PROGRESS_SECONDS", 0.0)
    for line in (bar, "some warning", "The tokenized prompt is not a prefix"):
        output.read(line)
    assert lines == ["tokenizing: 12 of 1,000 rows", "TRL warns: The tokenized prompt is not a prefix"]
