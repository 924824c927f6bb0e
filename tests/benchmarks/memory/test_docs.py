"""docs/memory.md: every command that it shows does what it says, on a model of one layer; its pictures are drawn."""

import importlib
import json
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from autotune.cli.main import main
from autotune.core.step.profile import Profile
from autotune.machine.installed import installed
from autotune.trace.profiles import MEMORY, STACK, Profiles
from benchmarks.memory import exact as memory_exact
from tests.benchmarks.memory.test_accuracy import ROW
from tests.core.step.test_profile import step
from tests.predict.test_estimate import CONFIG

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
SMALLER = {
    "model=qwen2_5_0_5b": "model=./one-layer",
    "recipe.method=full,lora": "recipe.method=full",  # a trace takes seconds
    "candidate.max_length=4,32,128,256,512,1024": "candidate.max_length=4,32,128,256,512",
}
POINT = {
    **ROW,
    "gpu": "A100-80GB",
    "peak_alloc_bytes": 2**25,
    "seq_len": 64,
    "quantization": "none",
    "framework": "manual loop",
    "kernels": "none",
    "versions": {"transformers": version("transformers")},
}


@pytest.fixture(autouse=True)
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the reader stands: with a model and measured rows of their own."""
    (tmp_path / "one-layer").mkdir()
    (tmp_path / "one-layer" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "models.json").write_text(json.dumps({"mine": CONFIG}))
    (tmp_path / "measured_points.jsonl").write_text(json.dumps(POINT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module behind `python -m MODULE ...`, with these words as its command line."""
    _, _, name, *options = words
    monkeypatch.setattr(sys, "argv", [name, *options])
    return importlib.import_module(name)


def test_the_document_shows_both_kinds_of_command() -> None:
    """What is tested below is not an empty list."""
    assert {shlex.split(line)[0] for line in LINES} == {"autotune", "python"}


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("autotune ")])
def test_an_estimate_of_the_document(line: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep ends well, with a row for each combination."""
    words = [SMALLER.get(word, word) for word in shlex.split(line)[1:]]
    assert main([*words, f"home={home}"]) == 0
    jobs = 1
    for word in words:
        jobs *= 1 + word.count(",")
    assert len(capsys.readouterr().out.splitlines()) == 1 + jobs


def rows_of(name: str, **wanted: Any) -> list[dict[str, Any]]:
    """The committed rows of a benchmark that have these values."""
    rows = [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row | row.get("errors", {}) for row in rows]
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


@pytest.mark.parametrize(
    ("label", "rows", "error"),
    [
        ("live bytes on the CPU", rows_of("memory_truth_cpu", format=MEMORY), "error"),
        ("half that was looked at", rows_of("memory_accuracy", half="tune", group="same stack"), "error"),
        ("blind half: the installed", rows_of("memory_accuracy", half="blind", group="same stack"), "error"),
        ("blind half: other versions", rows_of("memory_accuracy", half="blind", group="other stack"), "error"),
        ("blind half: fp16 with eager", rows_of("memory_accuracy", half="blind", group="eager"), "error"),
        ("peak reserved", rows_of("memory_accuracy"), "reserved_error"),
        ("peak of an evaluation", rows_of("memory_phases_cpu"), "evaluation"),
        ("of saving", rows_of("memory_phases_cpu"), "saving"),
        ("of loading", rows_of("memory_phases_cpu"), "loading"),
    ],
)
def test_the_table_of_errors_is_that_of_the_committed_rows(label: str, rows: list[dict[str, Any]], error: str) -> None:
    """Count, median, 95th percentile and largest, each to the digits that are shown."""
    [line] = [line for line in DOCUMENT.splitlines() if line.startswith("| ") and label in line]
    count, *shown = [cell.strip() for cell in line.strip("|").split("|")][2:]
    found = [100 * abs(row[error]) for row in rows if row[error] is not None]
    assert int(count) == len(found)
    for cell, value in zip(shown, (np.median(found), np.quantile(found, 0.95), max(found)), strict=True):
        digits = cell.removesuffix(" %")
        assert digits == f"{value:.{len(digits.partition('.')[2])}f}", line


def test_the_committed_rows_of_exactness_are_as_many_as_said_and_exact() -> None:
    """Of what the benchmark asks for, and of the traces of today."""
    rows = rows_of("memory_exact", format=MEMORY)
    assert f"{len(rows)} of its 660 rows" in DOCUMENT
    assert len(memory_exact.cases()) == 660
    assert all(memory_exact.is_exact(row) for row in rows)


def test_the_pictures_are_drawn_from_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each picture of the document is written, is well-formed and small, and shows what lives."""
    [line] = [shlex.split(line) for line in LINES if "memory.pictures" in line]
    pictures = program([*line, "--model", "one-layer"], monkeypatch)
    asked: list[Any] = []

    def load(profiles: Profiles, request: Any) -> Profile:
        asked.append(request)
        return step(1)

    monkeypatch.setattr(Profiles, "load", load)
    assert pictures.main() == 0
    shown = set(re.findall(r"\(memory/(\w+\.svg)\)", DOCUMENT))
    assert {path.name for path in (tmp_path / "docs" / "memory").iterdir()} == shown
    assert {request.candidate.method for request in asked} == {"full", "lora"}
    for name in shown:
        for path in (tmp_path / "docs" / "memory" / name, ROOT / "docs" / "memory" / name):
            assert path.stat().st_size < 100_000
            styles = [part.get("style", "") for part in ElementTree.parse(path).iter()]
            filled = [colour for style in styles for colour in pictures.BRIGHT if f"fill: {colour}" in style]
            assert set(filled) == set(pictures.BRIGHT)
            assert len(filled) > 6 + 3  # more than the legend: areas


def test_the_public_accuracy_is_that_of_the_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A measured row is predicted, and its error is counted in its group."""
    [line] = [shlex.split(line) for line in LINES if "memory.accuracy" in line]
    program(line, monkeypatch).main()
    found = json.loads(capsys.readouterr().out)
    [row] = found["rows"]
    assert row["error"] == row["predicted_allocated_bytes"] / row["measured_bytes"] - 1
    assert found["median_abs_error"] == abs(row["error"])
    assert list(found["groups"]) == [f"same stack {row['half']}"]


def test_the_accuracy_is_summed_up_from_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The truth on the CPU: median and largest error of the rows of these versions and this format of profiles."""
    [truth] = [shlex.split(line) for line in LINES if "memory.truth_cpu" in line]
    about = {"format": MEMORY, "versions": {name: installed().versions[name] for name in STACK}}
    rows = [{"case": number, "error": error, **about} for number, error in enumerate((-0.01, 0.03, 0.002))]
    rows += [{**rows[0], "error": 1.0, "format": MEMORY - 1}, {"case": 0, "error": 1.0, "versions": about["versions"]}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program([*truth, "--out", "rows.jsonl", "--models", "tiny", "--count", "0"], monkeypatch).main()
    found = json.loads(capsys.readouterr().out)
    assert (found["count"], found["median_abs_error"], found["max_abs_error"]) == (3, 0.01, 0.03)
