"""Predicted against real peaks of live bytes on the CPU: real steps of the real worker, torch's own allocation events.

    python -m benchmarks.memory.truth_cpu --home DIR [--out FILE] [--jobs 2]

Models are small ones of each architecture with random weights, and the shipped ones; cases cover the knobs in pairs
(cases.py). The trace predicts each case. Then it trains in a process of its own under torch's profiler, which sees
every allocation of the CPU's allocator. Loading is watched too, because what it allocates still lives in the steps, but
the peak is that of the steps. Resident size is written beside it and compared with nothing.

A case with a row of the same versions and format of profiles is not run again.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from autotune.core.batches.batches import Batch
from autotune.core.memory.law import memory_law, peak
from autotune.core.recipe import Recipe
from autotune.core.step.regime import micro_batch
from autotune.core.units import format_bytes
from autotune.core.workload import ModelFacts
from autotune.trace.profiles import MEMORY
from autotune.trace.request import TraceRequest, request_of
from benchmarks.command import Answer, add_out, command, say
from benchmarks.machines import plain_cpu
from benchmarks.memory.cases import ARCHITECTURES, LARGE, Case, draw_cases, find_model, row_lengths
from benchmarks.pools import quiet_pool
from benchmarks.rows import RESULTS, Row, RowFile, errors, versions
from benchmarks.trainings import task_of_steps, write_samples

LIMIT_S = 600.0  # for one training


def options(parser: argparse.ArgumentParser) -> None:
    """Name the models, and how many cases there are."""
    parser.add_argument("--home", type=Path, required=True, help="directory in which models are made and kept")
    names = ",".join(("tiny", *ARCHITECTURES, *LARGE))
    parser.add_argument("--models", default=names, help="names with commas between them")
    parser.add_argument("--count", type=int, default=160, help="cases of small models")
    parser.add_argument("--large", type=int, default=4, help="cases of large models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    add_out(parser, RESULTS / "memory_truth_cpu.jsonl")


def answer(arguments: argparse.Namespace) -> Answer:
    """Predict and measure the cases that have no row yet; return all rows of these versions, and their errors."""
    facts = [find_model(name, arguments.home) for name in arguments.models.split(",")]
    small = [model for model in facts if model.name not in LARGE]
    large = [model for model in facts if model.name in LARGE]
    cases = draw_cases(small, plain_cpu(), count=arguments.count, seed=arguments.seed) if small else []
    cases += draw_cases(large, plain_cpu(), count=arguments.large, seed=arguments.seed) if large else []
    file = RowFile(path=arguments.out, about={"format": MEMORY, "versions": versions()})
    done = [row["case"] for row in file.own()]
    waiting = [case for case in cases if case.key not in done]
    for case, predicted, measured in predicted_and_measured(waiting, facts, (predict, measure), arguments.jobs):
        error = predicted["predicted_bytes"] / measured["measured_bytes"] - 1
        row = file.add({"case": case.key, "name": case.name, **predicted, **measured, "error": error})
        say(f"{error:+8.2%} {format_bytes(row['measured_bytes']):>10} {row['name']} {row['phase']}")
    rows = file.own()
    return {"rows": rows, **errors([row["error"] for row in rows])}


def predicted_and_measured(
    cases: Iterable[Case], facts: Iterable[ModelFacts], works: tuple[Callable[..., Any], ...], jobs: int
) -> Iterator[tuple[Case, Any, Any]]:
    """Yield each case with its prediction and its measurement, in order; one that fails is said and left out.

    facts: of the models of the cases. works: make a prediction and a measurement of a case, each in a process of its
    own. jobs: processes at a time.
    """
    by_name = {model.name: model for model in facts}
    with quiet_pool(jobs, tasks_each=1) as pool:
        asked = [[pool.apply_async(work, (case, by_name[case.model])) for work in works] for case in cases]
        for case, (prediction, measurement) in zip(cases, asked, strict=True):
            try:
                found = prediction.get(), measurement.get()
            except Exception:
                say(f"failed: {case.name}\n{traceback.format_exc()}")
                continue
            yield case, *found


def predict(case: Case, facts: ModelFacts) -> Row:
    """Return the peak of live bytes as the trace predicts it."""
    from autotune.trace.trace import trace

    started = time.perf_counter()
    request, batch = request_and_batch(case, facts)
    profile = trace(request)
    law = memory_law(profile, layers=facts.layers, accumulation=case.candidate.gradient_accumulation_steps)
    predicted = asdict(peak(law, batch.monomials))
    return {
        "predicted_bytes": predicted.pop("bytes"),
        **predicted,
        "traced_layers": profile.layers,
        "trace_s": time.perf_counter() - started,
    }


def request_and_batch(case: Case, facts: ModelFacts) -> tuple[TraceRequest, Batch]:
    """Return the request for a case's trace, and its micro-batch as the loss on a CPU sees it."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(facts.path).to_dict()
    rows, positions = micro_batch(case.candidate, case.positions)
    batch = Batch(rows=rows, positions=positions, labels=rows * (positions - 1))
    request = request_of(
        batch,
        case.candidate,
        config=config,
        recipe=Recipe(method=case.candidate.method),
        window=facts.window,
        masked=case.padded,
        loss=case.loss,
        capability=None,
    )
    return request, batch


def measure(case: Case, facts: ModelFacts) -> Row:
    """Return the peak of live bytes of real optimizer steps."""
    with trained(case, facts) as found:
        return {
            "measured_bytes": most_bytes(found.stepping) + found.mapped_bytes,
            "mapped_bytes": found.mapped_bytes,
            "resident_bytes": found.resident_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trainer after its steps, with torch's profilers over loading and over stepping.

    mapped_bytes: weights that are mapped from their file, so that no allocator sees them.
    """

    trainer: Any
    loading: Any
    stepping: Any
    resident_bytes: int | None
    mapped_bytes: int


@contextmanager
def trained(case: Case, facts: ModelFacts) -> Iterator[Trained]:
    """Train real optimizer steps under torch's profiler. The trainer and its files live as long as the context."""
    from torch.autograd.profiler import profile

    from autotune.trace.plain_step import LogitsTrainer
    from autotune.train import measure, sft

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
        folder = Path(scratch)
        write_samples(row_lengths(case), folder / "data", shuffled=not case.candidate.packs)
        recipe = Recipe(method=case.candidate.method, effective_batch_size=case.candidate.rows_per_step)
        paths = {"model_path": facts.path, "tokenized_path": str(folder / "data")}
        task = task_of_steps(case.candidate, recipe, folder, steps=1, limit_s=LIMIT_S, seed=0, device="cpu", **paths)
        with (
            patch.object(sft, "build_trainer", build),
            patch.object(sft, "Trainer", sft.Trainer if case.loss == "fused" else LogitsTrainer),
            patch.object(measure, "reference_flops_per_s", lambda device: 0.0),  # its 8 MiB are no part of a step
        ):
            loading.__enter__()
            outcome = measure.train(task, on_event)
            stepping.__exit__(None, None, None)
        yield Trained(
            trainer=trainers[0],
            loading=loading,
            stepping=stepping,
            resident_bytes=getattr(outcome, "host_peak_bytes", None),
            mapped_bytes=_mapped_bytes(trainers[0].model, _living(loading)),
        )


def most_bytes(profiler: Any) -> int:
    """Return the most bytes that lived at one time under a profiler; 0 where nothing was allocated."""
    return max((total for _, _, _, total in _allocations(profiler)), default=0)


def last_bytes(profiler: Any) -> int:
    """Return the bytes that lived when a profiler ended."""
    return _allocations(profiler)[-1][3]


def _mapped_bytes(model: Any, allocated: set[int]) -> int:
    """Return the bytes of weights that safetensors maps from their file.

    They count as live, because on any other device they would be allocated. allocated: addresses.
    """
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(
        tensor.numel() * tensor.element_size()
        for tensor in tensors.values()
        if tensor.untyped_storage().data_ptr() not in allocated
    )


def _allocations(profiler: Any) -> list[tuple[int, int, int, int]]:
    """Return (time, address, bytes, all live bytes after it) of each allocation (bytes > 0) and free, in order."""
    pending = list(profiler.kineto_results.experimental_event_tree())
    events = []
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag.name == "Allocation":
            fields = event.extra_fields
            events.append((event.start_time_ns, fields.ptr, fields.alloc_size, fields.total_allocated))
    return sorted(events)


def _living(profiler: Any) -> set[int]:
    """Return the addresses that are still allocated at the end."""
    living: set[int] = set()
    for _, address, size, _ in _allocations(profiler):
        (living.add if size > 0 else living.discard)(address)
    return living


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
