"""benchmarks/search/replays.py: a replay sees its own trials alone, rules stop where people do, regret is scored.

And quality.py: the picture has what it should.
"""

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from autotune.core.candidate import Candidate
from autotune.core.outcome import Measured, Outcome, OutOfMemory
from autotune.core.trials.trial import Trial
from benchmarks.search.quality import COLOURS, LEAST, MOST, draw
from benchmarks.search.replays import DEFAULTS, FALLING, LARGEST, Found, World, regret_after, replay, seconds_to
from benchmarks.search.table import Table
from tests import stand_ins

BASE = Candidate(max_length=64, per_device_train_batch_size=8, gradient_accumulation_steps=1, method="full")
SIZES = (1, 2, 4, 8)
SPACE = [
    replace(BASE, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, checkpointing=checkpointing)
    for checkpointing in ("full", "off")
    for size in SIZES
]
RATES = dict(zip(SPACE, (60.0, 90.0, 80.0, 70.0, 100.0, 120.0, 110.0, 50.0), strict=True))
START = SPACE[3]
DEFAULT = replace(START, tuned_allocator=False)


def ran(rate: float) -> Measured:
    return replace(stand_ins.measured(), useful_tokens_per_s=rate, wall_s=10.0)


def world(outcomes: dict[Candidate, list[Outcome]] | None = None) -> World:
    return World(
        candidates=SPACE,
        start=START,
        opening=(),
        references=[
            Trial(number=0, role="baseline", candidate=replace(START, tuned_allocator=False), outcome=ran(35.0))
        ],
        predicted=stand_ins.predicted_rates([*RATES.values(), 35.0]),
        predicting_s=5.0,
        outcomes=outcomes or {candidate: [ran(rate)] for candidate, rate in RATES.items()},
    )


def bests(rule: str, tmp_path: Path, there: World | None = None, most: int = 16) -> list[float | None]:
    found = replay(there or world(), rule, seed=0, most=most, journal=tmp_path / "journal")
    return [None if state.best is None else RATES[state.best] for state in found]


def test_rules_stop_where_people_do(tmp_path: Path) -> None:
    """The defaults are one trial; speed falls at the third micro-batch; the largest that runs is kept, fast or not."""
    assert bests(DEFAULTS, tmp_path) == [70.0]
    assert bests(FALLING, tmp_path) == [60.0, 90.0, 90.0]
    assert bests(LARGEST, tmp_path) == [60.0, 90.0, 80.0, 70.0]
    no_memory: list[Outcome] = [OutOfMemory(message="", peak_bytes=None, wall_s=1.0)]
    full = {candidate: [ran(rate)] for candidate, rate in RATES.items()}
    assert bests(LARGEST, tmp_path, world({**full, START: no_memory})) == [60.0, 90.0, 80.0, 80.0]


@pytest.mark.parametrize("sampler", ["roofline", "random", "grid", "tpe", "tpe alone"])
def test_samplers_find_the_best_in_the_end(sampler: str, tmp_path: Path) -> None:
    """Of eight; with predictions that are right in one trial."""
    found = bests(sampler, tmp_path)
    assert found[-1] == 120.0
    assert sampler != "roofline" or found[0] == 120.0


def test_a_trial_is_one_of_the_repeats_and_costs_its_time(tmp_path: Path) -> None:
    """Which one goes with the seed; the references come first, and predicting is paid for by who uses it."""

    def runs(rule: str, repeats: dict[Candidate, list[Outcome]], seeds: range) -> list[list[Found]]:
        return [replay(world(repeats), rule, seed=seed, most=3, journal=tmp_path / "journal") for seed in seeds]

    for half in (0, 1):  # every other repeat scores, and is not to be seen
        repeats: dict[Candidate, list[Outcome]] = {
            candidate: [ran(rate if place % 2 == half else 0.01) for place in range(4)]
            for candidate, rate in RATES.items()
        }
        repeats[SPACE[0]][2 + half] = replace(ran(60.0), wall_s=30.0)
        found = runs("grid", repeats, range(half, 24, 2))
        assert {run[-1].best for run in found} == {SPACE[1]}
        # the baseline and three trials; then two rounds of it, and the other repeats of the two fastest
        assert {run[-1].spent_s for run in found} == {10.0 + 30.0, 10.0 + 50.0}
        assert {run[-1].answer_s for run in found} == {2 * 10.0 + 20.0}
    assert runs("roofline", repeats, range(1))[0][0].spent_s == 5.0 + 10.0 + 10.0
    assert runs("tpe alone", repeats, range(1))[0][0].spent_s == 10.0


def test_the_second_measurement_decides(tmp_path: Path) -> None:
    """A lucky trial is among the two fastest, and then it is not."""
    repeats = {candidate: 10 * [ran(rate)] for candidate, rate in RATES.items()}
    repeats[SPACE[0]] = [ran(200.0), ran(200.0), *(ran(60.0) for _ in range(8))]
    there = world({candidate: list(outcomes) for candidate, outcomes in repeats.items()})
    for seed in range(12):
        found = replay(there, "grid", seed=seed, most=2, journal=tmp_path / "journal")
        assert found[-1].best == SPACE[1]


def test_regret_is_that_of_the_best_so_far() -> None:
    """All of it before anything ran, and none at the optimum; close is when it stays so."""
    states = [
        Found(best=best, spent_s=10.0 * place, answer_s=7.0)
        for place, best in enumerate((None, SPACE[5], SPACE[6], SPACE[5]))
    ]
    rates = {candidate: [rate] for candidate, rate in RATES.items()}
    assert regret_after(states, rates, 1, seed=0) == 1.0
    assert regret_after(states, rates, 3, seed=0) == pytest.approx(1 - 110 / 120)
    assert regret_after(states, rates, 99, seed=0) == 0.0
    assert seconds_to(states, rates, 0.02, seed=0) == (30.0, 37.0)
    assert seconds_to(states[:3], rates, 0.02, seed=0) == (math.inf, math.inf)
    assert seconds_to(states[1:2], rates, 0.02, seed=0) == (10.0, 17.0)


def test_outcomes_are_the_tables_own() -> None:
    """Each trial of a candidate of the space; of one that failed once, only that."""
    failed = OutOfMemory(message="", peak_bytes=None, wall_s=1.0)
    trials = [("baseline", START, ran(5.0)), ("search", SPACE[0], ran(60.0)), ("search", SPACE[1], ran(90.0))]
    trials += [("search", SPACE[0], ran(62.0)), ("search", SPACE[1], failed)]  # type: ignore[list-item]
    rows = tuple(
        Trial(number=place, round=place // 3, role=role, candidate=candidate, outcome=outcome)  # type: ignore[arg-type]
        for place, (role, candidate, outcome) in enumerate(trials)
    )
    found = Table(header={}, rows=rows).outcomes()
    assert found.keys() == {SPACE[0], SPACE[1]}
    assert [outcome.useful_tokens_per_s for outcome in found[SPACE[0]] if isinstance(outcome, Measured)] == [60.0, 62.0]
    assert found[SPACE[1]] == [failed]


def test_outcomes_are_as_if_no_round_had_been_faster() -> None:
    """The machine was a tenth faster in one, and slower in another: that is no candidate's."""
    rows = [
        Trial(
            number=0,
            round=number,
            role="search",
            candidate=candidate,
            outcome=ran(RATES[candidate] * speed),
        )
        for number, speed in enumerate((1.0, 1.1, 0.9))
        for candidate in SPACE
    ]
    for candidate, outcomes in Table(header={}, rows=tuple(rows)).outcomes().items():
        rates = [outcome.useful_tokens_per_s for outcome in outcomes if isinstance(outcome, Measured)]
        assert rates == pytest.approx(3 * [RATES[candidate]])


def test_every_rule_has_a_curve_at_its_height(tmp_path: Path) -> None:
    """A point for each trial in each table; heights are logarithmic, and a regret of 0 is at the border."""
    rules = {name: {"curve": [MOST, MOST / 10, 0.0]} for name in COLOURS}
    tables = [{"name": name, "candidates": 9, "rules": rules} for name in ("one", "two")]
    draw(tables, tmp_path / "regret.svg")
    root = ElementTree.parse(tmp_path / "regret.svg").getroot()
    styles = [(path.get("d", ""), path.get("style", "")) for path in root.findall(".//{*}path")]
    curves = [d for d, style in styles if any(f"stroke: {colour}" in style for colour in COLOURS.values())]
    curves = [d for d in curves if d.count("L") == 2]
    assert len(curves) == 2 * len(COLOURS)
    top, middle, bottom = (float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", curves[0]))
    assert (bottom - top) / (middle - top) == pytest.approx(2.301, rel=0.01)  # log10(MOST / LEAST)
    assert MOST / LEAST == 200
    words = {text.text for text in root.findall(".//{*}text")}
    assert words >= {"one, 9 candidates", "two, 9 candidates", *COLOURS}
