"""Machines, stacks and workloads as plain facts, for tests of the space: small, and complete enough to be judged."""

from typing import Any

import numpy as np

from autotune.core.candidate import Candidate
from autotune.core.hardware import Device, Hardware, RatePoint
from autotune.core.lengths import Lengths
from autotune.core.recipe import Recipe
from autotune.core.space.context import Context, Installed
from autotune.core.workload import DataFacts, ModelFacts, Workload

ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")


def hardware(kind: Device, capability: tuple[int, int] | None = None, cores: int = 8) -> Hardware:
    """A machine of a kind; bf16 and tf32 come with compute capability 8.0."""
    ampere = capability is not None and capability >= (8, 0)
    return Hardware(
        kind=kind,
        name="example",
        uuid="example",
        memory_bytes=2**34,
        free_bytes=2**34,
        used_by_others_bytes=0,
        cores=cores,
        host_memory_bytes=2**35,
        host_free_bytes=2**35,
        supports_bf16=ampere or kind == "cpu",
        supports_tf32=ampere,
        compute_capability=capability,
    )


CPU = hardware("cpu", cores=2)
T4 = hardware("cuda", (7, 5))
A100 = hardware("cuda", (8, 0))
PLAIN = Installed(cpp_compiler=True)
RICH = Installed(cpp_compiler=True, flash_attention_2=True, flash_attention_3=True, kernels=True)
SLOW_IN_BF16 = tuple(  # rates of a CPU without instructions for bf16
    RatePoint(what="matmul", dtype=dtype, shape=(512, 512, 512), per_second=rate, spread=0.0)
    for dtype, rate in (("bfloat16", 2e10), ("float32", 1.8e11))
)


def lengths(tokens: Any, labels: int | None = None) -> Lengths:
    """Rows of these lengths. Their last `labels` tokens are in the loss; None: all but the first are."""
    array = np.asarray(tokens, dtype=np.int64)
    return Lengths.with_labels_last(array, np.minimum(np.maximum(array - 1, 0), labels or array))


def workload(
    tokens: Any = tuple(range(20, 420)),
    *,
    labels: int | None = None,
    model: dict[str, Any] | None = None,
    **recipe: Any,
) -> Workload:
    """A llama of four layers and 1024 positions on rows of `tokens` tokens; keywords are the recipe's."""
    facts: dict[str, Any] = {
        "path": "model",
        "name": "model",
        "model_type": "llama",
        "parameters": 1_000_000,
        "layers": 4,
        "vocabulary": 512,
        "limit": 1024,
        "attention": ATTENTIONS,
        "supports_checkpointing": True,
        "is_mixture_of_experts": False,
        "fingerprint": "model",
    }
    rows = lengths(tokens, labels)
    return Workload(
        model=ModelFacts(**{**facts, **(model or {})}),
        data=DataFacts(
            path="data",
            name="data",
            form="messages",
            lengths=rows,
            rows_in_file=rows.rows,
            coverage_error=0.0,
            tokenized_path="",
            fingerprint="data",
        ),
        recipe=Recipe(**{"effective_batch_size": 8, **recipe}),
    )


def context(machine: Hardware = CPU, installed: Installed = PLAIN, work: Workload | None = None) -> Context:
    """What a candidate is judged against."""
    return Context(installed=installed, hardware=machine, workload=work or workload())


def candidate(**changes: Any) -> Candidate:
    """A legal candidate of `workload()`; keywords change it."""
    values = {"max_length": 448, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "method": "full"}
    return Candidate(**{**values, **changes})
