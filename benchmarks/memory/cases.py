"""Cases of the memory benchmarks: small models of each architecture, and candidates that cover the knobs in pairs.

A case is a model, a legal candidate and the rows of its micro-batches. The same seed draws the same cases.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from autotune.core.candidate import Candidate, short_name
from autotune.core.hardware import Hardware
from autotune.core.knobs import VALUES
from autotune.core.lengths import Lengths
from autotune.core.recipe import METHODS, Recipe
from autotune.core.space.context import Context
from autotune.core.space.legality import first_broken
from autotune.core.workload import ModelFacts, Workload
from autotune.machine.installed import installed
from autotune.models.find import resolve_model
from autotune.predict.completion import stand_in_data

Rows = Literal["one", "several", "padded", "packed"]
Loss = Literal["fused", "full_logits"]

SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {  # small, and each with what is special about it
    "qwen2": {**SMALL, "num_hidden_layers": 7, "tie_word_embeddings": True},
    "qwen3": {**SMALL, "num_hidden_layers": 6, "head_dim": 64},
    "llama": {**SMALL, "num_hidden_layers": 8, "rope_theta": 500000.0},
    "mistral": {**SMALL, "num_hidden_layers": 6, "sliding_window": 128},
    "gemma2": {**SMALL, "num_hidden_layers": 9, "head_dim": 64, "sliding_window": 128},
    "gemma3_text": {**SMALL, "num_hidden_layers": 8, "head_dim": 64, "sliding_window": 128},
    "phi3": {**SMALL, "num_hidden_layers": 6, "pad_token_id": 0},
    "gpt2": {"n_embd": 256, "n_layer": 7, "n_head": 4},
    "qwen3_moe": {
        **SMALL,
        "num_hidden_layers": 6,
        "head_dim": 64,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
    },
}
LARGE = ("smollm2",)  # for a few cases only, because a step takes seconds
SHAPES: dict[Rows, tuple[tuple[int, int], ...]] = {  # rows of a micro-batch, and positions of the longest
    "one": ((1, 96), (1, 192), (1, 448)),
    "several": ((2, 320), (4, 128), (6, 64)),
    "padded": ((2, 200), (3, 256), (4, 100)),
    "packed": ((1, 384), (2, 256), (3, 128)),
}
FACTORS: dict[str, Sequence[Any]] = {
    "method": METHODS,
    "checkpointing": (("off", 1), ("selective", 1), ("full", 1), ("every_n", 2), ("every_n", 3)),
    "rows": tuple(SHAPES),
    "accumulation": (1, 3),
    "optimizer": [optimizer for optimizer in VALUES["optimizer"] if not optimizer.startswith("paged")],
    "loss": ("fused", "full_logits"),
    "attention": ("sdpa", "eager"),
    "numbers": (("float32", "bf16"), ("float32", "no"), ("bfloat16", "bf16"), ("bfloat16", "no")),
}
DRAWS = 40  # cases drawn for each that is taken, the one with the most new pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One training to predict and to measure.

    positions: of the longest row of each micro-batch. padded: whether the other rows are shorter.
    """

    model: str
    candidate: Candidate
    positions: int
    padded: bool
    loss: Loss

    @property
    def key(self) -> dict[str, Any]:
        """Return the plain values that tell cases apart."""
        return asdict(self)

    @property
    def name(self) -> str:
        """Return what a person calls it."""
        return f"{self.model} {self.loss} {'padded ' * self.padded}{short_name(self.candidate)}"


def find_model(name: str, home: Path) -> ModelFacts:
    """Find `tiny` or `smollm2`; a small model of random weights is made when it is first needed."""
    if name not in ARCHITECTURES:
        return resolve_model(name, home=home, progress=lambda _: None)
    directory = home / "architectures" / name
    if not directory.exists():
        _make(name, directory, resolve_model("tiny", home=home, progress=lambda _: None).path)
    return resolve_model(str(directory), home=home, progress=lambda _: None)


def _make(model_type: str, directory: Path, tokenizer: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    words = AutoTokenizer.from_pretrained(tokenizer)
    config = AutoConfig.for_model(
        model_type, vocab_size=len(words), bos_token_id=0, eos_token_id=0, **ARCHITECTURES[model_type]
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    words.save_pretrained(directory)


def draw_cases(models: Sequence[ModelFacts], hardware: Hardware, *, count: int, seed: int) -> list[Case]:
    """Draw `count` legal cases, so that they soon hold every pair of values of two knobs."""
    generator = random.Random(seed)
    seen: set[frozenset[Any]] = set()
    cases: list[Case] = []
    while len(cases) < count:
        drawn = [draw for _ in range(DRAWS) if (draw := _draw(generator, models, hardware)) is not None]
        values, case = max(drawn, key=lambda draw: len(_pairs(draw[0]) - seen))
        if case not in cases:
            seen |= _pairs(values)
            cases.append(case)
    return cases


def _pairs(values: dict[str, Any]) -> set[frozenset[Any]]:
    return {frozenset(pair) for pair in combinations(values.items(), 2)}


def _draw(
    generator: random.Random, models: Sequence[ModelFacts], hardware: Hardware
) -> tuple[dict[str, Any], Case] | None:
    """Draw one case and the values of its factors; None when it is not legal."""
    facts = generator.choice(models)
    values = {name: generator.choice(options) for name, options in FACTORS.items()}
    rows, positions = generator.choice(SHAPES[values["rows"]])
    packed = values["rows"] == "packed"
    (checkpointing, every_n_layers), (weights_dtype, mixed_precision) = values["checkpointing"], values["numbers"]
    candidate = Candidate(
        max_length=positions,
        packed_length=positions if packed else None,
        batching="pack_bfd" if packed else "random",
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=values["accumulation"],
        method=values["method"],
        checkpointing=checkpointing,
        every_n_layers=every_n_layers,
        attention=values["attention"],
        optimizer=values["optimizer"],
        weights_dtype=weights_dtype,
        mixed_precision=mixed_precision,
        torch_threads=1,
        tuned_allocator=False,
    )
    case = Case(
        model=facts.name,
        candidate=candidate,
        positions=positions,
        padded=values["rows"] == "padded",
        loss=values["loss"],
    )
    legal = first_broken(candidate, _context(case, facts, hardware)) is None
    return ({"model": facts.name, **values}, case) if legal else None


def row_lengths(case: Case) -> list[int]:
    """Return the tokens of each sample of two optimizer steps, in the order in which the trainer takes them.

    Padded: the first row of each micro-batch is the longest, the others have half to all of its tokens. Packed: two
    samples fill a row.
    """
    candidate, generator = case.candidate, random.Random(0)
    rows = 2 * candidate.rows_per_step
    if candidate.packs:
        first = case.positions * 5 // 8
        return [first, case.positions - first] * rows
    size = candidate.per_device_train_batch_size
    return [
        generator.randint(case.positions // 2, case.positions - 1) if case.padded and row % size else case.positions
        for row in range(rows)
    ]


def _context(case: Case, facts: ModelFacts, hardware: Hardware) -> Context:
    tokens = np.array(row_lengths(case), dtype=np.int64)
    samples = case.candidate.rows_per_step * (2 if case.candidate.packs else 1)
    data = replace(stand_in_data(1), lengths=Lengths.with_labels_last(tokens, tokens - 1), rows_in_file=len(tokens))
    recipe = Recipe(method=case.candidate.method, effective_batch_size=samples)
    workload = Workload(model=facts, data=data, recipe=recipe)
    return Context(installed=installed(), hardware=hardware, workload=workload)
