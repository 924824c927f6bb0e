"""result.json: what a search found, for other programs. Its keys are in docs/interface.md.

Leaves out how it was found (search.py), and the words that a person reads (summary.py).
"""

import json
import math
from dataclasses import asdict
from typing import Any

from autotune.core.candidate import Candidate
from autotune.core.outcome import outcome_to_dict
from autotune.core.trials.comparison import Speedup
from autotune.core.trials.parity import Parity
from autotune.core.trials.receipts import Known, Receipt
from autotune.core.trials.trial import Trial
from autotune.files import write_json, write_text
from autotune.search.findings import Findings
from autotune.search.run_file import run_document


def write_result(findings: Findings) -> dict[str, Any]:
    """Write result.json and run.yaml into the run directory, and return the object of result.json."""
    out = findings.request.out
    document: dict[str, Any] = json.loads(json.dumps(result_document(findings)))  # as a reader will have it
    write_text(out / "run.yaml", run_document(findings))
    write_json(out / "result.json", document)
    return document


def result_document(findings: Findings) -> dict[str, Any]:
    """The object of result.json."""
    request, verdict, space = findings.request, findings.verdict, findings.space
    return {
        "answer": findings.answer,
        "best": _trial(verdict.best, findings),
        "baseline": _trial(findings.baseline, findings),
        "baseline_differs": {knob: list(values) for knob, values in findings.fallback.items()},
        "by_hand": _trial(findings.by_hand, findings),
        "speedup": verdict.speedup.ratio if verdict.speedup else None,
        "speedup_interval": _interval(verdict.speedup),
        "speedup_by_hand": verdict.speedup_by_hand.ratio if verdict.speedup_by_hand else None,
        "speedup_by_hand_interval": _interval(verdict.speedup_by_hand),
        "speedup_once": _once(verdict.once),
        "second_measurement": {str(number): list(rates) for number, rates in verdict.repeats.items()},
        "trials": [_trial(trial, findings) for trial in findings.trials],
        "losses": _losses(findings),
        "receipts": [_receipt(receipt, verdict.best.candidate) for receipt in findings.receipts],
        "without_receipt": list(findings.without_receipt),
        "runner_up": _runner_up(findings),
        "calibration": {method: asdict(found) for method, found in findings.calibrations.items()},
        "misses": [asdict(miss) for miss in findings.misses],
        "space": {
            "enumerated": space.enumerated,
            "legal": space.legal,
            "fitting": space.legal - findings.ruled_out,
            "removed": dict(space.why),
            "left_out": dict(space.left_out),
        },
        "wall_s": dict(findings.wall_s),
        "hardware": findings.hardware.to_dict(),
        "workload": _workload(findings),
        "versions": dict(findings.versions),
        "seed": request.seed,
        "out": str(request.out),
    }


def _workload(findings: Findings) -> dict[str, Any]:
    request, data = findings.request, findings.workload.data
    return {
        "model": asdict(findings.workload.model),
        "data": {
            "path": request.data,
            "name": data.name,
            "form": data.form,
            "rows": data.lengths.rows,
            "tokens": data.lengths.total,
            "useful_tokens": int(data.lengths.labels.sum()),
            "longest": data.lengths.longest,
            "fingerprint": data.fingerprint,
        },
        "recipe": asdict(findings.workload.recipe),
        "fidelity": request.fidelity.name,
        "fixed": dict(request.fixed),
    }


def _trial(trial: Trial, findings: Findings) -> dict[str, Any]:
    return {
        "number": trial.number,
        "role": trial.role,
        "of": trial.of,
        "round": trial.round,
        "candidate": trial.candidate.to_dict(),
        "estimate": findings.estimates.get(trial.number),
        "outcome": outcome_to_dict(trial.outcome),
    }


def _losses(findings: Findings) -> dict[str, Any] | None:
    parity = findings.parity
    if not isinstance(parity, Parity):
        return None if parity is None else {"not_compared": parity}
    allowed = parity.allowed(findings.request.fidelity)
    return {
        **asdict(parity),
        "difference": parity.difference,
        "between_orders": parity.between_orders,
        "allowed": allowed,
        "as_asked": allowed is None or parity.difference <= allowed,
    }


def _receipt(receipt: Receipt, best: Candidate) -> dict[str, Any]:
    return {
        "knob": receipt.knob,
        "value": getattr(best, receipt.knob),
        "gain": receipt.gain,
        "gain_interval": receipt.interval,
        "without": {"value": getattr(receipt.rival, receipt.knob), **_known(receipt.rival, receipt.known)},
    }


def _runner_up(findings: Findings) -> dict[str, Any] | None:
    rival = findings.runner_up
    return None if rival is None else _known(rival, findings.known[rival])


def _known(candidate: Candidate, known: Known) -> dict[str, Any]:
    return {
        "candidate": candidate.to_dict(),
        "source": "predicted" if known.trial is None else "measured",
        "trial": known.trial,
        "useful_tokens_per_s": known.rate,
        "deviation": known.deviation,
    }


def _once(speedup: Speedup | None) -> dict[str, float] | None:
    return None if speedup is None else {"ratio": speedup.ratio, "low": speedup.low, "high": speedup.high}


def _interval(speedup: Speedup | None) -> list[float] | None:
    """None also where one round of one step each leaves the interval without an end."""
    return [speedup.low, speedup.high] if speedup and math.isfinite(speedup.high) else None
