"""References: TRL's defaults and what a person would set by hand, checked by hand."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.core.candidate import Candidate, Fidelity
from autotune.core.hardware import Hardware
from autotune.core.space.context import Context
from autotune.core.space.legality import first_broken
from autotune.core.space.references import baseline, by_hand, defaults
from autotune.core.workload import Workload
from tests.core.examples import A100, CPU, PLAIN, SLOW_IN_BF16, T4, workload
from tests.core.space.test_enumerate import works
from tests.core.space.test_fidelity import fidelity_of


def test_the_baseline_is_trl_s_defaults() -> None:
    """The largest divisor up to eight rows, full checkpointing, random order, and the allocator as it comes."""
    first = baseline(workload=workload(effective_batch_size=20), hardware=CPU, installed=PLAIN)[0]
    assert first == Candidate(
        max_length=448,
        per_device_train_batch_size=5,
        gradient_accumulation_steps=4,
        method="full",
        checkpointing="full",
        tuned_allocator=False,
    )


@pytest.mark.parametrize(
    ("method", "size", "expected"),
    [
        ("full", 16, [("float32", 8, 2), ("float32", 4, 4), ("float32", 2, 8), ("float32", 1, 16)]),
        ("lora", 6, [("float32", 6, 1), ("bfloat16", 6, 1), ("bfloat16", 3, 2), ("bfloat16", 1, 6)]),
    ],
)
def test_what_the_baseline_falls_back_on(method: str, size: int, expected: list[tuple[str, int, int]]) -> None:
    """First the base under adapters in bf16, then half the micro-batch, again and again."""
    found = baseline(workload=workload(method=method, effective_batch_size=size), hardware=CPU, installed=PLAIN)
    assert [(c.weights_dtype, c.per_device_train_batch_size, c.gradient_accumulation_steps) for c in found] == expected


def test_by_hand() -> None:
    """bf16 base under adapters, grouping, the largest micro-batch first; with checkpointing only when nothing fits."""
    found = by_hand(workload=workload(method="lora", effective_batch_size=4), hardware=CPU, installed=PLAIN)
    assert [(c.checkpointing, c.batching, c.per_device_train_batch_size) for c in found] == [
        ("off", "group_by_length", 4),
        ("off", "group_by_length", 2),
        ("off", "random", 1),
        ("full", "group_by_length", 4),
        ("full", "group_by_length", 2),
        ("full", "random", 1),
    ]
    assert {c.weights_dtype for c in found} == {"bfloat16"}


def test_on_a_cpu_that_is_slow_in_bf16_the_references_do_without_it() -> None:
    """They have no autocast, and the base stays fp32 where it fits; TRL's default is bf16 autocast."""
    slow, work = replace(CPU, rates=SLOW_IN_BF16), workload(method="lora", effective_batch_size=4)
    here: dict[str, Any] = {"workload": work, "hardware": slow, "installed": PLAIN}
    assert defaults(**here).mixed_precision == "bf16"
    first, *smaller = baseline(**here)
    assert first == replace(defaults(**here), mixed_precision="no")
    fallbacks = [(c.weights_dtype, c.per_device_train_batch_size) for c in smaller]
    assert fallbacks == [("float32", 2), ("float32", 1), ("bfloat16", 4), ("bfloat16", 2), ("bfloat16", 1)]
    assert {(c.weights_dtype, c.mixed_precision) for c in by_hand(**here)} == {("float32", "no")}


@settings(deadline=None, max_examples=15)
@given(works, st.sampled_from([CPU, T4, A100]))
def test_the_references_are_legal(work: Workload, machine: Hardware) -> None:
    """The baseline, `by_hand` and all that they fall back on can be trained; the baseline is what was asked."""
    where = Context(installed=PLAIN, hardware=machine, workload=work)
    first, *others = baseline(workload=work, hardware=machine, installed=PLAIN)
    assert fidelity_of(first, where) is Fidelity.exact
    for one in (first, *others, *by_hand(workload=work, hardware=machine, installed=PLAIN)):
        assert first_broken(one, where) is None


def test_a_model_that_cannot_checkpoint() -> None:
    """The references leave checkpointing out where the model's class does not support it."""
    work = workload(model={"supports_checkpointing": False})
    assert baseline(workload=work, hardware=CPU, installed=PLAIN)[0].checkpointing == "off"
    assert {c.checkpointing for c in by_hand(workload=work, hardware=CPU, installed=PLAIN)} == {"off"}
