"""What a search leaves in its run directory at the end: result.json and run.yaml, made of its findings.

A further file at the end of a search is made here, too. Leaves out how the result was found (search.py), what each key
of result.json means (result.py), run.yaml (run_file.py), the words that a person reads (summary.py), and the trials,
which are written while the search runs (journal.py).
"""

import math
from typing import Any

from autotune.core.batches.trained import trained_of
from autotune.core.candidate import Candidate
from autotune.core.decode import encode
from autotune.core.trials.comparison import Speedup
from autotune.core.trials.parity import NotCompared
from autotune.core.trials.receipts import Known, Receipt
from autotune.core.trials.trial import Trial
from autotune.files import write_json, write_text
from autotune.formats import RESULT_FORMAT
from autotune.search.findings import Findings
from autotune.search.result import (
    DataResult,
    KnownRate,
    Losses,
    Ratio,
    ReceiptResult,
    Result,
    Rival,
    SpaceResult,
    TrialResult,
    WorkloadResult,
)
from autotune.search.run_file import run_document


def write_result(findings: Findings) -> Result:
    """Write result.json and run.yaml into the run directory, and return what is in result.json."""
    out, result = findings.request.out, result_of(findings)
    write_text(out / "run.yaml", run_document(findings))
    write_json(out / "result.json", encode(result))
    return result


def result_of(findings: Findings) -> Result:
    """Make the result of a search's findings."""
    request, verdict, space, rival = findings.request, findings.verdict, findings.space, findings.runner_up
    return Result(
        format=RESULT_FORMAT,
        answer=findings.answer,
        best=_trial(verdict.best, findings),
        baseline=_trial(findings.baseline, findings),
        baseline_differs=findings.baseline_differs,
        by_hand=_trial(findings.by_hand, findings),
        speedup=verdict.speedup.ratio if verdict.speedup else None,
        speedup_interval=_interval(verdict.speedup),
        speedup_by_hand=verdict.speedup_by_hand.ratio if verdict.speedup_by_hand else None,
        speedup_by_hand_interval=_interval(verdict.speedup_by_hand),
        speedup_once=_once(verdict.once),
        second_measurement={str(number): tuple(rates) for number, rates in verdict.repeats.items()},
        trials=tuple(_trial(trial, findings) for trial in findings.trials),
        trained=trained_of(verdict.best.candidate, findings.workload.data.lengths),
        losses=_losses(findings),
        receipts=tuple(_receipt(receipt, verdict.best.candidate) for receipt in findings.receipts),
        without_receipt=findings.without_receipt,
        runner_up=None if rival is None else KnownRate(**_rate(rival, findings.known[rival])),
        calibration=findings.calibrations,
        misses=tuple(findings.misses),
        space=SpaceResult(
            enumerated=space.enumerated,
            legal=space.legal,
            fitting=space.legal - findings.ruled_out,
            removed=space.removed,
            left_out=space.left_out,
        ),
        wall_s=findings.wall_s,
        hardware=findings.hardware,
        workload=_workload(findings),
        versions=findings.versions,
        seed=request.seed,
        out=str(request.out),
    )


def _workload(findings: Findings) -> WorkloadResult:
    request, data = findings.request, findings.workload.data
    return WorkloadResult(
        model=findings.workload.model,
        data=DataResult(
            path=request.data,
            name=data.name,
            form=data.form,
            rows=data.lengths.rows,
            tokens=data.lengths.total,
            useful_tokens=int(data.lengths.labels.sum()),
            longest=data.lengths.longest,
            fingerprint=data.fingerprint,
            split=data.split,
        ),
        recipe=findings.workload.recipe,
        fidelity=request.fidelity,
        fixed=request.fixed,
    )


def _trial(trial: Trial, findings: Findings) -> TrialResult:
    return TrialResult(
        number=trial.number,
        role=trial.role,
        of=trial.of,
        round=trial.round,
        candidate=trial.candidate,
        estimate=findings.estimates.get(trial.number),
        outcome=trial.outcome,
    )


def _losses(findings: Findings) -> Losses | NotCompared | None:
    parity = findings.parity
    if parity is None or isinstance(parity, NotCompared):
        return parity
    allowed = parity.allowed(findings.request.fidelity)
    return Losses(
        baseline=tuple(parity.baseline),
        best=tuple(parity.best),
        reordered=tuple(parity.reordered),
        difference=parity.difference,
        between_orders=parity.between_orders,
        allowed=allowed,
        as_asked=allowed is None or parity.difference <= allowed,
    )


def _receipt(receipt: Receipt, best: Candidate) -> ReceiptResult:
    knob, rival = receipt.knob, receipt.rival
    return ReceiptResult(
        knob=knob,
        value=getattr(best, knob),
        gain=receipt.gain,
        gain_interval=receipt.interval,
        without=Rival(value=getattr(rival, knob), **_rate(rival, receipt.known)),
    )


def _rate(candidate: Candidate, known: Known) -> dict[str, Any]:
    """The fields of a KnownRate."""
    return {
        "candidate": candidate,
        "source": "predicted" if known.trial is None else "measured",
        "trial": known.trial,
        "useful_tokens_per_s": known.rate,
        "deviation": known.deviation,
    }


def _once(speedup: Speedup | None) -> Ratio | None:
    """Its interval has two ends: without them the winner would not be far ahead (core/trials/verdict.py)."""
    return None if speedup is None else Ratio(ratio=speedup.ratio, low=speedup.low, high=speedup.high)


def _interval(speedup: Speedup | None) -> tuple[float, float] | None:
    """None, too, if the interval has no end: after a single round of a single step."""
    return (speedup.low, speedup.high) if speedup and math.isfinite(speedup.high) else None
