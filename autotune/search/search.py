"""The search: measure the baseline, what a careful person would set, and then what the sampler proposes, in time.

The two best are then measured once more, side by side with the baseline and `by_hand`, and only that second
measurement is reported: the best of many noisy trials looks better than it is.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autotune.core.candidate import Candidate
from autotune.core.memory.estimate import room_of
from autotune.core.outcome import Measured, Outcome, OutOfMemory, TimedOut
from autotune.core.space.enumerate import Space, enumerate_space, explain
from autotune.core.space.opening import opening
from autotune.core.space.references import baseline, by_hand, defaults
from autotune.core.trials.budget import Budget
from autotune.core.trials.parity import Parity
from autotune.core.trials.receipts import Known, receipts, runner_up
from autotune.core.trials.standings import first_measurements, known_rates, measured, pace_of, ranked
from autotune.core.trials.trial import Role, Trial
from autotune.core.trials.verdict import Verdict, cannot_start, decide
from autotune.core.workload import Workload
from autotune.errors import AutotuneError
from autotune.machine.installed import Installed, installed
from autotune.predict import experience
from autotune.search.display import SearchDisplay
from autotune.search.journal import Journal
from autotune.search.losses import LossComparison
from autotune.search.predictions import PredictedRates, Predictions, miss_line
from autotune.search.proposer import Proposer
from autotune.search.repeats import REPEAT, Repeats
from autotune.search.request import SearchRequest, forecaster_of, identity_of, workload_of
from autotune.search.result import Findings, write_result
from autotune.train.task import Compare, Device, Measure, Task
from autotune.train.workers import Workers

READ_PER_S = 250e6  # weights of two bytes: half a GB/s, a slow disk or one in the network


def search(request: SearchRequest, *, display: SearchDisplay) -> dict[str, Any]:
    """Find the best candidate within the budget, write the run directory and return result.json's object.

    Raises UsageError when the input is wrong, NothingFits or TrainingFailed when not even the baseline runs.
    """
    started = time.monotonic()
    hardware = request.hardware
    device: Device = "cuda" if hardware.kind == "cuda" else "cpu"
    if hardware.other_devices:
        display.line(f"one GPU is used, {hardware.name}; not used: {', '.join(hardware.other_devices)}")
    if hardware.is_slow_in_bf16:
        display.line(f"{hardware.name} is slow in bf16: TRL's defaults are measured without it")
    limit = room_of(hardware).limit_bytes if device == "cpu" else None
    with Workers(device=device, device_uuid=hardware.uuid, memory_limit_bytes=limit) as workers, display:
        workload = workload_of(request, progress=display.line)
        lengths, model_limit = workload.data.lengths, workload.model.limit
        if model_limit is not None and lengths.longest > model_limit:
            cut = 1 - lengths.coverage(model_limit)
            display.line(
                f"the longest row has {lengths.longest} tokens, the model takes {model_limit}: "
                f"{cut:.2%} of all tokens are beyond that and are cut off"
            )
        if workload.data.coverage_error:
            display.line(
                f"{lengths.rows:,} of {workload.data.rows_in_file:,} rows were read; the mean length of all is known "
                f"to {workload.data.coverage_error:.1%}"
            )
        facts = installed()
        space = enumerate_space(
            workload=workload, hardware=hardware, installed=facts, fidelity=request.fidelity, fixed=request.fixed
        )
        for line in explain(space):
            display.line(line)
        predictions = Predictions(forecaster=forecaster_of(request, workload, display.line), progress=display.line)
        journal = Journal(request.out, identity_of(request, workload, facts))
        display.line(f"trials are kept in {request.out}; the same out= goes on from them")
        try:
            sitting = _Sitting(
                request=request,
                workload=workload,
                space=space,
                legal=frozenset(space.candidates),
                installed=facts,
                predictions=predictions,
                journal=journal,
                workers=workers,
                display=display,
                device=device,
                budget=Budget(
                    seconds=None if request.minutes is None else 60 * request.minutes,
                    trials=request.trials,
                    warmup_steps=REPEAT.warmup_steps(device),
                ),
                started=started,
                spent_before_s=journal.spent_s,
            )
            document = write_result(sitting.search(), request.out)
            try:
                first = first_measurements(journal.trials)
                experience.keep(request.home, hardware, predictions.taught(first, data=workload.data.fingerprint))
            except AutotuneError as error:  # the cache is full, and the result is there
                display.line("; ".join(error.problems))
            return document
        finally:
            journal.close()


@dataclass(slots=True, kw_only=True)
class _Sitting:
    """One sitting of a search: what it works with, and its clock."""

    request: SearchRequest
    workload: Workload
    space: Space
    legal: frozenset[Candidate]  # those of the space
    installed: Installed
    predictions: Predictions
    journal: Journal
    workers: Workers
    display: SearchDisplay
    device: Device
    budget: Budget
    started: float
    spent_before_s: float
    ruled_out: int = 0  # candidates that were passed over because they are predicted not to fit
    believed: Mapping[Candidate, Known] = field(default_factory=dict)  # of untried candidates, by the sampler

    def search(self) -> Findings:
        for trial in self.journal.trials:
            self.display.end(trial)
            self.predictions.learn(trial)
        first = self._first_that_runs("baseline", self._baselines())
        assert first is not None
        if not isinstance(first.outcome, Measured | OutOfMemory):  # what breaks the baseline breaks the others too
            raise cannot_start(first)
        careful = self._first_that_runs("by_hand", self._by_hand()) or first
        self._explore(first, careful)
        if not measured(self._first_measurements()):
            raise cannot_start(first)
        repeats = Repeats(
            journal=self.journal,
            budget=self.budget,
            spent_s=self._spent_s,
            leave_s=self._comparison_s(),
            patience_s=self.budget.patience_s(self._baseline_s()),
            perform=self._try,
        )
        asked = self._contenders((first, careful))
        contenders, rounds = repeats.run(asked)
        verdict = decide(
            baseline=first,
            by_hand=careful,
            contenders=contenders,
            failed={trial.number for trial in asked} - {trial.number for trial in contenders},
            rounds=rounds,
            ranked=self._ranked(),
            may_win=self._may_win,
            keeps_pins=self._keeps_pins,
        )
        parity = None
        if verdict.best is not first and self.request.compares_losses:
            parity = self._losses.run(first, verdict.best)
        self.journal.spend(self._spent_s())
        return self._conclude(first, careful, verdict, parity)

    # -- the trials

    def _baselines(self) -> Sequence[Candidate]:
        return baseline(workload=self.workload, hardware=self.request.hardware, installed=self.installed)

    def _by_hand(self) -> Sequence[Candidate]:
        return by_hand(workload=self.workload, hardware=self.request.hardware, installed=self.installed)

    def _first_that_runs(self, role: Role, fallbacks: Sequence[Candidate]) -> Trial | None:
        """Try candidates in order until one does not run out of memory; that one's trial, or the last.

        Those that are predicted not to fit are passed over, but for the last. What an earlier sitting came to stays,
        whatever is predicted now. None when the budget of trials was spent before; a baseline it always has.
        """
        for trial in filter(None, map(self._known, fallbacks)):
            if trial.role == role and not isinstance(trial.outcome, OutOfMemory):
                return trial
        last: Trial | None = None
        for candidate in fallbacks:
            known = self._known(candidate)
            if known is None and candidate is not fallbacks[-1] and not self.predictions.predict(candidate).fits:
                continue
            if known is None and (last or role != "baseline") and not self.budget.allows(self._tried()):
                break
            last = known or self._try(candidate, role)
            if not isinstance(last.outcome, OutOfMemory):
                break
        return last

    def _known(self, candidate: Candidate) -> Trial | None:
        return next((trial for trial in self._tried() if trial.candidate == candidate), None)

    def _tried(self) -> list[Trial]:
        """First measurements that say something of their candidates."""
        return [trial for trial in self._first_measurements() if not self._was_cut_off(trial)]

    def _was_cut_off(self, trial: Trial) -> bool:
        """Whether a trial was killed sooner than it would be now: that was an earlier budget, not the candidate."""
        if not isinstance(trial.outcome, TimedOut):
            return False
        limit_s = self._limit_s(trial.role)
        return limit_s is None or limit_s > trial.outcome.limit_s

    def _explore(self, first: Trial, careful: Trial) -> None:
        """Try what the sampler proposes until the budget, less what the second measurement needs, is gone."""
        if not self._has_room() and all(trial.role != "search" for trial in self.journal.trials):
            return  # nothing was tried, nor will be: there is nothing to predict for
        start, tokens = self._start(first, careful), self.workload.data.lengths.tokens
        references = [c for c in dict.fromkeys((first.candidate, careful.candidate)) if c not in self.legal]
        begin = opening(self.space.candidates, start, tokens, seed=self.request.seed)
        proposer = Proposer(
            self.space.candidates,
            begin,
            sampler=self.request.sampler,
            seed=self.request.seed,
            journal=self.request.out / "study.journal",
            predicted=self._predicted_speeds([*self.space.candidates, *references], first=[*references, *begin]),
            references=references,
        )
        proposer.tell(self._tried())
        while self._has_room():
            candidate = proposer.propose(lambda candidate: self.predictions.predict(candidate).fits)
            self.ruled_out = len(proposer.ruled_out)
            if candidate is None:
                hopeless = f"of the {proposer.hopeless:,} candidates that are left none is expected to win"
                self.display.line(hopeless if proposer.hopeless else "every candidate that fits has been tried")
                break
            proposer.tell([self._try(candidate, "search")])
        self.believed = proposer.believed()

    def _has_room(self) -> bool:
        tried = [trial.outcome for trial in self._tried()]
        return self.budget.has_room(self._spent_s(), tried=tried, reserve_s=self._reserve_s())

    def _predicted_speeds(
        self, candidates: Sequence[Candidate], *, first: Sequence[Candidate]
    ) -> PredictedRates | None:
        """What the sampler wants to know before it begins; None where it wants nothing. first: to be sure of."""
        if self.request.sampler != "roofline":
            return None
        self.display.line(f"predicting how fast {len(candidates):,} candidates are")
        patience_s = self.budget.tracing_s(self._spent_s(), reserve_s=self._reserve_s()) if self._has_room() else 0.0
        return self.predictions.speeds(candidates, first=first, until=time.monotonic() + patience_s)

    def _start(self, first: Trial, careful: Trial) -> Candidate:
        """What the opening batches in other ways: what a careful person would set, else TRL's defaults.

        Without checkpointing, unless that has just run out of memory.
        """
        candidates = (self._in_space(trial.candidate) for trial in (careful, first))
        start = next(
            (candidate for candidate in candidates if candidate in self.legal), self._in_space(first.candidate)
        )
        fits = isinstance(careful.outcome, Measured) and careful.candidate.checkpointing == "off"
        return self._in_space(replace(start, checkpointing="off")) if fits else start

    def _in_space(self, candidate: Candidate) -> Candidate:
        """A reference as the space would have it: with the allocator tuned, and with what was fixed."""
        return replace(candidate, **{"tuned_allocator": True, **self.request.fixed})

    def _try(self, candidate: Candidate, role: Role, goal: Measure | None = None, **repeat: int) -> Trial:
        """Measure a candidate and write down what became of it. repeat: `of` and `round` of a repeat."""
        self.predictions.predict(candidate)  # a prediction is made before the trial
        number = self.journal.begin(candidate, role, **repeat)
        folder = self.journal.folder(number)
        self.display.begin(number, role, candidate)
        self.display.set_end(self.budget.left_s(self._spent_s()))
        fastest = next(iter(self._ranked()), None)
        pace = pace_of(fastest, candidate, self.journal.trials) if role == "search" else None
        task = self._task(candidate, goal or Measure(budget_s=self.budget.share_s, pace=pace), folder)
        try:
            outcome = self.workers.perform(task, limit_s=self._limit_s(role), on_event=self.display.event)
        except BaseException:
            self.journal.abandon(number)
            raise
        finally:
            self.journal.spend(self._spent_s())
        trial = self.journal.end(number, outcome)
        self.display.end(trial)
        self.predictions.learn(trial)
        for miss in self.predictions.misses:
            if miss.number == number:
                self.display.line(miss_line(miss))
        return trial

    def _task(self, candidate: Candidate, goal: Measure | Compare, folder: Path) -> Task:
        return Task(
            candidate=candidate,
            recipe=self.request.recipe,
            model_path=self.workload.model.path,
            tokenized_path=self.workload.data.tokenized_path,
            seed=self.request.seed,
            device=self.device,
            output_dir=str(folder),
            log_path=str(folder / "log.txt"),
            goal=goal,
            random_weights=isinstance(goal, Measure) and self._draws_weights,
        )

    @property
    def _draws_weights(self) -> bool:
        """Whether trials need not read the checkpoint, because their speed does not depend on it.

        Where a mixture of experts sends its tokens does. On a CPU reading is as fast as drawing.
        """
        return self.device == "cuda" and not self.workload.model.is_mixture_of_experts

    def _limit_s(self, role: Role) -> float | None:
        spent_s = self._spent_s()
        if role == "baseline":
            return self.budget.baseline_limit_s(spent_s)
        reserve_s = 0.0 if role == "repeat" else self._reserve_s()
        return self.budget.trial_limit_s(spent_s, baseline_s=self._baseline_s(), reserve_s=reserve_s)

    def _baseline_s(self) -> float:
        return max((trial.outcome.wall_s for trial in self.journal.trials if trial.role == "baseline"), default=0.0)

    def _spent_s(self) -> float:
        return self.spent_before_s + time.monotonic() - self.started

    def _reserve_s(self) -> float:
        """Seconds to keep for the second measurement: none while there is nothing to compare the baseline with."""
        if len(measured(self._first_measurements())) < 2:
            return 0.0
        references = [trial for trial in self.journal.trials if trial.role in ("baseline", "by_hand")]
        contenders = measured(self._contenders(references))
        if all(trial.role != "search" for trial in self.journal.trials):
            return self.budget.reserve_s(contenders, rounds=1)  # better something to compare with, and less surely
        return self.budget.reserve_s(contenders) + self._comparison_s()

    # -- the second measurement

    @property
    def _losses(self) -> LossComparison:
        folder = self.request.out / "losses"

        def perform(candidate: Candidate, goal: Compare, limit_s: float) -> Outcome:
            folder.mkdir(exist_ok=True)
            return self.workers.perform(self._task(candidate, goal, folder), limit_s=limit_s)

        return LossComparison(
            out=self.request.out,
            budget=self.budget,
            spent_s=self._spent_s,
            reading_s=self.workload.model.parameters / READ_PER_S if self._draws_weights else 0.0,
            perform=perform,
            say=self.display.line,
        )

    def _comparison_s(self) -> float:
        """Seconds to keep for comparing the losses of the best so far with the baseline's."""
        baselines = measured(trial for trial in self.journal.trials if trial.role == "baseline")
        fastest = measured(self._ranked())
        if not self.request.compares_losses or not baselines or not fastest:
            return 0.0
        return self._losses.reserve_s(baselines[0], fastest[0])

    def _first_measurements(self) -> list[Trial]:
        return first_measurements(self.journal.trials)

    def _ranked(self) -> list[Trial]:
        return ranked(self.journal.trials, self.legal)

    def _contenders(self, references: Iterable[Trial]) -> list[Trial]:
        """Of the references those that ran, and the two best of the others."""
        ran = {trial.number: trial for trial in references if isinstance(trial.outcome, Measured)}
        return [*ran.values(), *[trial for trial in self._ranked() if trial.number not in ran][:2]]

    def _conclude(self, first: Trial, careful: Trial, verdict: Verdict, parity: Parity | str | None) -> Findings:
        request, trials = self.request, self.journal.trials
        best, known = verdict.best.candidate, known_rates(trials, self.legal, verdict.best, self.believed)
        return Findings(
            hardware=request.hardware,
            workload=self.workload,
            model=request.model,
            data=request.data,
            columns=request.columns,
            fidelity=request.fidelity,
            fixed=request.fixed,
            seed=request.seed,
            space=self.space,
            versions=dict(self.installed.versions),
            trials=tuple(trials),
            defaults=defaults(workload=self.workload, hardware=self.request.hardware, installed=self.installed),
            baseline=first,
            by_hand=careful,
            verdict=verdict,
            parity=parity,
            estimates={trial.number: self.predictions.estimate(trial.candidate) for trial in trials},
            calibrations=dict(self.predictions.calibrations),
            misses=tuple(self.predictions.misses),
            known=known,
            receipts=receipts(best, known, self.predictions.is_known_to_fit) if best in known else (),
            runner_up=runner_up(best, known, self.predictions.is_known_to_fit),
            ruled_out=self.ruled_out,
            wall_s={
                "search": sum(trial.outcome.wall_s for trial in trials if trial.role != "repeat"),
                "second_measurement": sum(trial.outcome.wall_s for trial in trials if trial.role == "repeat"),
                "total": self._spent_s(),
            },
        )

    def _keeps_pins(self, candidate: Candidate) -> bool:
        return all(getattr(candidate, knob) == value for knob, value in self.request.fixed.items())

    def _may_win(self, candidate: Candidate) -> bool:
        """Whether a contender may win: it is in the space, or would be but for the references' allocator."""
        return self._keeps_pins(candidate) and self._in_space(candidate) in self.legal
