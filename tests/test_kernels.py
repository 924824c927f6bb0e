"""What CPU operators allocate inside: against torch's own profiler, on real tensors."""

import pytest
import torch
from torch.autograd.profiler import profile

from autotune.kernels import workspace_bytes_on_cpu

aten = torch.ops.aten


@pytest.mark.parametrize("func", [aten.mul.Tensor, aten.add_.Tensor, aten.mul_.Tensor])
@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", "float32")])
def test_copies_into_a_common_dtype(func: torch._ops.OpOverload, dtypes: tuple[str, str]) -> None:
    """Operands of another dtype are copied, and a result that is written into one."""
    one, other = (torch.ones(300, 7, dtype=getattr(torch, name)) for name in dtypes)
    with profile(use_cpu=True, profile_memory=True) as watched:
        result = func(one, other)
    pending, made = list(watched.kineto_results.experimental_event_tree()), 0
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag.name == "Allocation" and event.extra_fields.alloc_size > 0:
            made += event.extra_fields.alloc_size
    kept = 0 if func._schema.is_mutable else result.nbytes
    assert workspace_bytes_on_cpu(func, (one, other)) == made - kept
