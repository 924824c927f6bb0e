"""Shapes: the ways to form an optimizer step out of a dataset.

How samples are batched, where they are cut or how long a packed row is, and the step's rows as micro-batches. Leaves
out whether such a step is legal and how near it comes to what was asked: legality.py and fidelity.py say.

Symbols: E samples of an optimizer step, B rows of a micro-batch, A micro-batches of a step, S length of a packed row.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autotune.core.candidate import Candidate
from autotune.core.space.context import Context
from autotune.core.space.fidelity import divisors, samples_per_step
from autotune.core.workload import MULTIPLE, max_length_candidates

LEAST_COVERAGE = 0.95  # of the lengths that are listed below the asked coverage
ROW_LENGTHS = 4  # packed lengths to try

SHAPE = (
    "devices",
    "sharding",
    "batching",
    "max_length",
    "packed_length",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
)


def shapes(
    batchings: Iterable[Any], fixed: Mapping[str, Any], start: Candidate, context: Context
) -> Iterator[Mapping[str, Any]]:
    """Yield the ways to form a step: how samples are batched, where they are cut, B and A."""
    samples = context.workload.recipe.effective_batch_size
    for batching in batchings:
        kind = replace(start, batching=batching)
        if kind.packs:
            for row_length in _row_lengths(kind, fixed, context):
                packed = replace(kind, packed_length=row_length, max_length=fixed.get("max_length", row_length))
                yield from _splits(packed, context.packing(packed).rows_per_step(samples), fixed, context)
        elif "packed_length" not in fixed:
            for max_length in _max_lengths(fixed, context):
                yield from _splits(replace(kind, max_length=max_length), samples, fixed, context)


def _splits(candidate: Candidate, rows: int, fixed: Mapping[str, Any], context: Context) -> Iterator[Mapping[str, Any]]:
    """Yield a step of `rows` rows as B x A: over the divisors of `rows`, unless B or A is pinned."""
    pinned_rows, pinned_steps = (fixed.get(knob) for knob in SHAPE[-2:])
    sizes = [pinned_rows] if pinned_rows else [round(rows / pinned_steps)] if pinned_steps else divisors(rows)
    for size in filter(None, sizes):
        shape = replace(candidate, per_device_train_batch_size=size)
        if steps := pinned_steps or context.accumulation(shape):
            shape = replace(shape, gradient_accumulation_steps=steps)
            yield {knob: getattr(shape, knob) for knob in SHAPE}


def _max_lengths(fixed: Mapping[str, Any], context: Context) -> Sequence[int]:
    if "max_length" in fixed:
        return [fixed["max_length"]]
    recipe, data = context.workload.recipe, context.workload.data
    least = min(recipe.coverage, LEAST_COVERAGE)
    return sorted(
        {
            *max_length_candidates(data.lengths, least_coverage=least, model_limit=context.workload.model.limit),
            context.asked_max_length,
        }
    )


def _row_lengths(candidate: Candidate, fixed: Mapping[str, Any], context: Context) -> Sequence[int]:
    """Packed lengths to try, ascending: multiples of 64, spaced evenly on a logarithmic scale.

    They go from what the asked coverage needs to what the samples of a whole step fill. Each is the neighbour whose
    whole rows come nearest to the asked samples of a step. A packing that loses no token may be shorter as well.
    """
    if pinned := fixed.get("packed_length", fixed.get("max_length")):
        return [pinned]
    lengths, limit = context.workload.data.lengths, context.workload.model.limit
    samples = context.workload.recipe.effective_batch_size
    least = context.asked_max_length
    most = max(least, min(limit or lengths.total, int(samples * lengths.total / lengths.rows)))
    chosen = {least}
    for step in range(1, ROW_LENGTHS):
        target = least * (most / least) ** (step / (ROW_LENGTHS - 1))
        rows = max(1, round(samples * lengths.total / lengths.rows / target))
        near = int(samples * lengths.total / lengths.rows / rows) // MULTIPLE * MULTIPLE
        neighbours = [n for n in range(near, near + 3 * MULTIPLE, MULTIPLE) if least <= n <= (limit or n)]
        if neighbours:
            chosen.add(min(neighbours, key=lambda n: _samples_off(candidate, n, context)))
    if candidate.batching != "pack_bfd":
        chosen.add(max(MULTIPLE, least // 2 // MULTIPLE * MULTIPLE))
    return sorted(chosen)


def _samples_off(candidate: Candidate, row_length: int, context: Context) -> float:
    """How far the samples of a step of whole rows are from those that were asked."""
    samples = context.workload.recipe.effective_batch_size
    packed = replace(candidate, packed_length=row_length, max_length=row_length)
    rows = context.packing(packed).rows_per_step(samples)
    step = replace(packed, per_device_train_batch_size=1, gradient_accumulation_steps=rows)
    return abs(samples_per_step(step, context) - samples)
