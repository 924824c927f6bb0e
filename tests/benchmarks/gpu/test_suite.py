"""benchmarks/gpu/suite.py without a GPU: the whole of it on tiny cases, and wrong input."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import suite
from benchmarks.gpu.cases import CPU_CASES
from benchmarks.gpu.measure import FILE
from benchmarks.machines import plain_cpu
from benchmarks.rows import read


def test_the_whole_of_it_on_a_cpu(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tiny rows through the real trace and the real worker, predictions first, from the rates of another CPU."""
    hardware = tmp_path / "hardware.json"
    hardware.write_text(json.dumps(read(suite.RESULTS / "table_tiny-demo.jsonl")[0]["probed"]))
    paths = ["--hardware", str(hardware), "--out", str(tmp_path), "--home", str(home)]
    assert suite.main(["steps", "--cpu", "--json", "--budget-s", "36000", *paths]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = read(tmp_path / FILE)
    assert [row["kind"] for row in rows] == ["prediction"] * 2 + ["measurement"] * 2
    assert [row["outcome"] for row in rows[2:]] == ["measured"] * 2, rows
    assert {row["name"] for row in rows[:2]} == {case.name for case in CPU_CASES}
    assert all(max(row["at"] for row in rows[:2]) <= row["at"] for row in rows[2:])
    assert all(row["measured"]["resident_bytes"] > 0 for row in rows[2:])
    assert all(row["errors"] == {"step_s": row["predicted"]["step_s"] / row["measured"]["step_s"] - 1}
               for row in rows[2:])  # fmt: skip
    assert result["rows"] == rows[2:]
    assert (result["count"], result["time"]["uncalibrated"]["count"], result["memory"]["allocated_bytes"]["count"]) == (
        2,
        2,
        0,
    )
    assert [result[each] for each in ("left", "untried", "missed", "failed")] == [[]] * 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("steps", "--every", "0"), "expected a number from 1"),
        (("steps", "--cpu", "--hardware", "nowhere.json"), "nowhere.json: cannot be read"),
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


def test_a_machine_without_a_gpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is predicted for it."""
    monkeypatch.setattr(suite, "probe", lambda **_: plain_cpu())
    assert suite.main(["steps", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "steps needs a CUDA GPU; --cpu tries two tiny cases without one\n"
