"""What each knob is worth by itself: pairs of trainings that differ in one, measured side by side in rounds.

    python -m benchmarks.search.knobs model=smollm2 data=FILE [key=value ...] [--only KNOB ...]

The words are those of `autotune search`. Pairs start from what one would set by hand, in two micro-steps, without
checkpointing and with the tuned allocator, and with what candidate.* says of knobs that are not compared; the recipe's
NEFTune, which is no knob of a search, is among them for what it costs. A pair that is not legal here is named with the
rule. After how many steps a knob pays is told by how much later its first round starts, which has no kernels of torch's
compiler in its cache. A row for each pair is appended to --results.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from autotune.core.candidate import Candidate
from autotune.core.hardware import Device, Hardware
from autotune.core.memory.estimate import room_of
from autotune.core.outcome import Measured, Outcome
from autotune.core.recipe import Recipe
from autotune.core.space.context import Context
from autotune.core.space.enumerate import enumerate_space
from autotune.core.space.legality import first_broken
from autotune.core.space.references import by_hand
from autotune.core.workload import Workload
from autotune.errors import AutotuneError, UsageError
from autotune.machine.installed import installed
from autotune.search.request import SearchRequest, workload_of
from autotune.train.task import Measure, Task
from autotune.train.workers import Workers
from benchmarks.rows import append, now, refuse
from benchmarks.search.record_table import hardware_of, request_of
from benchmarks.search.rounds import kinds_and_rates, over, side_by_side

RESULTS = Path(__file__).parents[1] / "results" / "knobs.jsonl"
ROUNDS, STEPS = 4, 6
BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps", "batching", "packed_length")  # compared
MICRO_STEPS = 2  # of a step: batch rebalance needs two
LIMIT_S = 600.0  # for one training
NEFTUNE_ALPHA = 5.0  # arXiv:2310.05914


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two trainings that differ in one thing. name: of it. recipe: of the second, where it differs."""

    name: str
    without: Candidate
    with_it: Candidate
    recipe: Recipe | None = None


def main() -> None:
    """Measure every pair, and print the ratios."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as kernels:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = kernels  # before any process that compiles is started
        try:
            request, hardware = request_of(arguments.words), hardware_of(arguments.words)
            rows = list(measure(request, hardware, arguments.only, arguments.results))
        except AutotuneError as error:
            refuse(error)
    if arguments.json:
        print(json.dumps({"rows": rows}))
        return
    for row in rows:
        found = row.get("speedup")
        ratio = (
            f"{found['ratio']:.3f} ({found['low']:.3f} to {found['high']:.3f})" if found else row.get("why", "failed")
        )
        print(f"{row['name']:<40} {ratio}")


def measure(
    request: SearchRequest, hardware: Hardware, only: list[str] | None, results: Path
) -> Iterator[dict[str, Any]]:
    """Measure the pairs one after another, append each, and yield it."""
    workload, stack = workload_of(request, progress=_say), installed()
    context = Context(installed=stack, hardware=hardware, workload=workload)
    device: Device = "cuda" if hardware.kind == "cuda" else "cpu"
    about = {
        "model": workload.model.name,
        "data": workload.data.name,
        "effective_batch_size": request.recipe.effective_batch_size,
        "hardware": {"name": hardware.name, "cores": hardware.cores},
        "versions": dict(stack.versions),
    }
    found = list(pairs(request, workload, context))
    knobs = {pair.name.split(" ")[0] for pair in found}
    if unknown := sorted(set(only or ()) - knobs):
        raise UsageError(*(f"--only: got {knob}, expected one of {', '.join(sorted(knobs))}" for knob in unknown))
    limit = room_of(hardware).limit_bytes if device == "cpu" else None
    with (
        Workers(device=device, device_uuid=hardware.uuid, memory_limit_bytes=limit) as workers,
        tempfile.TemporaryDirectory() as folder,
    ):
        for pair in found:
            if only and pair.name.split(" ")[0] not in only:
                continue
            compares = {"without": pair.without.to_dict(), "with": pair.with_it.to_dict()}
            row = {"at": now(), "name": pair.name, **about, "candidates": compares}
            broken = first_broken(pair.without, context) or first_broken(pair.with_it, context)
            if broken is not None:
                row["why"] = f"not legal here: {broken.reason}"
            else:
                tasks = tasks_of(pair, request, workload, device, folder)
                rounds = side_by_side(tasks, workers, rounds=ROUNDS, limit_s=LIMIT_S, say=_say)
                row |= compared(rounds)
            append(results, row)
            yield row


def pairs(request: SearchRequest, workload: Workload, context: Context) -> Iterator[Pair]:
    """What is compared."""
    here: dict[str, Any] = {"workload": workload, "hardware": context.hardware, "installed": context.installed}
    hand = by_hand(**here)[0]
    rows = max(1, request.recipe.effective_batch_size // MICRO_STEPS)
    base = replace(
        hand,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=request.recipe.effective_batch_size // rows,
        checkpointing="off",
        tuned_allocator=True,
        batching="random",
        **{knob: value for knob, value in request.fixed.items() if knob not in BATCHES},
    )
    changed: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
        "tuned_allocator": ({"tuned_allocator": False}, {"tuned_allocator": True}),
        "batch_rebalance": ({"batching": "random"}, {"batching": "batch_rebalance"}),
        "group_by_length": ({"batching": "random"}, {"batching": "group_by_length"}),
        "checkpointing off, not full": ({"checkpointing": "full"}, {"checkpointing": "off"}),
        "checkpointing selective, not full": ({"checkpointing": "full"}, {"checkpointing": "selective"}),
        "checkpointing every_n, not full": (
            {"checkpointing": "full"},
            {"checkpointing": "every_n", "every_n_layers": 2},
        ),
        "pad_to_multiple_of 64": ({"pad_to_multiple_of": None}, {"pad_to_multiple_of": 64}),
        "attention sdpa, not eager": ({"attention": "eager"}, {"attention": "sdpa"}),
        "attention flash_attention_2, not sdpa": ({"attention": "sdpa"}, {"attention": "flash_attention_2"}),
        "attention flash_attention_3, not sdpa": ({"attention": "sdpa"}, {"attention": "flash_attention_3"}),
        "attention flex_attention, not sdpa": ({"attention": "sdpa"}, {"attention": "flex_attention"}),
        "optimizer fused, not foreach": ({"optimizer": "adamw_torch"}, {"optimizer": "adamw_torch_fused"}),
        "optimizer 8-bit, not fused": ({"optimizer": "adamw_torch_fused"}, {"optimizer": "adamw_8bit"}),
        "mixed_precision bf16, not fp32": ({"mixed_precision": "no"}, {"mixed_precision": "bf16"}),
        "use_kernels": ({"use_kernels": False}, {"use_kernels": True}),
        "dataloader_num_workers 2": ({"dataloader_num_workers": 0}, {"dataloader_num_workers": 2}),
        "torch_compile": ({"torch_compile": False}, {"torch_compile": True}),
    }
    for name, (without, with_it) in changed.items():
        yield Pair(name=name, without=replace(base, **without), with_it=replace(base, **with_it))
    yield Pair(
        name="neftune_noise_alpha 5",
        without=base,
        with_it=base,
        recipe=replace(request.recipe, neftune_noise_alpha=NEFTUNE_ALPHA),
    )
    yield from _packed(base, request, here)


def _packed(base: Candidate, request: SearchRequest, here: Mapping[str, Any]) -> Iterator[Pair]:
    """Packing at the shortest row, and the longest row; nothing where rows cannot be packed."""
    fixed = {
        "batching": "pack_bfd",
        **{knob: getattr(base, knob) for knob in ("checkpointing", "optimizer", "attention")},
    }
    try:
        legal = enumerate_space(**here, fidelity=request.fidelity, fixed=fixed).candidates
    except AutotuneError as error:
        _say(f"packing is left out: {'; '.join(error.problems)}")
        return
    alike = [
        candidate
        for candidate in legal
        if (candidate.weights_dtype, candidate.mixed_precision) == (base.weights_dtype, base.mixed_precision)
    ]
    single = [candidate for candidate in alike if candidate.per_device_train_batch_size == 1] or alike
    if single:
        short, long = (f(single, key=lambda candidate: candidate.row_length) for f in (min, max))
        yield Pair(name=f"pack_bfd {short.row_length}", without=base, with_it=short)
        if long.row_length > short.row_length:
            yield Pair(name=f"packed_length {long.row_length}, not {short.row_length}", without=short, with_it=long)


def tasks_of(pair: Pair, request: SearchRequest, workload: Workload, device: Device, folder: str) -> dict[str, Task]:
    """The trainings of a pair."""

    def task(candidate: Candidate, recipe: Recipe) -> Task:
        return Task(
            candidate=candidate,
            recipe=recipe,
            model_path=workload.model.path,
            tokenized_path=workload.data.tokenized_path,
            seed=request.seed,
            device=device,
            output_dir=str(Path(folder, "out")),
            log_path=str(Path(folder, "log.txt")),
            goal=Measure(budget_s=LIMIT_S, precision=0.0, least_steps=STEPS, most_steps=STEPS),
        )

    return {
        "without": task(pair.without, request.recipe),
        "with": task(pair.with_it, pair.recipe or request.recipe),
    }


def compared(rounds: list[dict[str, Outcome]]) -> dict[str, Any]:
    """Ratio of the rates, peaks, and how many steps it takes until what came before the first steady one has paid.

    pays_after_steps: 0 where it starts no later; None where no step is saved.
    """
    found = over(rounds, "with", "without")
    row: dict[str, Any] = {name: kinds_and_rates(rounds, name) for name in ("without", "with")}
    row["speedup"] = None if found is None else asdict(found)
    if found is None:
        return row
    outcomes = {
        name: [outcome for each in rounds if isinstance(outcome := each[name], Measured)]
        for name in ("without", "with")
    }
    seconds = {name: median(each.step_s for each in of_one) for name, of_one in outcomes.items()}
    starting = {
        name: first.wall_s - sum(step.seconds for step in first.steps) for name, (first, *_) in outcomes.items()
    }
    row["peak_bytes"] = {name: max(each.peak_bytes for each in of_one) for name, of_one in outcomes.items()}
    saved_s, more_s = seconds["without"] - seconds["with"], starting["with"] - starting["without"]
    row["pays_after_steps"] = max(0.0, more_s) / saved_s if saved_s > 0 else None
    return row


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="key=value", help="as of autotune search")
    parser.add_argument("--only", nargs="+", metavar="KNOB", help="pairs by the first word of their names")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", action="store_true")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
