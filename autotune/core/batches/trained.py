"""What TRL trains of a dataset in one epoch: rows, optimizer steps, tokens and labels, after its cut and its drops.

- Without packing TRL cuts rows at max_length and drops those that have no label then.
- `pack_bfd` cuts samples at the row's length and drops none: a sample without a label stays, and teaches nothing.
- `pack_bfd_split` and `pack_wrapped` keep every token. What is cut off begins a piece, or a row, of its own. The loss
  does not score the first token of a piece of `pack_bfd_split`, nor the first token of a row of `pack_wrapped`.

Leaves out how the rows are dealt out to micro-batches (batches.py). The rules are those of trl 1.16.

Symbols: S length of a row.
"""

import math
from dataclasses import dataclass

import numpy as np

from autotune.core.batches.packing import BATCH_ROWS, STRATEGIES, pack
from autotune.core.candidate import Candidate
from autotune.core.knobs import Batching
from autotune.core.lengths import Lengths
from autotune.core.recipe import Recipe
from autotune.core.units import count_of
from autotune.core.workload import DataFacts

KEEPS_EVERY_TOKEN: tuple[Batching, ...] = ("pack_bfd_split", "pack_wrapped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One epoch of a candidate on a dataset.

    samples: rows of the dataset that were tokenized. rows: that the trainer's dataset has; a packed row holds several
    samples. steps: optimizer steps; the last one may have fewer rows. tokens: of all rows. labels: of these, those that
    reach the loss.
    cut_samples: samples that lose tokens. dropped_samples: of these, those that are left out, because they lose all
    labels. unlearned_samples: those that lose all labels and are packed all the same.
    lost_tokens: tokens of samples that are not trained, because they are cut off or their sample is dropped.
    """

    samples: int
    rows: int
    steps: int
    tokens: int
    labels: int
    cut_samples: int = 0
    dropped_samples: int = 0
    unlearned_samples: int = 0
    lost_tokens: int = 0


def trained_of(candidate: Candidate, lengths: Lengths) -> Trained:
    """What one epoch of a candidate trains."""
    if not candidate.packs:
        cut = lengths.cut(candidate.max_length)
        rows, tokens, labels = cut.rows, int(cut.tokens.sum()), int(cut.labels.sum())
    else:
        packed = pack(lengths.tokens, row_length=candidate.row_length, strategy=STRATEGIES[candidate.batching])
        rows, tokens, labels = packed.rows, int(packed.row_tokens.sum()), packed_labels(candidate, lengths)
    without_label = lengths.rows - lengths.rows_left(candidate.row_length)
    is_cut = candidate.batching not in KEEPS_EVERY_TOKEN
    return Trained(
        samples=lengths.rows,
        rows=rows,
        steps=-(-rows // candidate.rows_per_step),
        tokens=tokens,
        labels=labels,
        cut_samples=lengths.rows_longer(candidate.row_length) if is_cut else 0,
        dropped_samples=0 if candidate.packs else without_label,
        unlearned_samples=without_label if candidate.batching == "pack_bfd" else 0,
        lost_tokens=lengths.total - tokens,
    )


def packed_labels(candidate: Candidate, lengths: Lengths) -> int:
    """Count the labels of all packed rows that reach the loss."""
    S, spans = candidate.row_length, lengths.spans
    if candidate.batching == "pack_bfd":
        return int(spans.useful(S).sum())
    starts, ends = spans.starts, spans.ends
    if candidate.batching == "pack_wrapped":
        # Positions in all samples of a batch, one after another. A row begins at every multiple of S.
        before = lengths.tokens.cumsum() - lengths.tokens
        before -= before[np.arange(lengths.rows) // BATCH_ROWS * BATCH_ROWS]
        of_spans = np.repeat(before, spans.counts)
        starts, ends = starts + of_spans, ends + of_spans
    first_of_pieces = -(-ends // S) + starts // -S  # multiples of S in each span
    return int((ends - starts - first_of_pieces).sum())


def training_steps(candidate: Candidate, data: DataFacts, recipe: Recipe) -> int:
    """Count the optimizer steps of the training that a recipe asks for, as Trainer counts them."""
    if recipe.max_steps is not None:
        return recipe.max_steps
    rows = round(trained_of(candidate, data.lengths).rows / data.share_tokenized)
    return math.ceil(recipe.epochs * max(1, -(-rows // candidate.rows_per_step)))


def cut_in_words(trained: Trained, candidate: Candidate) -> str | None:
    """Say how many rows and tokens the cut of a candidate takes away; None when it takes none."""
    if not trained.lost_tokens:
        return None
    total, dropped, unlearned = trained.tokens + trained.lost_tokens, trained.dropped_samples, trained.unlearned_samples
    words = (
        f"max_length={candidate.row_length} cuts {trained.cut_samples:,} of {count_of(trained.samples, 'row')}: "
        f"{trained.lost_tokens:,} of {count_of(total, 'token')} ({trained.lost_tokens / total:.2%}) are not trained"
    )
    if dropped:
        return f"{words}; left out, because no label of them remains: {count_of(dropped, 'row')}"
    if unlearned:
        return f"{words}; packed, although no label of them remains: {count_of(unlearned, 'row')}"
    return words
