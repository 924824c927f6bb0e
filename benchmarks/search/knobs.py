"""What each knob is worth by itself: pairs of trainings that differ in one, measured side by side in rounds.

    python -m benchmarks.search.knobs model=smollm2 data=FILE [key=value ...] [--only KNOB ...]

The words are those of `autotune search`. Pairs start from what one would set by hand, in two micro-steps, without
checkpointing and with the tuned allocator; candidate.* fixes knobs that are not compared. NEFTune, which is the
recipe's and no knob of a search, is compared for what it costs. A pair that is not legal here is named with the rule.
The first round finds no kernels of torch's compiler in its cache. How much later it starts tells after how many steps a
knob has paid.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
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
from benchmarks.command import Answer, add_out, command, say
from benchmarks.rows import RESULTS, Row, RowFile
from benchmarks.search.commands import hardware_of, request_of
from benchmarks.trainings import kinds_and_rates, over, side_by_side, task_of_steps, workers_on

ROUNDS, STEPS = 4, 6
MICRO_STEPS = 2  # of a step: batch rebalance needs two
LIMIT_S = 600.0  # for one training
NEFTUNE_ALPHA = 5.0  # arXiv:2310.05914
BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps", "batching", "packed_length")  # not fixed
# Pairs by name: what the first training has, and what the second has in its place. The name begins with the knob.
CHANGES: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "tuned_allocator": ({"tuned_allocator": False}, {"tuned_allocator": True}),
    "batch_rebalance": ({"batching": "random"}, {"batching": "batch_rebalance"}),
    "group_by_length": ({"batching": "random"}, {"batching": "group_by_length"}),
    "checkpointing off, not full": ({"checkpointing": "full"}, {"checkpointing": "off"}),
    "checkpointing selective, not full": ({"checkpointing": "full"}, {"checkpointing": "selective"}),
    "checkpointing every_n, not full": ({"checkpointing": "full"}, {"checkpointing": "every_n", "every_n_layers": 2}),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two trainings that differ in one thing, which `name` begins with. recipe: of the second, where it differs."""

    name: str
    without: Candidate
    with_it: Candidate
    recipe: Recipe | None = None

    @property
    def knob(self) -> str:
        """Return the word that `--only` chooses by."""
        return self.name.split(" ")[0]


def options(parser: argparse.ArgumentParser) -> None:
    """Say what is trained, and which pairs are measured."""
    parser.add_argument("words", nargs="+", metavar="key=value", help="as of autotune search")
    parser.add_argument("--only", nargs="+", metavar="KNOB", help="pairs by the first word of their names")
    add_out(parser, RESULTS / "knobs.jsonl")


def answer(arguments: argparse.Namespace) -> Answer:
    """Measure every pair, and keep a row of each."""
    with tempfile.TemporaryDirectory() as kernels:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = kernels  # before any process starts that compiles
        request, hardware = request_of(arguments.words), hardware_of(arguments.words)
        return {"rows": list(measure(request, hardware, arguments.only, arguments.out))}


def measure(request: SearchRequest, hardware: Hardware, only: Sequence[str] | None, out: Path) -> Iterator[Row]:
    """Measure the pairs one after another; append a row of each and yield it. Raises UsageError for wrong knobs."""
    workload, stack = workload_of(request, progress=say), installed()
    context = Context(installed=stack, hardware=hardware, workload=workload)
    found = list(pairs(request, workload, context))
    knobs = {pair.knob for pair in found}
    if unknown := sorted(set(only or ()) - knobs):
        raise UsageError(*(f"--only: got {knob}, expected one of {', '.join(sorted(knobs))}" for knob in unknown))
    about = {
        "model": workload.model.name,
        "data": workload.data.name,
        "effective_batch_size": request.recipe.effective_batch_size,
        "hardware": {"name": hardware.name, "cores": hardware.cores},
        "versions": dict(stack.versions),
    }
    file = RowFile(path=out, about=about)
    with workers_on(hardware) as workers, tempfile.TemporaryDirectory() as folder:
        for pair in found:
            if only and pair.knob not in only:
                continue
            sides = {"without": pair.without, "with": pair.with_it}
            row: Row = {"name": pair.name, "candidates": {name: each.to_dict() for name, each in sides.items()}}
            if broken := first_broken(pair.without, context) or first_broken(pair.with_it, context):
                yield file.add({**row, "why": f"not legal here: {broken.reason}"})
                continue
            tasks = {
                name: task_of_steps(
                    candidate,
                    (pair.recipe if name == "with" else None) or request.recipe,
                    Path(folder),
                    steps=STEPS,
                    limit_s=LIMIT_S,
                    model_path=workload.model.path,
                    tokenized_path=workload.data.tokenized_path,
                    seed=request.seed,
                    device=hardware.kind,
                )
                for name, candidate in sides.items()
            }
            row |= compared(side_by_side(tasks, workers, rounds=ROUNDS, limit_s=LIMIT_S))
            ratio = "{ratio:.3f} ({low:.3f} to {high:.3f})".format(**row["speedup"]) if row["speedup"] else "failed"
            say(f"{pair.name}: {ratio}")
            yield file.add(row)


def pairs(request: SearchRequest, workload: Workload, context: Context) -> Iterator[Pair]:
    """Yield what is compared."""
    here: dict[str, Any] = {"workload": workload, "hardware": context.hardware, "installed": context.installed}
    rows = max(1, request.recipe.effective_batch_size // MICRO_STEPS)
    base = replace(
        by_hand(**here)[0],
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=request.recipe.effective_batch_size // rows,
        checkpointing="off",
        tuned_allocator=True,
        batching="random",
        **{knob: value for knob, value in request.fixed.items() if knob not in BATCHES},
    )
    for name, (without, with_it) in CHANGES.items():
        yield Pair(name=name, without=replace(base, **without), with_it=replace(base, **with_it))
    neftune = replace(request.recipe, neftune_noise_alpha=NEFTUNE_ALPHA)
    yield Pair(name=f"neftune_noise_alpha {NEFTUNE_ALPHA:g}", without=base, with_it=base, recipe=neftune)
    yield from _packed(base, request, here)


def _packed(base: Candidate, request: SearchRequest, here: Mapping[str, Any]) -> Iterator[Pair]:
    """Yield packing in the shortest row, and in the longest; nothing where rows cannot be packed."""
    alike = ("checkpointing", "optimizer", "attention")
    fixed = {"batching": "pack_bfd", **{knob: getattr(base, knob) for knob in alike}}
    try:
        legal = enumerate_space(**here, fidelity=request.fidelity, fixed=fixed).candidates
    except AutotuneError as error:
        say(f"packing is left out: {'; '.join(error.problems)}")
        return
    numbers = (base.weights_dtype, base.mixed_precision)
    same = [candidate for candidate in legal if (candidate.weights_dtype, candidate.mixed_precision) == numbers]
    single = [candidate for candidate in same if candidate.per_device_train_batch_size == 1] or same
    if single:
        short, long = (f(single, key=lambda candidate: candidate.row_length) for f in (min, max))
        yield Pair(name=f"pack_bfd {short.row_length}", without=base, with_it=short)
        if long.row_length > short.row_length:
            yield Pair(name=f"packed_length {long.row_length}, not {short.row_length}", without=short, with_it=long)


def compared(rounds: Sequence[Mapping[str, Outcome]]) -> Row:
    """Return the ratio of the rates, the peaks, and after how many steps the knob has paid for a later start.

    pays_after_steps: 0 where it starts no later; None where it saves no time in a step.
    """
    names, found = ("without", "with"), over(rounds, "with", "without")
    row: Row = {**{name: kinds_and_rates(rounds, name) for name in names}, "speedup": found}
    if found is None:
        return row
    ran = {name: [outcome for each in rounds if isinstance(outcome := each[name], Measured)] for name in names}
    step_s = {name: median(each.step_s for each in outcomes) for name, outcomes in ran.items()}
    start_s = {name: first.wall_s - sum(step.seconds for step in first.steps) for name, (first, *_) in ran.items()}
    row["peak_bytes"] = {name: max(each.peak_bytes for each in outcomes) for name, outcomes in ran.items()}
    saved_s, later_s = step_s["without"] - step_s["with"], start_s["with"] - start_s["without"]
    row["pays_after_steps"] = max(0.0, later_s) / saved_s if saved_s > 0 else None
    return row


main = command(__doc__, answer, options)

if __name__ == "__main__":
    sys.exit(main())
