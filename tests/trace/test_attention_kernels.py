"""CUDA's attention without CUDA: the kernel that its dispatcher takes, and what that kernel allocates."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch._decomp.decompositions import _softmax_backward_data
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune.trace.attention_kernels import WORKSPACES, Capability, cuda_attention, sdpa_kernel
from autotune.trace.recorder import Recorder

T4, A100, RTX_4090, H100, B200, B300, RTX_5090 = (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
B, H, K, S, D = 2, 8, 2, 256, 64


@pytest.mark.parametrize(
    ("capability", "dtype", "width", "masked", "grouped", "kernel"),
    [
        (A100, BF16, 64, False, True, "flash"),
        (A100, BF16, 256, False, False, "flash"),
        (A100, BF16, 64, True, False, "efficient"),  # no flash kernel takes a mask
        (A100, FP32, 64, False, False, "efficient"),  # nor fp32
        (A100, FP32, 64, False, True, "math"),  # the efficient one does not share keys among heads
        (RTX_4090, BF16, 200, False, False, "efficient"),  # too little shared memory for the backward
        (RTX_4090, BF16, 256, False, False, "flash"),  # which there is again, without dropout
        (T4, FP16, 64, False, False, "efficient"),  # flash needs Ampere
        (T4, FP16, 64, False, True, "math"),
        (T4, BF16, 64, False, False, "math"),
        (H100, BF16, 96, False, False, "cudnn"),  # which is preferred, takes masks and shares keys among heads
        (H100, FP16, 256, True, True, "cudnn"),
        (H100, BF16, 100, False, False, "flash"),  # its widths are multiples of 8
        (H100, FP32, 64, False, False, "efficient"),
        (B200, BF16, 128, True, False, "cudnn"),
        (B200, BF16, 256, False, False, "flash"),  # and on Blackwell no more than 128
        (B200, BF16, 256, True, False, "efficient"),
        (B300, BF16, 64, False, True, "cudnn"),
        (RTX_5090, BF16, 64, False, True, "flash"),
    ],
)
def test_the_dispatcher_of_torch(
    capability: Capability, dtype: torch.dtype, width: int, masked: bool, grouped: bool, kernel: str
) -> None:
    """The table of sdp_utils.cpp."""
    assert sdpa_kernel(capability, dtype, width, masked=masked, grouped=grouped) == kernel


def test_values_of_another_width_have_no_flash_attention() -> None:
    """As DeepSeek's: check_head_dim_size_flash wants one width; cuDNN's takes two."""
    found = [
        sdpa_kernel(capability, BF16, 48, masked=False, grouped=False, value_width=32) for capability in (A100, H100)
    ]
    assert found == ["efficient", "cudnn"]


def test_dropout_takes_more_shared_memory() -> None:
    """Wide heads with dropout have no flash backward where there is little; with much there is one."""
    assert sdpa_kernel(RTX_4090, BF16, 256, masked=False, grouped=False, dropout=0.1) == "efficient"
    assert sdpa_kernel(A100, BF16, 256, masked=False, grouped=False, dropout=0.1) == "flash"


@pytest.mark.parametrize(
    ("dropout", "masked", "kernel"), [(0.125, True, "cudnn"), (0.1, False, "flash"), (0.1, True, "efficient")]
)
def test_dropout_of_cudnn_comes_in_sixteenths(dropout: float, masked: bool, kernel: str) -> None:
    """check_cudnn_dropout: any other goes to the next kernel that there is."""
    assert sdpa_kernel(H100, BF16, 64, masked=masked, grouped=False, dropout=dropout) == kernel


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Records what is made of fake tensors."""
    recorder = Recorder(masked=False, labels=[0])
    with FakeTensorMode(), recorder:
        yield recorder


def query_key_value(keys: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Inputs of attention as a model makes them: (B, S, H, D) transposed."""
    return [torch.empty(B, S, n, D, dtype=dtype, requires_grad=True).transpose(1, 2) for n in (H, keys, keys)]


def sizes(recorder: Recorder, since: int) -> list[int]:
    """Bytes of all that was made since."""
    return sorted((made.bytes for made in recorder.made[since:]), reverse=True)


def test_flash_attention_keeps_its_output_and_a_sum_per_row(recorder: Recorder) -> None:
    """Forward: out (B, H, S, D) in half precision, log-sum-exp (B, H, S) in fp32, nothing of S x S."""
    inputs = query_key_value(K, BF16)
    since = len(recorder.made)
    with cuda_attention(A100):
        out = F.scaled_dot_product_attention(*inputs, is_causal=True, enable_gqa=True)
    out_and_sums, random_state = [2 * B * H * S * D, 4 * B * H * S], 32
    made = sizes(recorder, since)
    assert made[:2] == out_and_sums
    assert sum(made[2:]) <= random_state
    since = len(recorder.made)
    out.sum().backward()
    grads, accumulated = 2 * B * S * D * (H + 2 * K), 4 * B * H * S * (D + 1)
    expanded = 2 * 2 * B * S * H * D  # keys and values have fewer heads than queries
    assert accumulated + expanded in sizes(recorder, since)
    assert sum(sizes(recorder, since)) >= grads + accumulated + expanded


def test_attention_of_cudnn_keeps_its_output_a_sum_per_row_and_the_mask(recorder: Recorder) -> None:
    """Counted by hand from MHA.cpp and cudnn-frontend; the rows of its mask are not padded."""
    inputs = query_key_value(K, BF16)
    mask = torch.ones(B, 1, S, S, dtype=torch.bool)
    since = len(recorder.made)
    with cuda_attention(H100):
        out = F.scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True)
    alive = sorted((recorder.made[place].bytes for place in recorder.living.values() if place >= since), reverse=True)
    random_state = [8, 8]
    assert alive == [2 * B * H * S * D, 2 * B * S * S, 4 * B * H * S, *random_state]
    since = len(recorder.made)
    torch.autograd.grad(out, inputs, torch.empty_like(out))
    gradients, expanded = [2 * B * S * D * n for n in (H, K, K)], 2 * 2 * B * S * H * D
    workspace = 4 * B * H * S * (D + 1) + expanded
    assert set(sizes(recorder, since)) == {*gradients, workspace}


def test_a_mask_of_booleans_becomes_one_of_numbers_that_is_kept(recorder: Recorder) -> None:
    """The efficient kernel keeps (B, 1, S, S) in the dtype of the queries for the backward, once a layer."""
    inputs = query_key_value(H, FP16)
    mask = torch.ones(B, 1, S, S, dtype=torch.bool)
    since = len(recorder.made)
    with cuda_attention(A100):
        out = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    alive = [recorder.made[place].bytes for place in recorder.living.values() if place >= since]
    assert sorted(alive, reverse=True)[:2] == [2 * B * H * S * D, 2 * B * S * S]
    out.sum().backward()
    assert 4 * B * H * (S * D + S) in sizes(recorder, since)  # the gradient of queries in fp32, and delta


def test_softmax_of_fp16_into_fp32_makes_no_copy(recorder: Recorder) -> None:
    """CUDA's kernel reads fp16 and writes fp32; bf16 is copied into fp32 first."""
    scores = {dtype: torch.empty(B, H, S, S, dtype=dtype) for dtype in (FP16, BF16)}
    made = {}
    for dtype, tensor in scores.items():
        since = len(recorder.made)
        with cuda_attention(T4):
            assert F.softmax(tensor, dim=-1, dtype=FP32).dtype == FP32
        made[dtype] = len(sizes(recorder, since))
    assert made == {FP16: 1, BF16: 2}


@pytest.mark.parametrize("dtype", [FP16, FP32])
def test_softmax_multiplies_its_gradient_into_a_buffer(recorder: Recorder, dtype: torch.dtype) -> None:
    """The first of what torch's own decomposition makes; CUDA's kernel makes it as well, the CPU's does not."""
    grad, scores = (torch.empty(B, H, S, S, dtype=FP32) for _ in range(2))
    since = len(recorder.made)
    _softmax_backward_data(grad, scores, -1, dtype)
    workspace = WORKSPACES[torch.ops.aten._softmax_backward_data.default]
    assert workspace(grad, scores, -1, dtype) == recorder.made[since].bytes == grad.nbytes
