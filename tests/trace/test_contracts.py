"""CUDA's paths without CUDA: TRL's head on label positions alone, autocast's list, foreach optimizers."""

from collections.abc import Iterator

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE, ChunkedLogProbFunction

from autotune.trace.contracts import cuda_paths
from autotune.trace.recorder import Recorder

B, S, H, V = 2, 256, 64, 40_000
TILE_WIDTH = 32_768


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Records what is made of fake tensors where 100 positions are labels."""
    recorder = Recorder(masked=False, labels=[100])
    with FakeTensorMode(), recorder, cuda_paths((8, 0)):
        yield recorder


def test_a_mask_picks_as_many_positions_as_there_are_labels(recorder: Recorder) -> None:
    """`hidden_states[mask]` and its gradient, whose shapes no fake tensor can know."""
    hidden = torch.empty(B, S, H, requires_grad=True)
    mask = torch.empty(B, S, dtype=torch.bool)
    picked = hidden[mask]
    assert picked.shape == (100, H)
    scores = picked.sum(-1)
    scores.new_zeros(B, S).masked_scatter(mask, scores).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == hidden.shape


@pytest.mark.parametrize("labels", [100, 3 * TOKEN_CHUNK_SIZE])
def test_the_head_makes_one_tile_of_logits_at_a_time(recorder: Recorder, labels: int) -> None:
    """Its largest buffers: a tile of at most 4096 label positions, then an fp32 gradient of the head's weight."""
    hidden = torch.empty(labels, H, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(V, H, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.empty(labels, dtype=torch.int64)
    since = len(recorder.made)
    outputs = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, TILE_WIDTH, None, 1.0, ())
    tile = 2 * min(labels, TOKEN_CHUNK_SIZE) * TILE_WIDTH
    assert max(made.bytes for made in recorder.made[since:]) == tile
    since = len(recorder.made)
    outputs[0].sum().backward()
    assert {tile, 4 * V * H} <= {made.bytes for made in recorder.made[since:]}


def test_autocast_computes_powers_in_fp32_and_softmax_into_fp32(recorder: Recorder) -> None:
    """CUDA's list, which the CPU's autocast does not have."""
    value = torch.empty(8, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert value.pow(2).dtype == torch.float32
        assert (value**2).dtype == torch.float32
        assert value.softmax(-1).dtype == torch.float32
        assert (value + value).dtype == torch.bfloat16
    assert value.pow(2).dtype == torch.bfloat16


def test_what_a_checkpoint_computes_again_is_under_the_same_autocast(recorder: Recorder) -> None:
    """Torch itself refuses a checkpoint whose tensors have another dtype the second time."""
    value = torch.empty(8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = checkpoint(lambda tensor: tensor.pow(3).sin(), value, use_reentrant=False).sum()
    loss.backward()
    assert value.grad is not None


def test_adamw_goes_over_all_parameters_at_once(recorder: Recorder) -> None:
    """The foreach path makes its square roots for all parameters before it uses the first."""
    parameters = [torch.nn.Parameter(torch.empty(1000)) for _ in range(4)]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.empty(1000)
    optimizer.step()
    assert any(op.name == "aten._foreach_sqrt.default" and len(op.made) == 4 for op in recorder.ran)
