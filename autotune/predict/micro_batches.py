"""The micro-batches that candidates make of a dataset, as the loss on this device sees them.

Each way of batching is dealt out once. Leaves out the arithmetic of dealing (core/batches/batches.py) and what a
micro-batch costs.
"""

from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from autotune.core.batches.batches import Batch, Epoch, full_batch, is_masked, simulate_epoch, worst_batch
from autotune.core.candidate import Candidate
from autotune.core.knobs import knobs_that_change
from autotune.core.step.regime import Regime, regime_of
from autotune.predict.training import Training

BATCHED_BY = attrgetter(*knobs_that_change("batches"))  # what decides the micro-batches
DRAWN_STEPS = 16  # optimizer steps of the dataset that the allocator is replayed over, before the worst batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What decides, beside a candidate's knobs, which operators a step runs.

    One law holds for all micro-batches of a case. masked: whether attention needs a mask for padding. packing: the way
    of packing, None without one.
    """

    regime: Regime
    masked: bool
    packing: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DealtEpoch:
    """An epoch of a dataset, dealt out to micro-batches.

    epoch: with the labels that the loss scores. useful_tokens: labels of the dataset in it. middle: its micro-batch of
    the median size. case: of `middle`.
    """

    epoch: Epoch
    useful_tokens: int
    middle: Batch
    case: Case


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatches:
    """The micro-batches of one training's candidates."""

    training: Training
    _dealt: dict[tuple[Any, ...], DealtEpoch] = field(default_factory=dict, init=False, repr=False)

    def worst(self, candidate: Candidate) -> Batch:
        """The micro-batch that takes the most memory."""
        lengths = self.training.lengths
        if lengths is None:
            return self._scored(full_batch(candidate))
        worst = [worst_batch(candidate, lengths)]
        if candidate.batching == "batch_rebalance" and (dealt := self.epoch(candidate)) is not None:
            worst.append(dealt.epoch.largest)  # many short rows may take more room than a few long ones
        largest = max(worst, key=lambda batch: batch.rows * batch.positions)
        return self._scored(replace(largest, labels=max(batch.labels for batch in worst)))

    def epoch(self, candidate: Candidate) -> DealtEpoch | None:
        """Deal out an epoch; None where there is no dataset."""
        lengths, seed = self.training.lengths, self.training.seed
        if lengths is None:
            return None
        if (key := BATCHED_BY(candidate)) not in self._dealt:
            epoch = simulate_epoch(candidate, lengths, seed=seed)
            useful_tokens = int(epoch.labels.sum())
            if self.training.scores_all:
                epoch = replace(epoch, labels=epoch.rows * (epoch.positions - 1))
            self._dealt[key] = DealtEpoch(
                epoch=epoch, useful_tokens=useful_tokens, middle=epoch.middle, case=self.case(candidate, epoch.middle)
            )
        return self._dealt[key]

    def drawn_steps(self, candidate: Candidate, *, micro_steps: int) -> list[list[Batch]]:
        """Optimizer steps for a replay through the allocator.

        There are DRAWN_STEPS in the sampler's order, then two of the worst batch. micro_steps: micro-batches of a step.
        """
        dealt, worst = self.epoch(candidate), self.worst(candidate)
        drawn = [] if dealt is None else dealt.epoch.batches(DRAWN_STEPS * micro_steps)
        steps = [drawn[i : i + micro_steps] for i in range(0, len(drawn) - micro_steps + 1, micro_steps)]
        return [*steps, [worst] * micro_steps, [worst] * micro_steps]

    def case(self, candidate: Candidate, batch: Batch) -> Case:
        """The case of a candidate's micro-batch."""
        return Case(
            regime=regime_of(batch.rows, batch.positions, self.training.facts.window, labels=batch.labels),
            masked=is_masked(candidate, self.training.lengths),
            packing=candidate.batching if candidate.packs else None,
        )

    def _scored(self, batch: Batch) -> Batch:
        """The batch with the labels that the loss scores."""
        return replace(batch, labels=batch.rows * (batch.positions - 1)) if self.training.scores_all else batch
