"""Predicted against real peak of live bytes on the CPU: real steps of the real worker, torch's own allocation events.

    python benchmarks/memory_truth_cpu.py --json

Models are small ones of each architecture with random weights, and the shipped ones. Every row trains two optimizer
steps in a process of its own under torch's profiler, which sees each allocation of the CPU allocator; the prediction
was made before. Loading is watched too, for what it leaves behind, but the peak is that of the steps.
"""

import argparse
import json
import multiprocessing
import struct
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from autotune.core.candidate import Candidate, short_name
from autotune.core.recipe import Recipe
from autotune.core.units import format_bytes

SHAPES = ((1, 192), (2, 320), (4, 128))
SMALL = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {  # small ones, with what is special about each
    "qwen2": {**SMALL, "num_hidden_layers": 7, "tie_word_embeddings": True},
    "qwen3": {**SMALL, "num_hidden_layers": 6, "head_dim": 64},
    "llama": {**SMALL, "num_hidden_layers": 8, "rope_theta": 500000.0},
    "mistral": {**SMALL, "num_hidden_layers": 6, "sliding_window": 128},
    "gemma2": {**SMALL, "num_hidden_layers": 9, "head_dim": 64, "sliding_window": 128},
    "gemma3_text": {**SMALL, "num_hidden_layers": 20, "head_dim": 64, "sliding_window": 128},
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row: a model's directory, a candidate and the rows of a micro-batch, all of `length` tokens."""

    model: str
    candidate: Candidate
    length: int


def main() -> None:
    """Predict, measure, print."""
    arguments = _arguments()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["autotune.preload", "autotune.trace"])
    rows = []
    directories = [
        model if Path(model).is_dir() else make(model, arguments.tokenizer) for model in arguments.models.split(",")
    ]
    for case in cases(directories)[arguments.first :: arguments.every]:
        with context.Pool(1) as pool:
            predicted = pool.apply(predict, (case,))
        with context.Pool(1) as pool:
            measured = pool.apply(measure, (case,))
        row = {
            "model": Path(case.model).name,
            "candidate": short_name(case.candidate),
            "rows": case.candidate.per_device_train_batch_size,
            "length": case.length,
            "predicted_bytes": predicted["bytes"],
            **measured,
            "error": predicted["bytes"] / measured["peak_bytes"] - 1,
            "phase": predicted["phase"],
        }
        rows.append(row)
        if not arguments.json:
            print(
                f"{row['error']:+8.2%}  {format_bytes(row['peak_bytes']):>10}  {row['model']} {row['candidate']} "
                f"{row['rows']}x{row['length']}  {predicted['phase']} {predicted['op']}",
                flush=True,
            )
    errors = sorted(abs(row["error"]) for row in rows)
    summary = {"rows": rows, "median_abs_error": median(errors), "max_abs_error": errors[-1]}
    print(json.dumps(summary) if arguments.json else f"median {median(errors):.2%}, largest {errors[-1]:.2%}")


def make(model_type: str, tokenizer: str) -> str:
    """Save a small model of an architecture with random weights, and return its directory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    words = AutoTokenizer.from_pretrained(tokenizer)
    directory = Path(tempfile.mkdtemp(prefix="memory-truth-")) / model_type
    config = AutoConfig.for_model(
        model_type, vocab_size=len(words), bos_token_id=0, eos_token_id=0, **ARCHITECTURES[model_type]
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    words.save_pretrained(directory)
    return str(directory)


def cases(models: list[str]) -> list[Case]:
    """The rows: each model with each method, checkpointing and shape."""
    found = []
    for model in models:
        for method in ("full", "lora"):
            for checkpointing in ("off", "selective", "full"):
                for rows, length in SHAPES:
                    for accumulation in (1, 3):
                        candidate = Candidate(
                            max_length=length,
                            per_device_train_batch_size=rows,
                            gradient_accumulation_steps=accumulation,
                            method=method,
                            checkpointing=checkpointing,
                            tuned_allocator=False,
                        )
                        found.append(Case(model=model, candidate=candidate, length=length))
    return found


def predict(case: Case) -> dict[str, Any]:
    """The peak of live bytes as the trace has it."""
    from transformers import AutoConfig

    from autotune.core.memory import memory_law, peak
    from autotune.core.profile import monomials
    from autotune.trace import TraceRequest, trace

    config = AutoConfig.from_pretrained(case.model)
    candidate = case.candidate
    request = TraceRequest(
        config=config.to_dict(), candidate=candidate, recipe=Recipe(method=candidate.method), masked=False
    )
    law = memory_law(
        trace(request), layers=config.num_hidden_layers, accumulation=candidate.gradient_accumulation_steps
    )
    rows = candidate.per_device_train_batch_size
    return asdict(peak(law, monomials(rows, case.length, rows * (case.length - 1))))


def measure(case: Case) -> dict[str, Any]:
    """The peak of live bytes of two real optimizer steps."""
    import torch
    from datasets import Dataset
    from torch.autograd.profiler import profile

    from autotune.measure import train
    from autotune.task import Measure, Task

    candidate = replace(case.candidate, torch_threads=1)
    samples = 2 * candidate.rows_per_step + candidate.per_device_train_batch_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 1000, (samples, case.length), generator=generator).tolist()
    weights_bytes = sum(_tensor_bytes(file) for file in Path(case.model).glob("*.safetensors"))
    with tempfile.TemporaryDirectory() as scratch:
        Dataset.from_dict({"input_ids": tokens, "labels": tokens}).save_to_disk(f"{scratch}/data")
        task = Task(
            candidate=candidate,
            recipe=Recipe(method=candidate.method, effective_batch_size=candidate.rows_per_step),
            model_path=case.model,
            tokenized_path=f"{scratch}/data",
            seed=0,
            device="cpu",
            output_dir=f"{scratch}/out",
            log_path=f"{scratch}/log.txt",
            work=Measure(budget_s=600.0, precision=0.0, least_steps=1, most_steps=1),
        )
        loading, stepping = (profile(use_cpu=True, profile_memory=True) for _ in range(2))

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "loaded":
                loading.__exit__(None, None, None)
                stepping.__enter__()

        loading.__enter__()
        train(task, on_event)
        stepping.__exit__(None, None, None)
    loaded, _ = _levels(loading)
    _, most = _levels(stepping)
    mapped = 0 if loaded > weights_bytes else weights_bytes  # safetensors are mapped, not allocated, on a CPU
    return {"peak_bytes": most + mapped, "mapped_bytes": mapped}


def _tensor_bytes(file: Path) -> int:
    """Bytes of the tensors in a safetensors file: all but the header, whose length stands in front of it."""
    with file.open("rb") as stream:
        (header,) = struct.unpack("<Q", stream.read(8))
    return file.stat().st_size - 8 - int(header)


def _levels(profiler: Any) -> tuple[int, int]:
    """Live bytes at the end and at most, of the CPU allocator."""
    level, most = 0, 0
    pending = list(profiler.kineto_results.experimental_event_tree())
    events = []
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag.name == "Allocation":
            events.append((event.start_time_ns, event.extra_fields.total_allocated))
    for _, level in sorted(events):
        most = max(most, level)
    return level, most


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(ARCHITECTURES), help="architectures or directories of models")
    parser.add_argument("--tokenizer", required=True, help="directory of the tokenizer that the small models get")
    parser.add_argument("--first", type=int, default=0, help="row to begin with")
    parser.add_argument("--every", type=int, default=1, help="take one row in so many")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
