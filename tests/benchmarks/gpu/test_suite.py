"""benchmarks/gpu/suite.py without a GPU: the whole of it on tiny cases, and wrong input."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import suite
from benchmarks.gpu.cases import CPU_CASES
from benchmarks.gpu.parts import MEMORY, TIME
from benchmarks.rows import read


def test_the_whole_of_it_on_a_cpu(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tiny rows through the real trace and the real worker, predictions first, from the rates of another CPU.

    The parts differ in what they sum up.
    """
    hardware = tmp_path / "hardware.json"
    hardware.write_text(json.dumps(read(suite.RESULTS / "table_tiny-demo.jsonl")[0]["probed"]))
    paths = ["--hardware", str(hardware), "--out", str(tmp_path), "--home", str(home)]
    assert suite.main(["time", "--cpu", "--json", "--budget-s", "36000", *paths]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = read(tmp_path / TIME.file)
    assert [row["kind"] for row in rows] == ["prediction"] * 2 + ["measurement"] * 2
    assert [row["outcome"] for row in rows[2:]] == ["measured"] * 2, rows
    assert {row["name"] for row in rows[:2]} == {case.name for case in CPU_CASES}
    assert all(max(row["at"] for row in rows[:2]) <= row["at"] for row in rows[2:])
    assert all(row["measured"]["resident_bytes"] > 0 for row in rows[2:])
    assert all(row["errors"] == {"step_s": row["predicted"]["step_s"] / row["measured"]["step_s"] - 1}
               for row in rows[2:])  # fmt: skip
    assert result["rows"] == rows[2:]
    assert (result["count"], result["uncalibrated"]["count"]) == (2, 2)
    assert [result[each] for each in ("left", "untried", "not_predicted", "failed")] == [[]] * 4
    memory = MEMORY.summary(rows[2:])
    assert (memory["count"], memory["errors"]["allocated_bytes"]["count"], memory["failed"]) == (2, 0, [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("memory", "--every", "0"), "expected a number from 1"),
        (("time", "--cpu", "--hardware", "nowhere.json"), "nowhere.json: cannot be read"),
        (("search", "qwen"), "search: expected one of qwen_7b_lora"),
    ],
)
def test_wrong_input_is_refused(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With the exit code of the command line, and what is wrong on stderr."""
    try:
        code = suite.main(words)
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert said in err
