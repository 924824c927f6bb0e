"""Saving, judged from the files: what would fail at the first checkpoint is refused before a probe."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune.core.workload import ModelFacts
from autotune.errors import UsageError
from autotune.models.find import resolve_model
from autotune.models.savable import check_generation, check_room


@pytest.fixture
def facts(home: Path, tmp_path: Path) -> ModelFacts:
    """`tiny`, in a directory that a test may change."""
    tiny = resolve_model("tiny", home=home, progress=lambda line: None)
    return replace(tiny, path=str(shutil.copytree(tiny.path, tmp_path / "model")))


def write(facts: ModelFacts, **values: Any) -> None:
    (Path(facts.path) / "generation_config.json").write_text(json.dumps(values))


def test_sampling_values_that_cannot_be_saved_are_refused(facts: ModelFacts) -> None:
    """As Llama 2 shipped them, without a pad token; TRL sets one, and then transformers refuses to save the rest."""
    write(facts, eos_token_id=2, temperature=0.9)
    with pytest.raises(UsageError, match=r"refuse to save .*temperature.*mend the file, or remove it"):
        check_generation(facts)
    write(facts, eos_token_id=2, temperature=0.9, do_sample=True)
    check_generation(facts)


def test_a_file_that_is_no_json_is_refused(facts: ModelFacts) -> None:
    """Whatever the library raises over it."""
    (Path(facts.path) / "generation_config.json").write_text("{")
    with pytest.raises(UsageError, match="generation_config"):
        check_generation(facts)


def test_a_disk_without_room_for_a_checkpoint_is_refused(
    facts: ModelFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four bytes for each weight are the least; the directory itself need not exist yet."""
    free = {"bytes": 4 * facts.parameters - 1}
    monkeypatch.setattr("autotune.models.savable.shutil.disk_usage", lambda place: SimpleNamespace(free=free["bytes"]))
    with pytest.raises(UsageError, match="a checkpoint needs at least"):
        check_room(facts, tmp_path / "runs" / "mine")
    free["bytes"] += 1
    check_room(facts, tmp_path / "runs" / "mine")
