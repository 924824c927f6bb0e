"""The space: every legal candidate for one workload on one machine, within a fidelity; and two references beside it.

Knobs are fixed one group after another, and what already breaks a rule or leaves the fidelity is cut there, with the
count of the candidates that fell with it. Leaves out what a candidate costs: nothing here knows memory or time.

Symbols: E samples of an optimizer step, B rows of a micro-batch, A micro-batches of a step, S length of a packed row.
"""

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar, get_args

from autotune.core.candidate import BATCHINGS, KNOBS, OPTIMIZERS, Attention, Candidate, Fidelity
from autotune.core.fidelity import DEPARTURES, asked_micro_batch, divisors, samples_per_step
from autotune.core.hardware import Hardware
from autotune.core.legality import RULES, Context, Installed, Rule
from autotune.core.pins import check_pins, nothing_left
from autotune.core.recipe import METHODS
from autotune.core.workload import MULTIPLE, Workload, max_length_candidates

MOST_CANDIDATES = 200_000  # of a larger space an even, seeded sample stands for the whole
LEAST_COVERAGE = 0.95  # of the lengths that `free` may try below the asked coverage
ROW_LENGTHS = 4  # packed lengths to try
CORES_FOR_WORKERS = 4  # with fewer, a loader worker takes a core from the training
FIDELITY = "fidelity"  # the name under which `removed` counts what departs too far

Options = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The candidates that may be tried.

    candidates: legal and within the fidelity, in a fixed order; a sample of them when there are more than
        MOST_CANDIDATES. legal: how many there are. enumerated: all combinations that were looked at.
    removed: combinations by the first rule that they broke, `fidelity` among them.
    values: of each knob, as enumerated. left_out: why this machine or model cannot have other values, by `knob=value`.
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
    """List every legal candidate within `fidelity`; `fixed` pins knobs, by name, and may exceed the fidelity.

    Raises UsageError with every pin that is impossible here, and NothingFits when no candidate is left without pins.
    """
    context = Context(installed=installed, hardware=hardware, workload=workload)
    check_pins(fixed, context)
    left_out: dict[str, str] = {}
    values = {knob: _possible(knob, few, context, left_out) for knob, few in _values(context).items()}
    values |= {knob: (value,) for knob, value in fixed.items()}
    start = _start(context)

    stages: list[Options] = [_shapes(values, fixed, start, context)]
    stages += [_combine(values, knobs) for knobs in COUPLED]
    tails = _combine(values, INDEPENDENT)
    enumerated = len(tails)
    for options in stages:
        enumerated *= len(options)

    removed: Counter[str] = Counter()
    candidates, below = [start], enumerated
    known: set[str] = set()
    for options in stages:
        below //= max(1, len(options))
        known |= set(options[0]) if options else set()
        test = _tests(known, set(options[0]) if options else set(), fidelity, fixed)
        extended = (replace(candidate, **option) for candidate in candidates for option in options)
        candidates = _keep(extended, test, context, removed, below)
    legal_tails = _keep((replace(start, **t) for t in tails), _tests(set(INDEPENDENT), set(INDEPENDENT), fidelity, fixed), context, removed, len(candidates))
    ...
