"""Kept profiles: what is traced once, what is made anew, and what cannot be traced."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core.candidate import Candidate
from autotune.core.recipe import Recipe
from autotune.core.step.profile import Profile
from autotune.errors import NotPredicted
from autotune.trace.profiles import Profiles
from autotune.trace.request import TraceRequest, reduced
from tests.core.step.test_profile import step

CANDIDATE = Candidate(max_length=300, per_device_train_batch_size=4, gradient_accumulation_steps=3, method="lora")
REQUEST = TraceRequest(config={"model_type": "llama"}, candidate=CANDIDATE, recipe=Recipe(method="lora"), masked=True)
REDUCED = reduced(REQUEST)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is traced: noted, and answered at once."""
    requests: list[Any] = []

    def trace_apart(asked: Any) -> Profile:
        requests.append(asked)
        return step(5)

    monkeypatch.setattr("autotune.trace.profiles.trace_apart", trace_apart)
    return requests


def test_a_profile_is_traced_once_and_as_it_is_keyed(traced: list[Any], tmp_path: Path) -> None:
    """The second request with the same key is answered from the file."""
    first = Profiles(home=tmp_path, progress=lambda line: None).load(REDUCED)
    other = replace(REQUEST, candidate=replace(CANDIDATE, max_length=99))
    assert Profiles(home=tmp_path, progress=lambda line: None).load(reduced(other)) == first == step(5)
    assert traced == [REDUCED]


@pytest.mark.parametrize("content", ["", "[]", '{"question": 1, "answer": 2}', "no profile"])
def test_a_file_that_is_not_ours_is_made_anew(traced: list[Any], tmp_path: Path, content: str) -> None:
    """Silently for the result, but said: cut short, foreign, of another question, or with another answer."""
    Profiles(home=tmp_path, progress=lambda line: None).load(REDUCED)
    [path] = (tmp_path / "profiles").iterdir()
    if content == "no profile":
        content = json.dumps({**json.loads(path.read_text()), "answer": {"layers": 5}})
    path.write_text(content)
    said: list[str] = []
    assert Profiles(home=tmp_path, progress=said.append).load(REDUCED) == step(5)
    assert len(traced) == 2
    assert "made anew" in said[0]
    assert Profiles(home=tmp_path, progress=said.append).load(REDUCED) == step(5)
    assert len(traced) == 2


def test_what_is_missing_is_traced_together(traced: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is in the cache is not traced again; of what is not traced then, the reason."""
    requests = [reduced(replace(REQUEST, candidate=replace(CANDIDATE, checkpointing=c))) for c in ("off", "full")]
    late, broken = (reduced(replace(REQUEST, masked=False, loss=loss)) for loss in ("fused", "full_logits"))
    many: list[Any] = []

    def trace_many(asked: Any, *, until: float, processes: int) -> Iterator[Any]:
        many.extend(asked)
        yield from [step(7), None, NotPredicted("CheckpointError: they differ\n  - ...")]

    monkeypatch.setattr("autotune.trace.profiles.trace_many", trace_many)
    said: list[str] = []
    here: dict[str, Any] = {"home": tmp_path, "progress": said.append}
    Profiles(**here).load(requests[0])
    failed = Profiles(**here).trace_missing([*requests, late, broken], until=9.0, processes=2)
    assert [each.candidate.checkpointing for each in many] == ["full", "off", "off"]
    assert Profiles(**here).load(requests[1]) == step(7)
    assert {request: str(why).rpartition(": ")[2] for request, why in failed.items()} == {
        late: "no time was left to trace all kinds of steps",
        broken: "they differ",
    }
    assert said[1:] == ["tracing 3 kinds of training steps; this is done once"]


def test_what_cannot_be_traced_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever a library's error goes on to explain to its own users."""

    def fail(asked: Any) -> Profile:
        raise NotPredicted("CheckpointError: recomputed values differ\nTo fix this, either:\n  - ...")

    monkeypatch.setattr("autotune.trace.profiles.trace_apart", fail)
    with pytest.raises(NotPredicted) as refused:
        Profiles(home=tmp_path, progress=lambda line: None).load(REDUCED)
    assert str(refused.value).endswith("cannot be traced: CheckpointError: recomputed values differ")
