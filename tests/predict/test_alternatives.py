"""What is suggested where a candidate does not fit: legal, as it would be typed, with as many samples a step."""

from dataclasses import replace
from typing import Any

import pytest

from autotune.core.candidate import Candidate
from autotune.core.memory.estimate import Demand, MemoryEstimate
from autotune.core.memory.law import Peak
from autotune.core.space.context import Context
from autotune.predict.alternatives import Alternatives, Suggestion
from autotune.predict.completion import broken_rules
from autotune.predict.memory import MemoryPredictor, WorstStep
from tests import stand_ins
from tests.core.examples import A100, RICH, candidate, workload

SIXTEEN = candidate(per_device_train_batch_size=16, gradient_accumulation_steps=1)


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
    """Candidates whose estimate was asked for: none of them fits, and nothing is traced."""
    asked: list[Candidate] = []

    def estimate(predictor: MemoryPredictor, step: WorstStep) -> MemoryEstimate:
        asked.append(step.candidate)
        return too_much(predictor)

    untraced(monkeypatch)
    monkeypatch.setattr(MemoryPredictor, "estimate", estimate)
    return asked


def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace nothing: only the estimate counts here."""
    peak = Peak(bytes=0, phase="backward", op="mm", items={})
    monkeypatch.setattr(
        MemoryPredictor, "worst_step", lambda predictor, candidate: stand_ins.worst_step(candidate, peak, 0)
    )


def too_much(predictor: MemoryPredictor) -> MemoryEstimate:
    peak = Peak(bytes=2**50, phase="backward", op="mm", items={})
    return MemoryEstimate(
        demand=Demand(
            peak=peak, phases={"training": peak.bytes}, reserved_bytes=peak.bytes, allowance_bytes=0, host_items={}
        ),
        room=predictor.room,
    )


def suggested(asked: Candidate, rows: int | None) -> list[Suggestion]:
    """What is suggested of a candidate of the examples' workload. rows: the largest micro-batch that fits."""
    work = workload()
    predictor = stand_ins.predictor(A100)
    context = Context(installed=RICH, hardware=A100, workload=work)

    def is_legal(changed: Candidate) -> bool:
        return not broken_rules(changed, context, lengths_known=True)

    others = Alternatives(memory=predictor, is_legal=is_legal, progress=print)
    return list(others.suggestions(asked, too_much(predictor), rows))


@pytest.mark.parametrize(("batching", "rows", "size"), [("random", 5, 4), ("group_by_length", 3, 2)])
def test_a_smaller_micro_batch_keeps_the_samples_of_a_step(
    estimated: list[Candidate], batching: Any, rows: int, size: int
) -> None:
    """16 rows a step are 4 times 4, not 3 times 5."""
    [found] = suggested(replace(SIXTEEN, batching=batching), rows)
    assert found.words == f"candidate.per_device_train_batch_size={size}"
    assert [each.rows_per_step for each in estimated] == [16]


def test_only_what_is_legal_is_suggested(estimated: list[Candidate]) -> None:
    """Grouping by length needs two rows; bf16 weights cannot do with tf32, so no adapters on them are suggested."""
    [found] = suggested(replace(SIXTEEN, batching="group_by_length", mixed_precision="no", tf32=True), None)
    assert found.words == "candidate.per_device_train_batch_size=2 candidate.checkpointing=full"


def test_a_layer_in_so_many_stays_unless_checkpointing_changes(estimated: list[Candidate]) -> None:
    """Figures are those of the candidate that is named: one layer in two, then all of them."""
    asked = replace(SIXTEEN, checkpointing="every_n", every_n_layers=2)
    suggested(asked, 8)
    suggested(asked, None)
    assert [(each.checkpointing, each.every_n_layers) for each in estimated[:2]] == [("every_n", 2), ("full", 1)]


def test_the_method_is_typed_as_the_recipes(estimated: list[Candidate]) -> None:
    """candidate.method=lora is refused where recipe.method=full asks for another."""
    found = suggested(replace(SIXTEEN, checkpointing="full"), None)
    words = "candidate.per_device_train_batch_size=1 recipe.method={} candidate.weights_dtype=bfloat16"
    assert [each.words for each in found] == [words.format("lora"), words.format("qlora")]


def test_a_base_in_bf16_comes_before_a_smaller_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it alone will do it costs no speed; each suggestion is complete in itself."""

    def estimate(predictor: MemoryPredictor, step: WorstStep) -> MemoryEstimate:
        asked, candidate = too_much(predictor), step.candidate
        if candidate.weights_dtype == "float32" and candidate.per_device_train_batch_size > 8:
            return asked
        return replace(asked, demand=replace(asked.demand, phases={"training": 1}))

    untraced(monkeypatch)
    monkeypatch.setattr(MemoryPredictor, "estimate", estimate)
    found = suggested(replace(SIXTEEN, method="lora"), 8)
    assert [each.words for each in found] == [
        "candidate.weights_dtype=bfloat16",
        "candidate.per_device_train_batch_size=8",
    ]
    assert all(each.memory.fits for each in found)
