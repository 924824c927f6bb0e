"""benchmarks/gpu/cases.py: every case is legal, and its rows are what the trainer takes and the prediction is told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autotune.core.batches.batches import simulate_epoch, worst_batch
from autotune.core.hardware import Hardware
from autotune.core.knobs import VALUES
from autotune.core.lengths import Lengths
from autotune.core.recipe import METHODS
from autotune.core.space.context import Context, Installed
from autotune.core.space.legality import first_broken
from autotune.core.workload import Workload
from autotune.models.find import resolve_architecture
from autotune.predict.completion import stand_in_data
from benchmarks.command import say
from benchmarks.gpu.cases import CARDS, CASES, SEED, STEPS, around, lengths_of, make, row_lengths, write_rows
from benchmarks.machines import catalogued_gpus


@pytest.fixture(scope="module")
def h200() -> Hardware:
    """The GPU as the catalogue has it."""
    return catalogued_gpus()["h200"].hardware(cores=16)


def test_the_table_covers_what_it_should() -> None:
    """At least forty candidates, none twice, over all methods and the whole range of every knob."""
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)
    candidates = [case.candidate for case in CASES]
    assert {c.method for c in candidates} == set(METHODS)
    assert {c.checkpointing for c in candidates} == set(VALUES["checkpointing"]) - {"every_n"}
    optimizers = {"adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"}
    assert {c.optimizer for c in candidates} == optimizers
    assert {case.rows for case in CASES} == {"full", "padded", "packed"}
    assert {min(c.per_device_train_batch_size for c in candidates), *(c.row_length for c in candidates)} >= {1, 256}
    assert max(c.per_device_train_batch_size for c in candidates) == 16
    assert max(c.row_length for c in candidates) == 4096
    assert {c.tuned_allocator for c in candidates} == {True, False}
    assert {case.model for case in CASES} >= {"Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.1-8B", "google/gemma-2-2b"}


def test_every_case_is_legal(home: Path, h200: Hardware) -> None:
    """No library refuses a case, or silently trains another one."""
    families = [case for families in CARDS.values() for case in families]
    facts = {
        model: resolve_architecture(model, None, home=home, progress=say)[1] for model in {case.model for case in CASES}
    }
    broken = []
    for case in (*CASES, *families):
        tokens = np.array(row_lengths(case), dtype=np.int64)
        lengths = Lengths.with_labels_last(tokens, tokens - 1)
        data = replace(stand_in_data(1), lengths=lengths, rows_in_file=len(tokens))
        workload = Workload(model=facts[case.model], data=data, recipe=case.recipe)
        context = Context(installed=Installed(), hardware=h200, workload=workload)
        if (rule := first_broken(case.candidate, context)) is not None:
            broken.append((case.name, rule.name))
    assert broken == []


def test_rows_are_what_a_case_says() -> None:
    """Padded rows begin with the largest micro-batch and always need a mask; packed ones fill their rows."""
    for case in CASES:
        lengths, size = row_lengths(case), case.candidate.per_device_train_batch_size
        if case.rows == "packed":
            assert sum(lengths) == STEPS * case.candidate.rows_per_step * case.candidate.row_length
            continue
        assert len(lengths) == STEPS * case.candidate.rows_per_step
        batches = [lengths[i : i + size] for i in range(0, len(lengths), size)]
        assert batches[0] == sorted(lengths)[::-1][:size]
        assert lengths[0] == case.candidate.max_length
        assert all((len(set(batch)) > 1) == (case.rows == "padded") for batch in batches)


@pytest.mark.parametrize(("rows", "steps"), [(16, 1), (2, 2)])
def test_what_is_predicted_of_padded_rows_is_what_is_trained(tmp_path: Path, rows: int, steps: int) -> None:
    """The simulated epoch has the real sampler's micro-batches, and the worst one of memory is among them."""
    from accelerate.data_loader import SeedableRandomSampler
    from datasets import load_from_disk

    case = make("m", "lora", rows, 512, "padded", gradient_accumulation_steps=steps)
    write_rows(case, tmp_path)
    tokens = [len(row) for row in load_from_disk(tmp_path)["input_ids"]]
    taken = [tokens[place] for place in SeedableRandomSampler(range(len(tokens)), data_seed=SEED)]
    trained = [max(taken[i : i + rows]) for i in range(0, len(taken), rows)]
    lengths = lengths_of(case)
    assert lengths is not None
    assert simulate_epoch(case.candidate, lengths, seed=SEED).positions.tolist() == trained
    worst = worst_batch(case.candidate, lengths)
    assert (worst.positions, worst.labels) == (trained[0], sum(taken[:rows]) - rows)


def test_a_border_is_tried_from_both_sides() -> None:
    """The largest that fits, and where asked a quarter less and a quarter more; each once."""
    case = make("m", "lora", 1, 512)

    def sizes(largest: int, wide: bool) -> list[int]:
        found = list(around(case, 10**9, largest, wide=wide))
        assert {each.card_bytes for each in found} == {10**9}
        return [each.candidate.per_device_train_batch_size for each in found]

    assert sizes(40, True) == [30, 40, 50]
    assert sizes(40, False) == [40]
    assert sizes(1, True) == [1, 2]
