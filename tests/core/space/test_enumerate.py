"""The space: laws of every enumeration, hand-checked values, and its size on larger machines."""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.core.candidate import Candidate, Fidelity
from autotune.core.hardware import Hardware
from autotune.core.knobs import KNOBS
from autotune.core.recipe import METHODS
from autotune.core.space import enumerate as module
from autotune.core.space.context import Context, Installed
from autotune.core.space.enumerate import INDEPENDENT, Space, enumerate_space, explain
from autotune.core.space.fidelity import DEPARTURES, SAMPLES_TOLERANCE, samples_per_step
from autotune.core.space.legality import RULES, first_broken
from autotune.core.space.step_shapes import ROW_LENGTHS, SHAPE
from autotune.core.workload import MULTIPLE, Workload
from autotune.errors import UsageError
from tests.core.examples import A100, CPU, PLAIN, RICH, SLOW_IN_BF16, T4, candidate, context, workload
from tests.core.space.test_fidelity import fidelity_of

machines = st.sampled_from([CPU, T4, A100])
stacks = st.sampled_from([PLAIN, RICH])
fidelities = st.sampled_from(list(Fidelity))
rows = st.lists(st.integers(1, 900), min_size=64, max_size=200)
works = st.builds(
    lambda tokens, size, method, coverage, experts: workload(
        tokens,
        model={"is_mixture_of_experts": experts},
        effective_batch_size=size,
        method=method,
        coverage=coverage,
    ),
    rows,
    st.integers(1, 12),
    st.sampled_from(METHODS),
    st.sampled_from([0.9, 0.99, 1.0]),
    st.booleans(),
)
law = settings(deadline=None, max_examples=15)
large_law = settings(deadline=None, max_examples=5)  # of machines whose spaces take a second to enumerate
LISTED = 20_000  # all of a CPU's space, a part of a GPU's: the laws need no more


@pytest.fixture(autouse=True, scope="module")
def short_lists() -> Iterator[None]:
    """List fewer candidates of the large spaces, to keep the tests short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_CANDIDATES", LISTED)
        yield


def space(
    work: Workload,
    machine: Hardware = CPU,
    installed: Installed = PLAIN,
    fidelity: Fidelity = Fidelity.close,
    **fixed: Any,
) -> Space:
    return enumerate_space(workload=work, hardware=machine, installed=installed, fidelity=fidelity, fixed=fixed)


@large_law
@given(works, machines, stacks, fidelities)
def test_every_candidate_is_legal_and_within_the_fidelity(
    work: Workload, machine: Hardware, installed: Installed, fidelity: Fidelity
) -> None:
    """What is enumerated breaks no rule and departs no further than allowed; none is listed twice."""
    where = Context(installed=installed, hardware=machine, workload=work)
    candidates = space(work, machine, installed, fidelity).candidates
    assert len(set(candidates)) == len(candidates)
    for one in candidates[:: max(1, len(candidates) // 500)]:
        assert first_broken(one, where) is None
        assert fidelity_of(one, where) <= fidelity


@law
@given(works, fidelities)
def test_samples_of_a_step_are_those_that_were_asked(work: Workload, fidelity: Fidelity) -> None:
    """Plain rows make the step exactly; packed rows come within 5 % at `close`, and are the nearest at `free`."""
    where, asked = context(work=work), work.recipe.effective_batch_size
    for one in space(work, fidelity=fidelity).candidates:
        if not one.packs:
            assert one.rows_per_step == asked
        elif fidelity is Fidelity.close:
            assert abs(samples_per_step(one, where) / asked - 1) <= SAMPLES_TOLERANCE
        else:
            assert one.rows_per_step == where.packing(one).rows_per_step(asked)


@large_law
@given(works, machines, stacks)
def test_more_fidelity_never_gives_fewer(work: Workload, machine: Hardware, installed: Installed) -> None:
    """What `exact` allows `close` allows, and what `close` allows `free` allows."""
    exact, close, free = (space(work, machine, installed, fidelity) for fidelity in Fidelity)
    assert exact.legal <= close.legal <= free.legal
    assert len(exact.candidates) <= len(close.candidates) <= len(free.candidates)
    if free.legal <= LISTED:
        assert set(exact.candidates) <= set(close.candidates) <= set(free.candidates)


@large_law
@given(works, machines, fidelities)
def test_same_inputs_same_space(work: Workload, machine: Hardware, fidelity: Fidelity) -> None:
    """The order of the candidates is a function of the inputs."""
    assert space(work, machine, fidelity=fidelity) == space(work, machine, fidelity=fidelity)


@large_law
@given(works, machines, stacks, fidelities)
def test_counts_add_up(work: Workload, machine: Hardware, installed: Installed, fidelity: Fidelity) -> None:
    """Every combination is legal or was removed, and every removal has its reason."""
    found = space(work, machine, installed, fidelity)
    assert found.legal + sum(found.removed.values()) == found.enumerated
    assert len(found.candidates) == min(found.legal, LISTED)
    assert set(found.removed) <= {check.reason for check in (*RULES, *DEPARTURES)}


@law
@given(works, fidelities)
def test_nothing_legal_is_forgotten(work: Workload, fidelity: Fidelity) -> None:
    """For every way to form a step, the listed candidates are all combinations of the values that pass the rules."""
    where = context(work=work)
    found = space(work, fidelity=fidelity, optimizer="adamw_8bit")
    by_shape: dict[tuple[Any, ...], set[Candidate]] = defaultdict(set)
    for one in found.candidates:
        by_shape[tuple(getattr(one, knob) for knob in SHAPE)].add(one)
    others = [knob for knob in KNOBS if knob not in SHAPE]
    for listed in list(by_shape.values())[::5]:
        shape = next(iter(listed))
        combinations = (
            replace(shape, **dict(zip(others, values, strict=True)))
            for values in product(*(found.values[knob] for knob in others))
        )
        assert listed == {
            c
            for c in combinations
            if first_broken(c, where) is None and fidelity_of(c, where, fixed={"optimizer"}) <= fidelity
        }


@law
@given(works)
def test_packed_lengths(work: Workload) -> None:
    """A handful, multiples of 64 but for the model's own limit, no shorter than the coverage needs."""
    found = {c.packed_length for c in space(work, fidelity=Fidelity.free, batching="pack_bfd").candidates}
    asked = context(work=work).asked_max_length
    assert len(found) <= ROW_LENGTHS
    assert all(length is not None and asked <= length <= 1024 and length % MULTIPLE == 0 for length in found)


@pytest.mark.parametrize("rule", [*RULES, *DEPARTURES])
def test_a_rule_stays_within_what_is_fixed_together(rule: Any) -> None:
    """Knobs that are crossed at the end share no rule with the others, or the space would miss what it removes."""
    assert set(rule.knobs) <= set(INDEPENDENT) or not set(rule.knobs) & set(INDEPENDENT)


def test_what_a_cpu_can_have() -> None:
    """On two cores: no tf32, flash or flex attention, offloading, paging, loader workers or compilation."""
    found = space(workload(method="full"), fidelity=Fidelity.free)
    assert {knob: values for knob, values in found.values.items() if knob not in SHAPE} == {
        "method": ("full",),
        "weights_dtype": ("float32", "bfloat16"),
        "mixed_precision": ("bf16", "no"),
        "tf32": (False,),
        "checkpointing": ("off", "selective", "every_n", "full"),
        "every_n_layers": (1, 2),
        "attention": ("sdpa", "eager"),
        "activation_offloading": (False,),
        "optimizer": ("adamw_torch_fused", "adamw_torch", "adamw_8bit", "adafactor"),
        "pad_to_multiple_of": (None,),
        "torch_compile": (False,),
        "use_kernels": (False,),
        "dataloader_num_workers": (0,),
        "dataloader_pin_memory": (True,),
        "torch_threads": (None,),
        "tuned_allocator": (True,),
    }
    assert found.left_out["attention=flex_attention"] == "flex attention has no backward on a CPU"


def test_a_gpu_has_more() -> None:
    """With FlashAttention and the hub's kernels; fp16 only where bf16 is emulated."""
    rich = space(workload(method="lora"), A100, RICH).values
    assert rich["attention"] == ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
    assert (
        rich["tf32"] == rich["activation_offloading"] == rich["torch_compile"] == rich["use_kernels"] == (False, True)
    )
    assert "float16" not in rich["weights_dtype"]
    assert "float16" in space(workload(method="lora"), T4).values["weights_dtype"]


def test_a_large_space_is_listed_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of millions a hundred thousand are listed, in seconds: half of them the simplest."""
    monkeypatch.setattr(module, "MOST_CANDIDATES", 100_000)
    started = time.process_time()
    found = space(workload(effective_batch_size=32), A100, RICH, Fidelity.free)
    assert time.process_time() - started < 20
    assert found.legal > 1_000_000
    assert len(set(found.candidates)) == 100_000
    plain = {knob: getattr(candidate(), knob) for knob in INDEPENDENT}
    assert {knob: getattr(found.candidates[0], knob) for knob in INDEPENDENT} == plain


def test_why_in_words() -> None:
    """The report names counts and reasons, the most first, then what could not be had."""
    lines = explain(space(workload(method="full"), fidelity=Fidelity.exact))
    counts = [int(line.split()[0]) for line in lines if " removed: " in line]
    assert counts == sorted(counts, reverse=True)
    assert any(line.startswith("optimizer=paged_adamw_8bit left out: on a CPU") for line in lines)


def test_fewer_rows_than_a_step() -> None:
    """A dataset that cannot fill one step is refused in the words of the recipe."""
    with pytest.raises(UsageError, match=r"recipe\.effective_batch_size=8: the data has 6 rows"):
        space(workload([50] * 6, effective_batch_size=8))


def test_a_cpu_that_is_slow_in_bf16_is_not_asked_to_compute_in_it() -> None:
    """There no candidate has bf16 autocast, unless the user fixed it."""
    slow = replace(CPU, rates=SLOW_IN_BF16)
    assert {c.mixed_precision for c in space(workload(method="lora"), slow).candidates} == {"no"}
    fixed = space(workload(method="lora"), slow, mixed_precision="bf16").candidates
    assert {c.mixed_precision for c in fixed} == {"bf16"}


def test_a_model_that_cannot_checkpoint_is_not_asked_to() -> None:
    """No candidate has checkpointing where the model's class does not support it."""
    found = space(workload(model={"supports_checkpointing": False}))
    assert {c.checkpointing for c in found.candidates} == {"off"}
