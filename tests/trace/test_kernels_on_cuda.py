"""What bitsandbytes' kernels allocate on CUDA: tables counted by hand from its sources (bitsandbytes 0.50)."""

from collections.abc import Iterator

import bitsandbytes as bnb
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune.trace.contracts import cuda_paths
from autotune.trace.recorder import Recorder

T, IN, OUT = 2048, 256, 512  # tokens, and the sides of a weight
BLOCK = 64  # weights that share a scale


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Records what is made of fake tensors on a GPU."""
    recorder = Recorder(masked=False, labels=[0])
    with FakeTensorMode(), recorder, cuda_paths((8, 0)):
        yield recorder


@pytest.mark.parametrize("nested", [False, True])
def test_a_4bit_product_unpacks_the_whole_weight(recorder: Recorder, nested: bool) -> None:
    """`_dequant_linear_fallback` (backends/cuda/ops.py): a weight of two bytes each, the result, and nested scales.

    Nested scales are unpacked into fp32, then added to their offset into a second buffer, both a number a block.
    """
    tokens, weight = torch.empty(T, IN, dtype=torch.bfloat16), torch.empty(IN * OUT // 2, 1, dtype=torch.uint8)
    blocks = IN * OUT // BLOCK
    scales = {"absmax": torch.empty(blocks)}
    if nested:
        scales = {
            "absmax": torch.empty(blocks // 256),
            "absmax_8bit": torch.empty(blocks, dtype=torch.uint8),
            "absmax_code": torch.empty(256),
            "absmax_offset": torch.empty(()),
        }
    since = len(recorder.made)
    out = torch.ops.bitsandbytes.gemm_4bit(tokens, weight, [OUT, IN], blocksize=BLOCK, quant_type="nf4", **scales)
    assert (out.shape, out.dtype) == ((T, OUT), torch.bfloat16)
    made = [block.bytes for block in recorder.made[since:]]
    assert sorted(made) == sorted([2 * IN * OUT, 2 * T * OUT, *([4 * blocks] * 2 if nested else [])])
    assert [place for place in recorder.living.values() if place >= since] == [recorder.block_of(out)]


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_int8_keeps_a_byte_a_value_and_a_scale_a_row(recorder: Recorder, threshold: float) -> None:
    """`int8_vectorwise_quant` (backends/cuda/ops.py); a threshold has the values made positive and compared first."""
    tokens = torch.empty(T, IN, dtype=torch.float16)
    since = len(recorder.made)
    quantized, scales, outliers = torch.ops.bitsandbytes.int8_vectorwise_quant(tokens, threshold)
    kept, searched = [T * IN, 4 * T], [2 * T * IN, T * IN, 1]
    assert (quantized.nbytes, scales.nbytes) == tuple(kept)
    assert (outliers is None) is (threshold == 0)
    made = sorted(block.bytes for block in recorder.made[since:] if block.bytes)
    assert made == sorted([*kept, *(searched if threshold else [])])


@pytest.mark.parametrize(("numbers", "paged"), [(99_999, False), (100_000, True)])
def test_states_of_a_hundred_thousand_numbers_are_paged(recorder: Recorder, numbers: int, paged: bool) -> None:
    """`Optimizer8bit.get_state_buffer` (optim/optimizer.py): on a GPU smaller ones stay in its own memory."""
    parameter = torch.nn.Parameter(torch.empty(numbers))
    for is_paged in (True, False):
        optimizer = bnb.optim.AdamW([parameter], is_paged=is_paged)
        state = optimizer.get_state_buffer(parameter, dtype=torch.uint8)
        assert state.nbytes == numbers
        assert getattr(state, "is_paged", False) is (is_paged and paged)
