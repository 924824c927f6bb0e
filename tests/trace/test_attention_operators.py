"""Attention that torch has no CPU operator for, held against torch's own graphs and registrations."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import flex_attention as torchs_flex
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

from autotune.trace.attention_operators import flash_attention_3, flex_attention, flex_mask
from autotune.trace.contracts import workspace_bytes
from autotune.trace.trace import trace
from tests.trace.test_trace import request

B, H, K, S, D = 2, 8, 2, 256, 64
BF16 = torch.bfloat16
H100 = (9, 0)


def query_key_value(keys: int = K) -> list[torch.Tensor]:
    """Inputs of attention as a model makes them: (B, S, H, D) transposed."""
    return [torch.zeros(B, S, n, D, dtype=BF16, requires_grad=True).transpose(1, 2) for n in (H, keys, keys)]


def kept(run: Callable[[], Any]) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of what a function keeps for its backward pass."""
    found = []
    with saved_tensors_hooks(lambda tensor: (found.append(tensor), tensor)[1], lambda tensor: tensor):
        run()
    return sorted(((tuple(tensor.shape), tensor.dtype) for tensor in found), key=str)


def test_flex_attention_keeps_what_the_graphs_of_torch_keep() -> None:
    """AOTAutograd's own partition: inputs, mask, result and one log-sum-exp; the backward takes a gradient of it."""
    graphs: list[torch.fx.GraphModule] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph)

    backend = aot_autograd(fw_compiler=note, bw_compiler=note, partition_fn=min_cut_rematerialization_partition)
    mask = create_block_mask(lambda b, h, q, k: q >= k, B, None, S, S, device="cpu")
    inputs = query_key_value()
    results: list[Any] = []

    def compiled() -> None:
        flex = torch.compile(torchs_flex.flex_attention, backend=backend)
        results.append(flex(*inputs, block_mask=mask, enable_gqa=True, return_aux=AuxRequest(lse=True)))

    with patch.object(torchs_flex, "_validate_device"):  # which refuses a backward on a CPU
        theirs = [found for found in kept(compiled) if found[1] != torch.int32]
    with FakeTensorMode():
        fakes, tables = query_key_value(), flex_mask(B, S)
        ours = [found for found in kept(lambda: flex_attention(*fakes, tables)) if found[1] != torch.int32]
        out, lse = flex_attention(*fakes, tables)
    assert ours == theirs
    real, statistics = results[0]
    assert (out.stride(), lse.shape, lse.dtype) == (real.stride(), statistics.lse.shape, statistics.lse.dtype)
    real.sum().backward()
    taken = [node.name for node in graphs[1].graph.nodes if node.op == "placeholder"]
    assert [name for name in taken if name.startswith("tangents")] == ["tangents_1", "tangents_2"]


@pytest.mark.parametrize("length", [128, 1000, 4096])
def test_a_block_mask_is_no_larger_than_it_is_taken_for(length: int) -> None:
    """Against the tables that torch makes."""
    real = create_block_mask(lambda b, h, q, k: q >= k, B, None, length, length, device="cpu")
    tables = [value for value in real.as_tuple() if isinstance(value, torch.Tensor)]
    assert len(tables) == 8
    ours = flex_mask(batch_size=B, q_length=length).nbytes
    assert sum(table.nbytes for table in tables) <= ours < 2**20


def test_flash_attention_3_keeps_what_2_keeps_but_for_random_numbers() -> None:
    """Against torch's registration of FlashAttention 2."""
    with FakeTensorMode():
        inputs = query_key_value(H)
        theirs = kept(lambda: torch.ops.aten._scaled_dot_product_flash_attention(*inputs, 0.0, True))
        ours = kept(lambda: flash_attention_3(*inputs))
    assert ours == [found for found in theirs if found[1] != torch.uint64]


@pytest.mark.parametrize(
    ("keys", "width", "expected"),
    [
        (H, 64, 4 * B * S * H * (64 + 2)),  # gradient of queries, delta, log-sum-exp in base 2
        (K, 64, 4 * B * S * (H * (64 + 2) + 2 * K * 64)),  # and gradients of keys and values in fp32
        (K, 80, 4 * B * S * (H * (96 + 2) + 2 * K * 96)),  # a width that there is no kernel for
    ],
)
def test_the_workspace_of_flash_attention_3(keys: int, width: int, expected: int) -> None:
    """Hand-counted from mha_bwd of hopper/flash_api.cpp."""
    query, key = (torch.empty(B, n, S, width, dtype=BF16, device="meta") for n in (H, keys))
    assert workspace_bytes(torch.ops.autotune.flash_attn_3_backward.default, (query, query, key, key)) == expected


def test_flash_attention_3_refuses_odd_widths() -> None:
    """It has no kernel for them, and unlike FlashAttention 2 does not pad."""
    with FakeTensorMode(), pytest.raises(ValueError, match="multiple of 8, not of 100"):
        flash_attention_3(*(torch.empty(B, S, H, 100).transpose(1, 2) for _ in range(3)))


@pytest.mark.parametrize(("checkpointing", "times"), [("full", 2), ("selective", 1)])
def test_selective_checkpointing_does_not_run_flash_attention_3_again(checkpointing: str, times: int) -> None:
    """TRL's policy keeps the result of what is called flash_attn."""
    asked = request(1, H100, attention="flash_attention_3", checkpointing=checkpointing, weights_dtype="bfloat16")
    assert [op.name for op in trace(asked).ops].count("autotune.flash_attn_3") == times


@pytest.mark.parametrize("masked", [False, True])
def test_flex_attention_is_traced_for_a_gpu(masked: bool) -> None:
    """Also where its heads are no power of 2, and keys are repeated for each."""
    asked = request(1, H100, attention="flex_attention", mixed_precision="no", weights_dtype="bfloat16")
    names = [op.name for op in trace(replace(asked, masked=masked)).ops]
    assert names.count("autotune.flex_attention") == names.count("autotune.flex_attention_backward") == 1
    config = {**asked.config, "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    repeated = trace(replace(asked, config=config, masked=masked))
    assert len(repeated.ops) > len(names)
