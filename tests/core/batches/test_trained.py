"""What TRL trains of a dataset: rows, steps and labels of the real trainer and of the real packing."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotune.core.batches.trained import cut_in_words, packed_labels, trained_of, training_steps
from autotune.core.candidate import Candidate
from autotune.core.lengths import Lengths
from autotune.core.recipe import Recipe
from autotune.data.tokenization import label_spans, measure
from autotune.train import sft
from autotune.train.task import Task, Train
from tests.core.examples import candidate, lengths, workload

SMALL = candidate(max_length=64, per_device_train_batch_size=2, gradient_accumulation_steps=2, mixed_precision="no")


def some_rows(count: int) -> Any:
    """Texts, prompts with completions, and chats of which the answers are learned; a third loses all labels at 64."""
    from datasets import Dataset

    draw, rows = np.random.default_rng(0), []
    for number in range(count):
        length = int(draw.integers(20, 160))
        marks = np.zeros(length, dtype=bool)
        if number % 3 == 0:
            marks[:] = True
        elif number % 3 == 1:
            marks[-int(draw.integers(1, 15)) :] = True
        else:
            marks[5:9], marks[40:60], marks[-3:] = number % 2 == 0, number % 4 == 0, True
        ids = draw.integers(5, 400, length)
        rows.append({"input_ids": ids.tolist(), "labels": np.where(marks, ids, -100).tolist()})
    return Dataset.from_list(rows)


def lengths_of(rows: Any) -> Lengths:
    return Lengths(tokens=measure(rows)[0], spans=label_spans(rows))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batching": "group_by_length"},
        {"batching": "batch_rebalance"},
        {"batching": "pack_bfd", "packed_length": 64},
        {"batching": "pack_bfd_split", "packed_length": 64},
        {"batching": "pack_wrapped", "packed_length": 64},
    ],
    ids=lambda changes: changes.get("batching", "random"),
)
def test_an_epoch_is_that_of_the_real_trainer(
    changes: dict[str, Any], make_task: Callable[..., Task], tmp_path: Path
) -> None:
    """Rows of its dataset, optimizer steps of its epoch, and the labels that its micro-batches bring to the loss."""
    asked, rows = replace(SMALL, **changes), some_rows(62)
    rows.save_to_disk(str(tmp_path / "rows"))
    recipe = Recipe(effective_batch_size=4, epochs=2)
    task = make_task(candidate=asked, recipe=recipe, tokenized_path=str(tmp_path / "rows"), goal=Train(save_steps=9))
    trainer = sft.build_trainer(task)
    batches = trainer.get_train_dataloader()
    counts = [batch[sft.COUNTS] for batch in batches]
    trained = trained_of(asked, lengths_of(rows))
    assert trained.rows == len(trainer.train_dataset) == sum(count.rows for count in counts)
    assert trained.tokens == sum(count.tokens for count in counts)
    assert trained.labels == sum(count.useful for count in counts)
    data = replace(workload().data, lengths=lengths_of(rows))
    steps = trainer.set_initial_training_values(trainer.args, batches)[-1]
    assert training_steps(asked, data, recipe) == 2 * trained.steps == steps
    assert (trained.dropped_samples > 0) == (not asked.packs)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_labels_of_packed_rows_are_those_of_trl(strategy: str) -> None:
    """Also across the batches of a thousand rows that TRL packs apart."""
    from trl import pack_dataset

    rows = some_rows(2100)
    packed = pack_dataset(rows, 64, strategy, map_kwargs={"keep_in_memory": True})
    asked = replace(SMALL, batching=f"pack_{strategy}", packed_length=64)  # type: ignore[arg-type]
    assert packed_labels(asked, lengths_of(rows)) == sft.row_counts(packed)[1].sum()


def words(asked: Candidate, rows: Lengths) -> str | None:
    return cut_in_words(trained_of(asked, rows), asked)


def test_what_is_lost_is_said_with_counts() -> None:
    """Of 100, 70 and 30 tokens with ten labels at the end, a cut at 64 keeps 4 + 30; packing keeps 64 + 64 + 30."""
    rows = lengths([100, 70, 30], labels=10)
    cut = "max_length=64 cuts 2 of 3 rows: "
    assert words(SMALL, rows) == (
        f"{cut}106 of 200 tokens (53.00%) are not trained; left out, because no label of them remains: 1 row"
    )
    assert words(replace(SMALL, batching="pack_bfd", packed_length=64), rows) == (
        f"{cut}42 of 200 tokens (21.00%) are not trained; packed, although no label of them remains: 1 row"
    )
    assert (
        words(SMALL, lengths([100, 30])) == "max_length=64 cuts 1 of 2 rows: 36 of 130 tokens (27.69%) are not trained"
    )
    assert words(replace(SMALL, batching="pack_wrapped", packed_length=64), rows) is None
    assert words(replace(SMALL, max_length=100), rows) is None


def test_a_sample_of_the_data_stands_for_all_rows() -> None:
    """Two of its three rows are left, so of the twelve rows of the file eight are: two steps of four."""
    data = replace(workload().data, lengths=lengths([100, 70, 30], labels=10), share_tokenized=0.25)
    assert training_steps(SMALL, data, Recipe()) == 2
    assert training_steps(SMALL, data, Recipe(epochs=1.5)) == 3
    assert training_steps(SMALL, data, Recipe(max_steps=7)) == 7
