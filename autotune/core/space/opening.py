"""The opening of a search: the few candidates that it tries first.

Before anything is measured, the lengths of the rows already tell how much each way of batching pads. For each of them
the opening has two micro-batches: the largest one that hardly pads, which is good where large matrix products are fast,
and the smallest one of at least two rows, which is good where memory traffic takes most of the time. The opening only
says where to begin.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from autotune.core.batches.batches import deal
from autotune.core.candidate import Candidate
from autotune.core.lengths import Lengths

LITTLE_PADDING = 0.05  # of all positions; an epoch of short chats that is grouped by length still pads this share


def opening(candidates: Collection[Candidate], start: Candidate, lengths: Lengths, *, seed: int) -> list[Candidate]:
    """List the first candidates to try, the least padding first. They differ from `start` only in how they batch.

    candidates: the legal ones; no other is listed. lengths: of the dataset's rows. seed: of their order.
    """
    picked: dict[Candidate, float] = {}
    alike = [c for c in candidates if _apart_from_batching(c, start) == start]
    for batching in dict.fromkeys(c.batching for c in alike):
        choices = sorted((c for c in alike if c.batching == batching), key=lambda c: c.per_device_train_batch_size)
        padding = {c: padded_share(lengths, c, seed=seed) for c in choices}
        tight = [c for c in choices if padding[c] <= LITTLE_PADDING] or choices[:1]
        pair = [c for c in choices if c.per_device_train_batch_size >= 2] or choices
        for choice in (tight[-1], pair[0]):
            picked.setdefault(choice, padding[choice])
    return sorted(picked, key=lambda c: picked[c])


def padded_share(lengths: Lengths, candidate: Candidate, *, seed: int) -> float:
    """Estimate which share of an epoch's positions is padding. seed: of the order in which the rows are drawn.

    The samplers' way of forming batches is simulated.
    """
    if candidate.packs or candidate.batching == "padding_free":
        return 0.0
    tokens = np.random.default_rng(seed).permutation(lengths.cut(candidate.max_length).tokens)
    order, rows = deal(tokens, candidate)
    longest = np.maximum.reduceat(tokens[order], rows.cumsum() - rows)
    return 1 - float(tokens[order].sum()) / float(rows @ longest)


def _apart_from_batching(candidate: Candidate, start: Candidate) -> Candidate:
    """The candidate with the batching of `start`."""
    return replace(
        candidate,
        batching=start.batching,
        packed_length=start.packed_length,
        max_length=start.max_length if candidate.packs else candidate.max_length,  # packing cuts at the row
        per_device_train_batch_size=start.per_device_train_batch_size,
        gradient_accumulation_steps=start.gradient_accumulation_steps,
    )
