"""Common steps: steps that many candidates share, so that few kinds of steps need a trace.

The law of a candidate's time is put together from the laws of such steps:

- The optimizer does not affect a micro-step, so one optimizer stands for all.
- Recomputation does not affect the end of a step.
- If some of several identical layers are recomputed, a micro-step lies between those that recompute none and all, and
  its work is interpolated.
- A step of two micro-steps has a first one and a later one. law.py counts how many later ones a step has.

Leaves out tracing.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.hardware import What
from autotune.core.knobs import Optimizer
from autotune.core.step.regime import TILE
from autotune.core.time.law import OperatorGroup, TimeLaw
from autotune.core.workload import ModelFacts

USUAL_OPTIMIZER: Optimizer = "adamw_torch_fused"
CommonStep = tuple[Candidate, Batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonSteps:
    """The steps that make up a candidate's step.

    micro_steps: steps whose micro-steps are mixed. shares: how much each of them counts; they add up to 1. end: the
    step that ends like the candidate's.
    """

    micro_steps: tuple[CommonStep, ...]
    shares: tuple[float, ...]
    end: CommonStep

    @property
    def steps(self) -> tuple[CommonStep, ...]:
        """All of the steps, `end` last."""
        return (*self.micro_steps, self.end)

    def law(self, laws: Sequence[TimeLaw]) -> TimeLaw:
        """Put the candidate's law together. laws: of `steps`, in their order."""
        *micro_steps, end = laws
        mixed = micro_steps[0] if len(micro_steps) == 1 else mixture(micro_steps, self.shares)
        return replace(mixed, step_end=end.step_end)


def common_steps(candidate: Candidate, batch: Batch, config: Mapping[str, Any], facts: ModelFacts) -> CommonSteps:
    """Choose the steps that make up a candidate's step.

    batch: its typical micro-batch, with the labels that the loss scores. config, facts: of the model.
    """
    usual = replace(
        candidate,
        optimizer=USUAL_OPTIMIZER,
        gradient_accumulation_steps=max(2, candidate.gradient_accumulation_steps),
    )
    off = replace(usual, checkpointing="off", every_n_layers=1)
    micro_steps: tuple[Candidate, ...] = (usual,)
    shares: tuple[float, ...] = (1.0,)
    if candidate.checkpointing == "every_n" and _are_alike(config, facts):
        recomputed = math.ceil(facts.layers / candidate.every_n_layers) / facts.layers
        micro_steps, shares = (off, replace(off, checkpointing="full")), (1 - recomputed, recomputed)
    end = (micro_steps[0], batch)
    if candidate.optimizer != USUAL_OPTIMIZER:
        plain = replace(
            off,
            optimizer=candidate.optimizer,
            activation_offloading=False,
            batching="random",
            packed_length=None,
            per_device_train_batch_size=1,
        )
        end = (plain, Batch(rows=1, positions=batch.positions, labels=min(batch.labels, TILE)))
    return CommonSteps(micro_steps=tuple((each, batch) for each in micro_steps), shares=shares, end=end)


def _are_alike(config: Mapping[str, Any], facts: ModelFacts) -> bool:
    """Whether the model's layers are identical."""
    if facts.window is not None or facts.is_mixture_of_experts:
        return False
    values = (config.get("text_config") or config).values()
    by_layer = [value for value in values if isinstance(value, list) and len(value) == facts.layers]
    return all(each == value[0] for value in by_layer for each in value)


def mixture(laws: Sequence[TimeLaw], shares: Sequence[float]) -> TimeLaw:
    """Mix the micro-steps of laws by their shares. The end is the first law's."""
    counts: dict[OperatorGroup, float] = defaultdict(float)
    operators: dict[What, float] = defaultdict(float)
    for law, share in zip(laws, shares, strict=True):
        for group, count in law.micro_step.items():
            counts[group] += share * count
        for what, count in law.operators.items():
            operators[what] += share * count
    return TimeLaw(micro_step=counts, step_end=laws[0].step_end, operators=operators)
