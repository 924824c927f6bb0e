"""What CPU operators allocate inside: against torch's own profiler, on real tensors."""

import pytest
import torch
from torch.autograd.profiler import profile

from autotune.trace.kernels import ANYWHERE, workspace_bytes_on_cpu

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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("a", "b", "groups"),
    [((6, 16), (3, 16, 10), 3), ((3, 5, 16), (16, 10), 3), ((5, 16), (16, 10), 3), ((3, 5, 16), (3, 16, 10), None)],
)
def test_grouped_products_are_laid_out_as_torch_does(
    a: tuple[int, ...], b: tuple[int, ...], groups: int | None, dtype: torch.dtype
) -> None:
    """Sizes, strides and bytes of every form, with offsets and without, where rows of ten columns are padded."""
    one = torch.ones(a, dtype=dtype)
    other = torch.ones(*b[:-2], b[-1], b[-2], dtype=dtype).transpose(-1, -2)  # torch wants 16 bytes between its rows
    offs = None if groups is None else torch.tensor([0] * (groups - 1) + [1], dtype=torch.int32)
    real = aten._grouped_mm(one, other, offs)
    found = ANYWHERE[aten._grouped_mm.default](one, other, offs)
    assert (found.shape, found.stride(), found.dtype) == (real.shape, real.stride(), real.dtype)
    assert found.untyped_storage().nbytes() == real.untyped_storage().nbytes()
