"""What decides a profile. Importing it is cheap: what traces is imported elsewhere (tracer.py)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from autotune.core.candidate import Candidate
from autotune.core.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """What decides a profile.

    config: the model's config.json. masked: whether rows are padded, so that attention needs a mask.
    tiled, ragged, beyond_window: the regime of the micro-batch (core/step/regime.py).
    capability: compute capability of the CUDA device, which decides between kernels; None for a CPU.
    loss: TRL's fused head, or a plain `model(labels=...)` step that keeps the logits, as other trainers do.
    """

    config: Mapping[str, Any]
    candidate: Candidate
    recipe: Recipe
    masked: bool
    tiled: bool = False
    ragged: bool = False
    beyond_window: bool = False
    capability: tuple[int, int] | None = None
    loss: Literal["fused", "full_logits"] = "fused"
