"""Completion: the candidate to estimate, when the user sets only some of its knobs.

The other knobs have TRL's defaults. The candidate is legal on the machine that the estimate is for. Leaves out the
estimate.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from autotune.core.candidate import Candidate
from autotune.core.lengths import Lengths
from autotune.core.space.context import Context
from autotune.core.space.fixed import against_method, fixed_in_words
from autotune.core.space.legality import RULES, Rule
from autotune.core.space.references import defaults
from autotune.core.workload import DataFacts, cut_by, too_few_rows
from autotune.errors import UsageError

STAND_IN_ROWS = 2**16  # more than the samples of any step
OF_A_DATASET = {"splits_nothing", "one_full_step"}  # rules that only real lengths can break
OF_A_RECIPE = {"samples_per_step"}  # an estimate may break it: a step need not hold effective_batch_size samples


def stand_in_data(length: int) -> DataFacts:
    """Stand in for a dataset where there is none: rows of `length` tokens, all of them labels."""
    tokens = np.full(STAND_IN_ROWS, length, dtype=np.int64)
    return DataFacts(
        path="",
        name="full rows",
        form="text",
        lengths=Lengths.with_labels_last(tokens, tokens - 1),
        rows_in_file=STAND_IN_ROWS,
        coverage_error=0.0,
        tokenized_path="",
        fingerprint="",
    )


def complete(fixed: Mapping[str, Any], context: Context, *, lengths_known: bool) -> Candidate:
    """Complete the candidate whose knobs `fixed` are set. lengths_known: whether the workload's data is real.

    Raises UsageError listing every way in which the candidate would be refused or would train something else.
    """
    workload, recipe = context.workload, context.workload.recipe
    problems = too_few_rows(workload, cut_by(fixed)) if lengths_known else []
    reported = {"one_full_step"} if problems else set[str]()
    problems += against_method(fixed, recipe)
    method = fixed.get("method", recipe.asked_method)
    workload = replace(workload, recipe=replace(recipe, method=method))
    context = replace(context, workload=workload)
    machine, stack = context.hardware, context.installed
    start = replace(defaults(workload=workload, hardware=machine, installed=stack), method=method)
    if not lengths_known:
        start = replace(start, max_length=workload.data.lengths.longest)
    candidate = replace(start, **fixed)
    if candidate.packs:
        length = candidate.packed_length or candidate.max_length
        candidate = replace(candidate, packed_length=length, max_length=fixed.get("max_length", length))
    if candidate.checkpointing == "every_n" and "every_n_layers" not in fixed:
        candidate = replace(candidate, every_n_layers=2)
    if "gradient_accumulation_steps" not in fixed:
        rows = candidate.per_device_train_batch_size * candidate.devices
        steps = context.accumulation(candidate) or max(1, recipe.effective_batch_size // rows)
        candidate = replace(candidate, gradient_accumulation_steps=steps)
    for rule in broken_rules(candidate, context, lengths_known=lengths_known):
        if rule.name in reported:
            continue
        knobs = {*rule.knobs, *(("packed_length",) if "max_length" in rule.knobs and candidate.packs else ())}
        said = {knob: value for knob, value in fixed.items() if knob in knobs}  # max_length follows packed_length
        shown = said or {knob: getattr(candidate, knob) for knob in rule.knobs}
        limit = f" ({workload.model.limit})" if rule.name == "within_model_limit" else ""
        problems.append(f"{fixed_in_words(shown)}: {rule.reason}{limit}")
    if problems:
        raise UsageError(*problems)
    return candidate


def broken_rules(candidate: Candidate, context: Context, *, lengths_known: bool) -> list[Rule]:
    """List the rules that a candidate breaks, except those that an estimate may. lengths_known: as in `complete`."""
    excused = OF_A_RECIPE | (set() if lengths_known else OF_A_DATASET)
    return [rule for rule in RULES if rule.name not in excused and rule.broken(candidate, context)]
