"""The space: every legal candidate for one workload on one machine, within a fidelity.

The groups of knobs (core/knobs.py) get their values one after another. A combination is cut as soon as the knobs that
have a value break a rule or leave the fidelity, and everything that would have grown from it is counted as removed.
Leaves out what a candidate costs: nothing here knows memory or time.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from math import prod
from typing import Any

from autotune.core.candidate import Candidate, Fidelity
from autotune.core.hardware import Hardware
from autotune.core.knobs import DEFAULTS, KNOBS, VALUES, knobs_in
from autotune.core.space.context import Context, Installed
from autotune.core.space.fidelity import DEPARTURES
from autotune.core.space.fixed import check_fixed, fixed_in_words
from autotune.core.space.legality import RULES
from autotune.core.space.references import simplest
from autotune.core.space.step_shapes import SHAPE, shapes
from autotune.core.workload import Workload, check_workload
from autotune.errors import NothingFits, UsageError

MOST_CANDIDATES = 100_000  # listed in about two seconds; of a larger space a part stands for the whole
CORES_FOR_WORKERS = 4  # with fewer, a loader worker takes its core from the training

Option = Mapping[str, Any]  # values of one group of knobs

# The groups that are combined one after another. SHAPE comes before them.
COUPLED = (knobs_in("method"), knobs_in("numbers"), knobs_in("checkpointing"), knobs_in("attention"))
# No rule reads these together with another knob. They are judged alone, and combined with all that is left at the end.
INDEPENDENT = knobs_in("independent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What removes a candidate: a rule, or a departure that goes too far.

    knobs: all that `fails` reads.
    """

    reason: str
    knobs: tuple[str, ...]
    fails: Callable[[Candidate, Context], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The candidates that may be tried.

    candidates: legal and within the fidelity, in a fixed order that begins with the simplest. If there are more than
        MOST_CANDIDATES, that many are listed: one half are the simplest, the other is drawn from the rest with a seed.
    legal: the number of candidates, listed or not.
    enumerated: the number of combinations, legal or not.
    removed: how many combinations each reason removed. A combination counts under what removed it first.
    values: the values of each knob that were combined. Only tests read them: they combine them again, one by one.
    left_out: values that this machine, model or stack cannot have at all, as `knob=value`, with the reason.
    """

    candidates: tuple[Candidate, ...]
    legal: int
    enumerated: int
    removed: Mapping[str, int]
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
    """List every legal candidate within `fidelity`. fixed: knobs that have one value; it may exceed the fidelity.

    Raises UsageError with every fixed value that is impossible here, or when the data has no full step. Raises
    NothingFits when nothing is left although no knob is fixed.
    """
    check_workload(workload)
    context = Context(installed=installed, hardware=hardware, workload=workload)
    check_fixed(fixed, context)
    start = simplest(context)
    left_out: dict[str, str] = {}
    values: dict[str, tuple[Any, ...]] = {
        knob: (fixed[knob],) if knob in fixed else tuple(_possible(knob, tried, start, context, left_out))
        for knob, tried in _tried(context).items()
    }
    steps = list(shapes(values["batching"], fixed, start, context))
    groups = [steps, *(_options(group, values, context) for group in COUPLED)]
    tails = _options(INDEPENDENT, values, context)
    enumerated = prod(map(len, groups)) * len(tails)

    checks = _checks(fidelity, fixed)
    removed: Counter[Check] = Counter()
    heads, known, left = [start], set[str](), enumerated
    for group, options in zip((SHAPE, *COUPLED), groups, strict=True):
        left = left // len(options) if options else 0
        decided = _decided(checks, known, known | set(group))
        longer = (replace(head, **option) for head in heads for option in options)
        heads = _keep(longer, decided, context, removed, left)
        known |= set(group)
    decided = _decided(checks, set(), set(INDEPENDENT))
    kept = _keep((replace(start, **tail) for tail in tails), decided, context, removed, len(heads))
    kept.sort(key=lambda tail: sum(getattr(tail, knob) != getattr(start, knob) for knob in INDEPENDENT))
    tails = [{knob: getattr(tail, knob) for knob in INDEPENDENT} for tail in kept]

    legal = len(heads) * len(tails)
    if not legal:
        raise _nothing_left(removed, fixed)
    return Space(
        candidates=tuple(replace(heads[i % len(heads)], **tails[i // len(heads)]) for i in _chosen(legal)),
        legal=legal,
        enumerated=enumerated,
        removed=_by_reason(removed),
        values={**values, **{knob: tuple(dict.fromkeys(step[knob] for step in steps)) for knob in SHAPE}},
        left_out=left_out,
    )


def explain(space: Space) -> tuple[str, ...]:
    """Say in words what was removed, the most first, and which values were left out."""
    removed = sorted(space.removed.items(), key=lambda item: -item[1])
    return (
        *(f"{count} removed: {reason}" for reason, count in removed),
        *(f"{value} left out: {reason}" for value, reason in space.left_out.items()),
    )


def _tried(context: Context) -> Mapping[str, tuple[Any, ...]]:
    """The values of each knob that are worth a try here. Rules say later which of them this machine can have.

    Knobs whose values come from the dataset are left out.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for knob in (*SHAPE, *chain.from_iterable(COUPLED), *INDEPENDENT):
        if values := VALUES[knob] if KNOBS[knob].tried is None else KNOBS[knob].tried:
            found[knob] = tuple(value for value in values if _is_worth_a_try(knob, value, context))
    return found


def _is_worth_a_try(knob: str, value: Any, context: Context) -> bool:
    """Whether a value can be what was asked for, and can be faster than another on this kind of device."""
    hardware, workload = context.hardware, context.workload
    on_gpu = hardware.kind == "cuda"
    if KNOBS[knob].gpu_only and not on_gpu:
        return bool(value == DEFAULTS[knob])
    match knob, value:
        case "method", _:
            return workload.recipe.method in (None, value)
        case ("weights_dtype", "float16") | ("mixed_precision", "fp16"):
            return on_gpu and not hardware.supports_bf16  # bf16 is as fast, and needs no gradient scaler
        case "mixed_precision", "bf16":
            return not hardware.is_slow_in_bf16
        case "every_n_layers", int(every):
            return every == 1 or every < workload.model.layers
        case "dataloader_num_workers", int(workers):
            return workers == 0 or hardware.cores >= CORES_FOR_WORKERS
    return True


def _possible(
    knob: str, values: Iterable[Any], start: Candidate, context: Context, left_out: dict[str, str]
) -> Iterator[Any]:
    """Yield the values that no rule about this knob alone forbids. The others go into `left_out` with the reason."""
    rules = [rule for rule in RULES if rule.knobs == (knob,)]
    for value in values:
        candidate = replace(start, **{knob: value})
        broken = next((rule for rule in rules if rule.broken(candidate, context)), None)
        if broken is None:
            yield value
        else:
            left_out[f"{knob}={value}"] = broken.reason


def _options(group: Sequence[str], values: Mapping[str, Sequence[Any]], context: Context) -> list[Option]:
    """All combinations of a group's values. `every_n_layers` has a choice only with checkpointing=every_n."""
    options: list[Option] = [
        dict(zip(group, combination, strict=True)) for combination in product(*(values[knob] for knob in group))
    ]
    if "every_n_layers" not in group:
        return options
    between = range(2, context.workload.model.layers)
    placed = [o for o in options if o["every_n_layers"] in (between if o["checkpointing"] == "every_n" else (1,))]
    return placed or options  # none is left where fixed knobs contradict each other; a rule then says how


def _checks(fidelity: Fidelity, fixed: Mapping[str, Any]) -> list[Check]:
    """The rules, then the departures that go further than `fidelity` allows.

    A user who fixed a knob asked for its value, so the departures of that knob are allowed.
    """
    asked_for = {*fixed, "max_length"} if "packed_length" in fixed else set(fixed)  # TRL has one number for both
    rules = [Check(reason=r.reason, knobs=r.knobs, fails=r.broken) for r in RULES]
    departures = [
        Check(reason=d.reason, knobs=d.knobs, fails=d.departs)
        for d in DEPARTURES
        if d.fidelity > fidelity and d.knob not in asked_for
    ]
    return rules + departures


def _decided(checks: Iterable[Check], before: set[str], after: set[str]) -> list[Check]:
    """The checks that can be made when the knobs of `after` have values, but not when only those of `before` do."""
    return [check for check in checks if set(check.knobs) <= after and not set(check.knobs) <= before]


def _keep(
    candidates: Iterable[Candidate], checks: Sequence[Check], context: Context, removed: Counter[Check], weight: int
) -> list[Candidate]:
    """List the candidates that pass all checks. Each other one adds `weight` to the first check that it fails."""
    kept = []
    for candidate in candidates:
        failed = next((check for check in checks if check.fails(candidate, context)), None)
        if failed is None:
            kept.append(candidate)
        elif weight:
            removed[failed] += weight
    return kept


def _by_reason(removed: Mapping[Check, int]) -> Mapping[str, int]:
    sums: Counter[str] = Counter()
    for check, count in removed.items():
        sums[check.reason] += count
    return dict(sums)


def _chosen(count: int) -> Sequence[int]:
    """Which of `count` candidates are listed, by their places. The simplest candidates have the first places."""
    if count <= MOST_CANDIDATES:
        return range(count)
    half = MOST_CANDIDATES // 2
    return [*range(half), *sorted(random.Random(0).sample(range(half, count), MOST_CANDIDATES - half))]


def _nothing_left(removed: Counter[Check], fixed: Mapping[str, Any]) -> UsageError | NothingFits:
    """Blame the checks that read fixed knobs. Where there are none, blame those that removed most."""
    touched = {check: count for check, count in removed.items() if set(check.knobs) & fixed.keys()} or removed
    reasons = [check.reason for check, _ in Counter(touched).most_common(3)]
    if not fixed:
        return NothingFits(*(f"nothing is left to try: {reason}" for reason in reasons))
    reasons = reasons or ["no way of forming an optimizer step goes with them"]
    return UsageError(*(f"{fixed_in_words(fixed)}: nothing is left to try: {reason}" for reason in reasons))
