"""The search: measure TRL's defaults, then what one sets by hand, then the sampler's candidates, while there is time.

The two best candidates are then measured once more, side by side with the two references. Only that second measurement
is reported: the best of many noisy trials looks better than it is.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial

from autotune.core.candidate import Candidate
from autotune.core.hardware import Device, Hardware
from autotune.core.memory.estimate import room_of
from autotune.core.outcome import Measured, OutOfMemory
from autotune.core.space import references
from autotune.core.space.enumerate import Space, enumerate_space
from autotune.core.trials.budget import Budget
from autotune.core.trials.parity import NotCompared, Parity
from autotune.core.trials.receipts import receipts, runner_up
from autotune.core.trials.standings import contenders, first_measurements, measured, measured_rates
from autotune.core.trials.trial import Role, Trial
from autotune.core.trials.verdict import Verdict, decide
from autotune.core.workload import Workload
from autotune.errors import AutotuneError
from autotune.machine.installed import Installed, installed
from autotune.predict import experience
from autotune.search.bench import Bench
from autotune.search.display import SearchDisplay
from autotune.search.explore import Exploration, explore, in_space
from autotune.search.findings import Findings, cannot_start
from autotune.search.introduction import introduction
from autotune.search.journal import Journal, check_directory
from autotune.search.losses import compare_losses
from autotune.search.repeats import REPEAT, measure_again
from autotune.search.request import SearchRequest, identity_of, predictions_of
from autotune.search.result import Result
from autotune.search.run_directory import write_result
from autotune.train.workers import Workers


def check_search(request: SearchRequest, workload: Workload, hardware: Hardware) -> None:
    """Judge what can be judged before anything is measured: the fixed knobs, and the run directory.

    hardware: as machine.probe.look returns it, without rates. Writes nothing. Raises UsageError.
    """
    stack = installed()
    if request.fixed:
        enumerate_space(
            workload=workload, hardware=hardware, installed=stack, fidelity=request.fidelity, fixed=request.fixed
        )
    check_directory(request.out, identity_of(request, workload, hardware, stack))


def search(request: SearchRequest, workload: Workload, hardware: Hardware, *, display: SearchDisplay) -> Result:
    """Find the best candidate within the budget, write the run directory and return what is in result.json.

    workload: as request.workload_of returns it. Raises UsageError when a fixed knob is impossible here or `out` holds
    another search, NothingFits or TrainingFailed when not even the baseline runs.
    """
    started_at = time.monotonic()
    device: Device = "cuda" if hardware.kind == "cuda" else "cpu"
    limit = room_of(hardware).limit_bytes if device == "cpu" else None
    with Workers(device=device, device_uuid=hardware.uuid, memory_limit_bytes=limit) as workers, display:
        stack = installed()
        space = enumerate_space(
            workload=workload, hardware=hardware, installed=stack, fidelity=request.fidelity, fixed=request.fixed
        )
        for line in introduction(workload, hardware, space, explains=request.explain):
            display.line(line)
        predictions = predictions_of(request, workload, hardware, display.line)
        with closing(Journal(request.out, identity_of(request, workload, hardware, stack))) as journal:
            display.line(f"trials are kept in {request.out}; a search with the same out= continues from them")
            bench = Bench(
                request=request,
                workload=workload,
                hardware=hardware,
                legal=frozenset(space.candidates),
                predictions=predictions,
                journal=journal,
                workers=workers,
                display=display,
                budget=Budget(
                    seconds=None if request.minutes is None else 60 * request.minutes,
                    trials=request.trials,
                    warmup_steps=REPEAT.warmup_steps(device),
                ),
                started_at=started_at,
                spent_before_s=journal.spent_s,
            )
            result = write_result(find_fastest(bench, space, stack))
            try:
                taught = predictions.rates.taught(first_measurements(bench.trials), data=workload.data.fingerprint)
                experience.keep(request.home, hardware, taught)
            except AutotuneError as error:  # the cache is full, but the result is written
                display.line("; ".join(error.problems))
            return result


def find_fastest(bench: Bench, space: Space, stack: Installed) -> Findings:
    """Try candidates, measure the best ones again, and decide. Raises as `search` does."""
    workload, hardware = bench.workload, bench.hardware
    bench.recall()
    baselines = references.baseline(workload=workload, hardware=hardware, installed=stack)
    baseline = _first_that_runs(bench, "baseline", baselines)
    assert baseline is not None
    if not isinstance(baseline.outcome, Measured | OutOfMemory):  # other candidates would fail in the same way
        raise cannot_start(baseline)
    settings_by_hand = references.by_hand(workload=workload, hardware=hardware, installed=stack)
    by_hand = _first_that_runs(bench, "by_hand", settings_by_hand) or baseline
    exploration = explore(bench, space, baseline, by_hand)
    if not measured(first_measurements(bench.trials)):
        raise cannot_start(baseline)
    asked = contenders((baseline, by_hand), bench.ranked())
    repeats = measure_again(bench, asked, leave_s=bench.comparison_reserve_s())
    verdict = decide(
        baseline=baseline,
        by_hand=by_hand,
        contenders=repeats.contenders,
        failed=repeats.failed,
        rounds=repeats.rounds,
        ranked=bench.ranked(),
        may_win=partial(_may_win, bench),
        keeps_fixed=partial(_keeps_fixed, bench),
    )
    parity = None
    if verdict.best is not baseline and bench.request.compares_losses:
        parity = compare_losses(bench, baseline, verdict.best)
    _measure_without_tuned_allocator(bench, verdict.best)
    bench.journal.spend(bench.spent_s())
    return _findings(
        bench,
        space,
        stack,
        baseline=baseline,
        by_hand=by_hand,
        exploration=exploration,
        verdict=verdict,
        parity=parity,
    )


def _measure_without_tuned_allocator(bench: Bench, best: Trial) -> None:
    """Measure the winner once without the tuned allocator, if there is time. No candidate of the space lacks it.

    So what it brings would not be known otherwise.
    """
    plain = replace(best.candidate, tuned_allocator=False)
    if plain in measured_rates(bench.trials) or "tuned_allocator" in bench.request.fixed:
        return
    if bench.has_room_at_the_end(best):
        bench.try_at_the_end(plain)


def _first_that_runs(bench: Bench, role: Role, candidates: Sequence[Candidate]) -> Trial | None:
    """Try candidates in order until one does not run out of memory. Return its trial, or else the last one's.

    All but the last are passed over if they are predicted not to fit. The trial that an earlier sitting ended with is
    kept, whatever is predicted now. None when the budget of trials was spent before; a baseline is always tried.
    """
    tried = {trial.candidate: trial for trial in reversed(bench.tried())}
    for candidate in candidates:
        trial = tried.get(candidate)
        if trial is not None and trial.role == role and not isinstance(trial.outcome, OutOfMemory):
            return trial
    last: Trial | None = None
    for candidate in candidates:
        known = tried.get(candidate)
        if known is None and candidate is not candidates[-1] and not bench.predictions.predict(candidate).fits:
            continue
        if known is None and (last or role != "baseline") and not bench.budget.allows(bench.tried()):
            break
        last = known or bench.try_candidate(candidate, role)
        if not isinstance(last.outcome, OutOfMemory):
            break
    return last


def _keeps_fixed(bench: Bench, candidate: Candidate) -> bool:
    """Whether a candidate has the values that the user fixed."""
    return all(getattr(candidate, knob) == value for knob, value in bench.request.fixed.items())


def _may_win(bench: Bench, candidate: Candidate) -> bool:
    """Whether a contender may be the answer: the space has it, or would have it with the tuned allocator."""
    return _keeps_fixed(bench, candidate) and in_space(candidate, bench.request.fixed) in bench.legal


def _findings(
    bench: Bench,
    space: Space,
    stack: Installed,
    *,
    baseline: Trial,
    by_hand: Trial,
    exploration: Exploration,
    verdict: Verdict,
    parity: Parity | NotCompared | None,
) -> Findings:
    """Put together what the search knows, with the receipts of its winner."""
    workload, predictions, trials = bench.workload, bench.predictions, bench.trials
    best = verdict.best.candidate
    rates = measured_rates(trials)
    competing = {candidate: rate for candidate, rate in rates.items() if candidate in bench.legal or candidate == best}
    known = {**exploration.believed, **competing}
    return Findings(
        request=bench.request,
        workload=workload,
        hardware=bench.hardware,
        space=space,
        versions=dict(stack.versions),
        trials=tuple(trials),
        defaults=references.defaults(workload=workload, hardware=bench.hardware, installed=stack),
        baseline=baseline,
        by_hand=by_hand,
        verdict=verdict,
        parity=parity,
        estimates={trial.number: predictions.memory.predicted(trial.candidate) for trial in trials},
        calibrations=dict(predictions.memory.calibrations),
        misses=tuple(predictions.memory.misses),
        known=known,
        receipts=receipts(best, known, references=rates, fits=predictions.memory.is_known_to_fit),
        runner_up=runner_up(best, known, predictions.memory.is_known_to_fit),
        ruled_out=exploration.ruled_out,
        wall_s={
            "search": sum(trial.outcome.wall_s for trial in trials if trial.role != "repeat"),
            "second_measurement": sum(trial.outcome.wall_s for trial in trials if trial.role == "repeat"),
            "total": bench.spent_s(),
        },
    )
