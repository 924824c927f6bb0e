"""The estimate: what must be there is compared with what is there, in bytes worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from autotune.core.batches.batches import Batch
from autotune.core.memory.allocator import AllocatorSettings
from autotune.core.memory.estimate import (
    Demand,
    MemoryEstimate,
    Room,
    demand_from_dict,
    demand_of,
    fitting,
    host_items,
    room_of,
)
from autotune.core.memory.law import Peak, memory_law, peak
from autotune.core.memory.replay import Replayed, replay
from autotune.core.step.profile import MONOMIALS, OFFLOADED, PAGED, Block, monomials
from autotune.core.units import MIB
from tests.core.examples import A100, CPU, candidate
from tests.core.step.test_profile import step

DEMAND = Demand(
    peak=Peak(bytes=700, phase="loss", op="mm", items={"weights": 700}),
    phases={"training": 700, "saving": 300},
    reserved_bytes=900,
    allowance_bytes=50,
    host_items={"python and libraries": 400},
)


def on(limit: int, host_free: int | None = None) -> MemoryEstimate:
    """DEMAND on a device of a limit, with a context of 30 and workspaces of 20."""
    room = Room(limit_bytes=limit, context_bytes=30, workspace_bytes=20, host_free_bytes=host_free)
    return MemoryEstimate(demand=DEMAND, room=room)


def test_three_numbers() -> None:
    """700 allocated; 900 reserved; 950 on the device; 800 that must be there."""
    assert (on(800).peak.bytes, on(800).device_bytes, on(800).needed_bytes) == (700, 950, 800)


@pytest.mark.parametrize(
    ("limit", "host_free", "fits"), [(800, None, True), (799, None, False), (800, 400, True), (800, 399, False)]
)
def test_it_fits_to_the_byte(limit: int, host_free: int | None, fits: bool) -> None:
    """On the device and, where its free memory is known, on the host."""
    assert on(limit, host_free).fits is fits


@pytest.mark.parametrize(("host_free", "most_rows"), [(None, 500), (3072 * MIB + 2048, 102)])
def test_many_heed_the_host_too(host_free: int | None, most_rows: int) -> None:
    """20 bytes a row of one layer's activations wait on the host, in blocks of 2**n, beside 3 GiB of libraries."""
    profile = step(5)
    offloaded = Block(owner=OFFLOADED, layer=None, size=(0, 20, *[0] * (len(MONOMIALS) - 2)))
    embed = replace(profile.ops[1], allocates=(*profile.ops[1].allocates, len(profile.blocks)))
    profile = replace(profile, blocks=(*profile.blocks, offloaded), ops=(profile.ops[0], embed, *profile.ops[2:]))
    law = memory_law(profile, layers=5, accumulation=1)
    shapes = np.array([monomials(rows, 10, 0) for rows in range(1, 1001)], dtype=np.float64)
    limit = peak(law, monomials(500, 10, 0)).bytes
    room = Room(limit_bytes=limit, context_bytes=0, workspace_bytes=0, host_free_bytes=host_free)
    demand = replace(DEMAND, allowance_bytes=0)
    assert fitting(law, shapes, MemoryEstimate(demand=demand, room=room), candidate()).sum() == most_rows
    most = Batch(rows=100, positions=10, labels=0)
    assert sum(host_items(law, most, candidate(), on_cpu=False).values()) == 3072 * MIB + 2048


def test_the_room_is_90_percent_less_what_others_hold() -> None:
    """docs/interface.md's limit; a CPU has neither context nor workspaces."""
    assert room_of(A100).limit_bytes == int(0.9 * 2**34)
    assert (room_of(CPU).context_bytes, room_of(CPU).workspace_bytes) == (0, 0)
    assert room_of(replace(CPU, used_by_others_bytes=2**30)).limit_bytes == int(0.9 * 2**34) - 2**30
    assert room_of(replace(CPU, used_by_others_bytes=2**34)).limit_bytes == 0


def test_a_cpu_rounds_nothing() -> None:
    """Without an allocator of torch's reserved is allocated, and the host holds the tensors."""
    batch = Batch(rows=1, positions=1, labels=0)
    law = memory_law(step(5), layers=5, accumulation=1)
    worst = peak(law, batch.monomials)
    found = demand_of(step(5), law, None, candidate=candidate(), batch=batch)
    assert (found.reserved_bytes, found.allowance_bytes, found.host_items["tensors"]) == (worst.bytes, 0, worst.bytes)
    assert max(found.phases.values()) == found.phases["training"]
    assert demand_from_dict(found.to_dict()) == found


@pytest.mark.parametrize(("head", "activations"), [(50, 52), (1, 19)])
def test_an_evaluation_keeps_what_its_layer_saves_until_that_is_over(head: int, activations: int) -> None:
    """1,000 of weights; of 10 positions 2 are handed to a head of 50, or a layer has its 10, what came in and goes out.

    In training five layers' 10 each would be there as well.
    """
    traced = step(5)
    blocks = tuple(
        replace(each, size=tuple(size * head // 50 for size in each.size)) if each.owner == "logits and loss" else each
        for each in traced.blocks
    )
    batch = Batch(rows=1, positions=10, labels=9)
    law = memory_law(traced, layers=5, accumulation=1)
    found = demand_of(replace(traced, blocks=blocks), law, None, candidate=candidate(), batch=batch)
    assert found.phases["evaluation"] == 1000 + 10 * activations


@pytest.mark.parametrize(("method", "once_more"), [("lora", 0), ("qlora", 400), ("lora_int8", 200)])
def test_loading_holds_one_layer_as_it_was(method: str, once_more: int) -> None:
    """Five layers of 100 and embeddings of 500, which nothing quantizes: a bf16 weight takes four times its nf4."""
    batch = Batch(rows=1, positions=1, labels=0)
    law = memory_law(step(5), layers=5, accumulation=1)
    asked = candidate(method=method, weights_dtype="bfloat16")
    assert demand_of(step(5), law, None, candidate=asked, batch=batch).phases["loading"] == 1000 + once_more


@pytest.mark.parametrize(
    ("method", "dtype", "loaded"),
    [("lora", "bfloat16", 800), ("lora_int8", "bfloat16", 500), ("qlora", "bfloat16", 500), ("qlora", "float32", 800)],
)
def test_the_host_converts_what_it_loads(method: str, dtype: str, loaded: int) -> None:
    """Embeddings of 500 and three layers of 100 at once; where layers are quantized one tensor, eight times its nf4."""
    law = memory_law(step(5), layers=5, accumulation=1)
    asked = candidate(method=method, weights_dtype=dtype)
    held = host_items(law, Batch(rows=1, positions=1, labels=0), asked, on_cpu=False)
    assert held == {"python and libraries": 3072 * MIB, "loaded weights": loaded}


def test_many_at_once_are_judged_like_one() -> None:
    """The largest of a thousand shapes that fits is the last one whose peak, with its share, is within the limit."""
    law = memory_law(step(5), layers=5, accumulation=1)
    shapes = np.array([monomials(rows, 10, 0) for rows in range(1, 1001)], dtype=np.float64)
    batch = Batch(rows=1, positions=10, labels=0)
    worst = peak(law, batch.monomials)
    replayed = Replayed(
        allocated_bytes=worst.bytes, reserved_bytes=2 * worst.bytes, needed_bytes=round(1.1 * worst.bytes)
    )
    demand = demand_of(step(5), law, replayed, candidate=candidate(), batch=batch)
    half = peak(law, monomials(500, 10, 0)).bytes
    room = Room(limit_bytes=round(1.1 * half) + 60, context_bytes=30, workspace_bytes=20, host_free_bytes=None)
    assert fitting(law, shapes, MemoryEstimate(demand=demand, room=room), candidate()).sum() == 500


@pytest.mark.parametrize(
    ("phases", "most_rows"),
    [({"loading": 1}, 500), ({"loading": 2}, 0), ({"saving": 2}, 0), ({"evaluation": 2}, 249), ({}, 500)],
)
def test_no_phase_is_left_out_of_the_largest(phases: dict[str, int], most_rows: int) -> None:
    """Room for 500 rows of 1,050 in training, beside 1,000: none when loading needs twice that, half in evaluation."""
    profile = step(5)
    law = memory_law(profile, layers=5, accumulation=1)
    shapes = np.array([monomials(rows, 10, 0) for rows in range(1, 1001)], dtype=np.float64)
    half = peak(law, monomials(500, 10, 0)).bytes
    asked = replace(DEMAND.peak, bytes=half)
    others = {name: times * half for name, times in phases.items()}
    demand = replace(DEMAND, peak=asked, phases={"training": half, **others}, allowance_bytes=0)
    room = Room(limit_bytes=half, context_bytes=0, workspace_bytes=0, host_free_bytes=None)
    assert fitting(law, shapes, MemoryEstimate(demand=demand, room=room), candidate()).sum() == most_rows


def test_paged_states_are_held_by_the_host() -> None:
    """They are no part of the device's peak, and all of the host's."""
    profile = step(5)
    states = Block(owner=PAGED, layer=None, size=(7 * 2**30, *[0] * (len(MONOMIALS) - 1)))
    load = replace(profile.ops[0], allocates=(*profile.ops[0].allocates, len(profile.blocks)))
    paged = replace(profile, blocks=(*profile.blocks, states), ops=(load, *profile.ops[1:]))
    batch = Batch(rows=1, positions=64, labels=63)
    plain, law = (memory_law(each, layers=5, accumulation=1) for each in (profile, paged))
    assert peak(plain, batch.monomials) == peak(law, batch.monomials)
    replayed = replay(paged, [[batch]], accumulation=1, settings=AllocatorSettings(expandable_segments=False))
    assert replayed.allocated_bytes < 2**30
    demand = demand_of(paged, law, replayed, candidate=candidate(), batch=batch)
    assert demand.host_items[PAGED] == 7 * 2**30
    assert max(demand.phases.values()) < 2**30
