"""Replays: what a search would have tried and found, had its trials been those of a table.

A replayed trial is one of the repeats that the table has of its candidate in the half that chooses (an even seed's is
the first, an odd one's the second), drawn by the seed, and costs its wall clock. As in a live search the two fastest
are measured a second time, and only that decides: their other repeats of that half do. A replay sees nothing else but
the references: not the half that scores, not the candidates that it does not try. What was predicted beforehand costs
what predicting took. Beside them stand Optuna's samplers alone, without references and opening, and the rules that
people use, who measure once: the largest micro-batch that fits, and micro-batches in order until the speed falls, both
with all other knobs at TRL's defaults (but with the space's allocator, which is not theirs). A live search differs in
two things: its trials end early when they are outpaced, and what is not traced in a fifth of its time is guessed.
Leaves out the command line (search_quality.py).
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autotune.core.candidate import Candidate
from autotune.core.outcome import Measured, Outcome
from autotune.core.trials.budget import ROUNDS
from autotune.core.trials.standings import ranked
from autotune.core.trials.trial import Trial
from autotune.search.predictions import PredictedRates
from autotune.search.proposer import Proposer
from autotune.search.samplers import SAMPLERS
from benchmarks.search.table import Rates, half_of, mean, regrets

LARGEST, FALLING, DEFAULTS = "largest batch that fits", "batches until speed falls", "TRL's defaults"
PREDICTS = "roofline"
ALONE = {"tpe alone": "tpe", "gp alone": "gp"}  # without our opening
RULES = (*SAMPLERS, *ALONE, LARGEST, FALLING, DEFAULTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a search would have had before its first trial, and what becomes of each that it makes.

    start: TRL's defaults as the space has them. opening: as core/space/opening.py lists it. references: the trials
    that every search makes first. predicted: of the candidates, and of the references that are outside the space
    behind them.
    predicting_s: seconds that this took.
    """

    candidates: Sequence[Candidate]
    start: Candidate
    opening: Sequence[Candidate]
    references: Sequence[Trial]
    predicted: PredictedRates
    predicting_s: float
    outcomes: Mapping[Candidate, Sequence[Outcome]]

    @property
    def outside(self) -> list[Candidate]:
        """The references that are no candidates, once each."""
        return [c for c in dict.fromkeys(trial.candidate for trial in self.references) if c not in self.outcomes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a replay would have found, had it ended behind a trial. best: None before any ran.

    spent_s: until then. answer_s: seconds of the second measurement behind it, in which the references are, too.
    """

    best: Candidate | None
    spent_s: float
    answer_s: float = 0.0


def replay(world: World, rule: str, *, seed: int, most: int, journal: Path) -> list[Found]:
    """Search by a rule for at most so many trials. journal: a file for the study."""
    chance = random.Random(f"{rule} {seed}")
    best: Candidate | None = None
    answer_s = 0.0
    references_s = sum(trial.outcome.wall_s for trial in world.references) if rule in SAMPLERS else 0.0
    spent_s = references_s + (world.predicting_s if rule == PREDICTS else 0.0)
    found: list[Found] = []
    proposer = None
    if (sampler := ALONE.get(rule, rule)) in SAMPLERS:
        proposer = Proposer(
            world.candidates,
            () if rule in ALONE else world.opening,
            sampler=sampler,
            seed=seed,
            journal=journal,
            predicted=world.predicted,
            references=() if rule in ALONE else world.outside,
        )
        if rule in SAMPLERS:
            proposer.tell(world.references)
    batches = _batches(world, rule)
    ran: list[Trial] = []
    while len(found) < most:
        candidate = proposer.propose() if proposer else next(batches, None)
        if candidate is None:
            break
        outcome = chance.choice(half_of(world.outcomes[candidate], seed % 2))  # the other half scores
        trial = Trial(number=len(world.references) + len(found), role="search", candidate=candidate, outcome=outcome)
        spent_s += outcome.wall_s
        if proposer:
            proposer.tell([trial])
        if isinstance(outcome, Measured):
            ran.append(trial)
            best = candidate
            if proposer:
                best, repeats_s = _second_measurement(world, ran, seed % 2)
                answer_s = repeats_s + ROUNDS[0] * references_s
            elif rule != LARGEST:
                best = ranked(ran, world.outcomes)[0].candidate
        found.append(Found(best=best, spent_s=spent_s, answer_s=answer_s))
        if proposer is None and (not isinstance(outcome, Measured) or (rule == FALLING and best != candidate)):
            break
    return found


def _second_measurement(world: World, ran: Sequence[Trial], half: int) -> tuple[Candidate, float]:
    """Which of the two fastest is faster by its other repeats, and the seconds of these.

    One that has no other was too slow to be repeated; it has its only trial again.
    """
    rates: dict[Candidate, float] = {}
    spent_s = 0.0
    for trial in ranked(ran, world.outcomes)[:2]:
        repeats = [each for each in half_of(world.outcomes[trial.candidate], half) if isinstance(each, Measured)]
        others = [outcome for outcome in repeats if outcome is not trial.outcome] or repeats
        rates[trial.candidate] = mean(outcome.useful_tokens_per_s for outcome in others)
        spent_s += sum(outcome.wall_s for outcome in others)
    return max(rates, key=lambda candidate: rates[candidate]), spent_s


def _batches(world: World, rule: str) -> Iterator[Candidate]:
    """Candidates that differ from TRL's defaults in the micro-batch alone, smallest first."""
    if rule == DEFAULTS:
        yield from [world.start] if world.start in world.outcomes else []
        return
    knobs = ("per_device_train_batch_size", "gradient_accumulation_steps")
    alike = [
        candidate
        for candidate in world.candidates
        if candidate == replace(world.start, **{knob: getattr(candidate, knob) for knob in knobs})
    ]
    yield from sorted(alike, key=lambda candidate: candidate.per_device_train_batch_size)


def regret_after(found: Sequence[Found], rates: Rates, trials: int, *, seed: int) -> float:
    """The regret of the best after so many trials, as a share of the optimum's rate; all of it before any ran.

    seed: of the replay. Below 0 where the half that scores takes another than the optimum for the best.
    """
    best = found[min(trials, len(found)) - 1].best if found else None
    return 1.0 if best is None else regrets(rates, seed % 2)[best]


def seconds_to(found: Sequence[Found], rates: Rates, regret: float, *, seed: int) -> tuple[float, float]:
    """The wall clock when the best first came within a regret, and stayed, without the second measurement behind it
    and with it; infinite when it never did."""
    of = regrets(rates, seed % 2)
    close = [state.best is not None and of[state.best] <= regret for state in found]
    if not close or not close[-1]:
        return math.inf, math.inf
    first = len(close) - next((place for place, is_close in enumerate(reversed(close)) if not is_close), len(close))
    return found[first].spent_s, found[first].spent_s + found[first].answer_s
