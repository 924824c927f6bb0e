"""Lengths, coverage, and the lengths worth trying."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.workload import MULTIPLE, check_workload, max_length_candidates
from autotune.errors import AutotuneError, NothingFits, UsageError
from tests.core.examples import lengths, workload

rows = st.lists(st.integers(1, 2000), min_size=1, max_size=50)


def test_coverage_by_hand() -> None:
    """Rows of 10, 20 and 30 cut at 20 keep 50 of 60 tokens."""
    table = lengths([10, 20, 30])
    assert (table.rows, table.total, table.longest) == (3, 60, 30)
    assert table.coverage(20) == pytest.approx(50 / 60)
    assert table.coverage(30) == 1


@pytest.mark.parametrize(
    ("least", "limit", "expected"),
    [
        (1.0, None, (448,)),  # the only multiple of 64 that keeps 401 tokens whole
        (0.8, None, (320, 384, 448)),  # 320 keeps 82 %, 384 more than half of the rest (96 %), 448 all
        (0.8, 400, (320, 384, 400)),  # the model's own limit is the last, though no multiple
        (0.5, 64, (64,)),
    ],
)
def test_lengths_worth_trying_by_hand(least: float, limit: int | None, expected: tuple[int, ...]) -> None:
    """Ten rows of 401 tokens and ten of 40: above 40 coverage is (10 min(401, S) + 400) / 4410."""
    table = lengths([401] * 10 + [40] * 10) if least > 0.5 else lengths([64, 32])
    found = max_length_candidates(table, least_coverage=least, model_limit=limit)
    assert found == expected


@pytest.mark.parametrize(
    ("tokens", "recipe", "refused", "said"),
    [
        ([10] * 15, {}, UsageError, "effective_batch_size=16: the data has 15 rows"),
        ([4096] * 16, {"coverage": 0.9}, NothingFits, "max_length=2048 keeps 50.0% of the tokens, 90.0% asked"),
    ],
)
def test_data_that_cannot_do_what_the_recipe_asks_is_refused(
    tokens: list[int], recipe: dict[str, float], refused: type[AutotuneError], said: str
) -> None:
    """Without looking at hardware: fewer rows than a step has samples, rows too long for the coverage."""
    with pytest.raises(refused, match=said):
        check_workload(workload(tokens, model={"limit": 2048}, effective_batch_size=16, **recipe))
    check_workload(workload([10] * 16, model={"limit": 2048}, effective_batch_size=16, **recipe))


@pytest.mark.parametrize(
    ("limit", "max_length", "said"),
    [
        (96, None, "effective_batch_size=16: after the cut at max_length=96 the data has 7 rows, fewer than one"),
        (None, 91, "after the cut at max_length=91 the data has 2 rows, .* at most 2 samples can be asked for"),
        (None, 90, "after the cut at max_length=90 the data has 1 row, .* at most 1 sample can"),
        (None, 64, "candidate.max_length=64: no row of data has a label within its first 64 tokens"),
        (64, None, "model takes 64 tokens: no row of data has a label within its first 64 tokens, so nothing would be"),
    ],
)
def test_rows_are_counted_after_the_cut(limit: int | None, max_length: int | None, said: str) -> None:
    """Prompts of 89 to 104 tokens, and one answer token behind each: TRL drops those that the cut leaves no answer."""
    work = workload(range(90, 106), labels=1, model={"limit": limit}, effective_batch_size=16)
    with pytest.raises(UsageError, match=said):
        check_workload(work, max_length=max_length)
    check_workload(replace(work, model=replace(work.model, limit=None)), max_length=105)


def test_the_first_length_leaves_a_whole_step() -> None:
    """At 64 two long rows keep 90 % of the tokens, but a step of three needs a third one."""
    table = lengths([64] * 2 + [100], labels=1)
    assert max_length_candidates(table, least_coverage=0.5, model_limit=None)[0] == 64
    assert max_length_candidates(table, least_coverage=0.5, model_limit=None, least_rows=3)[0] == 128


@given(rows, st.integers(1, 3000), st.integers(0, 500))
def test_coverage_never_falls_as_the_length_grows(tokens: list[int], length: int, more: int) -> None:
    """A longer cut keeps at least as much."""
    table = lengths(tokens)
    assert table.coverage(length) <= table.coverage(length + more) <= 1


@given(rows, st.floats(0.01, 1.0), st.integers(64, 4096) | st.none())
def test_every_length_is_within_the_limit_and_keeps_enough(tokens: list[int], least: float, limit: int | None) -> None:
    """Ascending, within the model's limit, at least the coverage; multiples of 64 but for the limit itself."""
    table = lengths(tokens)
    try:
        found = max_length_candidates(table, least_coverage=least, model_limit=limit)
    except NothingFits:
        assert limit is not None
        assert table.coverage(limit) < least
        return
    assert list(found) == sorted(set(found))
    # All of it (1) means all that the model can take.
    assert all(table.coverage(length) >= least for length in found) or (least == 1 and found == (limit,))
    assert all(length % MULTIPLE == 0 or length == limit for length in found)
    assert limit is None or found[-1] <= limit
    assert table.coverage(found[-1]) == table.coverage(min(table.longest, limit or table.longest))


@given(rows, st.floats(0.01, 1.0))
def test_the_first_length_is_the_shortest_that_keeps_enough(tokens: list[int], least: float) -> None:
    """No smaller multiple of 64 keeps the asked coverage."""
    first = max_length_candidates(lengths(tokens), least_coverage=least, model_limit=None)[0]
    assert first == MULTIPLE or lengths(tokens).coverage(first - MULTIPLE) < least


def test_a_model_too_short_for_the_data_says_what_to_do() -> None:
    """Coverage that no length within the limit can keep is an error with a way out."""
    with pytest.raises(NothingFits, match=r"recipe\.coverage"):
        max_length_candidates(lengths([100, 900]), least_coverage=0.99, model_limit=512)


def test_all_of_it_means_all_that_the_model_can_take() -> None:
    """A row beyond the model's limit is cut there when everything is asked for; a lower share is a promise."""
    table = lengths([100, 9000])
    assert max_length_candidates(table, least_coverage=1.0, model_limit=8192) == (8192,)
    with pytest.raises(NothingFits):
        max_length_candidates(table, least_coverage=0.95, model_limit=8192)
