"""run.yaml: complete, and each value with its reason."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from autotune.core.candidate import Candidate
from autotune.search.run_file import reasons, run_document
from tests.search.examples import BASELINE, BEST, WINNER, findings


def test_it_holds_the_winner_and_what_was_asked_for(tmp_path: Path) -> None:
    """A run that reads it needs nothing else; the method and its learning rate are filled in."""
    document = yaml.safe_load(run_document(findings(tmp_path, request={"columns": {"question": "q"}})))
    assert Candidate(**document["candidate"]) == WINNER
    assert (document["recipe"]["method"], document["recipe"]["learning_rate"]) == ("full", 2e-5)
    assert document["data"] == {"path": "demo", "columns": {"question": "q"}}
    assert (document["seed"], document["device"], document["hardware"]) == (42, "cpu", {"device": "cpu"})


def test_it_says_the_split(tmp_path: Path) -> None:
    """Also the one that was chosen because none was asked for."""
    found = findings(tmp_path)
    workload = replace(found.workload, data=replace(found.workload.data, split="train"))
    document = yaml.safe_load(run_document(replace(found, workload=workload)))
    assert document["data"] == {"path": "demo", "split": "train"}


def test_the_answer_is_its_first_line(tmp_path: Path) -> None:
    """And every knob has its reason behind it."""
    text = run_document(findings(tmp_path))
    assert text.startswith("# model on data: 2.00 times TRL's defaults")
    knobs = text.split("candidate:")[1].strip().splitlines()[1:]
    assert all(line.split("  # ")[1].strip() for line in knobs)


def test_reasons_by_hand(tmp_path: Path) -> None:
    """What was measured beside the speed, what another value would bring, and what the baseline has."""
    found = reasons(findings(tmp_path, request={"fixed": {"optimizer": WINNER.optimizer}}))
    assert found["optimizer"] == "fixed by you"
    assert found["gradient_accumulation_steps"] == "8 rows a step, the samples that were asked for"
    assert found["checkpointing"] == (
        "peak of 1 GiB against 1 GiB in the baseline; +25% compared with the best candidate with full (predicted); the "
        "baseline has full"
    )
    assert found["attention"] == "as in the baseline"  # and not distinguishable from eager
    assert found["tuned_allocator"] == (
        "+33% compared with the best candidate with False (measured in trial 1); the baseline has False"
    )
    assert found["tf32"] == "as in the baseline"
    eager = replace(BASELINE, candidate=replace(BASELINE.candidate, attention="eager"))
    assert reasons(findings(tmp_path, baseline=eager))["attention"] == (
        "not distinguishable in speed from the best candidate with eager (predicted); the baseline has eager"
    )


@pytest.mark.parametrize(("name", "is_a_path"), [("demo", False), ("rows.jsonl", True), ("owner/data", False)])
def test_paths_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_a_path: bool
) -> None:
    """A file becomes absolute. A hub id does not, nor what ships with autotune, though a directory has its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "rows.jsonl").touch()
    document = yaml.safe_load(run_document(findings(tmp_path, request={"data": name})))
    assert document["data"]["path"] == (str(tmp_path / name) if is_a_path else name)


def test_packed_rows_hold_about_as_many_samples(tmp_path: Path) -> None:
    """Their number is the nearest integer, and the reason says so."""
    packed = replace(WINNER, batching="pack_bfd", packed_length=448)
    verdict = replace(findings(tmp_path).verdict, best=replace(BEST, candidate=packed))
    found = reasons(findings(tmp_path, verdict=verdict, receipts=(), baseline=BASELINE))
    assert found["gradient_accumulation_steps"] == "8 rows a step, about 8 samples"
