"""Fixed knobs: what a user set with `candidate.*`, and whether this machine, model and recipe can have it.

Each fixed knob is judged here, alone and together with the other fixed ones. Some are impossible only together with
every value of a knob that is free: enumerate.py finds those, and says which rules left nothing.
"""

from collections.abc import Mapping
from typing import Any

from autotune.core.arithmetic import divisors
from autotune.core.candidate import Candidate
from autotune.core.recipe import Recipe
from autotune.core.space.context import Context
from autotune.core.space.legality import RULES
from autotune.errors import UsageError


def check_fixed(fixed: Mapping[str, Any], context: Context) -> None:
    """Raise UsageError with all that the recipe or a rule forbids. fixed: knobs, with values of their types."""
    if problems := _against_recipe(fixed, context) + _against_rules(fixed, context):
        raise UsageError(*problems)


def fixed_in_words(fixed: Mapping[str, Any]) -> str:
    """The fixed knobs as they are written on a command line."""
    return " ".join(f"candidate.{knob}={value}" for knob, value in fixed.items())


def against_method(fixed: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """What is wrong with the fixed method, if it is another than the recipe's."""
    if recipe.method is None or fixed.get("method", recipe.method) == recipe.method:
        return []
    return [f"candidate.method: got {fixed['method']}, expected recipe.method={recipe.method}"]


def _against_recipe(fixed: Mapping[str, Any], context: Context) -> list[str]:
    """What contradicts the recipe: another method, or steps that hold other samples."""
    recipe = context.workload.recipe
    samples = recipe.effective_batch_size
    problems = against_method(fixed, recipe)
    if str(fixed.get("batching")).startswith("pack_"):
        return problems
    size, steps = fixed.get("per_device_train_batch_size"), fixed.get("gradient_accumulation_steps")
    for knob, value in (("per_device_train_batch_size", size), ("gradient_accumulation_steps", steps)):
        if value is not None and samples % value:
            problems.append(
                f"candidate.{knob}: got {value}, expected a divisor of recipe.effective_batch_size={samples}: "
                + ", ".join(map(str, divisors(samples)))
            )
    if size is not None and steps is not None and size * steps != samples:
        problems.append(
            f"candidate.per_device_train_batch_size x candidate.gradient_accumulation_steps: got {size} x {steps} = "
            f"{size * steps}, expected recipe.effective_batch_size={samples}"
        )
    return problems


def _against_rules(fixed: Mapping[str, Any], context: Context) -> list[str]:
    """Every rule that the fixed knobs break, whatever values the other knobs have."""
    recipe = context.workload.recipe
    known: dict[str, Any] = {"devices": 1, "sharding": "none"}
    if recipe.method is not None:
        known["method"] = recipe.method
    if "batching" in fixed and not fixed["batching"].startswith("pack_"):
        known["packed_length"] = None
    if "packed_length" in fixed:
        known["max_length"] = fixed["packed_length"]  # TRL has one number for both
    known |= fixed
    others = {
        "max_length": context.asked_max_length,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": recipe.effective_batch_size,
        "method": recipe.asked_method,
    }
    candidate = Candidate(**{**others, **known})
    reported = set() if candidate.packs else {"samples_per_step"}  # by _against_recipe, in better words
    return [
        fixed_in_words({knob: fixed[knob] for knob in rule.knobs if knob in fixed}) + f": {rule.reason}"
        for rule in RULES
        if rule.name not in reported
        and known.keys() >= set(rule.knobs)
        and fixed.keys() & set(rule.knobs)
        and rule.broken(candidate, context)
    ]
