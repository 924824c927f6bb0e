"""What to trace: the request that decides a profile, reduced to what a trace depends on, and its name in words.

Importing this module is cheap: what traces is imported elsewhere (tracer.py). Leaves out where profiles are kept
(profiles.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from autotune.core.batches.batches import Batch
from autotune.core.candidate import Candidate
from autotune.core.gpu_spec import CUDNN_WIDTHS, LITTLE_SHARED_MEMORY
from autotune.core.knobs import DEFAULTS, KNOBS, knobs_that_change
from autotune.core.recipe import Recipe
from autotune.core.step.regime import keeps_documents_apart, regime_of

Loss = Literal["fused", "full_logits"]

LENGTH = 1024  # tokens: stands for every length, because a trace does not depend on it
TRACED_KNOBS = knobs_that_change("trace")  # besides the number of rows and of micro-steps
NAMED_FIRST = ("method", "checkpointing", "optimizer", "weights_dtype")  # in every description of a step
# GPUs of one of these kinds run the same attention kernels (attention_kernels.py): those without flash attention, with
# flash attention in little shared memory, and with it in full. Each kind is traced as this capability. Where cuDNN's
# kernels are preferred, the kind is (9, 0) or (10, 0).
NO_FLASH, LITTLE_SHARED, PLAIN = (7, 5), (8, 6), (8, 0)
ADAPTERS = ("lora_rank", "lora_target_modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """What decides a profile. It can be the key of a dict.

    config: the model's config.json. masked: whether rows are padded, so that attention needs a mask.
    tiled, ragged, beyond_window: the regime of the micro-batch (core/step/regime.py).
    capability: compute capability of the CUDA device, which decides between kernels; None for a CPU.
    loss: TRL's fused head, or a plain `model(labels=...)` step that keeps the logits, as other trainers do.
    """

    config: Mapping[str, Any] = field(hash=False)
    candidate: Candidate
    recipe: Recipe
    masked: bool
    tiled: bool = False
    ragged: bool = False
    beyond_window: bool = False
    capability: tuple[int, int] | None = None
    loss: Loss = "fused"


def request_of(
    batch: Batch,
    candidate: Candidate,
    *,
    config: Mapping[str, Any],
    recipe: Recipe,
    window: int | None,
    masked: bool,
    loss: Loss,
    capability: tuple[int, int] | None,
) -> TraceRequest:
    """Build the reduced request for a candidate's micro-batch.

    batch: with the labels that the loss scores. window: positions that the model's sliding window reaches back, None
    without one. The others are those of TraceRequest.
    """
    regime = regime_of(batch.rows, batch.positions, window, labels=batch.labels)
    return reduced(
        TraceRequest(
            config=config,
            candidate=replace(candidate, per_device_train_batch_size=batch.rows),
            recipe=recipe,
            masked=masked,
            tiled=regime.tiled,
            ragged=regime.ragged,
            beyond_window=regime.beyond_window,
            loss=loss,
            capability=capability,
        )
    )


def reduced(request: TraceRequest) -> TraceRequest:
    """Set all that a trace does not depend on to one value, so that requests with equal traces are equal.

    A trace depends on whether a micro-batch has one row or several, whether it is packed, and whether an optimizer step
    has one micro-step or several.
    """
    asked, recipe = request.candidate, request.recipe
    candidate = Candidate(
        max_length=LENGTH,
        packed_length=LENGTH if asked.packs else None,
        batching=asked.batching if asked.packs else "random",
        per_device_train_batch_size=min(asked.per_device_train_batch_size, 2),
        gradient_accumulation_steps=min(asked.gradient_accumulation_steps, 2),
        **{knob: getattr(asked, knob) for knob in TRACED_KNOBS},
    )
    kept = {name: getattr(recipe, name) for name in ADAPTERS} if asked.method != "full" else {}
    return replace(
        request,
        candidate=candidate,
        recipe=Recipe(
            method=asked.method,
            max_grad_norm=1.0 if recipe.max_grad_norm else 0.0,
            neftune_noise_alpha=1.0 if recipe.neftune_noise_alpha else None,
            lora_dropout=0.1 if kept and recipe.lora_dropout else 0.0,
            **kept,
        ),
        tiled=request.tiled and request.loss == "fused",
        ragged=request.ragged and request.capability is not None and _has_mask(request) and asked.attention == "sdpa",
        capability=None if request.capability is None else _kind(request.capability),
    )


def kind_in_words(request: TraceRequest) -> str:
    """Describe the step of a reduced request in words. What most steps have in common is left out."""
    knobs = request.candidate
    found = [
        f"{knobs.method}, checkpointing {knobs.checkpointing}, {knobs.optimizer}, {knobs.weights_dtype} weights",
        "packed" if knobs.packs else "one row" if knobs.per_device_train_batch_size == 1 else "several rows",
    ]
    if knobs.gradient_accumulation_steps > 1:
        found.append("accumulating")
    if request.masked:
        found.append("of unequal length")
    if request.beyond_window:
        found.append("beyond the sliding window")
    if request.loss == "full_logits":
        found.append("full logits")
    if request.tiled:
        found.append("more labels than a tile of the head")
    if request.ragged:
        found.append("masks that are padded")
    for knob in TRACED_KNOBS:
        value = getattr(knobs, knob)
        if knob not in NAMED_FIRST and value != DEFAULTS[knob]:
            found.append(KNOBS[knob].short.format(value) or f"{knob.replace('_', ' ')} {value}")
    return ", ".join(found)


def _has_mask(request: TraceRequest) -> bool:
    return request.masked or request.beyond_window or keeps_documents_apart(request.candidate)


def _kind(capability: tuple[int, int]) -> tuple[int, int]:
    """The capability that GPUs of this one's kind are traced as."""
    if capability < PLAIN:
        return NO_FLASH
    if capability[0] in CUDNN_WIDTHS:
        return capability[0], 0
    return LITTLE_SHARED if capability in LITTLE_SHARED_MEMORY else PLAIN
