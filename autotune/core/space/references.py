"""References: what a search compares its answer with.

There are two: the baseline, which is TRL's defaults, and what a careful person would set by hand. Each is a list, to
take the first that fits in memory. Leaves out which one fits: nothing here knows memory.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from autotune.core.arithmetic import divisors
from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.knobs import Attention
from autotune.core.space.context import Context, Installed
from autotune.core.space.fidelity import asked_micro_batch
from autotune.core.workload import Workload


def simplest(context: Context) -> Candidate:
    """The candidate that a space begins with: TRL's defaults without checkpointing, and with the tuned allocator."""
    recipe, attention = context.workload.recipe, context.workload.model.attention
    rows = asked_micro_batch(recipe.effective_batch_size)
    preferred: Sequence[Attention] = get_args(Attention)
    return Candidate(
        max_length=context.asked_max_length,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=recipe.effective_batch_size // rows,
        method=recipe.asked_method,
        attention=next((a for a in preferred if a in attention), "eager"),
    )


def defaults(*, workload: Workload, hardware: Hardware, installed: Installed) -> Candidate:
    """TRL's defaults at the recipe's effective batch and coverage.

    In trl 1.16 and transformers 5.23 they are: fp32 weights, bf16 autocast (emulated where the device has no bf16),
    checkpointing, rows in random order, fused AdamW, sdpa, no loader workers, and micro-batches of 8 rows.
    """
    context = Context(installed=installed, hardware=hardware, workload=workload)
    found = replace(simplest(context), tuned_allocator=False)
    return replace(found, checkpointing="full") if workload.model.supports_checkpointing else found


def baseline(*, workload: Workload, hardware: Hardware, installed: Installed) -> tuple[Candidate, ...]:
    """TRL's defaults, then what to take instead where they do not fit in memory, in order.

    With adapters the next candidates load the base in bf16, and then halve the micro-batch again and again. With full
    fine-tuning they halve the micro-batch alone.

    Some CPUs compute bf16 much slower than fp32, and there a step of a small model under bf16 autocast could take a
    minute. On such a CPU all of these candidates train without autocast, and a base in bf16 comes last.
    """
    first = defaults(workload=workload, hardware=hardware, installed=installed)
    if hardware.is_slow_in_bf16:
        first = replace(first, mixed_precision="no")
    in_bf16 = () if first.method == "full" else _halvings(replace(first, weights_dtype="bfloat16"))
    if first.method == "full" or hardware.is_slow_in_bf16:
        return (*_halvings(first), *in_bf16)
    return (first, *in_bf16)


def by_hand(*, workload: Workload, hardware: Hardware, installed: Installed) -> tuple[Candidate, ...]:
    """What a careful person would set, best first; the first that fits in memory is meant.

    Rows are grouped by length, and the base under adapters is loaded in bf16 where the device is fast in it. The first
    candidates have no checkpointing, from the largest micro-batch to the smallest; the others are the same with it.
    """
    context = Context(installed=installed, hardware=hardware, workload=workload)
    start = replace(simplest(context), batching="group_by_length", tuned_allocator=False)
    if hardware.is_slow_in_bf16:
        start = replace(start, mixed_precision="no")
    elif start.method != "full":
        start = replace(start, weights_dtype="bfloat16")
    samples = workload.recipe.effective_batch_size
    plain = _halvings(_with_rows(start, samples, samples))
    if not workload.model.supports_checkpointing:
        return tuple(plain)
    return (*plain, *(replace(candidate, checkpointing="full") for candidate in plain))


def _halvings(candidate: Candidate) -> list[Candidate]:
    """The candidate, then the same step in ever smaller micro-batches, down to one row.

    Each has at most half the rows of the one before. Their number divides the samples of the step.
    """
    samples, found = candidate.rows_per_step, [candidate]
    while (rows := found[-1].per_device_train_batch_size) > 1:
        found.append(_with_rows(found[-1], max(d for d in divisors(samples) if d <= rows // 2), samples))
    return found


def _with_rows(candidate: Candidate, rows: int, samples: int) -> Candidate:
    """The same step in micro-batches of `rows` rows. A micro-batch of one row has nothing to group by length."""
    grouped = candidate.batching == "group_by_length" and rows > 1
    return replace(
        candidate,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=samples // rows,
        batching="group_by_length" if grouped else "random",
    )
