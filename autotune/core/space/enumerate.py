"""The space: every legal candidate for one workload on one machine, within a fidelity; and two references beside it.

Knobs are fixed one group after another. What already breaks a rule or leaves the fidelity is cut there, and counted
with all that would have grown from it. Leaves out what a candidate costs: nothing here knows memory or time.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any, get_args

from autotune.core.candidate import BATCHINGS, CHECKPOINTINGS, OPTIMIZERS, Attention, Candidate, Fidelity
from autotune.core.hardware import Hardware
from autotune.core.recipe import METHODS
from autotune.core.space.context import Context, Installed
from autotune.core.space.fidelity import DEPARTURES, asked_micro_batch, divisors
from autotune.core.space.legality import RULES
from autotune.core.space.pins import check_pins, pins_in_words
from autotune.core.space.step_shapes import SHAPE, shapes
from autotune.core.workload import Workload, too_few_rows
from autotune.errors import NothingFits, UsageError

MOST_CANDIDATES = 100_000  # listed in about two seconds; of a larger space a part stands for the whole
CORES_FOR_WORKERS = 4  # with fewer, a loader worker takes its core from the training
FIDELITY = "fidelity"  # the name under which `removed` counts what departs too far

Option = Mapping[str, Any]  # values of one group of knobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A rule, or a departure that goes too far: whom to blame, why, for which knobs, and what it says."""

    name: str
    reason: str
    knobs: tuple[str, ...]
    fails: Callable[[Candidate, Context], bool]


# Groups of knobs that rules read together, in the order in which they are fixed; SHAPE comes before them.
COUPLED = (
    ("method",),
    ("weights_dtype", "mixed_precision", "tf32", "torch_compile"),
    ("checkpointing", "every_n_layers"),
    ("attention",),
)
# No rule reads these together with a knob of a group above, so they are crossed with what is left of the groups.
INDEPENDENT = (
    "activation_offloading",
    "optimizer",
    "pad_to_multiple_of",
    "use_kernels",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "torch_threads",
    "tuned_allocator",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The candidates that may be tried.

    candidates: legal and within the fidelity, in a fixed order that begins with the simplest. Of more than
        MOST_CANDIDATES half are the simplest, and half a seeded, even sample of the others.
    legal: how many there are. enumerated: all combinations that were looked at.
    removed: combinations by what removed them first: a rule's name, or `fidelity`; why: the same by its reason.
    values: of each knob, as enumerated. left_out: values that this machine, model or stack cannot have at all, as
        `knob=value`, with the reason.
    """

    candidates: tuple[Candidate, ...]
    legal: int
    enumerated: int
    removed: Mapping[str, int]
    why: Mapping[str, int]
    values: Mapping[str, tuple[Any, ...]]
    left_out: Mapping[str, str]


def enumerate_space(
    *,
    workload: Workload,
    hardware: Hardware,
    installed: Installed,
    fidelity: Fidelity,
    fixed: Mapping[str, Any],
) -> Space:
    """List every legal candidate within `fidelity`; `fixed` pins knobs, by name, and may exceed the fidelity.

    Raises UsageError with every pin that is impossible here, or when the data has no full step, and NothingFits when
    nothing is left without any pin.
    """
    if problems := too_few_rows(workload):
        raise UsageError(*problems)
    context = Context(installed=installed, hardware=hardware, workload=workload)
    check_pins(fixed, context)
    consented = {*fixed, "max_length"} if "packed_length" in fixed else set(fixed)  # TRL has one number for both
    start = _start(context)
    left_out: dict[str, str] = {}
    values: dict[str, tuple[Any, ...]] = {
        knob: (fixed[knob],) if knob in fixed else tuple(_possible(knob, all_values, start, context, left_out))
        for knob, all_values in _all_values(context).items()
    }
    steps = list(shapes(values["batching"], fixed, start, context))
    groups = [steps, *(_options(group, values, context) for group in COUPLED)]
    tails = _options(INDEPENDENT, values, context)
    enumerated = prod(map(len, groups)) * len(tails)

    removed: Counter[Check] = Counter()
    blocks, known, left = [start], set[str](), enumerated
    for group, options in zip((SHAPE, *COUPLED), groups, strict=True):
        left = left // len(options) if options else 0
        checks = _checks(known, known | set(group), fidelity, consented)
        blocks = _keep((replace(b, **o) for b in blocks for o in options), checks, context, removed, left)
        known |= set(group)
    checks = _checks(set(), set(INDEPENDENT), fidelity, consented)
    kept = _keep((replace(start, **tail) for tail in tails), checks, context, removed, len(blocks))
    kept.sort(key=lambda tail: sum(getattr(tail, knob) != getattr(start, knob) for knob in INDEPENDENT))
    tails = [{knob: getattr(tail, knob) for knob in INDEPENDENT} for tail in kept]

    legal = len(blocks) * len(tails)
    if not legal:
        raise _nothing_left(removed, fixed)
    return Space(
        candidates=tuple(replace(blocks[i % len(blocks)], **tails[i // len(blocks)]) for i in _chosen(legal)),
        legal=legal,
        enumerated=enumerated,
        removed=_sum_by(removed, lambda check: check.name),
        why=_sum_by(removed, lambda check: check.reason),
        values={**values, **{knob: tuple(dict.fromkeys(step[knob] for step in steps)) for knob in SHAPE}},
        left_out=left_out,
    )


def explain(space: Space) -> tuple[str, ...]:
    """Say in words what was removed, the most first, and what could not be had at all."""
    removed = sorted(space.why.items(), key=lambda item: -item[1])
    return (
        *(f"{count} removed: {reason}" for reason, count in removed),
        *(f"{value} left out: {reason}" for value, reason in space.left_out.items()),
    )


def defaults(*, workload: Workload, hardware: Hardware, installed: Installed) -> Candidate:
    """TRL's defaults at the recipe's effective batch and coverage.

    trl 1.16 and transformers 5.23: fp32 weights, bf16 autocast (emulated where the device has none), checkpointing,
    rows in random order, fused AdamW, sdpa, no loader workers, 8 rows.
    """
    context = Context(installed=installed, hardware=hardware, workload=workload)
    found = replace(_start(context), tuned_allocator=False)
    return replace(found, checkpointing="full") if workload.model.supports_checkpointing else found


def baseline(*, workload: Workload, hardware: Hardware, installed: Installed) -> tuple[Candidate, ...]:
    """TRL's defaults, and what to fall back on while they do not fit.

    First the base under adapters becomes bf16, then the micro-batch is halved. A CPU that is slow in bf16 has them
    without autocast, or a step of a small model could take a minute, and there the micro-batch is halved first.
    """
    first = defaults(workload=workload, hardware=hardware, installed=installed)
    if hardware.is_slow_in_bf16:
        first = replace(first, mixed_precision="no")
    in_bf16 = () if first.method == "full" else _halvings(replace(first, weights_dtype="bfloat16"))
    if first.method == "full" or hardware.is_slow_in_bf16:
        return (*_halvings(first), *in_bf16)
    return (first, *in_bf16)


def by_hand(*, workload: Workload, hardware: Hardware, installed: Installed) -> tuple[Candidate, ...]:
    """What a careful person would set: the first of these that fits.

    The base under adapters in bf16 where that is fast, rows grouped by length, the largest micro-batch without
    checkpointing, halved while it does not fit; when none fits, the same with checkpointing.
    """
    context = Context(installed=installed, hardware=hardware, workload=workload)
    start = replace(_start(context), batching="group_by_length", tuned_allocator=False)
    if hardware.is_slow_in_bf16:
        start = replace(start, mixed_precision="no")
    elif start.method != "full":
        start = replace(start, weights_dtype="bfloat16")
    samples = workload.recipe.effective_batch_size
    plain = _halvings(_with_rows(start, samples, samples))
    if not workload.model.supports_checkpointing:
        return tuple(plain)
    return (*plain, *(replace(candidate, checkpointing="full") for candidate in plain))


def _start(context: Context) -> Candidate:
    """TRL's defaults, but for checkpointing and the allocator."""
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


def _halvings(candidate: Candidate) -> list[Candidate]:
    """The candidate, then with its micro-batch halved until it is one row, as far as the step's samples divide."""
    samples, found = candidate.rows_per_step, [candidate]
    while (rows := found[-1].per_device_train_batch_size) > 1:
        found.append(_with_rows(found[-1], max(d for d in divisors(samples) if d <= rows // 2), samples))
    return found


def _with_rows(candidate: Candidate, rows: int, samples: int) -> Candidate:
    """Another micro-batch of the same step; one of a single row has nothing to group."""
    grouped = candidate.batching == "group_by_length" and rows > 1
    return replace(
        candidate,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=samples // rows,
        batching="group_by_length" if grouped else "random",
    )


def _all_values(context: Context) -> Mapping[str, tuple[Any, ...]]:
    """The values of each knob that can matter on this kind of device; rules say later which of them it has."""
    hardware, recipe = context.hardware, context.workload.recipe
    on_gpu = hardware.kind == "cuda"
    needs_fp16 = on_gpu and not hardware.supports_bf16  # else bf16 is as fast, and needs no gradient scaler
    autocast = () if hardware.is_slow_in_bf16 else ("bf16", "fp16") if needs_fp16 else ("bf16",)
    return {
        "batching": BATCHINGS,
        "method": (recipe.method,) if recipe.method else METHODS,
        "weights_dtype": ("float32", "bfloat16", *(("float16",) if needs_fp16 else ())),
        "mixed_precision": (*autocast, "no"),
        "tf32": (False, True),
        "checkpointing": CHECKPOINTINGS,
        "every_n_layers": (1, *(n for n in (2, 4) if n < context.workload.model.layers)),
        "attention": get_args(Attention),
        "activation_offloading": (False, True),
        "optimizer": OPTIMIZERS,
        "pad_to_multiple_of": (None, 8, 64) if on_gpu else (None,),  # for tensor cores
        "torch_compile": (False, True) if on_gpu else (False,),  # minutes a trial on a CPU: only when pinned
        "use_kernels": (False, True) if on_gpu else (False,),  # the hub's kernels are for GPUs
        "dataloader_num_workers": (0, 2) if hardware.cores >= CORES_FOR_WORKERS else (0,),
        "dataloader_pin_memory": (True,),  # never slower on a GPU, and not used on a CPU
        "torch_threads": (None,),
        "tuned_allocator": (True,),
    }


def _possible(
    knob: str, values: Iterable[Any], start: Candidate, context: Context, left_out: dict[str, str]
) -> Iterator[Any]:
    """Yield the values that no rule about this knob alone forbids; note the others with the reason."""
    rules = [rule for rule in RULES if rule.knobs == (knob,)]
    for value in values:
        candidate = replace(start, **{knob: value})
        broken = next((rule for rule in rules if rule.broken(candidate, context)), None)
        if broken is None:
            yield value
        else:
            left_out[f"{knob}={value}"] = broken.reason


def _options(group: Sequence[str], values: Mapping[str, Sequence[Any]], context: Context) -> list[Option]:
    """All combinations of a group's values; `every_n_layers` has a choice only with checkpointing=every_n."""
    options: list[Option] = [
        dict(zip(group, combination, strict=True)) for combination in product(*(values[k] for k in group))
    ]
    if "every_n_layers" not in group:
        return options
    between = range(2, context.workload.model.layers)
    placed = [o for o in options if o["every_n_layers"] in (between if o["checkpointing"] == "every_n" else (1,))]
    return placed or options  # of misplaced pins the rule says what is wrong


def _checks(before: set[str], after: set[str], fidelity: Fidelity, consented: Collection[str]) -> list[Check]:
    """The rules, then the departures, that the knobs of `after` decide and those of `before` did not."""
    rules = [Check(name=r.name, reason=r.reason, knobs=r.knobs, fails=r.broken) for r in RULES]
    departures = [
        Check(name=FIDELITY, reason=d.reason, knobs=d.knobs, fails=d.departs)
        for d in DEPARTURES
        if d.fidelity > fidelity and d.knob not in consented
    ]
    return [check for check in rules + departures if set(check.knobs) <= after and not set(check.knobs) <= before]


def _keep(
    candidates: Iterable[Candidate], checks: Sequence[Check], context: Context, removed: Counter[Check], weight: int
) -> list[Candidate]:
    """Keep what passes all checks; the others count `weight` each under the first check that they fail."""
    kept = []
    for candidate in candidates:
        failed = next((check for check in checks if check.fails(candidate, context)), None)
        if failed is None:
            kept.append(candidate)
        elif weight:
            removed[failed] += weight
    return kept


def _sum_by(removed: Mapping[Check, int], key: Callable[[Check], str]) -> Mapping[str, int]:
    sums: Counter[str] = Counter()
    for check, count in removed.items():
        sums[key(check)] += count
    return dict(sums)


def _chosen(count: int) -> Sequence[int]:
    """Places of the candidates that are listed, of `count` that stand in order from the simplest."""
    if count <= MOST_CANDIDATES:
        return range(count)
    half = MOST_CANDIDATES // 2
    return [*range(half), *sorted(random.Random(0).sample(range(half, count), MOST_CANDIDATES - half))]


def _nothing_left(removed: Counter[Check], fixed: Mapping[str, Any]) -> UsageError | NothingFits:
    """Blame what touches the pins, or else whatever removed most."""
    touched = {check: count for check, count in removed.items() if set(check.knobs) & fixed.keys()} or removed
    reasons = [check.reason for check, _ in Counter(touched).most_common(3)]
    if not fixed:
        return NothingFits(*(f"nothing is left to try: {reason}" for reason in reasons))
    reasons = reasons or ["no way of forming an optimizer step goes with them"]
    return UsageError(*(f"{pins_in_words(fixed)}: nothing is left to try: {reason}" for reason in reasons))
