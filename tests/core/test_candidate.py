"""A candidate: derived figures, plain values, and names."""

import json
from dataclasses import replace
from typing import Any

import pytest

from autotune.core.candidate import Candidate, Fidelity, differences, short_name
from autotune.core.knobs import KNOBS
from tests.core.examples import candidate

OTHER_VALUES: dict[str, Any] = {
    "max_length": 64,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "method": "lora",
    "packed_length": 512,
    "checkpointing": "full",
    "every_n_layers": 2,
    "activation_offloading": True,
    "batching": "pack_bfd",
    "attention": "eager",
    "optimizer": "adafactor",
    "weights_dtype": "bfloat16",
    "mixed_precision": "no",
    "tf32": True,
    "pad_to_multiple_of": 8,
    "torch_compile": True,
    "use_kernels": True,
    "dataloader_num_workers": 2,
    "dataloader_pin_memory": False,
    "torch_threads": 1,
    "tuned_allocator": False,
    "devices": 2,
    "sharding": "ddp",
}


def test_figures_by_hand() -> None:
    """Rows of a step over all devices; the length of a row is the packed one where there is packing."""
    plain = candidate(per_device_train_batch_size=3, gradient_accumulation_steps=5, devices=2)
    assert (plain.rows_per_step, plain.packs, plain.row_length) == (30, False, 448)
    packed = candidate(batching="pack_bfd", max_length=512, packed_length=512)
    assert (packed.packs, packed.row_length) == (True, 512)


def test_plain_values_survive_json() -> None:
    """A candidate written to a file and read back is the same candidate."""
    there = candidate(batching="pack_wrapped", packed_length=128, torch_threads=2)
    assert Candidate(**json.loads(json.dumps(there.to_dict()))) == there
    assert tuple(there.to_dict()) == tuple(KNOBS)


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_makes_a_difference(knob: str) -> None:
    """Two candidates that differ in one knob are not equal, and `differences` names just that knob."""
    one = candidate()
    other = replace(one, **{knob: OTHER_VALUES[knob]})
    assert one != other
    assert differences(one, other) == {knob: (getattr(one, knob), OTHER_VALUES[knob])}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"tuned_allocator": False}, "full 4x2 random len 448 ckpt off sdpa fused fp32+amp bf16"),
        (
            {"method": "lora", "weights_dtype": "bfloat16", "mixed_precision": "no", "checkpointing": "every_n"}
            | {"every_n_layers": 2, "batching": "pack_bfd", "max_length": 512, "packed_length": 512},
            "lora 4x2 pack_bfd@512 len 512 ckpt every_n/2 sdpa fused bf16 malloc",
        ),
    ],
)
def test_short_name(changes: dict[str, Any], name: str) -> None:
    """One line that a person can read in a table."""
    assert short_name(candidate(**changes)) == name


def test_fidelities_are_ordered() -> None:
    """A candidate's fidelity is that of its worst knob, so they compare."""
    assert Fidelity.exact < Fidelity.close < Fidelity.free
