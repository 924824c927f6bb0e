"""Step shapes: the ways to form an optimizer step out of a dataset.

A way says how samples are batched, where they are cut or how long a packed row is, and how the rows of the step are
divided into micro-batches. Leaves out whether such a step is legal (legality.py), and how near it comes to what was
asked (fidelity.py).

Symbols: B rows of a micro-batch, A micro-batches of a step.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autotune.core.arithmetic import divisors
from autotune.core.candidate import Candidate
from autotune.core.knobs import knobs_in
from autotune.core.space.context import Context
from autotune.core.space.fidelity import samples_per_step
from autotune.core.workload import MULTIPLE, max_length_candidates

LEAST_COVERAGE = 0.95  # lengths that keep less than the asked coverage are listed, too, down to this one
ROW_LENGTHS = 4  # packed lengths to try

SHAPE = knobs_in("step")


def shapes(
    batchings: Iterable[Any], fixed: Mapping[str, Any], start: Candidate, context: Context
) -> Iterator[Mapping[str, Any]]:
    """Yield the ways to form a step, as values of the knobs in SHAPE.

    batchings: the values of `batching` to try. fixed: knobs that have one value. start: has all other knobs.
    """
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
    """Yield the ways to divide a step of `rows` rows into A micro-batches of B rows.

    B is every divisor of `rows`, unless B or A is fixed.
    """
    fixed_size, fixed_steps = fixed.get("per_device_train_batch_size"), fixed.get("gradient_accumulation_steps")
    sizes = [fixed_size] if fixed_size else [round(rows / fixed_steps)] if fixed_steps else divisors(rows)
    for size in filter(None, sizes):
        shape = replace(candidate, per_device_train_batch_size=size)
        if steps := fixed_steps or context.accumulation(shape):
            shape = replace(shape, gradient_accumulation_steps=steps)
            yield {knob: getattr(shape, knob) for knob in SHAPE}


def _max_lengths(fixed: Mapping[str, Any], context: Context) -> Sequence[int]:
    if "max_length" in fixed:
        return [fixed["max_length"]]
    recipe, lengths, limit = context.workload.recipe, context.workload.data.lengths, context.workload.model.limit
    least = min(recipe.coverage, LEAST_COVERAGE)
    if recipe.coverage == 1 and limit is not None:  # which asks for all that the model can take, however little it is
        least = min(least, lengths.coverage(limit))
    return sorted(
        {
            *max_length_candidates(
                lengths, least_coverage=least, model_limit=limit, least_rows=context.workload.least_rows
            ),
            context.asked_max_length,
        }
    )


def _row_lengths(candidate: Candidate, fixed: Mapping[str, Any], context: Context) -> Sequence[int]:
    """Packed lengths to try, ascending: ROW_LENGTHS multiples of 64, evenly spaced on a logarithmic scale.

    The shortest is what the asked coverage needs, and the longest holds the samples of a whole step. Near each place on
    the scale, the multiple is taken with which a step of whole rows comes nearest to the asked samples. A packing that
    cuts samples without losing tokens also tries rows of half the shortest length.
    """
    if length := fixed.get("packed_length", fixed.get("max_length")):
        return [length]
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
    """By how many samples a step of whole rows misses the samples that were asked for."""
    samples = context.workload.recipe.effective_batch_size
    packed = replace(candidate, packed_length=row_length, max_length=row_length)
    rows = context.packing(packed).rows_per_step(samples)
    step = replace(packed, per_device_train_batch_size=1, gradient_accumulation_steps=rows)
    return abs(samples_per_step(step, context) - samples)
