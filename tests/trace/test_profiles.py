"""Kept profiles: what has one key, what is made anew, and that the reduced request is what is traced."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.knobs import KNOBS, knobs_that_change
from autotune.core.recipe import Recipe
from autotune.core.step.profile import Profile
from autotune.errors import NotPredicted
from autotune.trace.profiles import Profiles, describe_request, key_of
from autotune.trace.request import TraceRequest, reduced, request_of
from tests.core.step.test_profile import step
from tests.core.test_candidate import OTHER_VALUES

CANDIDATE = Candidate(max_length=300, per_device_train_batch_size=4, gradient_accumulation_steps=3, method="lora")
STEP = replace(CANDIDATE, method="full")
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


def key(request: TraceRequest, **knobs: Any) -> str:
    return key_of(describe_request(reduced(replace(request, candidate=replace(CANDIDATE, **knobs)))))


@pytest.mark.parametrize("knob", [knob for knob in KNOBS if knob != "batching"])
def test_a_traced_knob_has_a_profile_for_each_value(knob: str) -> None:
    """Two values have two profiles where the table of knobs says that they change the trace, and else one.

    That the table is right about it is tested in test_trace.py, by tracing.
    """
    one, other = (key(REQUEST, **{knob: value}) for value in (getattr(STEP, knob), OTHER_VALUES[knob]))
    assert (one != other) is (knob in knobs_that_change("trace"))


@pytest.mark.parametrize(
    ("knobs", "same"),
    [
        ({"per_device_train_batch_size": 2}, True),
        ({"gradient_accumulation_steps": 2}, True),
        ({"batching": "group_by_length"}, True),
        ({"per_device_train_batch_size": 1}, False),
        ({"gradient_accumulation_steps": 1}, False),
        ({"batching": "pack_bfd", "packed_length": 300}, False),
    ],
)
def test_what_a_trace_knows_of_the_batch(knobs: dict[str, Any], same: bool) -> None:
    """One row or several, one micro-step or several, packed or not."""
    assert (key(REQUEST) == key(REQUEST, **knobs)) is same


@pytest.mark.parametrize("knob", knobs_that_change("trace"))
def test_a_kind_of_step_names_every_traced_knob(knob: str, traced: list[Any], tmp_path: Path) -> None:
    """Two traces that are made are announced in two ways."""
    said: list[str] = []
    for value in (getattr(STEP, knob), OTHER_VALUES[knob]):
        request = replace(REQUEST, candidate=replace(STEP, **{knob: value}))
        Profiles(home=tmp_path, progress=said.append).load(request)
    assert len(set(said)) == 2


def test_the_recipe_counts_as_far_as_it_is_traced() -> None:
    """The rank counts under adapters; the learning rate and the batch never do."""

    def of(**recipe: Any) -> str:
        return key(replace(REQUEST, recipe=Recipe(method="lora", **recipe)))

    assert of() == of(learning_rate=1e-3, effective_batch_size=64, lora_alpha=8)
    assert len({of(), of(lora_rank=4), of(lora_target_modules=("q_proj",)), of(lora_dropout=0.1)}) == 4


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


def test_kinds_of_gpus_are_those_that_the_trace_tells_apart() -> None:
    """Without flash attention, with it in little shared memory, with it, and where cuDNN's goes first."""
    kinds = {
        (7, 5): [(7, 0), (7, 5)],
        (8, 6): [(8, 6), (8, 9), (12, 0)],
        (8, 0): [(8, 0), (11, 0)],
        (9, 0): [(9, 0)],
        (10, 0): [(10, 0), (10, 3)],
    }
    for kind, capabilities in kinds.items():
        for capability in capabilities:
            assert reduced(replace(REQUEST, capability=capability)).capability == kind


def asked_for(batch: Batch, *, masked: bool) -> TraceRequest:
    """What a micro-batch asks of a trace, of a model with a window of 512 on a Hopper."""
    return request_of(
        batch,
        CANDIDATE,
        config=REQUEST.config,
        recipe=REQUEST.recipe,
        window=512,
        masked=masked,
        loss="fused",
        capability=(9, 0),
    )


@pytest.mark.parametrize(
    ("batch", "tiled", "ragged", "beyond"),
    [
        (Batch(rows=4, positions=64, labels=252), False, False, False),
        (Batch(rows=4, positions=2048, labels=4096), False, False, True),
        (Batch(rows=4, positions=2048, labels=4097), True, False, True),
        (Batch(rows=4, positions=100, labels=396), False, True, False),
    ],
)
def test_a_micro_batch_comes_under_the_request_of_its_regime(
    batch: Batch, tiled: bool, ragged: bool, beyond: bool
) -> None:
    """Its labels, length and window decide; what no trace depends on is gone already."""
    found = asked_for(batch, masked=True)
    wanted = replace(REQUEST, tiled=tiled, ragged=ragged, beyond_window=beyond, capability=(9, 0))
    assert found == reduced(wanted)
    assert (found.tiled, found.ragged, found.beyond_window) == (tiled, ragged, beyond)


@pytest.mark.parametrize(("positions", "ragged"), [(777, True), (768, False), (100, False)])
def test_a_window_s_mask_is_a_mask(positions: int, ragged: bool) -> None:
    """Beyond the window there is one without padding, too; where its length is odd CUDA copies it into a padded one."""
    batch = Batch(rows=4, positions=positions, labels=64)
    found = asked_for(batch, masked=False)
    assert found.ragged == ragged
