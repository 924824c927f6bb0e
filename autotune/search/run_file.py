"""run.yaml: all that `autotune run` needs to train with a search's winner, and the reason for each value.

Leaves out reading it (cli/run_file.py).
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from autotune.core.batches.trained import trained_of
from autotune.core.candidate import short_name
from autotune.core.knobs import DERIVED, KNOBS
from autotune.core.outcome import Measured
from autotune.core.trials.receipts import Receipt
from autotune.core.units import count_of, format_bytes
from autotune.formats import RUN_FORMAT
from autotune.models.catalogue import TEXT_BACKBONE
from autotune.models.find import OPTIONS
from autotune.search.findings import Findings

NAMED = (*OPTIONS, "demo")  # models and data that ship with autotune; a directory of that name does not hide them


def run_document(findings: Findings) -> str:
    """The text of run.yaml."""
    request, workload, candidate = findings.request, findings.workload, findings.verdict.best.candidate
    rate = workload.recipe.learning_rate_for(candidate.method)
    recipe = asdict(replace(workload.recipe, method=candidate.method, learning_rate=rate))
    recipe["lora_target_modules"] = list(workload.recipe.lora_target_modules)
    data: dict[str, Any] = {"path": _from_anywhere(request.data)}
    if request.columns:
        data["columns"] = dict(request.columns)
    if workload.data.split is not None:
        data["split"] = workload.data.split
    device = findings.hardware.kind
    lines = [
        f"# {workload.model.name} on {workload.data.name}: {findings.answer}.",
        f"# {short_name(candidate)}",
        "# Train with it: autotune run THIS_FILE; keys on the command line win over those in here.",
        *_yaml({"format": RUN_FORMAT}),
        *_yaml({"model": {"path": _from_anywhere(request.model)}}),
        *_yaml({"data": data}),
        *_yaml({"seed": request.seed, "device": device}),
        *_yaml({"hardware": {"device": "cpu"}} if device == "cpu" else {}),
        "recipe:  # what was asked for",
        *(f"  {line}" for line in _yaml(recipe)),
        "candidate:  # what was found",
    ]
    for knob, reason in reasons(findings).items():
        [line] = _yaml({knob: getattr(candidate, knob)})
        lines.append(f"  {line}  # {reason}")
    return "\n".join(lines) + "\n"


def reasons(findings: Findings) -> dict[str, str]:
    """Say why each knob of the winner has its value, one line each."""
    facts, receipts = _facts(findings), {receipt.knob: receipt for receipt in findings.receipts}
    return {knob: _reason(knob, findings, facts.get(knob), receipts.get(knob)) for knob in KNOBS}


def _reason(knob: str, findings: Findings, fact: str | None, receipt: Receipt | None) -> str:
    """What is known of a knob, and its gain. If the value is the baseline's, only a distinguishable gain is named."""
    value, fixed = getattr(findings.verdict.best.candidate, knob), findings.request.fixed
    if knob in fixed and value == fixed[knob]:
        return "fixed by you"
    default = getattr(findings.baseline.candidate, knob)
    words = [] if fact is None else [fact]
    if receipt is not None and (value != default or receipt.is_distinguishable):
        words.append(_worth(receipt))
    if value != default and knob not in DERIVED:
        words.append(f"the baseline has {default}")
    return "; ".join(words) or "as in the baseline"


def _facts(findings: Findings) -> dict[str, str]:
    """Facts about the values of some knobs, other than their speed."""
    best, baseline = findings.verdict.best, findings.baseline.outcome
    candidate, recipe, lengths = best.candidate, findings.workload.recipe, findings.workload.data.lengths
    trained = trained_of(candidate, lengths)
    dropped = f", {count_of(trained.dropped_samples, 'row')} left out" if trained.dropped_samples else ""
    rows = f"{count_of(candidate.rows_per_step, 'row')} a step"
    samples = (
        f"about {count_of(recipe.effective_batch_size, 'sample')}"
        if candidate.packs
        else "the samples that were asked for"
    )
    facts = {
        "max_length": f"keeps {trained.tokens / lengths.total:.2%} of the tokens{dropped}, "
        f"{recipe.coverage:.2%} asked; the longest row has {lengths.longest}",
        "gradient_accumulation_steps": f"{rows}, {samples}",
        "method": "asked for" if recipe.method else "full fine-tuning unless a method is asked for",
    }
    if isinstance(best.outcome, Measured):
        facts["batching"] = f"{best.outcome.padding_epoch:.1%} of the positions are padding"
        facts["checkpointing"] = f"peak of {format_bytes(best.outcome.peak_bytes)}"
        if isinstance(baseline, Measured) and best is not findings.baseline:
            facts["batching"] += f" against {baseline.padding_epoch:.1%} in the baseline"
            facts["checkpointing"] += f" against {format_bytes(baseline.peak_bytes)} in the baseline"
    return facts


def _worth(receipt: Receipt) -> str:
    source = "predicted" if receipt.known.trial is None else f"measured in trial {receipt.known.trial}"
    rival = f"the best candidate with {getattr(receipt.rival, receipt.knob)} ({source})"
    if not receipt.is_distinguishable:
        return f"not distinguishable in speed from {rival}"
    return f"{receipt.gain:+.0%} compared with {rival}"


def _from_anywhere(name: str) -> str:
    """Make a path absolute, so that a run finds it from any directory; return other names unchanged."""
    suffix = TEXT_BACKBONE if name.endswith(TEXT_BACKBONE) else ""
    path = Path(name.removesuffix(suffix)).expanduser()
    return f"{path.resolve()}{suffix}" if path.exists() and name not in NAMED else name


def _yaml(values: Mapping[str, Any]) -> list[str]:
    """Write a line for each key, with its value in flow style."""
    texts = {key: yaml.safe_dump(value, default_flow_style=True, width=10_000) for key, value in values.items()}
    return [f"{key}: {text.strip().removesuffix('...').strip()}" for key, text in texts.items()]
