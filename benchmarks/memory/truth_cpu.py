"""Predicted against real peak of live bytes on the CPU: real steps of the real worker, torch's own allocation events.

    python -m benchmarks.memory.truth_cpu --home DIR [--out FILE] [--jobs 2]

Models are small ones of each architecture with random weights, and the shipped ones; cases cover the knobs in pairs
(memory_cases.py). Every case is predicted by the trace, then trains in a process of its own under torch's profiler,
which sees each allocation of the CPU allocator. Loading is watched too, for what it leaves behind, but the peak is
that of the steps. Resident size is written beside it and predicts nothing. Rows are appended to FILE, and those
that are there for the same versions and format of profiles are not run again; what an earlier format predicted is
predicted anew, and its measurement kept. With `--json` one object for all rows of FILE that are of these is printed.
"""

import argparse
import json
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from autotune.core.batches.batches import Batch
from autotune.core.candidate import short_name
from autotune.core.recipe import Recipe
from autotune.core.step.regime import micro_batch
from autotune.core.units import format_bytes
from autotune.core.workload import ModelFacts
from autotune.machine.installed import installed
from autotune.trace.profiles import MEMORY, STACK, ProfileRequest, request_of
from benchmarks.memory.cases import ARCHITECTURES, LARGE, Case, draw_cases, find_model, plain_cpu, row_lengths
from benchmarks.pools import quiet_pool
from benchmarks.rows import append, own_rows, read, today

RESULTS = Path(__file__).parents[1] / "results" / "memory_truth_cpu.jsonl"
MEASURED = ("measured_bytes", "mapped_bytes", "resident_bytes")  # what `measure` finds


def main() -> None:
    """Draw, predict, measure, append; then say how far off the predictions are."""
    arguments = _arguments()
    names = arguments.models.split(",")
    facts = {name: find_model(name, arguments.home) for name in names}
    by_label = {model.name: model for model in facts.values()}
    hardware = plain_cpu()
    small = [model for name, model in facts.items() if name not in LARGE]
    large = [model for name, model in facts.items() if name in LARGE]
    cases = draw_cases(small, hardware, count=arguments.count, seed=arguments.seed) if small else []
    cases += draw_cases(large, hardware, count=arguments.large, seed=arguments.seed) if large else []
    about = {"format": MEMORY, "versions": {name: installed().versions[name] for name in STACK}}
    done = [row["case"] for row in own_rows(arguments.out, about, tuple(about))]
    waiting = [case for case in cases if case.key not in done]
    writing = threading.Lock()

    libraries = {name: about["versions"][name] for name in STACK if name != "autotune-sft"}
    earlier = {
        json.dumps(row["case"]): {name: row[name] for name in MEASURED}
        for row in read(arguments.out)
        if libraries.items() <= row["versions"].items() and set(MEASURED) <= row.keys()
    }

    def run(case: Case) -> None:
        with quiet_pool(1) as pool:
            predicted = pool.apply(predict, (case, by_label[case.model]))
        if (measured := earlier.get(json.dumps(case.key))) is None:
            with quiet_pool(1) as pool:
                measured = pool.apply(measure, (case, by_label[case.model]))
        row = {
            "date": today(),
            "case": case.key,
            "name": f"{case.model} {case.loss} {'padded ' * case.padded}{short_name(case.candidate)}",
            **predicted,
            **measured,
            "error": predicted["predicted_bytes"] / measured["measured_bytes"] - 1,
            **about,
        }
        with writing:
            append(arguments.out, row)
        if not arguments.json:
            print(
                f"{row['error']:+8.2%} {format_bytes(row['measured_bytes']):>10} {row['name']} {predicted['phase']}",
                flush=True,
            )

    def attempt(case: Case) -> None:
        try:
            run(case)
        except Exception:
            traceback.print_exc()
            print(f"   failed: {case}", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as threads:
        list(threads.map(attempt, waiting))
    rows = own_rows(arguments.out, about, tuple(about))
    print(json.dumps({"rows": rows, **summary(rows)}) if arguments.json else summary(rows))


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median and the largest error, without their signs."""
    errors = sorted(abs(row["error"]) for row in rows)
    return {"count": len(rows), "median_abs_error": median(errors), "max_abs_error": errors[-1]}


def predict(case: Case, facts: ModelFacts) -> dict[str, Any]:
    """The peak of live bytes as the trace has it."""
    from autotune.core.memory.law import memory_law, peak
    from autotune.trace.request import TraceRequest
    from autotune.trace.trace import trace

    started = time.perf_counter()
    request, batch = request_and_batch(case, facts)
    profile = trace(TraceRequest(**request.asked))
    law = memory_law(profile, layers=facts.layers, accumulation=case.candidate.gradient_accumulation_steps)
    predicted = asdict(peak(law, batch.monomials))
    return {
        "predicted_bytes": predicted.pop("bytes"),
        **predicted,
        "traced_layers": profile.layers,
        "trace_s": time.perf_counter() - started,
    }


def request_and_batch(case: Case, facts: ModelFacts) -> tuple[ProfileRequest, Batch]:
    """What a case asks of the trace, and its micro-batch as the loss on a CPU sees it."""
    from transformers import AutoConfig

    from autotune.trace.shallow import sliding_window

    config = AutoConfig.from_pretrained(facts.path).to_dict()
    rows, positions = micro_batch(case.candidate, case.positions)
    batch = Batch(rows=rows, positions=positions, labels=rows * (positions - 1))
    request = request_of(
        batch,
        case.candidate,
        config=config,
        recipe=Recipe(method=case.candidate.method),
        window=sliding_window(config),
        masked=case.padded,
        loss=case.loss,
        capability=None,
    )
    return request, batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a case has trained. loading, stepping: torch's profilers over both. mapped_bytes: what no allocator sees."""

    trainer: Any
    loading: Any
    stepping: Any
    resident_bytes: int | None
    mapped_bytes: int


def measure(case: Case, facts: ModelFacts) -> dict[str, Any]:
    """The peak of live bytes of real optimizer steps."""
    with trained(case, facts) as found:
        return {
            "measured_bytes": most_bytes(found.stepping) + found.mapped_bytes,
            "mapped_bytes": found.mapped_bytes,
            "resident_bytes": found.resident_bytes,
        }


@contextmanager
def trained(case: Case, facts: ModelFacts) -> Iterator[Trained]:
    """Train real optimizer steps under torch's profiler. What they leave is there as long as the context is."""
    from accelerate.data_loader import SeedableRandomSampler
    from datasets import Dataset
    from torch.autograd.profiler import profile

    from autotune.trace.plain_step import LogitsTrainer
    from autotune.train import measure, sft
    from autotune.train.task import Measure, Task

    lengths = row_lengths(case)
    if not case.candidate.packs:  # each row stands where the trainer's seeded order finds it
        order = list(SeedableRandomSampler(range(len(lengths)), data_seed=0))
        lengths = [length for _, length in sorted(zip(order, lengths, strict=True))]
    tokens = [[5 + (row + place) % 500 for place in range(length)] for row, length in enumerate(lengths)]
    trainers: list[Any] = []

    def build(*arguments: Any, **keywords: Any) -> Any:
        trainers.append(real_build(*arguments, **keywords))
        return trainers[-1]

    real_build = sft.build_trainer
    loading, stepping = (profile(use_cpu=True, profile_memory=True) for _ in range(2))

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "loaded":
            loading.__exit__(None, None, None)
            stepping.__enter__()

    with tempfile.TemporaryDirectory() as scratch:
        Dataset.from_dict({"input_ids": tokens, "labels": tokens}).save_to_disk(f"{scratch}/data")
        task = Task(
            candidate=case.candidate,
            recipe=Recipe(method=case.candidate.method, effective_batch_size=case.candidate.rows_per_step),
            model_path=facts.path,
            tokenized_path=f"{scratch}/data",
            seed=0,
            device="cpu",
            output_dir=f"{scratch}/out",
            log_path=f"{scratch}/log.txt",
            goal=Measure(budget_s=600.0, precision=0.0, least_steps=1, most_steps=1),
        )
        trainer = sft.Trainer if case.loss == "fused" else LogitsTrainer
        with (
            patch.object(sft, "build_trainer", build),
            patch.object(sft, "Trainer", trainer),
            patch.object(measure, "reference_flops_per_s", lambda device: 0.0),  # 8 MiB, and no part of a step
        ):
            loading.__enter__()
            outcome = measure.train(task, on_event)
            stepping.__exit__(None, None, None)
        yield Trained(
            trainer=trainers[0],
            loading=loading,
            stepping=stepping,
            resident_bytes=getattr(outcome, "host_peak_bytes", None),
            mapped_bytes=_mapped_bytes(trainers[0].model, set(_living(loading))),
        )


def most_bytes(profiler: Any) -> int:
    """The most bytes that lived at one time while a profiler looked; 0 where nothing was allocated."""
    return max((total for _, _, _, total in _allocations(profiler)), default=0)


def last_bytes(profiler: Any) -> int:
    """The bytes that lived when a profiler looked last."""
    return _allocations(profiler)[-1][3]


def _mapped_bytes(model: Any, allocated: set[int]) -> int:
    """Bytes of the frozen or trained weights that safetensors maps from the file, which no allocator sees.

    They count as live all the same: on any other device they would be allocated.
    """
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in tensors.values()
        if tensor.untyped_storage().data_ptr() not in allocated
    )


def _allocations(profiler: Any) -> list[tuple[int, int, int, int]]:
    """(time, address, bytes, all live bytes after it) of each allocation (bytes > 0) and free, in order."""
    pending = list(profiler.kineto_results.experimental_event_tree())
    events = []
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag.name == "Allocation":
            fields = event.extra_fields
            events.append((event.start_time_ns, fields.ptr, fields.alloc_size, fields.total_allocated))
    return sorted(events)


def _living(profiler: Any) -> dict[int, int]:
    """Bytes at each address that is still allocated at the end."""
    living: dict[int, int] = {}
    for _, address, size, _ in _allocations(profiler):
        if size > 0:
            living[address] = size
        else:
            living.pop(address, None)
    return living


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, required=True, help="directory in which models are made and kept")
    parser.add_argument("--models", default=",".join(("tiny", *ARCHITECTURES, *LARGE)), help="names, comma between")
    parser.add_argument("--count", type=int, default=160, help="cases of small models")
    parser.add_argument("--large", type=int, default=4, help="cases of large models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file that rows are appended to")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
