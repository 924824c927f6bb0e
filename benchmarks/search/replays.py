"""Replays: what a search would have tried and found, if its trials had been those of a table.

A replayed trial is one of the repeats of its candidate in the half that chooses: the first half for an even seed, the
second for an odd one. The seed draws it, and it costs its wall clock. As in a live search the two fastest are measured
a second time, and only that decides; their other repeats of the same half take its place. A replay sees the references,
but neither the half that scores nor a candidate that it does not try. Predictions cost the time that they took.

Three kinds of rules are replayed:
- the samplers as `autotune search` has them;
- Optuna's samplers alone, without references and opening;
- rules that people use, who measure once: the largest micro-batch that fits, and micro-batches in order until the speed
  falls. All other knobs are at TRL's defaults, but with the space's allocator.

A live search differs in two things: its trials end early when they are outpaced, and what a fifth of its time does not
suffice to trace is guessed. Leaves out the command line (quality.py).
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import geometric_mean

from autotune.core.candidate import Candidate
from autotune.core.outcome import Measured, Outcome
from autotune.core.trials.budget import ROUNDS
from autotune.core.trials.standings import ranked
from autotune.core.trials.trial import Trial
from autotune.search.predicted_rates import PredictedRates
from autotune.search.proposer import Proposer
from autotune.search.samplers import SAMPLERS
from benchmarks.search.table import Rates, half_of, regrets

LARGEST, FALLING, DEFAULTS = "largest batch that fits", "batches until speed falls", "TRL's defaults"
PREDICTS = "roofline"
ALONE = {"tpe alone": "tpe", "gp alone": "gp"}
RULES = (*SAMPLERS, *ALONE, LARGEST, FALLING, DEFAULTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a search knows before its first trial, and the outcomes of all trials that it could make.

    start: TRL's defaults with the space's fixed knobs. opening: as core/space/opening.py lists it. references: the
    trials that every search makes first. predicted: rates of the candidates, and behind them of the references outside
    the space. predicting_s: seconds that this took.
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
        """Return the references that are no candidates, once each."""
        return [c for c in dict.fromkeys(trial.candidate for trial in self.references) if c not in self.outcomes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer of a replay that ends after a trial.

    best: None before any trial ran. spent_s: seconds until then. answer_s: seconds of the second measurement after it,
    with the references.
    """

    best: Candidate | None
    spent_s: float
    answer_s: float = 0.0


def replay(world: World, rule: str, *, seed: int, most: int, journal: Path) -> list[Found]:
    """Search by a rule; return the answer after each trial. most: trials. journal: a file for the study."""
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
            study_file=journal,
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
        outcome = chance.choice(half_of(world.outcomes[candidate], seed % 2))  # the half that chooses
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
    """Return which of the two fastest is faster by its other repeats, and the seconds that these took.

    A candidate without other repeats was too slow to be repeated; its only trial counts again.
    """
    rates: dict[Candidate, float] = {}
    spent_s = 0.0
    for trial in ranked(ran, world.outcomes)[:2]:
        repeats = [each for each in half_of(world.outcomes[trial.candidate], half) if isinstance(each, Measured)]
        others = [outcome for outcome in repeats if outcome is not trial.outcome] or repeats
        rates[trial.candidate] = geometric_mean(outcome.useful_tokens_per_s for outcome in others)
        spent_s += sum(outcome.wall_s for outcome in others)
    return max(rates, key=lambda candidate: rates[candidate]), spent_s


def _batches(world: World, rule: str) -> Iterator[Candidate]:
    """Yield the candidates that differ from TRL's defaults in the micro-batch alone, smallest first."""
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
    """Return the regret of the best after a number of trials, as a share of the optimum's rate; 1 before any trial ran.

    seed: of the replay. A regret may be below 0, as `regrets` says.
    """
    best = found[min(trials, len(found)) - 1].best if found else None
    return 1.0 if best is None else regrets(rates, seed % 2)[best]


def seconds_to(found: Sequence[Found], rates: Rates, regret: float, *, seed: int) -> tuple[float, float]:
    """Return the seconds until the best came within a regret and stayed there, and those with the second measurement.

    Both are infinite if it never did.
    """
    of = regrets(rates, seed % 2)
    close = [state.best is not None and of[state.best] <= regret for state in found]
    if not close or not close[-1]:
        return math.inf, math.inf
    first = len(close) - next((place for place, is_close in enumerate(reversed(close)) if not is_close), len(close))
    return found[first].spent_s, found[first].spent_s + found[first].answer_s
