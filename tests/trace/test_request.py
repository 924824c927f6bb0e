"""What to trace: candidates that differ in what no trace depends on have one request, and all others their own."""

from dataclasses import replace
from typing import Any

import pytest

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.knobs import KNOBS, knobs_that_change
from autotune.core.recipe import Recipe
from autotune.trace.profiles import describe_request, key_of
from autotune.trace.request import TraceRequest, kind_in_words, reduced, request_of
from tests.core.test_candidate import OTHER_VALUES

CANDIDATE = Candidate(max_length=300, per_device_train_batch_size=4, gradient_accumulation_steps=3, method="lora")
STEP = replace(CANDIDATE, method="full")
REQUEST = TraceRequest(config={"model_type": "llama"}, candidate=CANDIDATE, recipe=Recipe(method="lora"), masked=True)


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
def test_a_kind_of_step_names_every_traced_knob(knob: str) -> None:
    """Two traces that are made are announced in two ways."""
    one, other = (
        kind_in_words(reduced(replace(REQUEST, candidate=replace(STEP, **{knob: value}))))
        for value in (getattr(STEP, knob), OTHER_VALUES[knob])
    )
    assert one != other


def test_the_recipe_counts_as_far_as_it_is_traced() -> None:
    """The rank counts under adapters; the learning rate and the batch never do."""

    def of(**recipe: Any) -> str:
        return key(replace(REQUEST, recipe=Recipe(method="lora", **recipe)))

    assert of() == of(learning_rate=1e-3, effective_batch_size=64, lora_alpha=8)
    assert len({of(), of(lora_rank=4), of(lora_target_modules=("q_proj",)), of(lora_dropout=0.1)}) == 4


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
