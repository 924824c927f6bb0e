"""Limits: which values they let through, and how they read in messages."""

import pytest

from autotune.cli.limits import Limit


@pytest.mark.parametrize(
    ("limit", "value", "allowed"),
    [
        (Limit(choices=("full", "lora")), "lora", True),
        (Limit(choices=("full", "lora")), "lorra", False),
        (Limit(at_least=1), 1, True),
        (Limit(at_least=1), 0, False),
        (Limit(above=0, at_most=1), 0.0, False),
        (Limit(above=0, at_most=1), 1.0, True),
        (Limit(above=0, at_most=1), 1.01, False),
        (Limit(at_least=0, below=1), 1.0, False),
        (Limit(above=0), float("nan"), False),
        (Limit(above=0), float("inf"), False),
        (Limit(named=True), ["q_proj"], True),
        (Limit(named=True), [], False),
        (Limit(named=True), ["q_proj", ""], False),
    ],
)
def test_a_limit_allows_what_it_says(limit: Limit, value: object, allowed: bool) -> None:
    """A limit ends exactly where its words say, and none lets nan or infinity through."""
    assert limit.allows(value) is allowed


def test_a_limit_reads_as_a_sentence() -> None:
    """Messages show the limit in words."""
    assert Limit(above=0, at_most=1).words == "above 0 and at most 1"
    assert Limit(choices=("a", "b")).words == "one of a, b"
