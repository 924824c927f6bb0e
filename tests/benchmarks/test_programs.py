"""benchmarks/README.md has a row for every program, and every program answers to --help, at its old path too."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PAGE = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
PROGRAMS = sorted(
    ".".join(path.relative_to(BENCHMARKS).with_suffix("").parts)
    for path in BENCHMARKS.glob("*/*.py")
    if "\nmain = command(" in path.read_text(encoding="utf-8")
)
ENTRIES = sorted(path.stem for path in BENCHMARKS.glob("*.py") if "import main\n" in path.read_text(encoding="utf-8"))


def test_the_page_has_a_row_for_every_program() -> None:
    """And none for a program that is gone; its command runs it, and its rows are kept under that name."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| `")]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    assert sorted(name for name, *_ in rows) == PROGRAMS
    for name, question, command, minutes, files in rows:
        assert question
        assert command.split()[:3] == ["python", "-m", f"benchmarks.{name}"]
        assert minutes[0].isdecimal()
        for file in re.findall(r"[\w*]+\.jsonl", files):
            assert name.startswith("gpu.") or list((BENCHMARKS / "results").glob(file)), file


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_answers_to_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It says its own command and has --json."""
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert f"python -m benchmarks.{name}" in shown
    assert "--json" in shown


def test_old_paths_are_entries_to_programs() -> None:
    """All are alike but for the program, and the page names them."""
    texts = {(BENCHMARKS / f"{name}.py").read_text(encoding="utf-8") for name in ENTRIES}
    programs = {re.findall(r"from benchmarks\.(\S+) import main", text)[0] for text in texts}
    assert programs <= set(PROGRAMS)
    assert len({re.sub(r"benchmarks\.[\w.]+", "", text) for text in texts}) == 1
    assert all(f"`{name}.py`" in PAGE or f"`benchmarks/{name}.py`" in PAGE for name in ENTRIES)


def test_an_old_path_works_from_any_directory(tmp_path: Path) -> None:
    """A script is found by its path, and finds its package."""
    words = ["--summary", str(BENCHMARKS / "results" / "table_tiny-demo.jsonl"), "--json"]
    command = [sys.executable, str(BENCHMARKS / "record_table.py"), *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert '"name": "tiny-demo"' in done.stdout
