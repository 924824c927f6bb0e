"""What a search found, as files and as words: result.json, run.yaml with the reason for each value, a summary.

Leaves out how it was found (search.py).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from autotune.core.candidate import Candidate, Fidelity, differences, short_name
from autotune.core.hardware import Hardware
from autotune.core.knobs import DERIVED, KNOBS
from autotune.core.outcome import Measured, OutOfMemory, outcome_to_dict
from autotune.core.space.enumerate import Space
from autotune.core.time.calibrate import MemoryCalibration
from autotune.core.trials.comparison import Speedup
from autotune.core.trials.parity import Parity
from autotune.core.trials.receipts import Known, Receipt
from autotune.core.trials.trial import Trial
from autotune.core.trials.verdict import Verdict
from autotune.core.units import format_bytes, format_duration
from autotune.core.workload import Workload
from autotune.files import write_json, write_text
from autotune.models.find import OPTIONS
from autotune.search.predictions import Miss

LEAST_GAIN = 0.01  # of a knob's value over the best without it, to be named in the summary
MOST_GAINS = 4  # that are named


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Findings:
    """All that a search knows at its end.

    model, data: as they were asked for. defaults: TRL's, which the baseline may have had to leave.
    by_hand: what a careful person would set; the baseline's own trial where there was no room for one.
    estimates: what was predicted of each trial, by its number, uncalibrated. calibrations: by method.
    parity: losses of the winner beside the baseline's, or why there are none; None where the baseline won.
    known: rates of candidates that were measured or are predicted. receipts: what the fastest without each value of the
    winner reaches. runner_up: the fastest of all others. ruled_out: candidates predicted not to fit.
    """

    hardware: Hardware
    workload: Workload
    model: str
    data: str
    columns: Mapping[str, str]
    fidelity: Fidelity
    fixed: Mapping[str, Any]
    seed: int
    space: Space
    versions: Mapping[str, str]
    trials: Sequence[Trial]
    defaults: Candidate
    baseline: Trial
    by_hand: Trial
    verdict: Verdict
    parity: Parity | str | None
    estimates: Mapping[int, Mapping[str, Any] | None]
    calibrations: Mapping[str, MemoryCalibration]
    misses: Sequence[Miss]
    known: Mapping[Candidate, Known]
    receipts: Sequence[Receipt]
    runner_up: Candidate | None
    ruled_out: int
    wall_s: Mapping[str, float]

    @property
    def answer(self) -> str:
        """The result in one sentence."""
        best, speedup = self.verdict.best, self.verdict.speedup
        if best is self.baseline:
            again = [number for number, rates in self.verdict.repeats.items() if rates]
            if again == [best.number]:
                return "all others failed when they were measured again: the answer is the baseline"
            if again:
                return "no candidate is really faster: the answer is the baseline"
            if any(isinstance(trial.outcome, Measured) for trial in self.trials if trial.role != "baseline"):
                return "no time was left to measure the best again: the answer is the baseline; raise budget.minutes"
            return "nothing could be measured beside the baseline: the answer is the baseline"
        if (once := self.verdict.once) is not None:
            return (
                f"about {once.ratio:.1f} times TRL's defaults in useful tokens per second, each measured once: no time "
                "was left to measure them again; raise budget.minutes"
            )
        if speedup is None:
            outcome = best.outcome
            rate = f"{outcome.useful_tokens_per_s:.0f} useful tokens/s" if isinstance(outcome, Measured) else "a guess"
            why = "do not fit in memory" if isinstance(self.baseline.outcome, OutOfMemory) else "could not be compared"
            return f"{rate}; TRL's defaults {why}"
        ratio, low, high = speedup.ratio, speedup.low, speedup.high
        return f"{ratio:.2f} times TRL's defaults in useful tokens per second (95 % interval {low:.2f} to {high:.2f})"

    @property
    def fallback(self) -> Mapping[str, tuple[Any, Any]]:
        """Knobs in which the baseline had to leave TRL's defaults: (TRL's value, its own)."""
        return differences(self.defaults, self.baseline.candidate)


def result_document(findings: Findings, out: Path) -> dict[str, Any]:
    """The object of result.json; `out` is the run directory."""
    workload, verdict = findings.workload, findings.verdict
    lengths = workload.data.lengths
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
        "runner_up": _runner_up(findings),
        "calibration": {method: asdict(found) for method, found in findings.calibrations.items()},
        "misses": [asdict(miss) for miss in findings.misses],
        "space": {
            "enumerated": findings.space.enumerated,
            "legal": findings.space.legal,
            "fitting": findings.space.legal - findings.ruled_out,
            "removed": dict(findings.space.why),
        },
        "wall_s": dict(findings.wall_s),
        "hardware": findings.hardware.to_dict(),
        "workload": {
            "model": asdict(workload.model),
            "data": {
                "path": findings.data,
                "name": workload.data.name,
                "form": workload.data.form,
                "rows": lengths.rows,
                "tokens": lengths.total,
                "useful_tokens": int(lengths.labels.sum()),
                "longest": lengths.longest,
                "fingerprint": workload.data.fingerprint,
            },
            "recipe": asdict(workload.recipe),
            "fidelity": findings.fidelity.name,
            "fixed": dict(findings.fixed),
        },
        "versions": dict(findings.versions),
        "seed": findings.seed,
        "out": str(out),
    }


def _losses(findings: Findings) -> dict[str, Any] | None:
    parity = findings.parity
    if not isinstance(parity, Parity):
        return None if parity is None else {"not_compared": parity}
    allowed = parity.allowed(findings.fidelity)
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


def run_document(findings: Findings) -> str:
    """The text of run.yaml: all that a run needs, with the reason for each value."""
    workload, candidate = findings.workload, findings.verdict.best.candidate
    rate = workload.recipe.learning_rate_for(candidate.method)
    recipe = asdict(replace(workload.recipe, method=candidate.method, learning_rate=rate))
    recipe["lora_target_modules"] = list(workload.recipe.lora_target_modules)
    data: dict[str, Any] = {"path": _from_anywhere(findings.data)}
    if findings.columns:
        data["columns"] = dict(findings.columns)
    lines = [
        f"# {workload.model.name} on {workload.data.name}: {findings.answer}.",
        f"# {short_name(candidate)}",
        "# Train with it: autotune run THIS_FILE; keys on the command line win over those in here.",
        *_yaml({"model": {"path": _from_anywhere(findings.model)}}),
        *_yaml({"data": data}),
        *_yaml({"seed": findings.seed, "device": findings.hardware.kind}),
        *_yaml({"hardware": {"device": "cpu"}} if findings.hardware.kind == "cpu" else {}),
        "recipe:  # what was asked for",
        *(f"  {line}" for line in _yaml(recipe)),
        "candidate:  # what was found",
    ]
    for knob, reason in reasons(findings).items():
        [line] = _yaml({knob: getattr(candidate, knob)})
        lines.append(f"  {line}  # {reason}")
    return "\n".join(lines) + "\n"


def _from_anywhere(name: str) -> str:
    """A path that a run finds whatever directory it is started in; other names as they are."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() and name not in NAMED else name


NAMED = (*OPTIONS, "demo")  # what ships with autotune goes before a directory of that name


def reasons(findings: Findings) -> dict[str, str]:
    """Why each knob of the winner has its value, a line each."""
    best = findings.verdict.best
    candidate, lengths = best.candidate, findings.workload.data.lengths
    baseline, recipe = findings.baseline.candidate, findings.workload.recipe
    known = {
        "max_length": f"keeps {lengths.coverage(candidate.max_length):.2%} of the tokens, "
        f"{recipe.coverage:.2%} asked; the longest row has {lengths.longest}",
        "gradient_accumulation_steps": f"{candidate.rows_per_step} row{'s' * (candidate.rows_per_step > 1)} a step"
        + (
            f", about {recipe.effective_batch_size} samples" if candidate.packs else ", the samples that were asked for"
        ),
        "method": "asked for" if recipe.method else "full fine-tuning unless a method is asked for",
    }
    measured = best.outcome
    if isinstance(measured, Measured):
        known["batching"] = f"{measured.padding_epoch:.1%} of the positions are padding" + _against(
            findings.baseline.outcome, "padding_epoch", "{:.1%}"
        )
        known["checkpointing"] = f"peak of {format_bytes(measured.peak_bytes)}" + (
            f" against {format_bytes(findings.baseline.outcome.peak_bytes)} in the baseline"
            if isinstance(findings.baseline.outcome, Measured)
            else ""
        )
    return {knob: _reason(knob, candidate, baseline, findings, known) for knob in KNOBS}


def _reason(knob: str, candidate: Candidate, baseline: Candidate, findings: Findings, known: Mapping[str, str]) -> str:
    if knob in findings.fixed and getattr(candidate, knob) == findings.fixed[knob]:
        return "fixed by you"
    words = [known[knob]] if knob in known else []
    default = getattr(baseline, knob)
    for receipt in findings.receipts:
        if receipt.knob == knob:
            source = "predicted" if receipt.known.trial is None else f"measured in trial {receipt.known.trial}"
            words.append(f"{receipt.gain:+.0%} over the best without it, {getattr(receipt.rival, knob)}, {source}")
    if getattr(candidate, knob) != default and knob not in DERIVED:
        words.append(f"the baseline has {default}")
    return "; ".join(words) or "as in the baseline"


def _against(outcome: Any, name: str, form: str) -> str:
    return f" against {form.format(getattr(outcome, name))} in the baseline" if isinstance(outcome, Measured) else ""


def write_result(findings: Findings, out: Path) -> dict[str, Any]:
    """Write result.json and run.yaml into `out`, and return the former's object."""
    document: dict[str, Any] = json.loads(json.dumps(result_document(findings, out)))  # as a reader will have it
    write_text(out / "run.yaml", run_document(findings))
    write_json(out / "result.json", document)
    return document


def summary_lines(document: Mapping[str, Any]) -> list[str]:
    """What a person reads at the end of a search."""
    rows = []
    for title, key in (("TRL's defaults", "baseline"), ("by hand", "by_hand"), ("found", "best")):
        trial = document[key]
        rates = document["second_measurement"].get(str(trial["number"]))
        outcome = trial["outcome"]
        if outcome["kind"] == "measured":
            rate = sum(rates) / len(rates) if rates else outcome["useful_tokens_per_s"]
            facts = f"{rate:8.0f} useful tokens/s  {format_bytes(outcome['peak_bytes']):>9}"
        else:
            facts = outcome["kind"].replace("_", " ")
        rows.append(f"{title:<15} {facts}  {short_name(Candidate(**trial['candidate']))}")
    lines = [*rows, document["answer"]]
    if gains := [receipt for receipt in document["receipts"] if receipt["gain"] >= LEAST_GAIN][:MOST_GAINS]:
        named = ", ".join(f"{each['knob']} {each['value']} {each['gain']:+.0%}" for each in gains)
        lines.append(f"over the best without it: {named}")
    if (losses := document["losses"]) is not None:
        lines.append(_losses_line(losses, document["workload"]["fidelity"]))
    if document["baseline_differs"]:
        changes = ", ".join(f"{knob} {own}" for knob, (_, own) in document["baseline_differs"].items())
        lines.append(f"TRL's defaults were not measured as they are, but with {changes}")
    if document["speedup_by_hand"] is not None:
        interval = document["speedup_by_hand_interval"]
        words = f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
        lines.append(f"{document['speedup_by_hand']:.2f} times what one sets by hand{words}")
    took = format_duration(document["wall_s"]["total"])
    lines.append(f"{len(document['trials'])} trials in {took}; next: autotune run {Path(document['out']) / 'run.yaml'}")
    return lines


def _losses_line(losses: Mapping[str, Any], fidelity: str) -> str:
    if "not_compared" in losses:
        return f"its losses were not compared with the baseline's: {losses['not_compared']}"
    words = (
        f"the losses of the first {len(losses['best'])} steps differ from the baseline's by {losses['difference']:.4f} "
        f"in the mean; by {losses['between_orders']:.4f} when only the order of the samples changes"
    )
    if losses["as_asked"]:
        return words
    return f"WARNING: {words}: more than fidelity={fidelity} allows ({losses['allowed']:.4f})"


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


def _once(speedup: Speedup | None) -> dict[str, float] | None:
    return None if speedup is None else {"ratio": speedup.ratio, "low": speedup.low, "high": speedup.high}


def _interval(speedup: Speedup | None) -> list[float] | None:
    """None also where one round of one step each says nothing about it."""
    return [speedup.low, speedup.high] if speedup and math.isfinite(speedup.high) else None


def _yaml(values: Mapping[str, Any]) -> list[str]:
    """A line for each key, its value in flow style behind it."""
    texts = {key: yaml.safe_dump(value, default_flow_style=True, width=10_000) for key, value in values.items()}
    return [f"{key}: {text.strip().removesuffix('...').strip()}" for key, text in texts.items()]
