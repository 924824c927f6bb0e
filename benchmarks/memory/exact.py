"""Laws deduced from shallow traces against traces of whole models, to the byte; needs neither a GPU nor weights.

    python -m benchmarks.memory.exact [--only WORDS] [--out FILE] [--jobs 2]

There is a row for every architecture, method, checkpointing, accumulation and kind of device, at a small width, because
width changes nothing. Each row draws its other knobs and its shape; a law is never traced at that shape. A few further
rows have the depth of a well-known model. The law comes as `autotune estimate` makes it: of a reduced request, from two
depths, a few shapes and at most two micro-steps. The truth is a trace of the row's own candidate and device, with all
layers and all micro-steps, at its shape. Compared are the peak, what it holds, and what lives where each phase ends.

Rows of these versions and this format of profiles are not run again. The order is random, but the deep models come
last, so a few hours give a fair sample. The answer says how many rows there are of how many.
"""

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from typing import Any

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate, short_name
from autotune.core.knobs import VALUES
from autotune.core.memory.law import memory_law, peak
from autotune.core.recipe import METHODS, Recipe
from autotune.core.step.deepening import deepen
from autotune.core.step.profile import ON_THE_HOST, Op, Profile, blocks_per_micro_step, monomials
from autotune.core.step.regime import micro_batch
from autotune.trace.profiles import MEMORY
from autotune.trace.request import request_of
from benchmarks.command import Answer, add_out, command, say
from benchmarks.memory.cases import ARCHITECTURES, SMALL, Case
from benchmarks.pools import quiet_pool
from benchmarks.rows import RESULTS, Row, RowFile, versions

Moment = tuple[int, str, bool]  # micro-step, phase, and whether the phase ends there for the second time
TRACES_PER_PROCESS = 40  # then a new process, because the libraries keep what they cached

MODELS: dict[str, dict[str, Any]] = {
    **ARCHITECTURES,
    "deepseek_v3": {
        **SMALL,
        "num_key_value_heads": 4,
        "q_lora_rank": 64,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 128,
    },
}
DEPTH_NAME = {"gpt2": "n_layer"}
# Layers of the rows of the product, more than are traced (the pattern of gemma3 repeats after six), and layers of a
# well-known model: Qwen2.5-0.5B, Qwen3-1.7B, Llama 3 8B, Mistral-7B, Gemma 2 2B, Phi-3-mini, GPT-2 XL, Qwen3-30B-A3B
# and DeepSeek-V3.
LAYERS: dict[str, tuple[int, int | None]] = {
    "qwen2": (12, 24),
    "qwen3": (12, 28),
    "llama": (14, 32),
    "mistral": (12, 32),
    "gemma2": (13, 26),
    "gemma3_text": (26, None),
    "phi3": (13, 32),
    "gpt2": (12, 48),
    "qwen3_moe": (12, 48),
    "deepseek_v3": (12, 61),
}
DEPTHS = {model: layers for model, (layers, _) in LAYERS.items()}
WHOLE = {model: layers for model, (_, layers) in LAYERS.items() if layers is not None}
CHECKPOINTINGS = ("off", "selective", "full", "every_n")
EVERY = {"llama": 3, "gemma2": 3, "gemma3_text": 3}  # layers; 2 elsewhere
EAGER_ONLY = ("gemma2",)  # transformers 5.23 has no other attention for it, and nothing for selective to save
ACCUMULATIONS = (1, 4)
CAPABILITIES = ((7, 5), (8, 0), (8, 6), (9, 0), (10, 0))  # one of each kind of attention kernels
NUMBERS = (("float32", "bf16"), ("float32", "no"), ("bfloat16", "bf16"), ("bfloat16", "no"))
ROWS = {  # rows of a micro-batch, and positions of each: far from what is traced, below a sliding window and beyond
    "one": ((1, 100), (1, 777), (1, 4096)),
    "several": ((2, 100), (3, 777), (8, 512), (8, 4096)),
    "padded": ((2, 100), (5, 640), (8, 2048)),
    "packed": ((1, 100), (2, 384), (4, 2048)),
}
SCORED = 0.7  # share of the positions with a label, where the loss skips the others


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepCase(Case):
    """One comparison. capability: of the CUDA device, None for a CPU."""

    layers: int
    capability: tuple[int, int] | None

    @property
    def key(self) -> dict[str, Any]:
        """Return the plain values that tell cases apart, as JSON has them."""
        return {**asdict(self), "capability": list(self.capability) if self.capability else None}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (B, S, N) of the micro-batch as the model sees it."""
        rows, positions = micro_batch(self.candidate, self.positions)
        chooses = self.capability is not None and self.loss == "fused"
        return rows, positions, rows * (int(SCORED * positions) if chooses else positions - 1)

    @property
    def name(self) -> str:
        """Return the line in which `--only` looks for words."""
        device = "cpu" if self.capability is None else "cuda {}.{}".format(*self.capability)
        return f"{self.model} {self.layers} {device} {self.loss} {'padded ' * self.padded}{short_name(self.candidate)}"


def cases() -> list[DeepCase]:
    """List every case, the whole models last. A case has a seed of its own, so that no other case changes its knobs."""
    whole = [case for model in WHOLE for case in _whole(model)]
    all_of_it = [
        _case(model, DEPTHS[model], *knobs)
        for model in MODELS
        for knobs in product((False, True), METHODS, _checkpointings(model), ACCUMULATIONS)
    ]
    random.Random(0).shuffle(all_of_it)
    return all_of_it + whole


def _whole(model: str) -> Iterator[DeepCase]:
    modes = _checkpointings(model)
    for number, method in enumerate(METHODS):
        place = number + list(WHOLE).index(model)
        yield _case(
            model, WHOLE[model], place % 2 == 0, method, modes[place % len(modes)], ACCUMULATIONS[place // 2 % 2]
        )


def _checkpointings(model: str) -> list[str]:
    return [mode for mode in CHECKPOINTINGS if not (mode == "selective" and model in EAGER_ONLY)]


def _case(model: str, layers: int, cuda: bool, method: Any, checkpointing: Any, accumulation: int) -> DeepCase:
    draw = random.Random(f"{model} {layers} {cuda} {method} {checkpointing} {accumulation}").choice
    kind = draw(list(ROWS))
    rows, positions = draw(ROWS[kind])
    optimizers = [name for name in VALUES["optimizer"] if cuda or not name.startswith("paged")]
    weights_dtype, mixed_precision = draw(NUMBERS)
    attentions = ["eager"] * (checkpointing != "selective") + ["sdpa", "sdpa"] * (model not in EAGER_ONLY)
    packed = kind == "packed"
    return DeepCase(
        model=model,
        layers=layers,
        candidate=Candidate(
            max_length=positions,
            packed_length=positions if packed else None,
            batching="pack_bfd" if packed else "random",
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulation,
            method=method,
            checkpointing=checkpointing,
            every_n_layers=EVERY.get(model, 2) if checkpointing == "every_n" else 1,
            activation_offloading=draw((False, False, cuda)),
            attention=draw(attentions),
            optimizer=draw(optimizers),
            weights_dtype=weights_dtype,
            mixed_precision=mixed_precision,
        ),
        positions=positions,
        padded=kind == "padded",
        loss=draw(("fused", "fused", "full_logits")),
        capability=draw(CAPABILITIES) if cuda else None,
    )


def compare(case: DeepCase) -> dict[str, Any]:
    """Trace a shallow model as `autotune estimate` does, and the whole one as it trains; differences in bytes."""
    from transformers import AutoConfig

    from autotune.trace.shallow import sliding_window
    from autotune.trace.trace import trace, trace_whole

    depth = {DEPTH_NAME.get(case.model, "num_hidden_layers"): case.layers}
    config = AutoConfig.for_model(case.model, **{**MODELS[case.model], "vocab_size": 2000, **depth}).to_dict()
    rows, positions, labels = shape = case.shape
    recipe = Recipe(method=case.candidate.method)
    request = request_of(
        Batch(rows=rows, positions=positions, labels=labels),
        case.candidate,
        config=config,
        recipe=recipe,
        window=sliding_window(config),
        masked=case.padded,
        loss=case.loss,
        capability=case.capability,
    )
    began = time.process_time()
    profile = trace(request)
    traced = time.process_time()
    real = replace(request, candidate=case.candidate, recipe=recipe, capability=case.capability)
    whole = LiveBytes(trace_whole(real, shape), monomials(*shape), case.candidate.gradient_accumulation_steps)
    law = memory_law(profile, layers=case.layers, accumulation=case.candidate.gradient_accumulation_steps)
    deduced = peak(law, monomials(*shape))
    step = LiveBytes(deepen(profile, case.layers), monomials(*shape), case.candidate.gradient_accumulation_steps)
    ends = {
        f"{micro} {phase}{' again' * again}": _difference(
            step.ends.get((min(micro, profile.micro_steps), phase, again), {}), held
        )
        for (micro, phase, again), held in whole.ends.items()
    }
    return {
        "shape": shape,
        "traced_layers": profile.layers,
        "peak_bytes": whole.peak_bytes,
        "peak_difference": deduced.bytes - whole.peak_bytes,
        "items_difference": min((_difference(deduced.items, held) for held in whole.peaks), key=len),
        "ends": len(ends),
        "ends_differences": {moment: found for moment, found in ends.items() if found},
        "law_s": round(traced - began, 1),
        "whole_s": round(time.process_time() - traced, 1),
    }


class LiveBytes:
    """The bytes that live while the operators of a whole profile run one after another, at one shape.

    peaks: bytes by owner at each moment when the most live, without those on the host. ends: bytes by owner, also on
    the host, while the last operator of each phase runs, and when the step is over. What this operator frees counts,
    because the last micro-step frees more than the others.
    """

    def __init__(self, profile: Profile, shape: Sequence[int], accumulation: int) -> None:
        self.peak_bytes, self.peaks = 0, list[Mapping[str, int]]()
        self.ends: dict[Moment, Mapping[str, int]] = {}
        moments = live_bytes(profile, shape, accumulation)
        for (micro, phase), ops in groupby(moments, key=lambda moment: (moment[0].micro, moment[0].phase)):
            for op, live in ops:
                on_device = {owner: held for owner, held in live.items() if owner not in ON_THE_HOST}
                total = sum(on_device.values())
                if op.allocates and total >= self.peak_bytes:
                    self.peaks = [*(self.peaks if total == self.peak_bytes else ()), on_device]
                    self.peak_bytes = total
                end = dict(live)
            again = (micro, phase, False) in self.ends  # a micro-step may end, and later the optimizer step
            self.ends[micro, phase, again] = end
        self.ends[profile.micro_steps, "over", False] = dict(live)


def live_bytes(profile: Profile, shape: Sequence[int], accumulation: int) -> Iterator[tuple[Op, Counter[str]]]:
    """Go through the operators of a step; yield each with the bytes by owner that live while it runs.

    shape: the monomials of the micro-batch. What an operator frees still lives while it runs. The counter is always the
    same object; when the last operator has run, it holds what lives after the step.
    """
    sizes = [sum(x * y for x, y in zip(block.size, shape, strict=True)) for block in profile.blocks]
    for place in blocks_per_micro_step(profile):
        sizes[place] = sizes[place] * accumulation // profile.micro_steps
    live: Counter[str] = Counter()
    for op in profile.ops:
        for place in op.allocates:
            live[profile.blocks[place].owner] += sizes[place]
        yield op, live
        for place in op.frees:
            live[profile.blocks[place].owner] -= sizes[place]


def _difference(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    owners = {*one, *other}
    return {owner: gap for owner in sorted(owners) if (gap := one.get(owner, 0) - other.get(owner, 0))}


def is_exact(row: Mapping[str, Any]) -> bool:
    """Return whether the law says what the whole trace says, to the byte."""
    return not (row["peak_difference"] or row["items_difference"] or row["ends_differences"])


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Count the rows there are of all, in each architecture too, and the exact ones; name the largest differences."""
    there, wanted = Counter(row["case"]["model"] for row in rows), Counter(case.model for case in cases())
    ends = [gap for row in rows for found in row["ends_differences"].values() for gap in found.values()]
    return {
        "count": len(rows),
        "of": wanted.total(),
        "architectures": {model: {"count": there[model], "of": wanted[model]} for model in MODELS},
        "exact": sum(map(is_exact, rows)),
        "largest_peak_difference": max((abs(row["peak_difference"]) for row in rows), default=0),
        "largest_end_difference": max(map(abs, ends), default=0),
    }


def options(parser: argparse.ArgumentParser) -> None:
    """Choose rows by their names."""
    parser.add_argument("--only", default="", help="words in the names of the rows, such as 'gemma2 cuda lora'")
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time")
    add_out(parser, RESULTS / "memory_exact.jsonl")


def answer(arguments: argparse.Namespace) -> Answer:
    """Compare what has no row yet; return all rows of these versions, and how many are exact."""
    file = RowFile(path=arguments.out, about={"format": MEMORY, "versions": versions()})
    done = [row["case"] for row in file.own()]
    asked = [case for case in cases() if all(word in case.name for word in arguments.only.split())]
    waiting = [case for case in asked if case.key not in done]
    with quiet_pool(arguments.jobs, tasks_each=TRACES_PER_PROCESS) as pool:
        for case, found in pool.imap_unordered(_attempt, waiting):
            if isinstance(found, str):
                say(f"failed: {case.name}: {found}")
                continue
            row = file.add({"name": case.name, "case": case.key, **found})
            say(f"{'exact' if is_exact(row) else 'DIFFERS'} {row['peak_difference']} {case.name}")
    rows = file.own()
    return {"rows": rows, **summary(rows)}


def _attempt(case: DeepCase) -> tuple[DeepCase, Row | str]:
    try:
        return case, compare(case)
    except Exception as error:
        return case, f"{type(error).__name__}: {error}"


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
