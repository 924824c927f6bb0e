"""Common steps: what the time of many candidates is put together from, so that few kinds of steps are traced.

A micro-step does not depend on the optimizer, nor the end of a step on what its micro-steps recompute; where some of
alike layers are recomputed, a micro-step is between those that recompute none and all; and a step of two micro-steps
has the first one of any (law.py counts how many follow it). Leaves out tracing.
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
Step = tuple[Candidate, Batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonSteps:
    """Steps that a candidate has something in common with.

    micro_steps: whose micro-steps its own are a mixture of. shares: of each, adding up to 1. end: whose end is its own.
    """

    micro_steps: tuple[Step, ...]
    shares: tuple[float, ...]
    end: Step

    @property
    def steps(self) -> tuple[Step, ...]:
        """All of them, the end's last."""
        return (*self.micro_steps, self.end)

    def law(self, laws: Sequence[TimeLaw]) -> TimeLaw:
        """The candidate's law out of those of `steps`."""
        *micro_steps, end = laws
        mixed = micro_steps[0] if len(micro_steps) == 1 else mixture(micro_steps, self.shares)
        return replace(mixed, step_end=end.step_end)


def common_steps(candidate: Candidate, batch: Batch, config: Mapping[str, Any], facts: ModelFacts) -> CommonSteps:
    """Those of a candidate whose micro-batches are like `batch`. config, facts: of the model."""
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
    """Whether a model's layers are all of one kind."""
    if facts.window is not None or facts.is_mixture_of_experts:
        return False
    values = (config.get("text_config") or config).values()
    by_layer = [value for value in values if isinstance(value, list) and len(value) == facts.layers]
    return all(each == value[0] for value in by_layer for each in value)


def mixture(laws: Sequence[TimeLaw], shares: Sequence[float]) -> TimeLaw:
    """The law whose micro-steps are the laws' by their shares; its end is the first one's."""
    rows: dict[OperatorGroup, float] = defaultdict(float)
    operators: dict[What, float] = defaultdict(float)
    for law, share in zip(laws, shares, strict=True):
        for row in law.micro_step:
            rows[replace(row, count=0.0)] += share * row.count
        for what, count in law.operators.items():
            operators[what] += share * count
    micro_step = tuple(replace(row, count=count) for row, count in rows.items())
    return TimeLaw(micro_step=micro_step, step_end=laws[0].step_end, operators=operators)
