"""Levers: which knobs would lower a peak, and how much at best; and the part of the peak that no batch changes.

A law (law.py) knows what each owner holds at each moment. A knob that frees one owner's memory is tried by taking that
memory away from the law, without another trace. The result is a lower bound of the new peak, for two reasons: what the
knob puts in the place of that memory is left out (except the tile of a fused head), and the law has dropped moments
that may then be the worst. An estimate with that knob is the true answer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.memory.law import Floats, MemoryLaw
from autotune.core.step.profile import MONOMIALS, Phase
from autotune.core.step.regime import TILE

TILE_TOKENS = 32768  # tokens of the vocabulary in a tile: _CHUNKED_LOGPROB_CHUNK_SIZE of trl 1.16's trainer/utils.py
WORTH = 0.02  # share of the peak; a lever that lowers it by less is not named


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """A change of a knob, as words of the command line, and a lower bound of the peak with it."""

    words: str
    least_bytes: int


def fixed_bytes(law: MemoryLaw, batch: Batch) -> int:
    """Bytes of the peak that do not depend on the micro-batch."""
    values = np.array(batch.monomials, dtype=np.float64)
    worst = int(law.live(values[None])[0].argmax())
    return round(float(law.coefficients[worst, :, MONOMIALS.index("1")].sum()))


def levers(law: MemoryLaw, batch: Batch, candidate: Candidate, *, full_logits: bool) -> tuple[Lever, ...]:
    """List the changes that may lower the peak by WORTH or more, the strongest first."""
    held = law.coefficients @ np.array(batch.monomials, dtype=np.float64)
    peak = held.sum(axis=1).max()
    found = [
        Lever(words=words, least_bytes=round(float(least)))
        for words, least in _tried(law, held, batch, candidate, full_logits)
        if least <= (1 - WORTH) * peak
    ]
    return tuple(sorted(found, key=lambda lever: lever.least_bytes))


def _tried(
    law: MemoryLaw, held: Floats, batch: Batch, candidate: Candidate, full_logits: bool
) -> Iterator[tuple[str, float]]:
    """Yield the words of each change and the peak that is left. held: bytes at each moment by owner, shape (R, O)."""

    def left(shares: Mapping[str, float], phase: Phase | None = None) -> float:
        """The peak if the memory of some owners shrinks to these shares. phase: where it shrinks; None: in all."""
        factors = np.array([shares.get(owner, 1.0) for owner in law.owners])
        here = np.array([phase in (None, each) for each in law.phases])
        return float(np.where(here[:, None], held * factors, held).sum(axis=1).max())

    adamw = candidate.optimizer in ("adamw_torch", "adamw_torch_fused")
    if full_logits:
        whole = held[:, law.owners.index("logits and loss")].max()
        tile = min(batch.labels, TILE) * TILE_TOKENS * (4 if candidate.weights_dtype == "float32" else 2)
        yield "loss=fused", left({"logits and loss": min(1.0, tile / whole)})
    if candidate.checkpointing != "full":
        yield "candidate.checkpointing=full", left({"activations": 0.0})
    if candidate.optimizer == "adamw_torch":  # adamw_torch (foreach) copies the parameters
        yield "candidate.optimizer=adamw_torch_fused", left({"workspace": 0.0}, "optimizer")
    if candidate.method == "full" and adamw:  # 8-bit states take one byte per parameter instead
        bytes_each = 4 if candidate.weights_dtype == "float32" else 2
        yield "candidate.optimizer=adamw_8bit", left({"optimizer states": 1 / bytes_each})
    if candidate.method == "lora" and candidate.weights_dtype == "float32":
        halved = dict.fromkeys(("weights", "activations", "logits and loss", "workspace"), 0.5)
        yield (
            "candidate.weights_dtype=bfloat16",
            left({**halved, "weight copies": 0.0}),
        )  # activations and logits are bf16, too
    if (rows := batch.rows // 2) and candidate.per_device_train_batch_size == batch.rows:
        half = replace(batch, rows=rows, labels=batch.labels * rows // batch.rows)
        words = f"candidate.per_device_train_batch_size={rows}"
        yield words, float(law.live(np.array([half.monomials], dtype=np.float64)).max())
