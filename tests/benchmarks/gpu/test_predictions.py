"""benchmarks/gpu/predictions.py: what is still to be done, and the border of a card is where the prediction has it."""

from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import Case, around, make
from benchmarks.gpu.predictions import GpuJob, predict, waiting
from benchmarks.machines import catalogued_gpus


def test_a_border_is_done_when_all_its_predictions_are(tmp_path: Path) -> None:
    """Which candidates stand at a border follows from predictions; one that is not measured keeps it open."""
    family = make("m", "lora", 1, 512)
    lower, upper, _ = around(family, 10**9, 8, wide=True)
    cards = {10**9: (family,)}

    def row(case: Case, **more: Any) -> dict[str, Any]:
        return {"name": case.name, "case": {"model": case.model, "card_bytes": case.card_bytes}, **more}

    rows = [row(lower), row(upper), row(lower, outcome="measured")]
    open_job = [GpuJob(case=family, card_bytes=10**9, wide=True)]
    assert waiting([], cards, []) == open_job
    assert waiting([], cards, rows) == open_job
    assert waiting([], cards, [*rows, row(upper, outcome="out_of_memory")]) == []


def test_a_border_is_where_the_prediction_has_it(home: Path, tmp_path: Path) -> None:
    """Of the cases around it all fit but the one beyond, and the largest that fits is close to the limit."""
    job = GpuJob(case=make("tiny", "lora", 1, 512), card_bytes=2 * 10**9, wide=True)
    lower, largest, beyond = predict(job, catalogued_gpus()["h200"].hardware(cores=16), home, tmp_path)
    assert [one.predicted["fits"] for one in (lower, largest, beyond)] == [True, True, False]
    assert largest.predicted["needed_bytes"] > 0.9 * largest.predicted["limit_bytes"]
    assert largest.predicted["allocated_bytes"] > sum(largest.predicted["items"].values())
    assert (largest.directory / "model" / "config.json").exists()
