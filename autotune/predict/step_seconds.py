"""The seconds of a step of many candidates at once, from the traces of few kinds of steps.

The law of a kind of step is put together from steps that other kinds need, too (core/time/common_steps.py). Steps that
the cache lacks are traced before, several at once. Leaves out guessing the seconds of candidates that are not predicted
(core/time/guess.py).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autotune.core.candidate import Candidate
from autotune.core.knobs import knobs_that_change
from autotune.core.time.common_steps import CommonSteps, common_steps
from autotune.core.time.law import SPENT, TimeLaw
from autotune.core.time.many_candidates import TimeParts, seconds_of_candidates
from autotune.errors import NotPredicted
from autotune.predict.laws import Laws, TimedStep
from autotune.predict.micro_batches import Case, DealtEpoch, MicroBatches
from autotune.predict.time import CalibratedSpeed, is_timed
from autotune.trace.request import TraceRequest

Floats = NDArray[np.float64]

TIMED_BY = attrgetter(*knobs_that_change("trace"), *knobs_that_change("time"))  # what decides a law, beside the case


class StepKind(NamedTuple):
    """A kind of step: what the law of its time depends on. knobs: the values of TIMED_BY."""

    case: Case
    knobs: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepSeconds:
    """Seconds of an optimizer step of n candidates, on average over an epoch.

    spent: by what they are spent on, in the order of SPENT, (n, 4); NaN where they are not predicted. useful_tokens: of
    a step, (n,), NaN likewise. problems: why a candidate could not be traced.
    """

    spent: Floats
    useful_tokens: Floats
    problems: Mapping[Candidate, NotPredicted]


def predict_step_seconds(
    candidates: Sequence[Candidate],
    *,
    first: Sequence[Candidate] = (),
    until: float = math.inf,
    batches: MicroBatches,
    laws: Laws,
    speed: CalibratedSpeed | None,
) -> StepSeconds:
    """Predict the seconds of a step of each candidate. Costs a trace for each kind of step, which takes seconds.

    first: candidates whose kinds are traced before the others'. until: of time.monotonic(); a trace that has not begun
    by then is left out, and the candidates that need it are not predicted. Also not predicted are candidates that are
    not timed (`is_timed`). If the speed or the dataset is unknown, no candidate is predicted.
    """
    spent, useful_tokens = np.full((len(candidates), len(SPENT)), np.nan), np.full(len(candidates), np.nan)
    problems: dict[Candidate, NotPredicted] = {}
    if speed is None:
        return StepSeconds(spent=spent, useful_tokens=useful_tokens, problems=problems)
    known_laws = _laws_of_kinds(candidates, first, until=until, batches=batches, laws=laws)
    parts: dict[int, TimeParts] = {}
    for place, candidate in enumerate(candidates):
        if (dealt := _dealt(candidate, batches)) is None:
            continue
        law = known_laws[_kind(candidate, dealt)]
        if isinstance(law, NotPredicted):
            problems[candidate] = law
            continue
        accumulation = candidate.gradient_accumulation_steps
        parts[place] = TimeParts(law=law, epoch=dealt.epoch, accumulation=accumulation)
        useful_tokens[place] = dealt.useful_tokens * accumulation / len(dealt.epoch.rows)
    if parts:
        factors = np.exp(speed.calibration.logarithms)
        spent[list(parts)] = seconds_of_candidates(list(parts.values()), speed.speed) * factors
    return StepSeconds(spent=spent, useful_tokens=useful_tokens, problems=problems)


def tracing_order(kinds: Iterable[StepKind], first: Collection[StepKind]) -> list[StepKind]:
    """Move the kinds of steps to the front whose traces are needed most.

    These are the kinds in `first`, and each kind that has a value of a knob which no kind before it has. The seconds of
    all other kinds can be guessed from them. Apart from this the order stays.
    """
    seen = set[tuple[int, Any]]()
    needed, others = list[StepKind](), list[StepKind]()
    for kind in kinds:
        values = set(enumerate(kind.knobs))
        (needed if kind in first or not values <= seen else others).append(kind)
        seen |= values
    return needed + others


def _laws_of_kinds(
    candidates: Sequence[Candidate], first: Sequence[Candidate], *, until: float, batches: MicroBatches, laws: Laws
) -> dict[StepKind, TimeLaw | NotPredicted]:
    """The law of each kind of step among the candidates, or why there is none. Traces what is missing."""
    steps: dict[StepKind, tuple[CommonSteps, tuple[TimedStep, ...]]] = {}
    for candidate in (*first, *candidates):
        if (dealt := _dealt(candidate, batches)) is not None and (kind := _kind(candidate, dealt)) not in steps:
            steps[kind] = _common(candidate, dealt, laws)
    asked_first = {_kind(each, dealt) for each in first if (dealt := _dealt(each, batches)) is not None}
    order = tracing_order(steps, asked_first)
    requests = dict.fromkeys(step.request for kind in order for step in steps[kind][1])
    processes = laws.training.hardware.cores
    untraced = laws.profiles.trace_missing(requests, until=until, processes=processes)
    joined: dict[Any, TimeLaw | NotPredicted] = {}  # kinds of the same steps and shares have one law
    found: dict[StepKind, TimeLaw | NotPredicted] = {}
    for kind, (common, timed) in steps.items():
        if (key := (common.shares, timed)) not in joined:
            joined[key] = _join(common, timed, laws, untraced)
        found[kind] = joined[key]
    return found


def _dealt(candidate: Candidate, batches: MicroBatches) -> DealtEpoch | None:
    """The epoch of a candidate whose seconds can be predicted; None for any other."""
    return batches.epoch(candidate) if is_timed(candidate, batches.training.hardware) else None


def _kind(candidate: Candidate, dealt: DealtEpoch) -> StepKind:
    return StepKind(dealt.case, TIMED_BY(candidate))


def _common(candidate: Candidate, dealt: DealtEpoch, laws: Laws) -> tuple[CommonSteps, tuple[TimedStep, ...]]:
    """The steps that a candidate's law is put together from, and what to trace for each of them."""
    training, accumulation = laws.training, candidate.gradient_accumulation_steps
    common = common_steps(candidate, dealt.middle, training.config, training.facts)
    timed = [TimedStep.of(one, training.request(one, batch), accumulation=accumulation) for one, batch in common.steps]
    return common, tuple(timed)


def _join(
    common: CommonSteps,
    timed: Sequence[TimedStep],
    laws: Laws,
    untraced: Mapping[TraceRequest, NotPredicted],
) -> TimeLaw | NotPredicted:
    """Put a law together, or say why that is not possible."""
    for step in timed:
        if step.request in untraced:
            return untraced[step.request]
    try:
        return common.law([laws.time(step) for step in timed])
    except NotPredicted as error:
        return error
