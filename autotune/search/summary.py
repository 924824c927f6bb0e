"""The summary of a search: what a person reads at its end, made from the object of result.json.

First the answer, then a small table, then what each choice brought, then everything else. The last line says what to do
next.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autotune.core.candidate import Candidate, short_name
from autotune.core.units import format_bytes, format_duration

ROWS = (("TRL's defaults", "baseline"), ("by hand", "by_hand"), ("found", "best"))


def summary_lines(document: Mapping[str, Any]) -> list[str]:
    """The lines of the summary, without colours. document: the object of result.json."""
    blocks = [
        [document["answer"]],
        list(_table(document)),
        list(_receipts(document)),
        list(_rest(document)),
        [f"next: autotune run {Path(document['out']) / 'run.yaml'}"],
    ]
    filled = [block for block in blocks if block]
    return [line for block in filled[:-1] for line in (*block, "")] + filled[-1]


def _table(document: Mapping[str, Any]) -> Iterator[str]:
    """A row for each of the references and the winner: as measured the second time, where it was."""
    yield f"{'':<14}  {'useful tokens/s':>15}  {'memory':>9}"
    for title, key in ROWS:
        trial, name = document[key], short_name(Candidate(**document[key]["candidate"]))
        outcome = trial["outcome"]
        if outcome["kind"] == "measured":
            rates = document["second_measurement"].get(str(trial["number"])) or [outcome["useful_tokens_per_s"]]
            rate, memory = f"{sum(rates) / len(rates):.0f}", format_bytes(outcome["peak_bytes"])
        else:
            rate, memory = outcome["kind"].replace("_", " "), ""
        yield f"{title:<14}  {rate:>15}  {memory:>9}  {name}"


def _receipts(document: Mapping[str, Any]) -> Iterator[str]:
    """A line for each knob in which the winner differs from TRL's defaults, as these were measured."""
    best, baseline = document["best"]["candidate"], document["baseline"]["candidate"]
    found = {
        f"{each['knob']}={each['value']}": _worth(each)
        for each in document["receipts"]
        if best[each["knob"]] != baseline[each["knob"]]
    }
    unknown = "not known: no candidate to compare it with was measured or predicted"
    found |= {f"{knob}={best[knob]}": unknown for knob in document["without_receipt"]}
    if found:
        yield "each choice, compared with the best candidate that has another value:"
    width = max(map(len, found), default=0)
    for choice, worth in found.items():
        yield f"  {choice:<{width}}  {worth}"


def _worth(receipt: Mapping[str, Any]) -> str:
    rival, interval = receipt["without"], receipt["gain_interval"]
    source = "predicted" if rival["trial"] is None else f"measured in trial {rival['trial']}"
    if interval is not None and interval[0] <= 0 <= interval[1]:
        return f"not distinguishable from {rival['value']} ({interval[0]:+.0%} to {interval[1]:+.0%}, {source})"
    within = "" if interval is None else f"{interval[0]:+.0%} to {interval[1]:+.0%}, "
    return f"{receipt['gain']:+.0%} over {rival['value']} ({within}{source})"


def _rest(document: Mapping[str, Any]) -> Iterator[str]:
    if document["speedup_by_hand"] is not None:
        yield _by_hand(document["speedup_by_hand"], document["speedup_by_hand_interval"])
    if document["losses"] is not None:
        yield _losses(document["losses"], document["workload"]["fidelity"])
    if document["baseline_differs"]:
        changes = ", ".join(f"{knob}={own}" for knob, (_, own) in document["baseline_differs"].items())
        yield f"TRL's defaults were not measured as they are, but with {changes}"
    yield f"{len(document['trials'])} trials in {format_duration(document['wall_s']['total'])}"


def _by_hand(ratio: float, interval: list[float] | None) -> str:
    words = f"{ratio:.2f} times"
    if interval is None:
        return f"{words} what one sets by hand (one step was measured of each, so the error is not known)"
    within = f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
    if interval[0] <= 1 <= interval[1]:
        return f"not distinguishable from what one sets by hand: {words} its useful tokens per second ({within})"
    return f"{words} what one sets by hand ({within})"


def _losses(losses: Mapping[str, Any], fidelity: str) -> str:
    if "not_compared" in losses:
        return f"the losses were not compared with the baseline's: {losses['not_compared']}"
    words = (
        f"the losses of the first {len(losses['best'])} steps differ from the baseline's by {losses['difference']:.4f} "
        f"on average; another order of the samples moves the mean loss by {losses['between_orders']:.4f}"
    )
    if losses["as_asked"]:
        return words
    return f"WARNING: {words}. That is more than fidelity={fidelity} allows ({losses['allowed']:.4f})"
