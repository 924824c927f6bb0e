"""The record of a search survives everything that stops one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.candidate import Candidate
from autotune.core.outcome import OutOfMemory
from autotune.errors import UsageError
from autotune.search.journal import Journal
from tests.stand_ins import measured

CANDIDATE = Candidate(max_length=64, per_device_train_batch_size=1, gradient_accumulation_steps=1, method="full")
IDENTITY = {"model": "m", "data": "d", "fixed": {"method": "full"}}


def test_what_ended_is_read_back_as_it_was(tmp_path: Path) -> None:
    """Candidates, outcomes, roles and numbers come back equal; the next trial goes on counting."""
    journal = Journal(tmp_path, IDENTITY)
    journal.end(journal.begin(CANDIDATE, "baseline"), measured())
    no_memory = OutOfMemory(message="no", peak_bytes=3, wall_s=2.0)
    journal.end(journal.begin(replace(CANDIDATE, attention="eager"), "repeat", of=0, round=1), no_memory)
    written = list(journal.trials)
    journal.close()
    again = Journal(tmp_path, IDENTITY)
    assert again.trials == written
    assert again.spent_s == 3.0
    assert again.begin(CANDIDATE, "search") == 2
    again.close()


def test_the_time_of_all_sittings_is_kept(tmp_path: Path) -> None:
    """With what they took beside trials; the trials alone where they did not say."""
    journal = Journal(tmp_path, IDENTITY)
    journal.end(journal.begin(CANDIDATE, "baseline"), measured())
    journal.spend(0.5)
    assert journal.spent_s == 1.0
    journal.spend(20.0)
    journal.close()
    again = Journal(tmp_path, IDENTITY)
    assert again.spent_s == 20.0
    again.close()


def test_a_trial_that_never_ended_is_cleared_away(tmp_path: Path) -> None:
    """A kill between begin and end leaves a folder that says nothing about its candidate."""
    journal = Journal(tmp_path, IDENTITY)
    journal.begin(CANDIDATE, "baseline")
    journal.close()
    again = Journal(tmp_path, IDENTITY)
    assert again.trials == []
    assert not again.folder(0).exists()
    again.close()


def test_another_model_or_data_is_refused_with_everything_that_differs(tmp_path: Path) -> None:
    """One search, one directory; each difference is a line with both values."""
    Journal(tmp_path, IDENTITY).close()
    with pytest.raises(UsageError) as error:
        Journal(tmp_path, {**IDENTITY, "model": "other", "data": "other"})
    assert [problem.split("with another ")[1].split()[0] for problem in error.value.problems] == ["model", "data"]


def test_two_searches_do_not_share_a_directory(tmp_path: Path) -> None:
    """The second is told so, and gets in once the first is done."""
    first = Journal(tmp_path, IDENTITY)
    with pytest.raises(UsageError, match="another process is writing"):
        Journal(tmp_path, IDENTITY)
    first.close()
    Journal(tmp_path, IDENTITY).close()


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A file that somebody changed is never taken for a measurement. The directory is free again at once."""
    journal = Journal(tmp_path, IDENTITY)
    journal.end(journal.begin(CANDIDATE, "baseline"), measured())
    journal.close()
    file = journal.folder(0) / "outcome.json"
    file.write_text(json.dumps({"kind": "measured"}))
    with pytest.raises(UsageError, match="0000") as error:  # which keeps the journal alive, and a lock that it holds
        Journal(tmp_path, IDENTITY)
    shutil.rmtree(journal.folder(0))
    Journal(tmp_path, IDENTITY).close()
    assert error.value.problems
