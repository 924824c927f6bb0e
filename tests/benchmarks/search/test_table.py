"""benchmarks/search/table.py: drift and rounds are taken out, and luck is told from skill."""

import math
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from autotune.core.candidate import Candidate
from autotune.core.trials.trial import Trial
from benchmarks.search.table import Table, best, deviation, half_of, regrets, summarize, unsettled
from tests.benchmarks.search.test_record_table import HEADER, SPACE, Machine, rated, recorded


def table_of(*rates: list[float]) -> dict[Candidate, list[float]]:
    """Rates of the first candidates of the space."""
    return dict(zip(SPACE, rates, strict=False))


def test_drift_is_taken_out() -> None:
    """A machine at half its speed halves the rate and the reference: corrected, the repeats agree."""
    speeds = (1.0,) * 8 + (0.5,) * 8
    rows = [
        Trial(number=n, round=n, role="search", candidate=SPACE[0], outcome=rated(80, speed))
        for n, speed in enumerate(speeds)
    ]
    table = Table(header=HEADER, rows=tuple(rows))
    assert table.rates(corrected=False) == {SPACE[0]: [80] * 8 + [40] * 8}
    [corrected] = table.rates().values()
    assert corrected == pytest.approx([corrected[0]] * 16)
    assert deviation(table.rates()) == pytest.approx(0)


def test_what_a_whole_round_was_faster_by_is_taken_out() -> None:
    """A fifth, which no reference product told; a round of two is too small to tell."""
    for size, expected in ((5, 100.0), (2, 120.0)):
        rows = [
            Trial(number=0, round=number, role="search", candidate=each, outcome=rated(100 * speed))
            for number, speed in enumerate((1.0, 1.2, 1.0))
            for each in SPACE[: 8 if number == 0 else size]
        ]
        rates = Table(header=HEADER, rows=tuple(rows)).rates()
        assert rates[SPACE[0]] == pytest.approx([100, expected, 100])
        assert rates[SPACE[7]] == pytest.approx([100])


def test_luck_that_made_leaders_is_no_change_of_the_machine() -> None:
    """Rates that scatter by 10 % and trials by 5 %: the fastest are lucky in round 0, and not in those that follow."""
    luck = random.Random(0)
    changes = []
    for _ in range(40):
        truth = {each: 100 * luck.lognormvariate(0, 0.1) for each in SPACE}
        first = {each: rate * luck.lognormvariate(0, 0.05) for each, rate in truth.items()}
        fastest = sorted(SPACE, key=lambda each: -first[each])[:6]
        again = [{each: truth[each] * luck.lognormvariate(0, 0.05) for each in fastest} for _ in range(4)]
        rows = [
            Trial(number=0, round=number, role="search", candidate=each, outcome=rated(rate))
            for number, rates in enumerate((first, *again))
            for each, rate in rates.items()
        ]
        found = Table(header=HEADER, rows=tuple(rows)).rates()
        changes += [math.log(found[each][1] / again[0][each]) for each in fastest]
    naive = fmean(math.log(first[each] / truth[each]) for each in fastest)
    assert abs(fmean(changes)) < 0.01 < naive


def test_a_lucky_measurement_wins_nothing() -> None:
    """By hand: the second is chosen for a lucky repeat, and is scored by the half without it."""
    rates = table_of([100, 100, 100, 100], [144, 90, 100, 90], [60])
    assert [half_of(rates[SPACE[1]], half) for half in (0, 1)] == [[144, 100], [90, 90]]
    assert half_of(rates[SPACE[2]], 1) == [60]
    assert best(rates) == SPACE[1]
    assert list(regrets(rates).values()) == pytest.approx([1 - 100 / 90, 0, 1 - 60 / 90])
    assert best(rates, half=1) == SPACE[0]
    assert list(regrets(rates, half=1).values()) == pytest.approx([0, 1 - 120 / 100, 1 - 60 / 100])


def test_one_measurement_never_beats_repeated_ones() -> None:
    """The optimum is one whose rate is known as a leader's; as long as nothing is repeated it is the fastest so far."""
    assert best(table_of([100] * 6, [110] * 4, [90] * 7)) == SPACE[0]
    assert best(table_of([100, 100], [120])) == SPACE[0]
    assert best(table_of([100], [120])) == SPACE[1]


def test_leaders_are_repeated_as_often_as_the_noise_asks() -> None:
    """By hand: two repeats at ±10 % have a deviation of 14 %; four are the least even without any noise."""
    noisy = table_of([100 * 1.1**sign for sign in (1, -1) * 8])
    assert deviation(noisy) == pytest.approx(0.0953 * (16 / 15) ** 0.5, abs=1e-4)
    assert unsettled(noisy, 0.03) == []
    assert unsettled(noisy, 0.02) == [SPACE[0]]
    assert unsettled(table_of([100] * 5), 0.02) == [SPACE[0]]
    assert unsettled(table_of([100] * 6), 0.02) == []


def test_summary_says_what_a_table_holds(tmp_path: Path) -> None:
    """The corrected noise, the drift and the best are in it; a table without rates says how far it is."""
    table = recorded(tmp_path / "t.jsonl", Machine())
    summary = summarize(table)
    assert summary["candidates"] == "40 of 40"
    assert summary["outcomes"] == {"measured": len(table.rows)}
    assert 0.015 < summary["the same, corrected for drift"] < 0.06
    assert summary["leaders"] == "4, 0 of them not known to 2% yet"
    assert 0 <= summary["its regret by the other half"] < 0.1
    assert summarize(replace(table, rows=()))["candidates"] == "0 of 40"
