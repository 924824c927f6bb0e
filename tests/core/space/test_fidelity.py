"""Fidelity: one value, one fidelity, one reason, checked by hand."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest

from autotune.core.candidate import Candidate, Fidelity
from autotune.core.knobs import KNOBS
from autotune.core.space.context import Context
from autotune.core.space.enumerate import enumerate_space
from autotune.core.space.fidelity import DEPARTURES, Departure, asked_micro_batch, divisors, samples_per_step
from tests.core.examples import A100, CPU, PLAIN, candidate, context, workload
from tests.core.space.test_legality import PACKED
from tests.core.test_candidate import OTHER_VALUES

ADAPTERS = context(work=workload(method="lora"))
EXPERTS = context(work=workload(model={"is_mixture_of_experts": True}))
NOISE = context(work=workload(neftune_noise_alpha=5.0))
PROMPTS = context(work=workload(labels=5, model={"limit": 384}))  # the last five tokens of rows of 20 to 419 are labels
CUT = context(work=workload(coverage=0.95))  # rows of 20 to 419: 384 tokens keep it

exact, close, free = Fidelity

TABLE: list[tuple[dict[str, Any], Context, Fidelity]] = [
    # other rounding only
    ({}, context(), exact),
    ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, context(), exact),
    ({"checkpointing": "selective"}, context(), exact),
    ({"checkpointing": "every_n", "every_n_layers": 2, "activation_offloading": True}, context(A100), exact),
    ({"batching": "batch_rebalance"}, context(), exact),
    ({"attention": "eager"}, context(), exact),
    ({"optimizer": "adamw_torch"}, context(), exact),
    ({"mixed_precision": "no"}, context(), exact),
    ({"pad_to_multiple_of": 64, "torch_compile": True, "use_kernels": True}, context(A100), exact),
    ({"dataloader_num_workers": 2, "torch_threads": 1, "tuned_allocator": False}, context(), exact),
    # what practice treats as equal
    ({"batching": "group_by_length"}, context(), close),
    (PACKED, context(), close),
    ({"optimizer": "adamw_8bit"}, context(), close),
    ({"optimizer": "paged_adamw_8bit"}, context(A100), close),
    ({"method": "lora", "weights_dtype": "bfloat16"}, ADAPTERS, close),
    ({"mixed_precision": "fp16"}, context(A100), close),
    ({"mixed_precision": "no", "tf32": True}, context(A100), close),
    ({"max_length": 448}, CUT, close),
    ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}, EXPERTS, close),
    # another result
    ({"max_length": 384}, context(), free),
    ({"max_length": 320}, CUT, free),
    ({"method": "lora"}, context(), free),
    ({"weights_dtype": "bfloat16"}, context(), free),
    ({"optimizer": "adafactor"}, context(), free),
    (PACKED | {"batching": "pack_wrapped"}, context(), free),
    (PACKED | {"batching": "pack_bfd_split", "max_length": 384, "packed_length": 384}, context(), free),
    (PACKED | {"gradient_accumulation_steps": 2}, context(), free),  # sixteen samples a step in place of eight
    (PACKED, NOISE, free),
    (PACKED | {"max_length": 384, "packed_length": 384}, PROMPTS, free),  # 35 prompts fill a row of 384
]


def departures(candidate: Candidate, where: Context) -> list[Departure]:
    """Every way in which a candidate departs from what was asked."""
    return [departure for departure in DEPARTURES if departure.departs(candidate, where)]


def fidelity_of(candidate: Candidate, where: Context, fixed: Collection[str] = ()) -> Fidelity:
    """The fidelity of a candidate's worst knob, without the knobs that the user fixed."""
    return max((each.fidelity for each in departures(candidate, where) if each.knob not in fixed), default=exact)


@pytest.mark.parametrize(("changes", "where", "expected"), TABLE)
def test_fidelity_by_hand(changes: dict[str, Any], where: Context, expected: Fidelity) -> None:
    """Each value has the fidelity that DESIGN gives it."""
    assert fidelity_of(candidate(**changes), where) == expected


def test_the_asked_length_is_exact() -> None:
    """The shortest length that keeps the asked coverage is what was asked."""
    assert CUT.asked_max_length == 384
    assert fidelity_of(candidate(max_length=384), CUT) == exact


def test_the_table_shows_every_departure() -> None:
    """A new departure comes with its example."""
    shown = {departure for changes, where, _ in TABLE for departure in departures(candidate(**changes), where)}
    experts = departures(candidate(batching="batch_rebalance"), EXPERTS)
    assert shown | set(experts) == set(DEPARTURES)


def test_what_the_user_fixed_is_what_was_asked() -> None:
    """A fixed knob may depart at any fidelity. It does not excuse steps that hold other samples."""
    here: dict[str, Any] = {"workload": workload(), "hardware": CPU, "installed": PLAIN, "fidelity": exact}
    adafactor = enumerate_space(**here, fixed={"optimizer": "adafactor"}).candidates
    assert {one.optimizer for one in adafactor} == {"adafactor"}
    wrapped = enumerate_space(**here, fixed={"batching": "pack_wrapped"}).candidates
    assert {one.batching for one in wrapped} == {"pack_wrapped"}
    assert {round(samples_per_step(one, context())) for one in wrapped} == {8}


def test_samples_of_a_step_by_hand() -> None:
    """400 rows of 20 to 419 tokens: 8 rows plain; packed by what the packing says of a row."""
    assert samples_per_step(candidate(), context()) == 8
    rows = context().packing(candidate(**PACKED)).rows
    assert samples_per_step(candidate(**PACKED), context()) == pytest.approx(2 * 400 / rows)


@pytest.mark.parametrize("departure", DEPARTURES, ids=lambda departure: departure.reason[:30])
def test_a_departure_reads_only_its_knobs(departure: Any) -> None:
    """The space cuts as soon as a departure's knobs are fixed, so no other knob may change its answer."""
    for where in (context(), EXPERTS, NOISE, CUT):
        for changes in ({}, PACKED):
            answer = departure.departs(candidate(**changes), where)
            for knob in set(KNOBS) - set(departure.knobs):
                other = replace(candidate(**changes), **{knob: OTHER_VALUES[knob]})
                assert departure.departs(other, where) == answer, knob


def test_divisors_and_the_default_micro_batch() -> None:
    """TRL's default of eight rows, or the largest divisor below it."""
    assert divisors(12) == (1, 2, 3, 4, 6, 12)
    assert [asked_micro_batch(samples) for samples in (1, 7, 8, 10, 13, 16)] == [1, 7, 8, 5, 1, 8]
