"""What is predicted: the training of one model, on one dataset, by one recipe, on one machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autotune.core.batches.batches import Batch, is_masked
from autotune.core.candidate import Candidate
from autotune.core.hardware import Hardware
from autotune.core.lengths import Lengths
from autotune.core.recipe import Recipe
from autotune.core.workload import ModelFacts
from autotune.trace.request import Loss, TraceRequest, request_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Training:
    """All that the predictions of a candidate depend on, beside the candidate.

    config, facts: of the model, as models/find.py gives them. lengths: of the dataset's rows; None where there is no
    dataset, and every row is as long as the candidate allows. seed: of the order in which rows are drawn.
    """

    config: Mapping[str, Any]
    facts: ModelFacts
    lengths: Lengths | None
    recipe: Recipe
    loss: Loss
    hardware: Hardware
    seed: int

    def request(self, candidate: Candidate, batch: Batch) -> TraceRequest:
        """What to trace for a candidate's micro-batch. batch: with the labels that the loss scores."""
        return request_of(
            batch,
            candidate,
            config=self.config,
            recipe=self.recipe,
            window=self.facts.window,
            masked=is_masked(candidate, self.lengths),
            loss=self.loss,
            capability=self.hardware.compute_capability,
        )

    @property
    def scores_all(self) -> bool:
        """Whether the loss scores every position, and not the labels alone.

        TRL's fused head scores the labels alone where Triton runs, and every position on a CPU. Full logits exist
        for every position.
        """
        return self.hardware.kind == "cpu" or self.loss != "fused"
