"""benchmarks/gpu/published.py: the examples as candidates, made by hand."""

from autotune.core.candidate import short_name
from autotune.core.space.context import Installed
from autotune.core.space.references import baseline
from benchmarks.gpu.published import FULL_0_5B, LORA_7B, Settings, as_published
from tests.core.examples import A100, context, workload


def test_examples_are_what_their_projects_publish() -> None:
    """By hand, on rows of 1000 tokens, at 16 samples a step; no row is longer than the model takes."""

    def names(published: Settings, method: str, limit: int) -> list[str]:
        work = workload([1000] * 400, method=method, effective_batch_size=16, model={"limit": limit})
        here = context(A100, work=work)
        defaults = baseline(workload=work, hardware=A100, installed=here.installed)[0]
        return [short_name(as_published(knobs, defaults, here)) for knobs in published.values()]

    assert names(LORA_7B, "lora", 8192) == [
        "qlora 2x8 random len 2048 ckpt full sdpa adamw_8bit bf16+amp bf16",
        "lora_int8 2x2 pack_bfd@4096 len 4096 ckpt full sdpa adamw_8bit bf16+amp bf16",
        "lora 1x16 random len 2048 ckpt full sdpa fused bf16+amp bf16",
    ]
    assert names(FULL_0_5B, "full", 8192) == [
        "full 2x8 random len 1024 ckpt full sdpa adamw_8bit bf16+amp bf16",
        "full 4x1 pack_bfd@4096 len 4096 ckpt off sdpa fused bf16+amp bf16",
        "full 2x8 random len 2048 ckpt full sdpa fused fp32+amp bf16",
    ]
    assert names(LORA_7B, "lora", 2048)[1].startswith("lora_int8 2x4 pack_bfd@2048 len 2048")
    short = workload([100] * 400, method="lora", effective_batch_size=16, model={"limit": 8192})
    defaults = baseline(workload=short, hardware=A100, installed=Installed())[0]
    assert as_published(LORA_7B["Axolotl's example"], defaults, context(A100, work=short)).rows_per_step == 1
