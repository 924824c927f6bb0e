"""The cases of `gpu.suite steps`: candidates on the shapes of well-known models, and their rows.

Weights are drawn at random and rows are made-up tokens, so nothing is downloaded. The cases cover methods,
checkpointing, optimizers, precision, and rows that are full, padded or packed, at micro-batches from 1 to 16 and
lengths from 256 to 4096. All fit an 80 GB GPU, and a step takes a few seconds at most.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autotune.core.candidate import Candidate, short_name
from autotune.core.lengths import Lengths
from autotune.core.recipe import Recipe
from autotune.demo import TINY
from benchmarks.trainings import write_samples

Rows = Literal["full", "padded", "packed"]

STEPS = (
    4  # optimizer steps that the rows suffice for: two that warm up, the second with the largest micro-batch, and two
)
SEED = 0
QWEN05, QWEN15, QWEN7 = (f"Qwen/Qwen2.5-{size}" for size in ("0.5B", "1.5B", "7B"))
QWEN3 = "Qwen/Qwen3-0.6B"
LLAMA1, LLAMA8 = "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B"
GEMMA2 = "google/gemma-2-2b"
SMOL135, SMOL1700 = (f"HuggingFaceTB/SmolLM2-{size}" for size in ("135M", "1.7B"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One candidate on one model. card_bytes: memory of the smaller GPU that is imitated; None for the whole device."""

    model: str
    rows: Rows
    candidate: Candidate
    card_bytes: int | None = None

    @property
    def name(self) -> str:
        """Return the name that tells it from the others."""
        card = f" on {self.card_bytes / 1e9:.0f} GB" if self.card_bytes else ""
        return f"{self.model} {self.rows} {short_name(self.candidate)}{card}"

    @property
    def recipe(self) -> Recipe:
        """Return the recipe of the training. A packed row holds two samples."""
        samples = self.candidate.rows_per_step * (2 if self.candidate.packs else 1)
        return Recipe(method=self.candidate.method, effective_batch_size=samples)


def make(model: str, method: Any, rows: int, length: int, kind: Rows = "full", /, **knobs: Any) -> Case:
    """Make a case. Knobs that are not named: one micro-step, bf16 autocast, and a bf16 base under adapters."""
    packs = {"batching": "pack_bfd", "packed_length": length} if kind == "packed" else {}
    usual = {
        "gradient_accumulation_steps": 1,
        "weights_dtype": "float32" if method == "full" else "bfloat16",
        **packs,
    }
    candidate = Candidate(max_length=length, per_device_train_batch_size=rows, method=method, **{**usual, **knobs})
    return Case(model=model, rows=kind, candidate=candidate)


FULL, SELECTIVE = {"checkpointing": "full"}, {"checkpointing": "selective"}
BF16 = {"weights_dtype": "bfloat16"}
PURE_BF16 = {**BF16, "mixed_precision": "no"}
FOREACH, EIGHT, PAGED = ({"optimizer": name} for name in ("adamw_torch", "adamw_8bit", "paged_adamw_8bit"))
EAGER = {"attention": "eager"}  # Gemma 2 has no other attention
TWICE = {"gradient_accumulation_steps": 2}
PLAIN_ALLOCATOR = {"tuned_allocator": False}

# By model; the cases that need a worker with another environment come last.
CASES: tuple[Case, ...] = (
    make(SMOL135, "full", 16, 256),
    make(SMOL135, "full", 16, 1024, "padded", **FOREACH),
    make(SMOL135, "lora", 8, 2048, "packed", weights_dtype="float32"),
    make(SMOL135, "full", 1, 4096, **TWICE),
    make(QWEN05, "full", 8, 512),
    make(QWEN05, "full", 4, 1024, **FOREACH, **TWICE),
    make(QWEN05, "full", 2, 2048, "padded", **FULL, **EIGHT),
    make(QWEN05, "full", 1, 4096, **SELECTIVE, **PURE_BF16),
    make(QWEN05, "lora", 16, 512, "padded"),
    make(QWEN05, "lora", 4, 1024, "packed", **FULL),
    make(QWEN05, "qlora", 8, 1024, **PAGED),
    make(QWEN05, "lora_int8", 4, 1024, "padded"),
    make(QWEN3, "full", 4, 2048, **FULL, **BF16),
    make(QWEN3, "lora", 8, 1024, "padded", **SELECTIVE),
    make(QWEN3, "qlora", 2, 2048, **FULL, **TWICE),
    make(QWEN3, "lora_int8", 1, 256),
    make(LLAMA1, "full", 4, 1024, **PAGED),
    make(LLAMA1, "full", 2, 1024, "padded", **PURE_BF16, **FOREACH),
    make(LLAMA1, "full", 2, 2048, "packed", **FULL),
    make(LLAMA1, "lora", 16, 256, **EIGHT),
    make(LLAMA1, "lora", 1, 4096, "full", **SELECTIVE),
    make(LLAMA1, "qlora", 4, 1024, "padded"),
    make(LLAMA1, "lora_int8", 8, 512, **FULL),
    make(QWEN15, "full", 4, 1024),
    make(QWEN15, "full", 8, 512, "padded", **FULL, **BF16, **EIGHT),
    make(QWEN15, "lora", 8, 1024, **SELECTIVE, **FOREACH),
    make(QWEN15, "lora", 2, 2048, "packed"),
    make(QWEN15, "qlora", 16, 512, "padded", **FULL),
    make(QWEN15, "lora_int8", 2, 1024),
    make(SMOL1700, "full", 1, 2048, **SELECTIVE, **EIGHT, **TWICE),
    make(SMOL1700, "lora", 4, 2048, "padded", **FULL),
    make(SMOL1700, "qlora", 8, 512, "full", **SELECTIVE, **PAGED),
    make(GEMMA2, "full", 1, 1024, **EAGER, **BF16, **FULL),
    make(GEMMA2, "lora", 4, 1024, "padded", **EAGER),
    make(GEMMA2, "lora", 8, 512, **EAGER, **FULL, weights_dtype="float32"),
    make(GEMMA2, "qlora", 2, 1024, **EAGER),
    make(QWEN7, "full", 2, 1024, **FULL, **PURE_BF16),
    make(QWEN7, "lora", 2, 1024),
    make(QWEN7, "lora", 4, 2048, "padded", **FULL),
    make(QWEN7, "qlora", 4, 1024, **FULL),
    make(QWEN7, "lora_int8", 2, 512),
    make(LLAMA8, "full", 1, 2048, **FULL, **PURE_BF16, **PAGED),
    make(LLAMA8, "lora", 1, 4096, **SELECTIVE),
    make(LLAMA8, "lora", 8, 512, "padded", **FULL, **EIGHT),
    make(LLAMA8, "qlora", 8, 512, "padded", **PAGED),
    make(LLAMA8, "qlora", 1, 2048, "packed", **FULL),
    make(LLAMA8, "lora_int8", 2, 1024, **FULL),
    make(QWEN05, "full", 8, 1024, "padded", **PLAIN_ALLOCATOR),
    make(QWEN15, "lora", 8, 512, "padded", **PLAIN_ALLOCATOR),
    make(LLAMA8, "qlora", 2, 1024, **FULL, **PLAIN_ALLOCATOR),
)

# Smaller GPUs, and the cases for each at the largest micro-batch that is predicted to fit; the first also around it.
CARDS: dict[int, tuple[Case, ...]] = {
    16 * 10**9: (
        make(QWEN05, "full", 1, 512),
        make(LLAMA1, "lora", 1, 1024, **FULL),
        make(QWEN7, "qlora", 1, 256),
    ),
    24 * 10**9: (
        make(QWEN15, "full", 1, 512, **SELECTIVE, **BF16, **EIGHT),
        make(LLAMA1, "lora", 1, 512),
        make(LLAMA8, "qlora", 1, 256),
    ),
    48 * 10**9: (
        make(QWEN15, "full", 1, 512),
        make(QWEN7, "lora", 1, 256),
        make(SMOL1700, "lora_int8", 1, 512, **FULL),
    ),
}

# What `--cpu` trains on a machine without a GPU, to see that the suite runs; in fp32, as some CPUs have no bf16.
TINY_MODEL = "tiny"
ON_CPU = {"weights_dtype": "float32", "mixed_precision": "no", **PLAIN_ALLOCATOR}
CPU_CASES: tuple[Case, ...] = (
    make(TINY_MODEL, "lora", 2, 64, "padded", **ON_CPU),
    make(TINY_MODEL, "qlora", 2, 64, **ON_CPU),
)


def around(case: Case, card_bytes: int, largest: int, *, wide: bool) -> Iterator[Case]:
    """Yield the case at the largest micro-batch that fits the card; if `wide`, also a quarter below and beyond it."""
    quarter = max(1, largest // 4)
    sizes = [max(1, largest - quarter), largest, largest + quarter] if wide else [largest]
    for rows in dict.fromkeys(sizes):
        candidate = replace(case.candidate, per_device_train_batch_size=rows)
        yield replace(case, candidate=candidate, card_bytes=card_bytes)


def row_lengths(case: Case) -> list[int]:
    """Return the tokens of each sample, in the order in which micro-batches take the samples.

    Padded rows go from the longest to half of it, so that the first micro-batch is the largest that the rows could
    make, and none is without padding. A random order would rarely bring the longest together, and memory is predicted
    for them. Two samples fill a packed row.
    """
    length, count = case.candidate.row_length, STEPS * case.candidate.rows_per_step
    if case.rows == "packed":
        return [length * 5 // 8, length - length * 5 // 8] * count
    if case.rows == "padded":
        return np.linspace(length, length // 2, count).astype(int).tolist()
    return [length] * count


def lengths_of(case: Case) -> Lengths | None:
    """Return the lengths that the prediction is given; None where every row is full.

    They stand where its seeded order finds them (core/batches/batches.py), so it makes the trainer's micro-batches.
    """
    if case.rows != "padded":
        return None
    lengths = row_lengths(case)
    tokens = np.empty(len(lengths), dtype=np.int64)
    tokens[np.random.default_rng(SEED).permutation(len(lengths))] = lengths
    return Lengths.with_labels_last(tokens, tokens - 1)


def write_rows(case: Case, path: Path) -> None:
    """Write the rows as the trainer reads them."""
    write_samples(row_lengths(case), path, shuffled=not case.candidate.packs, seed=SEED)


def write_model(config: Mapping[str, Any], path: Path) -> None:
    """Write what a model of random weights needs: its configuration, and any tokenizer."""
    from transformers import AutoConfig

    shutil.copytree(TINY, path, dirs_exist_ok=True)
    AutoConfig.for_model(**config).save_pretrained(path)
