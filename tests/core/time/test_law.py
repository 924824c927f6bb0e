"""Time from the work of a step: items add up, layers and micro-steps count, and batches of a dataset are averaged."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autotune.core.step.profile import MONOMIALS, Profile, monomials
from autotune.core.step.regime import TILE
from autotune.core.step.work import Work
from autotune.core.time.law import (
    ATTENTION_KERNELS,
    BOOKKEEPING,
    HOST_S,
    NEW_SHAPES,
    REMEMBERED,
    SPENT,
    estimate_time,
    making,
    time_law,
    time_law_from_dict,
)
from autotune.core.time.measured import measured_speed
from autotune.core.time.speed import MachineSpeed
from tests.core.step.test_profile import step
from tests.core.time.test_measured import BANDWIDTH, FLOPS, LAUNCH_S, machine, point, seconds_of

MACHINE = machine(
    point("matmul_grad_input", (1024, 1024, 1024), seconds_of((1024, 1024, 1024))),
    point("matmul_grad_weight", (1024, 1024, 1024), seconds_of((1024, 1024, 1024))),
    point("attention_forward", (1, 4, 128, 64), 1e-4),
    point("attention_forward", (1, 4, 1024, 64), 4e-3),
    point("attention_forward_backward", (1, 4, 128, 64), 3e-4),
    point("attention_forward_backward", (1, 4, 1024, 64), 14e-3),
    point("masked_attention_forward", (1, 4, 128, 64), 2e-4),
    point("masked_attention_forward", (1, 4, 1024, 64), 8e-3),
)
SPEED: MachineSpeed = measured_speed(MACHINE)
COPY_S = LAUNCH_S + 8 * 2**12 / BANDWIDTH  # of the smallest stream
OF_A_CPU: MachineSpeed = measured_speed(  # whose host and kernels were measured, too
    machine(
        point("first_matmul", (300, 256, 256), 2e-3 + seconds_of((300, 256, 256))),
        point("first_matmul", (300, 1024, 1024), 6e-3 + seconds_of((300, 1024, 1024))),
        point("attention_forward_backward", (4, 4, 128, 64), 3e-4),
        point("attention_forward_backward", (4, 4, 1024, 64), 14e-3),
        point("attention_forward", (4, 4, 128, 64), 1e-4),
        point("first_attention", (4, 4, 128, 64), 3e-4 + 10e-3),
        point("first_attention", (4, 4, 1024, 64), 14e-3 + 20e-3),
        point("eager_operators", (30,), 30 * (20e-6 + 8 / 3 * LAUNCH_S + 2 / 3 * COPY_S)),
        point("selective_operators", (30,), 30 * (100e-6 + 11 / 3 * LAUNCH_S + COPY_S)),
    )
)


def polynomial(**factors: int) -> tuple[int, ...]:
    """By the names of monomials; `one` is the constant."""
    return tuple(factors.get("one" if name == "1" else name, 0) for name in MONOMIALS)


def work(kind: Any, part: Any, layer: int | None, *sides: tuple[int, ...], **changes: Any) -> Work:
    values = {"kind": kind, "part": part, "micro": 1, "layer": layer, "dtype": "float32", "sides": sides, "count": 1}
    return Work(**{**values, **changes})


def product(part: Any, layer: int | None, side: int = 512, **changes: Any) -> Work:
    """Positions times a square."""
    wide = polynomial(one=side)
    return work("product", part, layer, polynomial(one=1), polynomial(BS=1), wide, wide, **changes)


def profile(*done: Work, layers: int = 5, micro_steps: int = 1) -> Profile:
    return replace(step(layers), work=done, micro_steps=micro_steps)


def shapes(*batches: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([monomials(B, S, B * (S - 1)) for B, S in batches], dtype=np.float64)


def timed(found: Profile, *batches: tuple[int, int], layers: int = 5, accumulation: int = 1, useful: int = 100) -> Any:
    law = time_law(found, layers=layers, accumulation=accumulation)
    return estimate_time(law, SPEED, shapes(*batches), accumulation=accumulation, useful_tokens=useful)


def test_a_product_takes_what_the_machine_takes() -> None:
    """512 positions by 512 by 512, in a named item, beside what each micro-step costs."""
    found = timed(profile(product("forward", None)), (2, 256))
    expected = {"matrix products, forward": pytest.approx(seconds_of((512, 512, 512)), rel=0.02), BOOKKEEPING: HOST_S}
    assert found.items == expected
    assert found.step_s == pytest.approx(sum(found.items.values()))
    assert found.step_s == pytest.approx(sum(found.spent[one] for one in SPENT))
    assert found.spent["compute"] == pytest.approx(2 * 512**3 / FLOPS, rel=0.05)
    assert (found.steps, found.useful_tokens) == (1, 100)


def test_a_law_is_read_back() -> None:
    """From JSON, as it is kept."""
    law = time_law(profile(product("forward", 2), product("optimizer", None)), layers=7, accumulation=2)
    assert time_law_from_dict(json.loads(json.dumps(law.to_dict()))).to_dict() == law.to_dict()


def test_layers_that_were_not_traced_are_like_the_middle_ones() -> None:
    """Five layers of one product each make thirty."""
    five = profile(*(product("forward", layer) for layer in range(5)))
    thirty = timed(five, (2, 256), layers=30).items
    assert thirty["matrix products, forward"] == pytest.approx(
        6 * timed(five, (2, 256)).items["matrix products, forward"]
    )


def test_the_first_micro_step_makes_what_the_others_add_to() -> None:
    """Two were traced: of eight, seven are like the second. The optimizer runs once."""
    adds = work("stream", "backward", None, polynomial(one=2**24), micro=2)
    update = work("stream", "optimizer", None, polynomial(one=2**26))
    forwards = [product("forward", None, micro=micro) for micro in (1, 2)]
    traced = profile(*forwards, adds, update, micro_steps=2)
    batches = [(2, 256)] * 8
    two, eight = (timed(traced, *batches, accumulation=count).items for count in (2, 8))
    assert eight["matrix products, forward"] == pytest.approx(4 * two["matrix products, forward"])
    assert eight["other operators, backward"] == pytest.approx(7 * two["other operators, backward"])
    assert eight["optimizer"] == pytest.approx(two["optimizer"])


def test_an_epoch_is_the_mean_of_its_batches() -> None:
    """Of different lengths, however often each comes."""
    traced = profile(product("forward", None))
    short, long = (timed(traced, (2, length)).step_s for length in (128, 2048))
    assert timed(traced, (2, 128), (2, 2048), (2, 128)).step_s == pytest.approx((2 * short + long) / 3)


def test_the_head_goes_on_with_the_labels() -> None:
    """Its second tile stands for all that follow: of eight tiles of labels there are seven, not one."""
    tiles = (polynomial(N=1, T=-1), polynomial(T=1))  # the first, and what is left
    wide = polynomial(one=512)
    head = profile(*(work("product", "loss", None, polynomial(one=1), tile, wide, wide) for tile in tiles))
    two, eight = (timed(head, (1, count * TILE + 1)).items["loss"] for count in (2, 8))
    assert eight == pytest.approx(4 * two, rel=0.1)


def test_operators_over_many_parameters_are_launched_once() -> None:
    """A thousand small shares take the time of their bytes."""
    shares, streams = (work(kind, "optimizer", None, polynomial(one=4096), count=1000) for kind in ("share", "stream"))
    together, apart = (timed(profile(done), (1, 128)).items["optimizer"] for done in (shares, streams))
    assert apart >= 1000 * LAUNCH_S
    assert together == pytest.approx(1000 * 4096 / BANDWIDTH, rel=0.1)


def test_a_mask_has_all_pairs_of_positions_computed() -> None:
    """Causal attention computes half of them."""
    sides = (polynomial(B=1), polynomial(one=4), polynomial(S=1), polynomial(one=64))
    causal, masked = (
        timed(profile(work(kind, "forward", None, *sides)), (1, 512)).items["attention, forward"]
        for kind in ("attention", "masked_attention")
    )
    assert masked == pytest.approx(2 * causal, rel=0.02)


def test_kernels_are_made_for_new_shapes() -> None:
    """A weight of 512 by 512 lies in the middle of those measured, one of 64 by 64 below them; two products that do the
    same share their kernel."""
    narrow = product(
        "forward", None, sides=(*product("forward", None).sides[:2], polynomial(one=64), polynomial(one=64))
    )
    traced = profile(product("forward", 0), product("forward", 1), narrow)
    law = time_law(traced, layers=5, accumulation=2)
    asked: list[int] = []

    def new_shapes(remembered: int) -> float:
        asked.append(remembered)
        return 0.25

    found = estimate_time(law, OF_A_CPU, shapes((2, 256)), accumulation=2, useful_tokens=None, new_shapes=new_shapes)
    assert sorted(law.products("float32")) == [64 * 64, 512 * 512]
    assert asked == [REMEMBERED // 2]
    assert found.items[NEW_SHAPES] == pytest.approx(2 * 0.25 * (2e-3 + 4e-3), rel=0.05)
    assert NEW_SHAPES not in timed(traced, (2, 256)).items
    heads = (polynomial(B=1), polynomial(one=4), polynomial(S=1), polynomial(one=64))
    attends = profile(*(work(kind, "forward", 0, *heads) for kind in ("attention", "attention_backward")))
    alone = time_law(attends, layers=5, accumulation=1)
    making_s, kernels = making(alone, OF_A_CPU, np.array([monomials(4, S, 0) for S in (128, 362, 1024)], dtype=float))
    assert making_s == pytest.approx([10e-3, 15e-3, 20e-3], rel=0.05)
    assert list(kernels) == [ATTENTION_KERNELS, ATTENTION_KERNELS, 2 * ATTENTION_KERNELS]


def test_the_host_runs_each_operator() -> None:
    """What is recomputed under a policy takes the host five times as long here; what is not, its usual seconds."""
    traced = profile(*(product(part, 0) for part in ("forward", "recomputed")), product("forward", None))
    law = time_law(traced, layers=5, accumulation=1, selective=True)
    found = estimate_time(law, OF_A_CPU, shapes((2, 256)), accumulation=1, useful_tokens=None)
    assert law.operators == {"eager_operators": 1.0, "selective_operators": 1.0}
    assert found.items[BOOKKEEPING] == pytest.approx(HOST_S + 20e-6 + 100e-6)


def test_a_scaled_estimate_has_scaled_parts() -> None:
    """Arithmetic twice as slow: items and what they are spent on still add up to the same seconds."""
    found = timed(profile(product("forward", None)), (2, 256))
    slower = found.scaled((1.0, 2.0, 1.0, 1.0))
    assert slower.spent["compute"] == pytest.approx(2 * found.spent["compute"])
    assert slower.step_s == pytest.approx(found.step_s + found.spent["compute"])
    assert sum(slower.spent.values()) == pytest.approx(slower.step_s)
    assert slower.items[BOOKKEEPING] == found.items[BOOKKEEPING]
