"""Tables of exhaustive truth: reading one, correcting it for drift, and telling skill from luck.

A table is JSON lines: a header, then a row for each trial, as record_table.py appends them. In round 0 every candidate
is measured once. In each later round the leaders are measured again, until their rates are known well enough. A whole
round may be faster or slower than others, because the machine was or because of the steps that its seed drew. That says
nothing about a candidate, so it is estimated and taken out (a block effect: Montgomery, Design and Analysis of
Experiments, 8th ed., chapter 4).

The repeats of a candidate are in two halves. One half chooses the best, among the candidates with as many repeats as a
leader has. The other half scores regret. So a lucky measurement wins nothing. The caller lets the halves take turns.
Leaves out measuring (record_table.py) and replaying a search.

Rates are useful tokens per second. A standard deviation is of their logarithms, so it is a share of the rate.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Any, TypeVar

import numpy as np

from autotune.core.candidate import Candidate, short_name
from autotune.core.outcome import Measured, Outcome, OutOfMemory, outcome_from_dict
from autotune.core.trials.comparison import corrected_rates, drift, reference
from autotune.core.trials.trial import Role, Trial
from autotune.errors import UsageError, first_line
from benchmarks.rows import read

LEADERS = 1 / 10  # share of the candidates that are measured again
LEAST_REPEATS = 6  # three in each half: a trial and two rounds of the second measurement
BLOCK = 4  # the fewest candidates in a round from which its effect can be told

References = Sequence[tuple[Role, Sequence[Candidate]]]  # the fallbacks of each role
Rates = Mapping[Candidate, Sequence[float]]
Each = TypeVar("Each")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table as far as it is written.

    header: the space, the machine and the versions. rows: trials, with their round; the role of a candidate of the
    space is `search`.
    """

    header: Mapping[str, Any]
    rows: tuple[Trial, ...]

    @property
    def exhaustive_s(self) -> float:
        """Return the seconds of trying every candidate and the references once."""
        return sum(row.outcome.wall_s for row in self.rows if row.round == 0)

    def rates(self, *, corrected: bool = True) -> Rates:
        """Return the rates of each candidate of the space in the order of its repeats, without those that ever failed.

        corrected: for drift and rounds, as `steady` does.
        """
        rates: dict[Candidate, list[float]] = {}
        failed = self._failed()
        for row in self.steady() if corrected else self.rows:
            if row.role == "search" and isinstance(row.outcome, Measured) and row.candidate not in failed:
                rates.setdefault(row.candidate, []).append(row.outcome.useful_tokens_per_s)
        return rates

    def outcomes(self) -> dict[Candidate, list[Outcome]]:
        """Return every steady trial of each candidate of the space; if one ever failed, only its failures."""
        failed = self._failed()
        outcomes: dict[Candidate, list[Outcome]] = {}
        for row in self.steady():
            if row.role == "search" and not (isinstance(row.outcome, Measured) and row.candidate in failed):
                outcomes.setdefault(row.candidate, []).append(row.outcome)
        return outcomes

    def steady(self) -> tuple[Trial, ...]:
        """Return the trials as if the machine had always been as fast as in round 0.

        A search takes minutes, a table hours. So rates are corrected for drift (core/trials/comparison.py) and for
        rounds, and the reference products are all the same.
        """
        measured = {place: row.outcome for place, row in enumerate(self.rows) if isinstance(row.outcome, Measured)}
        rates = dict(zip(measured, corrected_rates(list(measured.values())), strict=True))
        usual = geometric_mean(map(reference, measured.values())) if measured else 0.0
        failed = self._failed()
        found = [
            (row, rates[place])
            for place, row in enumerate(self.rows)
            if row.role == "search" and row.candidate not in failed
        ]
        effects = _round_effects(found)
        rows = list(self.rows)
        for place, outcome in measured.items():
            rate = rates[place] / math.exp(effects.get(rows[place].round, 0.0))
            outcome = replace(outcome, useful_tokens_per_s=rate, reference_flops_per_s=(usual, usual))
            rows[place] = replace(rows[place], outcome=outcome)
        return tuple(rows)

    def _failed(self) -> set[Candidate]:
        return {row.candidate for row in self.rows if not isinstance(row.outcome, Measured)}


def load(file: Path) -> Table:
    """Read a table; a last line that was cut off is passed over. Raises UsageError when this version cannot read it."""
    header, *rows = read(file) or [{}]
    if not isinstance(header, dict) or header.get("kind") != "table":
        raise UsageError(f"{file}: is no table: expected one that benchmarks.search.record_table has begun")
    try:
        return Table(header=header, rows=tuple(_row(row) for row in rows))
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(f"{file}: has a row that this version does not know: {first_line(error)}") from error


def load_whole(file: Path) -> Table:
    """Read a table in which everything is measured, and the leaders often enough. Raises UsageError for any other."""
    table = load(file)
    measured, rates = len(table.outcomes()), table.rates()
    problems = []
    if measured < (asked := table.header["candidates"]):
        problems.append(f"{file}: {measured} of {asked} candidates are measured")
    if not any(len(repeats) >= LEAST_REPEATS for repeats in rates.values()):
        problems.append(f"{file}: nothing is measured {LEAST_REPEATS} times, so luck could pass for skill")
    if problems:
        raise UsageError(*(f"{problem}; benchmarks.search.record_table goes on with it" for problem in problems))
    return table


def leaders(rates: Rates) -> list[Candidate]:
    """Return the fastest tenth, fastest first, by the mean of all repeats."""
    ranked = sorted(rates, key=lambda candidate: -geometric_mean(rates[candidate]))
    return ranked[: math.ceil(LEADERS * len(ranked))]


def deviation(rates: Rates) -> float:
    """Return the standard deviation of one measurement, pooled over all candidates with repeats; NaN without any."""
    repeated = [[math.log(rate) for rate in rates[candidate]] for candidate in _repeated(rates)]
    if not repeated:
        return math.nan
    squares = sum((value - fmean(logs)) ** 2 for logs in repeated for value in logs)
    freedom = sum(len(logs) - 1 for logs in repeated)
    if len(repeated) >= BLOCK:  # the effects of rounds were estimated from the same measurements
        freedom -= max(map(len, repeated)) - 1
    return math.sqrt(squares / freedom)


def unsettled(rates: Rates, standard_error: float) -> list[Candidate]:
    """Return the leaders whose mean is not known to `standard_error` yet."""
    noise = deviation(rates)
    return [
        candidate
        for candidate in leaders(rates)
        if len(rates[candidate]) < LEAST_REPEATS or noise / math.sqrt(len(rates[candidate])) > standard_error
    ]


def half_of(repeats: Sequence[Each], half: int) -> Sequence[Each]:
    """Return half 0 or 1 of a candidate's repeats, which go to the halves in turn.

    A candidate that was measured once was too slow to be measured again; its only trial is in both halves.
    """
    return repeats[half::2] or repeats


def best(rates: Rates, half: int = 0) -> Candidate:
    """Return the optimum by the half that chooses, among the candidates with the most repeats.

    Raises ValueError when nothing was measured.
    """
    return max(_known_best(rates), key=lambda candidate: geometric_mean(half_of(rates[candidate], half)))


def regrets(rates: Rates, half: int = 0) -> dict[Candidate, float]:
    """Return how much slower than the optimum each candidate is, as a share of the optimum's rate.

    half: chooses the optimum; the other half scores. A regret is below 0 where the half that scores would have chosen
    this candidate. Raises ValueError when nothing was measured.
    """
    scores = {candidate: geometric_mean(half_of(repeats, 1 - half)) for candidate, repeats in rates.items()}
    top = scores[best(rates, half)]
    return {candidate: 1 - score / top for candidate, score in scores.items()}


def next_trial(
    table: Table, candidates: Sequence[Candidate], references: References
) -> tuple[int, Role, Candidate] | None:
    """Return round, role and candidate of the next measurement; None when the table is whole.

    It depends on the rows alone, so a table that was stopped goes on as if it had not been.
    """
    for role, fallbacks in references:  # the first that does not run out of memory, as in a search
        tried = {row.candidate: row.outcome for row in table.rows if row.role == role}
        for candidate in fallbacks:
            if candidate not in tried:
                return 0, role, candidate
            if not isinstance(tried[candidate], OutOfMemory):
                break
    rows = [row for row in table.rows if row.role == "search"]
    last = max((row.round for row in rows), default=0)
    for number in (last, last + 1):
        before = replace(table, rows=tuple(row for row in table.rows if row.round < number))
        wanted = list(unsettled(before.rates(), table.header["standard_error"]) if number else candidates)
        random.Random(f"{table.header['seed']} {number}").shuffle(wanted)
        done = {row.candidate for row in rows if row.round == number}
        for candidate in wanted:
            if candidate not in done:
                return number, "search", candidate
    return None


def summarize(table: Table) -> dict[str, Any]:
    """Sum up a table: how much is measured, with which outcomes, how the machine drifted, and what the best is worth.

    A deviation is a standard deviation as a share of a rate, between the repeats of a candidate, as measured and as
    corrected for drift. The regret by the other half compares the best by one half
    with what the other half would have chosen; it is the mean of both ways.
    """
    goal, rates = table.header["standard_error"], table.rates()
    measured = [row.outcome for row in table.rows if isinstance(row.outcome, Measured)]
    tried = {row.candidate for row in table.rows if row.role == "search"}
    summary = {
        "name": table.header["name"],
        "candidates": f"{len(tried)} of {table.header['candidates']}",
        "outcomes": dict(Counter(row.outcome.kind for row in table.rows)),
        "minutes": sum(row.outcome.wall_s for row in table.rows) / 60,
    }
    if not rates:
        return summary
    top = best(rates)
    return {
        **summary,
        "median seconds of a trial": median(outcome.wall_s for outcome in measured),
        "drift of the machine": float(drift(measured).std()),
        "deviation between repeats": deviation(table.rates(corrected=False)),
        "the same, corrected for drift": deviation(rates),
        "leaders": f"{len(leaders(rates))}, {len(unsettled(rates, goal))} of them not known to {goal:.0%} yet",
        "best": short_name(top),
        "its useful tokens/s": geometric_mean(rates[top]),
        "its repeats": len(rates[top]),
        "its regret by the other half": floor(rates),
    }


def floor(rates: Rates) -> float:
    """Return how much slower the optimum of one half is than that of the other, by the other; the mean of both ways."""
    ahead = (min(regrets(rates, half)[each] for each in _known_best(rates)) for half in (0, 1))
    return fmean(1 - 1 / (1 - regret) for regret in ahead)


def _round_effects(found: Sequence[tuple[Trial, float]]) -> dict[int, float]:
    """Return by how much each later round was faster than round 0, as logarithms; without rounds that are too small.

    found: rows and rates of the candidates. Candidates are random effects around their mean. The leaders were lucky in
    round 0, which chose them; as fixed effects their luck would look like a fall of all later rounds. That only leaders
    are repeated makes no bias, because the rates that chose them are in the model (Henderson 1975, Biometrics 31, 423;
    Rubin 1976, Biometrika 63, 581).
    """
    often = Counter(row.candidate for row, _ in found)
    sizes = Counter(row.round for row, _ in found if often[row.candidate] > 1)
    rounds = [number for number in sorted(sizes) if number and sizes[number] >= BLOCK]
    inside = [(row, math.log(rate)) for row, rate in found if row.round in (0, *rounds)]
    candidates = list(dict.fromkeys(row.candidate for row, _ in inside))
    freedom = len(inside) - len(candidates) - len(rounds)
    if not rounds or freedom < 1:
        return {}
    logs = np.array([log for _, log in inside])
    logs -= logs.mean()
    design = np.array(
        [
            [*(row.round == each for each in rounds), *(row.candidate == each for each in candidates)]
            for row, _ in inside
        ],
        dtype=np.float64,
    )
    of_rounds = len(rounds)
    residuals = logs - design @ np.linalg.lstsq(design, logs, rcond=None)[0]
    noise = float(residuals @ residuals) / freedom
    between = max(float(np.var([log for row, log in inside if not row.round])) - noise, noise)
    # The unknowns: rounds, the mean, and each candidate's deviation from it, with a penalty for unlikely deviations.
    mixed = np.insert(design, of_rounds, 1.0, axis=1)
    penalty = np.hstack([np.zeros((len(candidates), of_rounds + 1)), np.eye(len(candidates))])
    penalty *= math.sqrt(noise / between) if noise else 0.0
    fitted = np.linalg.lstsq(np.vstack([mixed, penalty]), np.append(logs, np.zeros(len(candidates))), rcond=None)[0]
    return dict(zip(rounds, fitted[:of_rounds].tolist(), strict=True))


def _repeated(rates: Rates) -> list[Candidate]:
    return [candidate for candidate, repeats in rates.items() if len(repeats) > 1]


def _known_best(rates: Rates) -> list[Candidate]:
    """Return the candidates with as many repeats as a leader needs; before there are any, those with the most."""
    enough = min(LEAST_REPEATS, max(map(len, rates.values()), default=0))
    return [candidate for candidate, repeats in rates.items() if len(repeats) >= enough]


def _row(values: Mapping[str, Any]) -> Trial:
    return Trial(
        number=values["order"],
        round=values["round"],
        role=values["role"],
        candidate=Candidate(**values["candidate"]),
        outcome=outcome_from_dict(values["outcome"]),
    )
