"""The opening of a search: the few candidates that arithmetic on the lengths alone already favours.

It only says where to begin. Padding is what the lengths tell before anything is measured, so the opening tries, for
each way of batching, the largest micro-batch that hardly pads (good where large products are fast) and the smallest
of at least two rows (good where memory traffic is what costs).

Symbols: E samples of an optimizer step, B rows of a micro-batch.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from autotune.core.batches.batches import deal
from autotune.core.candidate import Candidate

LITTLE_PADDING = 0.05  # share of positions: what a grouped epoch of short chats still pads


def opening(
    candidates: Collection[Candidate], start: Candidate, tokens: NDArray[np.int64], *, seed: int
) -> list[Candidate]:
    """List the first candidates to try, least padding first: like `start` but for how they batch.

    candidates: the legal ones; only these are listed. tokens: of each row, shape (N,).
    """
    order = np.random.default_rng(seed).permutation(tokens)
    picked: dict[Candidate, float] = {}
    alike = [c for c in candidates if _apart_from_batching(c, start) == start]
    for batching in dict.fromkeys(c.batching for c in alike):
        choices = sorted((c for c in alike if c.batching == batching), key=lambda c: c.per_device_train_batch_size)
        padding = {c: padded_share(order, c) for c in choices}
        tight = [c for c in choices if padding[c] <= LITTLE_PADDING] or choices[:1]
        pair = [c for c in choices if c.per_device_train_batch_size >= 2] or choices
        for choice in (tight[-1], pair[0]):
            picked.setdefault(choice, padding[choice])
    return sorted(picked, key=lambda c: picked[c])


def padded_share(tokens: Sequence[int] | NDArray[np.int64], candidate: Candidate) -> float:
    """Share of an epoch's positions that is padding, about: batches as the samplers form them of `tokens` in order."""
    if candidate.packs or candidate.batching == "padding_free":
        return 0.0
    lengths = np.minimum(tokens, candidate.max_length)
    order, rows = deal(lengths, candidate)
    longest = np.maximum.reduceat(lengths[order], rows.cumsum() - rows)
    return 1 - float(lengths[order].sum()) / float(rows @ longest)


def _apart_from_batching(candidate: Candidate, start: Candidate) -> Candidate:
    return replace(
        candidate,
        batching=start.batching,
        packed_length=start.packed_length,
        max_length=start.max_length if candidate.packs else candidate.max_length,  # packing cuts at the row
        per_device_train_batch_size=start.per_device_train_batch_size,
        gradient_accumulation_steps=start.gradient_accumulation_steps,
    )
