"""Exploring the space: try the candidates that the sampler proposes, until the budget ends or none can win any more.

Leaves out how a sampler chooses (proposer.py, roofline.py), and the references, which are tried before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotune.core.candidate import Candidate
from autotune.core.outcome import Measured
from autotune.core.space.enumerate import Space
from autotune.core.space.opening import opening
from autotune.core.trials.receipts import Known
from autotune.core.trials.trial import Trial
from autotune.core.units import count_of
from autotune.search.bench import Bench
from autotune.search.predicted_rates import PredictedRates
from autotune.search.proposer import Proposer


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """What is known after exploring, beside the trials themselves.

    believed: rates of the candidates that were not tried, as far as the sampler predicts them.
    ruled_out: how many candidates were passed over because they are predicted not to fit.
    """

    believed: Mapping[Candidate, Known]
    ruled_out: int


def explore(bench: Bench, space: Space, baseline: Trial, by_hand: Trial) -> Exploration:
    """Try candidates until only the reserve of the budget is left, or until no candidate that is left can win."""
    if not bench.has_room() and all(trial.role != "search" for trial in bench.trials):
        return Exploration(believed={}, ruled_out=0)  # no candidate was tried, and none will be
    proposer = _proposer(bench, space, baseline, by_hand)
    proposer.tell(bench.tried())
    while bench.has_room():
        candidate = proposer.propose(lambda candidate: bench.predictions.predict(candidate).fits)
        if candidate is None:
            bench.display.line(proposer.why_none_is_left())
            break
        proposer.tell([bench.try_candidate(candidate, "search")])
        bench.display.set_most_to_gain(proposer.most_to_gain())
    bench.display.set_most_to_gain(None)
    return Exploration(believed=proposer.believed(), ruled_out=len(proposer.ruled_out))


def in_space(candidate: Candidate, fixed: Mapping[str, Any]) -> Candidate:
    """Turn a reference into a candidate of the space: with the tuned allocator and the values that the user fixed."""
    return replace(candidate, **{"tuned_allocator": True, **fixed})


def _proposer(bench: Bench, space: Space, baseline: Trial, by_hand: Trial) -> Proposer:
    request, lengths = bench.request, bench.workload.data.lengths
    references = [
        candidate
        for candidate in dict.fromkeys((baseline.candidate, by_hand.candidate))
        if candidate not in bench.legal
    ]
    begin = opening(space.candidates, _start(bench, baseline, by_hand), lengths, seed=request.seed)
    predicted = None
    if request.sampler == "roofline":
        predicted = _predict_rates(bench, [*space.candidates, *references], first=[*references, *begin])
    return Proposer(
        space.candidates,
        begin,
        sampler=request.sampler,
        seed=request.seed,
        study_file=request.out / "study.journal",
        predicted=predicted,
        references=references,
    )


def _start(bench: Bench, baseline: Trial, by_hand: Trial) -> Candidate:
    """The candidate that the opening varies: the settings by hand if the space has them, else TRL's defaults.

    It has no checkpointing if the settings by hand ran without it.
    """
    fixed = bench.request.fixed
    candidates = [in_space(trial.candidate, fixed) for trial in (by_hand, baseline)]
    start = next((candidate for candidate in candidates if candidate in bench.legal), candidates[-1])
    fits = isinstance(by_hand.outcome, Measured) and by_hand.candidate.checkpointing == "off"
    return in_space(replace(start, checkpointing="off"), fixed) if fits else start


def _predict_rates(bench: Bench, candidates: Sequence[Candidate], *, first: Sequence[Candidate]) -> PredictedRates:
    """Predict how fast candidates are, within a share of the time. first: those that are traced before the others."""
    bench.display.line(f"predicting the speed of {count_of(len(candidates), 'candidate')}")
    patience_s = 0.0
    if bench.has_room():
        patience_s = bench.budget.tracing_s(bench.spent_s(), reserve_s=bench.reserve_s())
    return bench.predictions.predict_rates(candidates, first=first, until=bench.now() + patience_s)
