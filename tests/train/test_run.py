"""The run: the real trainer to the end, its record, and going on after a stop."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from autotune.core.candidate import Candidate
from autotune.core.recipe import Recipe
from autotune.core.workload import Workload
from autotune.errors import TrainingFailed, UsageError
from autotune.train.display import RunDisplay
from autotune.train.run import RunRequest, run, summary_lines, workload_of
from autotune.train.task import last_checkpoint
from tests.search.test_search import HARDWARE


@pytest.fixture
def request_(home: Path, candidate: Candidate, tmp_path: Path) -> RunRequest:
    """Ten optimizer steps of `tiny` on the demo data."""
    return RunRequest(
        model="tiny",
        data="demo",
        columns={},
        recipe=Recipe(effective_batch_size=8, max_steps=10, learning_rate=1e-3, warmup_ratio=0.0),
        candidate=candidate,
        seed=42,
        out=tmp_path / "run",
        home=home,
        overrides=("recipe.max_steps=10",),
    )


class StopsAfter(RunDisplay):
    """A display that interrupts the run, as Ctrl-C would, once a checkpoint was saved behind `step`."""

    def __init__(self, step: int) -> None:
        super().__init__(Console(quiet=True))
        self.step = step

    def event(self, event) -> None:  # type: ignore[no-untyped-def]
        super().event(event)
        if event["event"] == "saved" and event["global_step"] >= self.step:
            raise KeyboardInterrupt


def trained(request: RunRequest, display: RunDisplay | None = None) -> dict[str, Any]:
    """Run on a CPU, by default showing nothing."""
    display = display or RunDisplay(Console(quiet=True))
    return run(request, workload_of(request, progress=display.line), HARDWARE, display=display)


def test_a_run_for_another_device_is_refused(request_: RunRequest, workload: Workload) -> None:
    """What was found on CUDA does not run on a CPU by accident."""
    cuda = replace(request_, device="cuda")
    with pytest.raises(UsageError, match=r"device=cuda: .* run it all the same with device=cpu"):
        run(cuda, workload, HARDWARE, display=RunDisplay(Console(quiet=True)))


def test_a_run_trains_and_leaves_its_record(request_: RunRequest) -> None:
    """The loss falls, weights and run.json are there, and the record says what the command line overrode."""
    document = trained(request_)
    assert document["finished"]
    assert document["steps"] == 10
    assert document["loss_at_end"] < document["loss_at_start"]
    assert document["overrides"] == ["recipe.max_steps=10"]
    assert json.loads((request_.out / "run.json").read_text()) == json.loads(json.dumps(document))
    assert (request_.out / "model.safetensors").exists()
    assert any("optimizer steps" in line for line in summary_lines(document))
    with pytest.raises(UsageError, match="finished"):
        trained(request_)


def test_what_the_cut_takes_away_is_said_before_training(request_: RunRequest, tmp_path: Path) -> None:
    """With counts; where no label is left, the run is refused before anything is probed."""
    rows = [{"prompt": "cup of milk " * times, "completion": "240 g."} for times in (1, 1, 40)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines: list[str] = []
    short = replace(request_, data=str(data), candidate=replace(request_.candidate, max_length=32))
    workload_of(short, progress=lines.append)
    assert "max_length=32 cuts 1 of 3 rows" in lines[-1]
    assert lines[-1].endswith("left out, because no label of them remains: 1 row")
    none_left = replace(short, candidate=replace(request_.candidate, max_length=2))
    with pytest.raises(UsageError, match=r"candidate\.max_length=2: no row of rows\.jsonl has a label within"):
        workload_of(none_left, progress=lines.append)


def test_a_run_with_nothing_left_to_train_has_no_rate() -> None:
    """It was stopped after its last checkpoint, before its record was written."""
    outcome = {"useful_tokens_per_s": 0.0, "peak_bytes": 2**30, "wall_s": 20.0}
    document = {"outcome": outcome, "loss_at_start": 3.0, "loss_at_end": 2.0, "steps": 10, "out": "run"}
    assert summary_lines(document)[1] == "no step was left to train, peak of 1 GiB, 20.0 s in all"


def test_a_stopped_run_goes_on_from_its_last_checkpoint(request_: RunRequest) -> None:
    """After Ctrl-C the same command trains only the steps that were missing."""
    with pytest.raises(KeyboardInterrupt):
        trained(request_, StopsAfter(4))
    display = RunDisplay(Console(quiet=True))
    document = trained(request_, display)
    assert document["finished"]
    assert len(display.steps) < document["steps"] == 10
    with pytest.raises(UsageError, match="seed"):
        trained(replace(request_, seed=43))


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(request_: RunRequest) -> None:
    """A kill while saving leaves one without Trainer's state; the run goes on from the one before."""
    with pytest.raises(KeyboardInterrupt):
        trained(request_, StopsAfter(4))
    whole = last_checkpoint(request_.out)
    (request_.out / "checkpoint-9").mkdir()
    assert last_checkpoint(request_.out) == whole
    assert trained(request_)["finished"]


def test_a_run_that_was_killed_after_its_last_checkpoint_can_finish(request_: RunRequest) -> None:
    """Nothing is left to train, and the record is still to be written."""
    first = trained(request_)
    (request_.out / "run.json").unlink()
    again = trained(request_)
    assert again["finished"]
    assert (again["steps"], again["loss_at_end"]) == (first["steps"], first["loss_at_end"])


def test_a_run_that_fails_says_why_and_records_it(request_: RunRequest) -> None:
    """A loss that is not finite ends the run with what to try; run.json keeps the outcome."""
    wild = replace(request_, recipe=replace(request_.recipe, learning_rate=1e30, max_grad_norm=0.0))
    with pytest.raises(TrainingFailed, match="learning_rate"):
        trained(wild)
    document = json.loads((request_.out / "run.json").read_text())
    assert not document["finished"]
    assert document["outcome"]["kind"] == "diverged"
