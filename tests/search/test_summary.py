"""What a person reads at the end of a search."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.core.outcome import OutOfMemory
from autotune.core.trials.parity import NotCompared, Parity
from autotune.search.run_directory import write_result
from autotune.search.summary import summary_lines
from tests.search.examples import BASELINE, DEFAULTS, VERDICT, findings, speedup


def summary(out: Path, **changes: Any) -> list[str]:
    return summary_lines(write_result(findings(out, **changes)))


def test_the_answer_is_first_and_what_to_do_next_is_last(tmp_path: Path) -> None:
    """Between them the table of three, what each choice brought, and the rest."""
    lines = [line.replace(str(tmp_path), "OUT") for line in summary(tmp_path)]
    knobs = "len 448 ckpt off sdpa fused fp32+amp bf16"
    assert lines == [
        "2.00 times TRL's defaults in useful tokens per second (95 % interval 1.80 to 2.20)",
        "",
        "                useful tokens/s     memory",
        "TRL's defaults              100      1 GiB  full 4x2 random len 448 ckpt full sdpa fused fp32+amp bf16",
        f"by hand                     155      1 GiB  full 4x2 group_by_length {knobs}",
        f"found                       200      1 GiB  full 4x2 group_by_length {knobs} malloc",
        "",
        "each choice, compared with the best candidate that has another value:",
        "  tuned_allocator=True  +33% over False (+23% to +44%, measured in trial 1)",
        "  checkpointing=off     +25% over full (+18% to +33%, predicted)",
        "what these brought is not known, because no other value was measured or predicted: batching=group_by_length",
        "",
        "not distinguishable from what one sets by hand: 1.30 times its useful tokens per second (95 % interval 0.90 "
        "to 1.90)",
        "3 trials in 70.0 s",
        "",
        "next: autotune run OUT/run.yaml",
    ]


def test_a_gain_whose_interval_holds_none_is_not_called_one(tmp_path: Path) -> None:
    """Of attention, where the winner differs from defaults that were eager."""
    defaults = replace(DEFAULTS, attention="eager")
    lines = summary(tmp_path, defaults=defaults, baseline=replace(BASELINE, candidate=defaults))
    [line] = [line for line in lines if "attention=" in line]
    assert line.split("  ")[-1].strip() == "not distinguishable from eager (-32% to +50%, predicted)"


def test_a_winner_that_changes_nothing_has_no_receipts(tmp_path: Path) -> None:
    """The defaults themselves: none of their values is a choice that brought something."""
    verdict = replace(VERDICT, best=BASELINE, speedup=None, speedup_by_hand=None)
    lines = summary(tmp_path, verdict=verdict)
    assert not any("each choice" in line for line in lines)


def test_losses_are_compared_in_words(tmp_path: Path) -> None:
    """A warning where they differ by more than the fidelity allows, or why they were not compared."""
    close, far = (Parity(baseline=[5.0, 4.0], best=[5.0 + by, 4.0], reordered=[5.1, 4.1]) for by in (0.1, 1.0))
    [line] = [line for line in summary(tmp_path, parity=close) if "the losses" in line]
    assert line == (
        "the losses of the first 2 steps differ from the baseline's by 0.0500 on average; another order of the samples "
        "moves the mean loss by 0.1000"
    )
    [line] = [line for line in summary(tmp_path, parity=far) if "the losses" in line]
    assert line.startswith("WARNING: ")
    assert line.endswith("That is more than fidelity=close allows (0.1000)")
    [line] = [line for line in summary(tmp_path, parity=NotCompared(not_compared="no time")) if "the losses" in line]
    assert line == "the losses were not compared with the baseline's: no time"


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """Defaults that did not fit or were measured otherwise, and a gain over settings by hand that has no interval."""
    baseline = replace(
        BASELINE,
        candidate=replace(DEFAULTS, per_device_train_batch_size=2),
        outcome=OutOfMemory(message="", peak_bytes=None, wall_s=1.0),
    )
    once = replace(VERDICT, speedup_by_hand=speedup(1.5, 0.0, float("inf")))
    lines = summary(tmp_path, baseline=baseline, verdict=once)
    assert any(line.startswith("TRL's defaults    out of memory") for line in lines)
    assert "TRL's defaults were not measured as they are, but with per_device_train_batch_size=2" in lines
    assert any(line.startswith("1.50 times what one sets by hand (one step") for line in lines)
