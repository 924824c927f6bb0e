"""Pins: the knobs that a user fixed, and whether this machine, model and recipe can have them together.

Leaves out pins that only the whole space shows to be impossible: enumerate.py says which rules left nothing of it.
"""

import types
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from autotune.core.candidate import KNOBS, Candidate
from autotune.core.space.context import Context
from autotune.core.space.fidelity import divisors
from autotune.core.space.legality import RULES
from autotune.errors import UsageError


def check_pins(fixed: Mapping[str, Any], context: Context) -> None:
    """Raise UsageError with every pin that is unknown, of a wrong type, impossible here, or at odds with another."""
    hints = get_type_hints(Candidate)
    problems = [
        _unknown(knob) if knob not in hints else f"candidate.{knob}: got {value!r}, expected {_expected(hints[knob])}"
        for knob, value in fixed.items()
        if knob not in hints or not _fits(value, hints[knob])
    ]
    if problems:
        raise UsageError(*problems)
    problems = _against_recipe(fixed, context) + _against_rules(fixed, context)
    if problems:
        raise UsageError(*problems)


def pins_in_words(fixed: Mapping[str, Any]) -> str:
    """The pins as they stand on a command line."""
    return " ".join(f"candidate.{knob}={value}" for knob, value in fixed.items())


def _against_recipe(fixed: Mapping[str, Any], context: Context) -> list[str]:
    recipe = context.workload.recipe
    samples = recipe.effective_batch_size
    problems = []
    if recipe.method is not None and fixed.get("method", recipe.method) != recipe.method:
        problems.append(f"candidate.method: got {fixed['method']}, expected recipe.method={recipe.method}")
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
    """Every rule that the pins break whatever the other knobs are."""
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
    told = set() if candidate.packs else {"samples_per_step"}  # _against_recipe says it better
    return [
        pins_in_words({knob: fixed[knob] for knob in rule.knobs if knob in fixed}) + f": {rule.reason}"
        for rule in RULES
        if rule.name not in told
        and known.keys() >= set(rule.knobs)
        and fixed.keys() & set(rule.knobs)
        and rule.broken(candidate, context)
    ]


def _unknown(knob: str) -> str:
    near = get_close_matches(knob, KNOBS, n=1)
    return f"candidate.{knob}: unknown, expected " + (near[0] if near else "one of " + ", ".join(KNOBS))


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is int:
        return type(value) is int and value >= 0
    return isinstance(value, hint)


def _expected(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_expected(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(get_args(hint))
    return {int: "a whole number", bool: "true or false", type(None): "null"}[hint]
