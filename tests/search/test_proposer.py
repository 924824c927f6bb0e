"""What is tried next: every sampler walks the same finite space of legal candidates."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from autotune.core.candidate import Candidate
from autotune.core.outcome import Measured, OutOfMemory
from autotune.core.trials.trial import Trial
from autotune.search.predicted_rates import PredictedRates
from autotune.search.proposer import Proposer
from autotune.search.samplers import SAMPLERS
from tests.stand_ins import measured, predicted_rates

BASE = Candidate(max_length=64, per_device_train_batch_size=4, gradient_accumulation_steps=1, method="full")
# Not a product of its knobs: eager attention goes with micro-batches of one alone.
SPACE = [
    replace(BASE, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, checkpointing=checkpointing)
    for size in (1, 2, 4)
    for checkpointing in ("off", "selective", "full")
] + [replace(BASE, per_device_train_batch_size=1, gradient_accumulation_steps=4, attention="eager")]


def rate(candidate: Candidate) -> float:
    """A made-up truth: small micro-batches without checkpointing win."""
    return 100 / candidate.per_device_train_batch_size * (2 if candidate.checkpointing == "off" else 1)


def trial(number: int, candidate: Candidate) -> Trial:
    """A measured trial by the made-up truth."""
    outcome = replace(measured(), useful_tokens_per_s=rate(candidate))
    return Trial(number=number, role="search", candidate=candidate, outcome=outcome)


def predicted(growing: float = 1.0, factor: float = 1.0, references: Sequence[Candidate] = ()) -> PredictedRates:
    """What is predicted of the space: the truth, off by a factor and by a share that grows along it."""
    known = enumerate([*SPACE, *references])
    return predicted_rates([rate(candidate) * factor * growing ** (place / 9) for place, candidate in known])


def walk(proposer: Proposer) -> list[Candidate]:
    """Try everything that is proposed until nothing is left."""
    tried: list[Candidate] = []
    while (candidate := proposer.propose()) is not None:
        tried.append(candidate)
        proposer.tell([trial(len(tried), candidate)])
    return tried


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "roofline"])
def test_every_candidate_once_and_only_legal_ones(sampler: str, tmp_path: Path) -> None:
    """Whatever a sampler dreams up, what is tried is legal and new, until everything was tried."""
    tried = walk(Proposer(SPACE, [], sampler=sampler, seed=0, study_file=tmp_path / "study"))
    assert sorted(map(str, tried)) == sorted(map(str, SPACE))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_seed_same_proposals(sampler: str, tmp_path: Path) -> None:
    """A search can be repeated."""
    first, second = [
        walk(Proposer(SPACE, SPACE[3:5], sampler=sampler, seed=7, study_file=tmp_path / name, predicted=predicted(3.0)))
        for name in "ab"
    ]
    assert first == second


def test_what_is_predicted_comes_first_and_what_cannot_win_never(tmp_path: Path) -> None:
    """A prediction that is right but for a factor: the best at once, and an end long before everything was tried."""
    proposer = Proposer(
        SPACE, [], sampler="roofline", seed=0, study_file=tmp_path / "study", predicted=predicted(factor=3.0)
    )
    tried = walk(proposer)
    assert tried[0] == max(SPACE, key=rate)
    assert len(tried) < len(SPACE)
    why = f"none of the {len(SPACE) - len(tried)} candidates left is believed to beat the best by more than 2 %"
    assert why in proposer.why_none_is_left()  # 2 %: twice the error of a trial


def test_what_stopping_would_cost_falls_until_nothing_can_win(tmp_path: Path) -> None:
    """It is not known before a candidate was tried. At the end it is within the tolerance: twice the error of 1 %."""
    proposer = Proposer(SPACE, [], sampler="roofline", seed=0, study_file=tmp_path / "study", predicted=predicted(3.0))
    assert proposer.most_to_gain() is None
    slow = min(SPACE, key=rate)
    proposer.tell([trial(0, slow)])
    before = proposer.most_to_gain()
    walk(proposer)
    after = proposer.most_to_gain()
    assert before is not None
    assert after is not None
    assert before > rate(max(SPACE, key=rate)) / rate(slow) - 1
    assert after <= 0.02
    tpe = Proposer(SPACE, [], sampler="tpe", seed=0, study_file=tmp_path / "another")
    tpe.tell([trial(0, slow)])
    assert tpe.most_to_gain() is None  # it predicts nothing


def test_what_does_not_fit_is_passed_over_until_it_does(tmp_path: Path) -> None:
    """By the roofline too: the best that fits, and the best of all once it does."""
    proposer = Proposer(SPACE, [], sampler="roofline", seed=0, study_file=tmp_path / "study", predicted=predicted())
    best, *others = sorted(SPACE, key=rate, reverse=True)
    first = proposer.propose(lambda candidate: rate(candidate) < rate(best))
    assert first is not None
    assert rate(first) == max(rate(candidate) for candidate in others if rate(candidate) < rate(best))
    assert proposer.propose() == best


def test_a_reference_that_only_looks_like_a_candidate_takes_nobodys_place(tmp_path: Path) -> None:
    """The fixed knob of the space is not among the knobs that a study sees."""
    proposer = Proposer(SPACE, [], sampler="roofline", seed=0, study_file=tmp_path / "study", predicted=predicted())
    best = max(SPACE, key=rate)
    proposer.tell([trial(0, replace(best, optimizer="adafactor"))])
    assert proposer.propose() == best


def test_references_teach_though_they_are_never_proposed(tmp_path: Path) -> None:
    """The baseline shows that checkpointing costs more than was predicted, before any candidate was tried."""
    blind = predicted_rates([100.0] * len(SPACE) + [100.0, 100.0])
    references = [
        replace(BASE, checkpointing=checkpointing, tuned_allocator=False) for checkpointing in ("off", "full")
    ]
    proposer = Proposer(
        SPACE,
        [],
        sampler="roofline",
        seed=0,
        study_file=tmp_path / "study",
        predicted=blind,
        references=references,
    )
    proposer.tell(trial(number, candidate) for number, candidate in enumerate(references))
    first, *others = walk(proposer)
    assert first.checkpointing == "off"
    assert not {first, *others} & set(references)


@pytest.mark.parametrize("sampler", ["roofline", "tpe"])
def test_a_reference_counts_with_its_own_knobs(sampler: str, tmp_path: Path) -> None:
    """A reference with another allocator teaches the sampler. A trial that is outside of the set teaches nothing."""
    reference = replace(BASE, tuned_allocator=False)
    proposer = Proposer(
        SPACE,
        [],
        sampler=sampler,
        seed=0,
        study_file=tmp_path / "study",
        predicted=predicted(references=[reference]),
        references=[reference],
    )
    proposer.tell([trial(0, reference), trial(1, replace(BASE, optimizer="adafactor"))])
    assert [told.params["tuned_allocator"] for told in proposer.study.trials] == [False]
    walked = walk(proposer)
    assert reference not in walked
    assert all(candidate.tuned_allocator for candidate in walked)


def test_a_trial_counts_as_if_the_machine_had_not_drifted(tmp_path: Path) -> None:
    """At half its speed it measures half the rate."""
    proposer = Proposer(SPACE, [], sampler="tpe", seed=0, study_file=tmp_path / "study")
    first = trial(0, SPACE[0])
    assert isinstance(first.outcome, Measured)
    before, after = first.outcome.reference_flops_per_s
    halved = replace(
        first.outcome,
        useful_tokens_per_s=first.outcome.useful_tokens_per_s / 2,
        reference_flops_per_s=(before / 2, after / 2),
    )
    proposer.tell(replace(first, number=number) for number in range(6))
    proposer.tell(replace(first, number=number, outcome=halved) for number in range(6, 12))
    values = [told.value for told in proposer.study.trials]
    assert values[-1] == pytest.approx(values[0])


def test_the_roofline_needs_predictions(tmp_path: Path) -> None:
    """Without them there is no prior to learn from."""
    with pytest.raises(ValueError, match="needs predicted rates"):
        Proposer(SPACE, [], sampler="roofline", seed=0, study_file=tmp_path / "study")


def test_the_opening_comes_first_and_is_not_repeated(tmp_path: Path) -> None:
    """What was measured already, or is not legal, is passed over."""
    illegal = replace(BASE, optimizer="adafactor")
    proposer = Proposer(SPACE, [SPACE[1], illegal, SPACE[2]], sampler="tpe", seed=0, study_file=tmp_path / "study")
    proposer.tell([trial(0, SPACE[1])])
    assert proposer.propose() == SPACE[2]


def test_the_journal_holds_every_trial_with_its_constraint(tmp_path: Path) -> None:
    """Optuna's own tools read the study: what ran out of memory is there as infeasible, proposer as failed."""
    path = tmp_path / "journal"
    path.write_text("a torn li")
    proposer = Proposer(SPACE, [], sampler="tpe", seed=0, study_file=path)
    no_memory = OutOfMemory(message="no", peak_bytes=None, wall_s=1.0)
    proposer.tell([trial(0, SPACE[0]), Trial(number=1, role="search", candidate=SPACE[1], outcome=no_memory)])
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    told = optuna.load_study(study_name="autotune", storage=storage).trials
    assert [each.constraints["runs"] for each in told] == [-1.0, 1.0]
    assert [each.value for each in told] == [rate(SPACE[0])] * 2  # the lowest so far, as of a failure
