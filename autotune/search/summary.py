"""The summary of a search: what a person reads at its end, made from its result.

First the answer, then a small table, then what each choice brought, then everything else. The last line says what to do
next.
"""

from collections.abc import Iterator
from pathlib import Path

from autotune.core.batches.trained import cut_in_words
from autotune.core.candidate import Fidelity, differences, short_name
from autotune.core.outcome import Measured
from autotune.core.trials.comparison import is_distinguishable
from autotune.core.trials.parity import NotCompared
from autotune.core.units import count_of, format_bytes, format_duration
from autotune.search.result import Losses, ReceiptResult, Result


def summary_lines(result: Result) -> list[str]:
    """The lines of the summary, without colours."""
    blocks = [
        [result.answer],
        list(table(result)),
        list(_receipts(result)),
        list(_rest(result)),
        [f"next: autotune run {Path(result.out) / 'run.yaml'}"],
    ]
    filled = [block for block in blocks if block]
    return [line for block in filled[:-1] for line in (*block, "")] + filled[-1]


def table(result: Result) -> Iterator[str]:
    """A row for each of the references and the winner: as measured the second time, where it was."""
    yield f"{'':<14}  {'useful tokens/s':>15}  {'memory':>9}"
    for title, trial in (("TRL's defaults", result.baseline), ("by hand", result.by_hand), ("found", result.best)):
        outcome = trial.outcome
        if isinstance(outcome, Measured):
            rates = result.second_measurement.get(str(trial.number)) or (outcome.useful_tokens_per_s,)
            rate, memory = f"{sum(rates) / len(rates):.0f}", format_bytes(outcome.peak_bytes)
        else:
            rate, memory = outcome.kind.replace("_", " "), ""
        yield f"{title:<14}  {rate:>15}  {memory:>9}  {short_name(trial.candidate)}"


def _receipts(result: Result) -> Iterator[str]:
    """A line for each knob in which the winner differs from TRL's defaults, as these were measured."""
    changed = differences(result.best.candidate, result.baseline.candidate)
    found = {f"{each.knob}={each.value}": _worth(each) for each in result.receipts if each.knob in changed}
    if found:
        yield "each choice, compared with the best candidate that has another value:"
    width = max(map(len, found), default=0)
    for choice, worth in found.items():
        yield f"  {choice:<{width}}  {worth}"
    if result.without_receipt:
        choices = ", ".join(f"{knob}={getattr(result.best.candidate, knob)}" for knob in result.without_receipt)
        yield f"what these brought is not known, because no other value was measured or predicted: {choices}"


def _worth(receipt: ReceiptResult) -> str:
    rival, interval = receipt.without, receipt.gain_interval
    source = "predicted" if rival.trial is None else f"measured in trial {rival.trial}"
    if interval is not None and not is_distinguishable(interval, 0.0):
        return f"not distinguishable from {rival.value} ({interval[0]:+.0%} to {interval[1]:+.0%}, {source})"
    within = "" if interval is None else f"{interval[0]:+.0%} to {interval[1]:+.0%}, "
    return f"{receipt.gain:+.0%} over {rival.value} ({within}{source})"


def _rest(result: Result) -> Iterator[str]:
    if result.trained is not None and (words := cut_in_words(result.trained, result.best.candidate)) is not None:
        yield words
    if result.speedup_by_hand is not None:
        yield _by_hand(result.speedup_by_hand, result.speedup_by_hand_interval)
    if result.losses is not None:
        yield _losses(result.losses, result.workload.fidelity)
    if result.baseline_differs:
        changes = ", ".join(f"{knob}={own}" for knob, (_, own) in result.baseline_differs.items())
        yield f"TRL's defaults were not measured as they are, but with {changes}"
    yield f"{count_of(len(result.trials), 'trial')} in {format_duration(result.wall_s['total'])}"


def _by_hand(ratio: float, interval: tuple[float, float] | None) -> str:
    words = f"{ratio:.2f} times"
    if interval is None:
        return f"{words} what one sets by hand (one step was measured of each, so the error is not known)"
    within = f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
    if not is_distinguishable(interval, 1.0):
        return f"not distinguishable from what one sets by hand: {words} its useful tokens per second ({within})"
    return f"{words} what one sets by hand ({within})"


def _losses(losses: Losses | NotCompared, fidelity: Fidelity) -> str:
    if isinstance(losses, NotCompared):
        return f"the losses were not compared with the baseline's: {losses.not_compared}"
    words = (
        f"the losses of the first {count_of(len(losses.best), 'step')} differ from the baseline's by "
        f"{losses.difference:.4f} on average; another order of the samples moves the mean loss by "
        f"{losses.between_orders:.4f}"
    )
    if losses.as_asked:
        return words
    return f"WARNING: {words}. That is more than fidelity={fidelity.name} allows ({losses.allowed:.4f})"
