"""Kernels of the hub: what Liger's RMS norm allocates, and for which models nothing is said."""

from dataclasses import replace

import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from autotune.cli.settings import CONF
from autotune.core.memory.law import memory_law, peak
from autotune.core.step.profile import monomials
from autotune.trace.assembly import TraceError
from autotune.trace.hub_kernels import MULTIPROCESSORS, LigerRmsNorm, use_hub_kernels
from autotune.trace.recorder import Recorder
from autotune.trace.request import TraceRequest
from autotune.trace.trace import trace
from tests.trace.test_trace import request

B, S, D = 2, 256, 64
A100 = (8, 0)


@pytest.mark.parametrize("trained", [True, False])
def test_the_norm_of_liger(trained: bool) -> None:
    """What liger-kernel 0.8.5's function was seen to keep and make, run on fake tensors without Triton's launches."""
    recorder, kept = Recorder(masked=False, labels=[0]), []
    with FakeTensorMode(), recorder, saved_tensors_hooks(lambda x: (kept.append(x.nbytes), x)[1], lambda x: x):
        states = torch.empty(B, S, D, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(D, dtype=torch.bfloat16, requires_grad=trained)
        since = len(recorder.made)
        out = LigerRmsNorm.apply(states, weight)
        made = [each.bytes for each in recorder.made[since:]]
        grad = torch.empty_like(out)
        since = len(recorder.made)
        out.backward(grad)
        back = sorted(each.bytes for each in recorder.made[since:])
    assert sorted(kept) == [2 * D, 4 * B * S, 2 * B * S * D]
    assert sorted(made) == [4 * B * S, 2 * B * S * D]
    assert back == ([2 * D, 4 * D, 4 * D * MULTIPROCESSORS] if trained else [])  # nothing of B x S x D


def test_the_norms_of_a_model_are_replaced() -> None:
    """Only those that transformers marks: another norm keeps its own forward."""
    marked = torch.nn.Sequential(LlamaRMSNorm(D), torch.nn.RMSNorm(D))
    use_hub_kernels(marked)
    with torch.device("meta"):
        assert "forward" in vars(marked[0])
        assert "forward" not in vars(marked[1])


def test_no_gpu_of_the_catalogue_has_more_multiprocessors() -> None:
    """The number of partial gradients of a norm's weight is the GPU's, which a trace does not know."""
    paths = (CONF / "hardware").glob("*.yaml")
    specs = [yaml.safe_load(path.read_text(encoding="utf-8")).get("gpu") for path in paths]
    counts = [spec["sm_count"] for spec in specs if isinstance(spec, dict)]
    assert 0 < max(counts) <= MULTIPROCESSORS


def test_a_step_with_kernels_of_the_hub_needs_less() -> None:
    """The model's own norm keeps its input in fp32 as well."""

    def needed(asked: TraceRequest) -> int:
        return peak(memory_law(trace(asked), layers=1, accumulation=1), monomials(B, 1024, B * 1023)).bytes

    asked = request(1, A100, weights_dtype="bfloat16", mixed_precision="no")
    with_kernels = replace(asked, candidate=replace(asked.candidate, use_kernels=True))
    assert needed(with_kernels) < needed(asked)


def test_other_kernels_are_refused_in_one_sentence() -> None:
    """A recurrent model has kernels whose memory nobody has written down."""
    config = AutoConfig.for_model(
        "qwen3_next", vocab_size=600, hidden_size=64, num_hidden_layers=4, num_experts=4, head_dim=16
    ).to_dict()
    with pytest.raises(TraceError, match=r"chunk_gated_delta_rule.*candidate\.use_kernels=false"):
        trace(replace(request(4, A100, use_kernels=True), config=config))
